"""Sweeps: what a grid means, and that nothing is trained twice, whenever the process dies."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError, RunError
from engine.federation import frozen
from engine.federation.sweep import Job, Point, plan_sweep, run_sweep
from engine.results.run_folder import Progress, Run, list_runs
from engine.results.sweep_table import make_table
from engine.results.sweeps import setting_of, sweep_runs
from engine.sweep_grid import expand, parse_grid, parse_seeds
from tests.conftest import PROJECT, TINY, Command
from tests.test_training_run import Killed, weights_of

FILE = PROJECT / "federations" / "phantoms.toml"
SHORT = (*TINY, "training.rounds=2", "training.batch_size=32")
STRATEGIES = "aggregation.strategy=fedavg|fedprox,aggregation.mu=0.1|median"


def points(*grids: str, seeds: str = "0", given: Sequence[str] = ()) -> list[Point]:
    all_changes = [(*given, *chosen) for chosen in expand(grids, seeds)]
    return [Point(load_federation(FILE, [*SHORT, *changes]), changes) for changes in all_changes]


class Bench:
    """Runs sweeps in an artifacts folder, and counts how often images are read."""

    def __init__(self, artifacts: Path, root: Path) -> None:
        self.artifacts, self.root, self.n_reads = artifacts, root, 0
        self.jobs: list[Job] = []

    def read(self, federation: Federation) -> FederationData:
        self.n_reads += 1
        return read_federation_data(federation, self.root)

    def sweep(
        self, of: Sequence[Point], name: str = "s", on_training: Callable[[Progress], None] = lambda progress: None
    ) -> dict[str, str]:
        return run_sweep(
            name,
            of,
            federation_file="phantoms.toml",
            artifacts=self.artifacts,
            read=self.read,
            on_plan=lambda jobs: self.jobs.extend(jobs),
            on_training=on_training,
        )

    @property
    def runs(self) -> list[Run]:
        return sweep_runs(self.artifacts, "s")


@pytest.fixture
def bench(tmp_path: Path, phantom_root: Path) -> Bench:
    return Bench(tmp_path / "artifacts", phantom_root)


def test_a_grid_is_values_or_alternatives() -> None:
    assert parse_grid("training.rounds=5,10") == [("training.rounds=5",), ("training.rounds=10",)]
    assert parse_grid("a.b=fedavg|a.b=fedprox,a.mu=0.01|median") == [
        ("a.b=fedavg",),
        ("a.b=fedprox", "a.mu=0.01"),
        ("a.b=median",),
    ]
    assert parse_grid("a.b=x,c.d=y") == [("a.b=x", "c.d=y")]
    assert parse_grid("a.b='x,y|z',[1, 2]") == [("a.b='x,y|z'",), ("a.b=[1, 2]",)]


def test_grids_and_seeds_multiply() -> None:
    assert expand(["a.b=1,2", "c.d=x|y,e.f=z"], "0,7") == [
        ("a.b=1", "c.d=x", "training.seed=0"),
        ("a.b=1", "c.d=x", "training.seed=7"),
        ("a.b=1", "c.d=y", "e.f=z", "training.seed=0"),
        ("a.b=1", "c.d=y", "e.f=z", "training.seed=7"),
        ("a.b=2", "c.d=x", "training.seed=0"),
        ("a.b=2", "c.d=x", "training.seed=7"),
        ("a.b=2", "c.d=y", "e.f=z", "training.seed=0"),
        ("a.b=2", "c.d=y", "e.f=z", "training.seed=7"),
    ]
    assert expand([], "3") == [("training.seed=3",)]
    assert parse_seeds(" 2, 0") == [2, 0]


@pytest.mark.parametrize(
    ("grids", "seeds", "message"),
    [
        (["training.rounds="], "0", "a value is empty"),
        (["training.rounds=1,,2"], "0", "a value is empty"),
        ([""], "0", "write it as KEY="),
        (["=1"], "0", "write it as KEY="),
        (["training.rounds"], "0", "write it as KEY="),
        (["a.b=1,1"], "0", "'a.b=1' stands twice"),
        (["a.b=1|2,x"], "0", "'x' belongs to no key"),
        (["a.b=x,y,a.c=1"], "0", "'y' belongs to no key"),
        (["a.b=1", "c.d=1|2,a.b=3"], "0", "'a.b' is in --grid a.b=1 too"),
        (
            ["partition={method='iid'}|{method='dirichlet',alpha=1}", "partition.alpha=1,2"],
            "0",
            "--grid partition.alpha=1,2: 'partition.alpha' and 'partition' of --grid partition={method='iid'}|",
        ),
        (["a.b.c=1", "x.y=0|1,a.b={}"], "0", "'a.b' and 'a.b.c' of --grid a.b.c=1 set the same section"),
        (["training.seed=1,2"], "0", "seeds are given with --seeds"),
        (["arms=local"], "0", "arms are given with --arms"),
        ([], "", "'' is no whole number"),
        ([], "0,one", "'one' is no whole number"),
        ([], "-1", "'-1' is no whole number"),
        ([], "1,2,1", "1 stands twice"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grids: list[str], seeds: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        expand(grids, seeds)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_references_are_trained_once_per_seed_and_other_setting() -> None:
    jobs = plan_sweep(points(STRATEGIES, "training.rounds=2,3", seeds="0,1"), [])
    assert len(jobs) == 12
    for arm, n_runs in (("federated", 12), ("central", 4), ("local", 4)):
        assert sum(arm in job.federation.arms for job in jobs) == n_runs, arm
    limited = next(job for job in jobs if job.federation.arms == ("federated",))
    assert limited.changes[-1] == 'arms=["federated"]'
    assert load_federation(FILE, [*SHORT, *limited.changes]) == limited.federation


def test_compression_shares_references_too_and_other_settings_do_not() -> None:
    shared = plan_sweep(points("communication.compression=none,int8"), [])
    assert [job.federation.arms for job in shared] == [("federated", "local", "central"), ("federated",)]
    apart = plan_sweep(points("training.local_epochs=1,2"), [])
    assert [job.federation.arms for job in apart] == [("federated", "local", "central")] * 2
    alone = plan_sweep(points(STRATEGIES, given=['arms=["federated"]']), [])
    assert [job.federation.arms for job in alone] == [("federated",)] * 3


def test_keys_that_only_begin_alike_are_no_section() -> None:
    assert len(expand(["training.lr=1,2", "training.lr_decay=1,2"], "0")) == 4


def test_one_hospitals_setting_is_read_back_for_the_table() -> None:
    (point,) = points("hospital.hospital-a.labelled_fraction=0.5")
    assert setting_of(point.federation, "hospital.hospital-a.labelled_fraction") == "0.5"
    assert setting_of(point.federation, "hospital.hospital-b.labelled_fraction") == ""


def test_a_point_that_is_written_twice_is_trained_once() -> None:
    jobs = plan_sweep(points("aggregation.strategy=fedprox,aggregation.mu=0.1|fedprox,aggregation.mu=0.10|fedavg"), [])
    assert [job.federation.arms for job in jobs] == [("federated", "local", "central"), ("federated",)]


def test_a_sweep_is_trained_recorded_and_then_left_alone(bench: Bench) -> None:
    wanted = points(STRATEGIES, seeds="0,1")
    assert bench.sweep(wanted) == {}
    assert [run.is_finished for run in bench.runs] == [True] * 6
    assert bench.n_reads == 1, "the same images are read once"
    assert sorted(path.name for path in bench.artifacts.iterdir()) == [run.name for run in bench.runs]
    arms = [(run.federation.aggregation.strategy, run.federation.arms) for run in bench.runs]
    assert (
        arms
        == [
            ("fedavg", ("federated", "local", "central")),
            ("fedprox", ("federated",)),
            ("median", ("federated",)),
        ]
        * 2
    )
    config = json.loads((bench.runs[1].folder / "config.json").read_text())
    assert config["sweep"] == "s"
    assert config["changes"] == [
        "aggregation.strategy=fedprox", "aggregation.mu=0.1", "training.seed=0", 'arms=["federated"]',
    ]  # fmt: skip
    written = {path: path.stat().st_mtime_ns for path in bench.artifacts.rglob("*") if path.is_file()}
    assert bench.sweep(wanted) == {}
    assert {path: path.stat().st_mtime_ns for path in bench.artifacts.rglob("*") if path.is_file()} == written
    assert bench.n_reads == 1
    bench.sweep(points("aggregation.strategy=fedavg|fedadam", seeds="0"))  # one more strategy: one more run
    assert [run.federation.arms for run in bench.runs[6:]] == [("federated",)]
    assert bench.runs[6].federation.aggregation.strategy == "fedadam"


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 14, 30])
def test_a_sweep_that_dies_within_a_run_goes_on_to_the_same_end(
    bench: Bench, phantom_root: Path, tmp_path: Path, batches: int
) -> None:
    wanted = points("aggregation.strategy=fedavg|median")
    whole = Bench(tmp_path / "whole", phantom_root)
    whole.sweep(wanted)
    n_seen = 0

    def die(progress: Progress) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == batches:
            raise Killed

    with pytest.raises(Killed):
        bench.sweep(wanted, on_training=die)
    assert not all(run.is_finished for run in bench.runs)
    bench.sweep(wanted)
    assert len(bench.runs) == len(whole.runs) == 2
    for run, expected in zip(bench.runs, whole.runs, strict=True):
        run.verify(with_weights=True)
        got, other = weights_of(run), weights_of(expected)
        assert got.keys() == other.keys()
        assert all(np.array_equal(got[name], other[name]) for name in got)


def test_a_sweep_that_dies_between_runs_trains_only_the_others(bench: Bench) -> None:
    wanted = points("aggregation.strategy=fedavg|median", seeds="0,1")

    def die(progress: Progress) -> None:
        if len(list_runs(bench.artifacts)) == 3:
            raise Killed

    with pytest.raises(Killed):
        bench.sweep(wanted, on_training=die)
    assert [run.is_finished for run in bench.runs] == [True, True, False]
    first = {run.name: (run.folder / "manifest.json").read_bytes() for run in bench.runs[:2]}
    bench.sweep(wanted)
    assert [run.is_finished for run in bench.runs] == [True] * 4
    assert {run.name: (run.folder / "manifest.json").read_bytes() for run in bench.runs[:2]} == first
    assert [run.federation.training.seed for run in bench.runs if "central" in run.federation.arms] == [0, 1]


def test_references_asked_for_later_get_a_run_of_their_own(bench: Bench) -> None:
    bench.sweep(points("aggregation.strategy=fedavg|median", given=['arms=["federated"]']))
    bench.sweep(points("aggregation.strategy=fedavg|median"))
    assert [run.federation.arms for run in bench.runs] == [("federated",), ("federated",), ("local", "central")]
    bench.sweep(points("aggregation.strategy=fedavg|median"))
    assert len(bench.runs) == 3


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Federation], bool]) -> None:
    from engine.federation import sweep

    train = sweep.train_run

    def train_or_fail(run: Run, *rest: object) -> Run:
        if fails(run.federation):
            raise RunError("no usable update")
        return train(run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "train_run", train_or_fail)


def test_a_training_that_fails_stops_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda federation: federation.aggregation.strategy == "fedprox")
    wanted = points(STRATEGIES, given=['arms=["federated"]'])
    assert bench.sweep(wanted) == {"run-002": "no usable update"}
    assert [run.is_finished for run in bench.runs] == [True, False, True]
    monkeypatch.undo()
    assert bench.sweep(wanted) == {}
    assert [run.is_finished for run in bench.runs] == [True] * 3


def test_references_outlive_the_run_that_was_to_train_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = points("aggregation.strategy=fedavg|median")
    failing(monkeypatch, lambda federation: federation.arms[0] == "federated" and "central" in federation.arms)
    for _ in range(2):  # and once they are there, they are left alone
        assert bench.sweep(wanted) == {"run-001": "no usable update"}
        assert [(run.federation.arms, run.is_finished) for run in bench.runs] == [
            (("federated", "local", "central"), False),
            (("local", "central"), True),
            (("federated",), True),
        ]
    row = make_table("s", bench.runs, "macro_f1", "test").rows[0]
    assert row.gap is not None, "median is compared with the pooled model all the same"


def test_references_that_fail_take_no_other_run_with_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda federation: "central" in federation.arms)
    for _ in range(2):
        assert list(bench.sweep(points("aggregation.strategy=fedavg|median"))) == ["run-001", "run-002"]
        assert [(run.federation.arms, run.is_finished) for run in bench.runs] == [
            (("federated", "local", "central"), False),
            (("local", "central"), False),
            (("federated",), True),
        ]


def test_a_frozen_backbone_sees_the_images_once_in_a_sweep(
    bench: Bench, phantom_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = phantom_run / "run-001" / "weights" / "global-best.safetensors"
    given = ["model.freeze_backbone=true", f"model.weights='{weights}'", 'arms=["federated"]']
    calls = []
    compute = frozen.compute_features
    monkeypatch.setattr(frozen, "compute_features", lambda *a, **k: calls.append(1) or compute(*a, **k))
    bench.sweep(points("aggregation.strategy=fedavg|median", seeds="0,1", given=given))
    assert len(calls) == 9, "three hospitals, three parts, whatever strategy and seed"
    calls.clear()
    bench.sweep(points("aggregation.strategy=fedavg|median", seeds="0,1", given=[*given, "training.views=2"]))
    assert len(calls) == 18, "views are drawn by the seed"
    alone = Bench(bench.artifacts.with_name("alone"), bench.root)
    last = points("aggregation.strategy=median", seeds="1", given=[*given, "training.views=2"])
    alone.sweep(last)
    got, expected = weights_of(bench.runs[-1]), weights_of(alone.runs[0])
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_runs_from_before_sweeps_still_load() -> None:
    old = Run(PROJECT / "artifacts" / "run-001").config
    assert old.sweep is None
    assert old.changes == ()


def test_a_name_is_of_one_federation_and_one_process(bench: Bench, tmp_path: Path) -> None:
    wanted = points()
    bench.sweep(wanted)
    other = [Point(point.federation.model_copy(update={"name": "Other"}), ()) for point in wanted]
    with pytest.raises(RunError, match=r"run-001 is of 'Brain MRI phantoms' .* not of 'Other'.*--name"):
        bench.sweep(other)

    def again(progress: Progress) -> None:
        with pytest.raises(RunError, match="is being trained by another process"):
            bench.sweep(wanted)
        raise Killed

    with pytest.raises(Killed):
        bench.sweep(points(seeds="5"), on_training=again)
    with pytest.raises(ConfigError, match="is no name of a sweep"):
        bench.sweep(wanted, name="../up")


def test_the_command_trains_goes_on_and_says_so(
    engine: Command,
    phantom_root: Path,
    tmp_path: Path,
) -> None:
    folders = ["--data", phantom_root, "--artifacts", tmp_path / "a"]
    short = [f"--set={setting}" for setting in SHORT]
    command = ["sweep", FILE, *folders, *short, "--arms", "federated", "--grid", "aggregation.strategy=fedavg,median"]
    done = engine(*command)
    assert done.code == 0, done.err
    assert "Sweep phantoms: 2 runs, 0 finished before, 0 to go on with" in done.err
    assert "python -m engine table phantoms --artifacts" in done.err
    assert "Sweep phantoms: 2 runs, 2 finished before" in engine(*command).err
    assert "median" in engine("table", "phantoms", "--artifacts", tmp_path / "a").success


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "training.round=1,2"], "unknown key 'training.round'"),
        (["--grid", "aggregation.strategy=fedavg,fedmagic"], "must be one of fedavg"),
        (["--grid", "training.rounds=1,0"], "phantoms.toml with --grid training.rounds: "),
        (["--set", "training.rounds=0", "--grid", "training.batch_size=2,4"], "with --set training.rounds: "),
        (["--set", "pretext.objective=simclr"], "learns without labels, so a table would have no scores"),
        (["--grid", "aggregation.strategy="], "a value is empty"),
        (["--seeds", "0,x"], "'x' is no whole number"),
        (
            ["--set", "training.rounds=2", "--grid", "training.rounds=3,4"],
            "is in the sweep's grid",
        ),
        (["--set", "training.seed=1"], "--set training.seed: is in the sweep's grid or seeds too"),
        (
            ["--set", "split.seed=3", "--grid", "split={seed=1}|{seed=2}"],
            "--set split.seed: is in the sweep's grid or seeds too (as 'split'); leave one away",
        ),
        (["--name", "No Name"], "is no name of a sweep"),
        (["--arms", "federated,hybrid"], "arms"),
        (["--data", "nowhere"], "no such data folder"),
        (["--grid", "aggregation.strategy=fedavg,krum"], "needs at least 5 hospitals"),
    ],
)
def test_every_mistake_is_one_line_and_trains_nothing(
    engine: Command,
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    assert message in engine("sweep", FILE, "--artifacts", tmp_path / "a", *arguments).error
    assert list_runs(tmp_path / "a") == []
