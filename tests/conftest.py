"""One tiny real training for all tests: three phantom hospitals, three arms, published once. Copy before damaging."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from engine.cli import main
from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.phantoms import write_phantoms
from engine.results.run_folder import Run
from engine.sections import ViewsConfig

PROJECT = Path(__file__).resolve().parent.parent
collect_ignore = [] if find_spec("flwr") else ["test_flower_link.py"]
TINY = (
    "model.architecture='compact-cnn'",
    "model.image_size_px=32",
    "training.rounds=3",
    "training.batch_size=8",
)
TINY_COUNTS = {
    "hospital-a": {"glioma": 14, "meningioma": 14, "notumor": 14, "pituitary": 14},
    "hospital-b": {"glioma": 12, "meningioma": 18, "notumor": 12, "pituitary": 12},
    "hospital-c": {"glioma": 14, "meningioma": 12, "pituitary": 16},
}


def mixed(*settings: str) -> Federation:
    """The tiny phantoms without labels: rotation at hospital-a, SimCLR at the others."""
    given = ("pretext.objective='simclr'", "pretext.projection=16", "training.batch_size=16", *settings)
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", [*TINY, *given])
    first, *others = federation.hospital
    with_rotation = first.model_copy(update={"objective": "rotation", "views": ViewsConfig(crop=0.6)})
    return Federation.model_validate(federation.model_copy(update={"hospital": (with_rotation, *others)}).model_dump())


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line of a command that a person can mend."""
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0].removeprefix("error: ")

    @property
    def success(self) -> str:
        """What a command that went well printed on stdout."""
        assert self.code == 0, (self.code, self.err)
        assert "error:" not in self.err
        return self.out


Command = Callable[..., Outcome]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run one command in this process, in an empty folder, on a wide terminal's width."""
    for name in ("CONSILIUM_DATA", "CONSILIUM_MODELS", "CONSILIUM_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["python -m engine", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of the tests stay among the tests."""
    os.environ["CONSILIUM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A training flushes denormal numbers for its whole process; hypothesis needs them again."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of small phantoms. Read only."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, seed=3, size_px=64, images_per_hospital=TINY_COUNTS)
    return root


@pytest.fixture(scope="session")
def tiny_federation() -> Federation:
    return load_federation(PROJECT / "federations" / "phantoms.toml", TINY)


@pytest.fixture(scope="session")
def tiny_data(tiny_federation: Federation, phantom_root: Path) -> FederationData:
    return read_federation_data(tiny_federation, phantom_root)


@pytest.fixture(scope="session")
def phantom_run(tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with one finished run, run-001. Read only."""
    from engine.federation.training_run import start_run, train_run

    artifacts = tmp_path_factory.mktemp("artifacts")
    train_run(start_run(tiny_data, "federations/phantoms.toml", artifacts), tiny_data)
    return artifacts


@pytest.fixture(scope="session")
def ssl_data(tiny_data: FederationData) -> FederationData:
    return dataclasses.replace(tiny_data, federation=mixed("training.keep_rounds=true"))


@pytest.fixture(scope="session")
def ssl_run(ssl_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All three arms without labels, finished. Read only."""
    from engine.federation.training_run import start_run, train_run

    artifacts = tmp_path_factory.mktemp("ssl")
    return train_run(start_run(ssl_data, "federations/phantoms.toml", artifacts), ssl_data)


@pytest.fixture(scope="session")
def ssl_probes(ssl_run: Run, ssl_data: FederationData) -> list[dict[str, Any]]:
    """What `probe` writes of `ssl_run`, for a tenth of the labels and for all."""
    from engine.federation.probe import probe_run

    return probe_run(ssl_run, ssl_data, [0.1, 1.0], finetune=False)


@pytest.fixture(scope="session")
def copy_run(phantom_run: Path) -> Callable[[Path], Path]:
    """Copies run-001 to another run folder, which then answers to its new name; its audit log is of run-001."""

    def copy(target: Path) -> Path:
        shutil.copytree(phantom_run / "run-001", target)
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        manifest |= {"run": target.name, "audit_log": None}
        (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        (target / "audit-log.jsonl").unlink()
        return target

    return copy


@pytest.fixture(scope="session")
def phantom_version(phantom_run: Path, tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with phantoms v1, published from `phantom_run`. Read only."""
    from engine.publishing.publish import publish_run
    from engine.results.run_folder import find_run

    models = tmp_path_factory.mktemp("models")
    publish_run(find_run(phantom_run, "run-001"), "phantoms", tiny_data, models)
    return models


@pytest.fixture
def open_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., AppTest]:
    """Opens one view of Evaluation on an artifacts folder, with no published model."""

    def open_view(view: str, artifacts: Path, **query: str) -> AppTest:
        monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(artifacts))
        monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "models"))
        monkeypatch.chdir(PROJECT)
        app = AppTest.from_file(str(PROJECT / "app.py"), default_timeout=60).switch_page("pages/3_Evaluation.py")
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        app.segmented_control(key="evaluation_view").set_value(view).run()
        assert not app.exception
        return app

    return open_view
