"""Runs of other systems: read from files that their own code wrote, refused where no figure can be meant."""

import io
import json
import re
import shutil
from collections.abc import Iterable
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from engine.errors import RunError
from engine.results import imported as reader
from engine.results.imported import Imported, import_run, read_result
from tests.conftest import PROJECT, Command
from ui.imported import cross_site_table, curves_figure, last_figures

ROUNDS = 3


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A FedAvg of Flower's over three nodes that answer in this process: its `Result` as JSON, and its log.

    The JSON is written by the very lines that docs/bridges.md gives.
    """
    pytest.importorskip("flwr.serverapp", reason="needs flwr; see requirements-flower.txt")
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

    class Nodes(Grid):  # type: ignore[misc]
        def set_run(self, run_id: int) -> None: ...

        @property
        def run(self) -> Any: ...

        def create_message(self, *_: Any, **__: Any) -> Any: ...

        def get_node_ids(self) -> list[int]:
            return [1, 2, 3]

        def push_messages(self, messages: Any) -> Any: ...

        def pull_messages(self, message_ids: Any) -> Any: ...

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            return [self._answer(message) for message in messages]

        def _answer(self, message: Any) -> Any:
            node, number = message.metadata.dst_node_id, message.content["config"]["server-round"]
            figures = MetricRecord({"loss": 1 / (number + node), "num-examples": 10 * node})
            content = RecordDict({"metrics": figures})
            if message.metadata.message_type == "train":
                content["arrays"] = message.content["arrays"]
            return Message(content, reply_to=message)

    def on_server(number: int, _: Any) -> Any:
        return MetricRecord({"accuracy": 0.1 * number, "by-class": [0.1, 0.2]})

    with pytest.MonkeyPatch.context() as patch, flower_log() as log:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        start = ArrayRecord([np.zeros((2, 3), np.float32)])
        result = FedAvg().start(Nodes(), start, num_rounds=ROUNDS, evaluate_fn=on_server)
        patch.chdir(tmp_path_factory.mktemp("flower"))
        text = (PROJECT / "docs" / "bridges.md").read_text(encoding="utf-8")
        lines = re.search(r"```python\nresult = strategy\.start\(.*\n((?:.*\n)*?)```", text)
        assert lines is not None
        exec(lines[1], {"result": result, "json": json, "Path": Path})
        written = Path("result.json").read_text(encoding="utf-8")
    return written, log.getvalue()


class flower_log:  # noqa: N801  # stands in a with statement
    """What Flower's console handler prints meanwhile, colours and all."""

    def __enter__(self) -> io.StringIO:
        from flwr.supercore.logger import FLOWER_LOGGER, ConsoleHandler

        stream = io.StringIO()
        self.logger, self.handler = FLOWER_LOGGER, ConsoleHandler(stream=stream)
        self.logger.addHandler(self.handler)
        return stream

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self.handler)


@singledispatch
def to_serializable(value: Any) -> Any:
    """As nvflare/app_common/widgets/validation_json_generator.py has it (2.9.0)."""
    return str(value)


@to_serializable.register(np.float32)
def _(value: np.float32) -> float:
    return np.float64(value)


def nvflare(folder: Path, **more: Any) -> Path:
    """cross_val_results.json as that file's `handle_event` writes it at the end of a run. Its own widget (2.9.0,
    driven by its events in an environment of its own) wrote the same bytes from the same figures."""
    scores = {
        site: {
            model: {"val_accuracy": 0.5 + 0.1 * n + 0.01 * m, "val_loss": np.float32(0.25), "n": np.int64(40), **more}
            for m, model in enumerate(("site-1", "SRV_FL_global_model.pt", "site-2"))
        }
        for n, site in enumerate(("site-1", "site-2"))
    }
    file = folder / "cross_val_results.json"
    with file.open("w") as stream:
        json.dump(scores, stream, default=to_serializable)
    return file


def write(folder: Path, text: str, name: str = "result.json") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_a_flower_result_as_json(flower: tuple[str, str], tmp_path: Path) -> None:
    read = read_result(write(tmp_path, flower[0]))
    weighted = [sum(10 * node / (number + node) for node in (1, 2, 3)) / 60 for number in (1, 2, 3)]
    assert read.form == "Flower's Result, as JSON"
    for where in ("train", "evaluate"):
        assert [number for number, _ in read.curves[where]["loss"]] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in read.curves[where]["loss"]], weighted)
    assert read.curves["server"] == {"accuracy": tuple((number, 0.1 * number) for number in range(ROUNDS + 1))}
    assert read.left_out == tuple(f"server, by-class, round {number}" for number in range(ROUNDS + 1))
    assert read.rounds == ROUNDS


def test_the_log_says_the_same_to_five_digits(flower: tuple[str, str], tmp_path: Path) -> None:
    exact = read_result(write(tmp_path, flower[0]))
    read = read_result(write(tmp_path, f"somebody's own line\n{flower[1]}and another\n", "console.log"))
    assert read.form == "Flower's Result, from a log"
    assert {where: set(metrics) for where, metrics in read.curves.items()} == {
        where: set(metrics) for where, metrics in exact.curves.items()
    }
    for where, metrics in exact.curves.items():
        for metric, points in metrics.items():
            np.testing.assert_allclose(read.curves[where][metric], points, rtol=1e-4)
    assert set(read.left_out) == set(exact.left_out)


def test_a_history_as_json_and_at_the_end_of_its_log(tmp_path: Path) -> None:
    history_module = pytest.importorskip("flwr.server.history", reason="needs flwr; see requirements-flower.txt")
    from flwr.server import ServerConfig
    from flwr.server.server import run_fl

    history = history_module.History()
    for number in (1, 2):
        history.add_loss_distributed(number, 1 / number)
        history.add_metrics_distributed_fit(number, {"a metric with a long name": 0.125 * number})
        history.add_metrics_distributed(number, {"accuracy": 0.25 * number, "note": "text"})
    history.add_loss_centralized(0, 2.5)

    class Server:
        def fit(self, **_: Any) -> Any:
            return history, 1.5

        def disconnect_all_clients(self, **_: Any) -> None: ...

    with flower_log() as log:
        run_fl(Server(), ServerConfig(num_rounds=2))
    expected = {
        "evaluate": {"loss": ((1, 1.0), (2, 0.5)), "accuracy": ((1, 0.25), (2, 0.5))},
        "server": {"loss": ((0, 2.5),)},
        "train": {"a metric with a long name": ((1, 0.125), (2, 0.25))},
    }
    for name, text in {"h.json": json.dumps(vars(history)), "h.log": log.getvalue()}.items():
        read = read_result(write(tmp_path, text, name))
        assert read.curves == expected, name
        assert read.left_out == ("evaluate, note, round 1", "evaluate, note, round 2")
        assert read.form.startswith("Flower's History")


def test_an_nvflare_cross_site_validation(tmp_path: Path) -> None:
    read = read_result(nvflare(tmp_path, note="fine"))
    assert (read.system, read.rounds, read.curves) == ("NVFlare", 0, {})
    assert read.cross_site["site-2"]["SRV_FL_global_model.pt"] == {"val_accuracy": 0.61, "val_loss": 0.25, "n": 40.0}
    assert len(read.left_out) == 6
    assert read.left_out[0] == "site-1, site-1, note"
    table = cross_site_table(read, "val_accuracy")
    assert list(table.columns) == ["Model", "on site-1", "on site-2"]
    assert list(table["Model"]) == ["SRV_FL_global_model.pt", "site-1", "site-2"]  # the server's first
    assert list(table["on site-2"]) == ["0.61", "0.6", "0.62"]
    partly = read.model_copy(update={"cross_site": {"site-1": {"site-1": {"auc": 0.5}}, "site-2": {"site-1": {}}}})
    assert cross_site_table(partly, "auc").to_numpy().tolist() == [["site-1", "0.5", "\u2013"]]


LOG = "INFO :      Final results:\nINFO :      \tAggregated ClientApp-side Train Metrics:\nINFO :      \t"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is neither JSON nor a log that ends in Flower's result"),
        ("INFO :      [ROUND 1/3]\n", "a training that was stopped has none"),
        ("{", "is no JSON"),
        ("[1, 2]", "is neither a Flower result nor NVFlare's"),
        ("{}", "without a single figure"),
        ('{"site-1": {}}', "without a single figure"),
        ('{"site-1": 3}', "'site-1' holds no models"),
        ('{"site-1": {"m": 3}}', "site-1, m: 3 stands where an object belongs"),
        ('{"site-1": {"m": {"a": NaN}}}', "holds NaN, which is no figure"),
        ('{"site-1": {"m": {"a": "nan"}}}', "site-1, m, a is 'nan', which is no figure"),
        ('{"site-1": {"m": {"a": 1e999}}}', "is inf, which is no figure"),
        ('{"site-1": {"m": {"a": 1' + "0" * 400 + "}}}", "which is no figure"),
        ('{"site-1": {"m": {"a\\u202eb": 1}}}', "is no name"),
        (json.dumps({"s" * 121: {}}), "is no name"),
        ("[" * 200_000, "is nested too deeply"),
        ('{"a":' * 200_000, "is nested too deeply"),
        ('{"train_metrics_clientapp": [1]}', "train_metrics_clientapp: [1] stands where an object belongs"),
        ('{"train_metrics_clientapp": {"1": "{}"}}', "train_metrics_clientapp, round 1: '{}' stands where"),
        ('{"train_metrics_clientapp": {"one": {"a": 1}}}', "'one' is no number of a round"),
        ('{"train_metrics_clientapp": {"1": {"a": 1}, "01": {"a": 2}}}', "stands twice with two values"),
        ('{"losses_distributed": {"1": 2}}', "losses_distributed: holds no list of (round, value)"),
        ('{"losses_distributed": [[1]]}', "losses_distributed: holds no list of (round, value)"),
        ('{"losses_distributed": [[true, 1]]}', "'True' is no number of a round"),
        (LOG + "{1: {'a': '1.0'}", "the log is cut or mixed with another"),
        (LOG + "__import__('os').abort()\n", "the log is cut or mixed with another"),
        (LOG + "(" * 50_000 + "\n", "the log is cut or mixed with another"),
        (LOG + "{1: {'a': 'nan'}}\n", "train, a, round 1 is 'nan', which is no figure"),
        (LOG + "{1: 2}\n", "train_metrics_clientapp, round 1: 2 stands where an object belongs"),
        (LOG + "{}\n" + LOG + "{}\n", "is the log of 2 trainings"),
        (LOG + "{[1]: 2}\n", "the log is cut or mixed with another"),
        (LOG + "{1: {'a': 0x" + "f" * 5000 + "}}\n", "is something too long to write, which is no figure"),
        (LOG + "{0x" + "f" * 5000 + ": {'a': 1}}\n", "is no number of a round"),
        (LOG + "{1: {'a': nan}}\n", "holds nan or inf"),
        ("INFO :      Final results:\n", "its log ends before the result"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as refused:
        import_run(write(tmp_path, text), tmp_path / "artifacts")
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "result.json"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))
    assert not (tmp_path / "artifacts").exists()


def test_what_is_too_large_or_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = nvflare(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="more than 5 are not taken"):
        patch.setattr(reader, "MAX_FIGURES", 5)
        read_result(file)
    monkeypatch.setattr(reader, "MAX_BYTES", 100)
    with pytest.raises(RunError, match="is larger than"):
        read_result(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="is not UTF-8 text"):
        read_result(file)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RunError, match="give a file of Flower's or NVFlare's"):
            read_result(missing)


def test_the_command_makes_a_run_that_nothing_takes_for_a_trained_one(engine: Command, tmp_path: Path) -> None:
    artifacts = ("--artifacts", tmp_path / "artifacts")
    said = engine("import-run", nvflare(tmp_path), "--name", "Spleen, three sites", *artifacts)
    assert said.code == 0
    assert "Imported NVFlare's cross-site validation, as" in said.err
    listed = engine("runs", *artifacts).success
    assert "Spleen, three sites" in listed
    assert "imported" in listed
    folder = tmp_path / "artifacts" / "run-001"
    assert {path.name for path in folder.iterdir()} == {"imported.json", "manifest.json"}
    images = tmp_path / "images"
    images.mkdir()
    for command in (
        ("publish", "run-001", "spleen", "--models", tmp_path / "models"),
        ("evaluate", "run-001", "--images", images),
        ("export", "run-001", "--layout", "onnx", "--to", tmp_path / "out"),
        ("leakage", "run-001"),
    ):
        assert "was imported, so it has figures alone" in engine(*command, *artifacts).error, command
    assert "no audit log" in engine("audit-log", "verify", "run-001", *artifacts).error
    assert "'' is no name" in engine("import-run", nvflare(tmp_path), "--name", "", *artifacts).error
    assert not (tmp_path / "artifacts" / "run-002").exists()
    (folder / "imported.json").write_text('{"schema_version": 2}', encoding="utf-8")
    assert "damaged" in engine("runs", *artifacts).success


def test_a_disk_that_is_full_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("disk full")

    monkeypatch.setattr(reader, "write_json", full)
    with pytest.raises(RunError, match="disk full"):
        import_run(nvflare(tmp_path), tmp_path / "artifacts")
    assert not list((tmp_path / "artifacts").iterdir())


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifacts folder that the pages read."""
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(PROJECT)
    return tmp_path / "artifacts"


def open_page(page: str, run: str) -> AppTest:
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page(f"pages/{page}.py")
    app.query_params["run"] = run
    app = app.run()
    assert not app.exception
    assert not app.error
    assert "imported from" in app.main.markdown[1].value if page != "5_Runs" else True
    return app


def words(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.info, app.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def test_every_page_shows_a_cross_site_validation_and_says_what_is_not_there(pages: Path, tmp_path: Path) -> None:
    import_run(nvflare(tmp_path), pages)
    app = open_page("1_Hospitals", "run-001")
    assert "2 hospitals scored models" in words(app)
    assert "neither a map nor an audit" in words(app)
    assert "holds no rounds" in words(open_page("2_Training", "run-001"))
    app = open_page("3_Evaluation", "run-001")
    assert list(app.selectbox(key="imported_metric").options) == ["val_accuracy", "val_loss", "n"]
    assert app.dataframe[0].value.iloc[0].tolist() == ["SRV_FL_global_model.pt", "0.51", "0.61"]
    assert "do not compare with those of any other run" in words(app)
    app = open_page("5_Runs", "run-001")
    assert app.dataframe[0].value["State"].tolist() == ["imported"]
    assert app.dataframe[0].value["Started"].tolist() == ["\u2013"]
    assert "When it was trained" in words(app)
    assert app.dataframe[1].value["Value"].iloc[0] == "cross_val_results.json"


def test_every_page_shows_a_flower_result(flower: tuple[str, str], pages: Path, tmp_path: Path) -> None:
    run = import_run(write(tmp_path, flower[0], "three_nodes.json"), pages)
    assert run.manifest.federation == "three_nodes (Flower)"
    assert "names no hospital" in words(open_page("1_Hospitals", "run-001"))
    app = open_page("2_Training", "run-001")
    assert list(app.selectbox(key="imported_metric").options) == ["loss", "accuracy"]
    assert "do not compare" in words(app)
    app = open_page("3_Evaluation", "run-001")
    rows = app.dataframe[0].value.to_numpy().tolist()
    assert rows[1] == ["accuracy", "0.3", "Evaluated by the server", "3"]
    assert "4 values of the file left out" in words(open_page("5_Runs", "run-001"))


def test_beside_a_trained_run_it_is_neither_shown_first_nor_compared(pages: Path, phantom_run: Path) -> None:
    shutil.copytree(phantom_run / "run-001", pages / "run-001")
    import_run(nvflare(pages.parent), pages)
    app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page("pages/5_Runs.py").run()
    assert app.subheader[0].value == "run-001"
    app.segmented_control(key="run_view").set_value("compare").run()
    assert "no other run to put beside this one" in words(app)


def test_a_damaged_import_is_one_sentence(pages: Path, tmp_path: Path) -> None:
    run = import_run(nvflare(tmp_path), pages)
    text = (run.folder / "imported.json").read_text(encoding="utf-8")
    (run.folder / "imported.json").write_text(text.replace("site-2", "site-9"), encoding="utf-8")
    for page in ("1_Hospitals", "2_Training", "3_Evaluation", "5_Runs"):
        app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page(f"pages/{page}.py").run()
        assert not app.exception
        assert "is not as it was written" in app.error[0].value


def test_curves_hold_zero_and_every_round() -> None:
    figure = curves_figure({"server": [(0, 0.5), (40, 0.75)], "train": [(1, 0.25)]}, "a<b")
    assert [trace.name for trace in figure.data] == ["Evaluated by the server", "Training at hospitals, mean"]
    assert tuple(figure.layout.xaxis.range) == (-0.5, 40.5)
    assert figure.layout.yaxis.rangemode == "tozero"
    assert figure.layout.yaxis.title.text == "a&lt;b"


def test_the_last_round_of_each_metric_stands_in_the_table() -> None:
    imported = Imported(
        system="Flower", form="", file="", bytes=0, sha256="", imported_at="",
        curves={"train": {"loss": ((1, 0.5), (2, 0.25))}, "evaluate": {"loss": ((1, 0.75),)}},
    )  # fmt: skip
    assert last_figures(imported).to_numpy().tolist() == [
        ["loss", "0.75", "Evaluated by hospitals, mean", "1"],
        ["loss", "0.25", "Training at hospitals, mean", "2"],
    ]
