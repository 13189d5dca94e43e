"""Federations without labels: what travels and what stays, how it is averaged, resumed, and what is refused."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.aggregation_config import FedAdamConfig, FedBNConfig, MedianConfig, ScaffoldConfig
from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData
from engine.errors import ConfigError, RunError, UpdateError
from engine.federation.aggregation import federated_average
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.strategies import make_strategy
from engine.federation.tasks import make_tasks, rules_of, with_heads
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.federation.transports.in_process import InProcessTransport
from engine.federation.updates import HospitalFailure, Update, check_update
from engine.publishing.publish import publish_run
from engine.publishing.run_panel import open_run_panel
from engine.results.rounds import ALL, Epoch, RoundLine, summaries
from engine.results.run_folder import Progress, Run
from engine.sections import ModelConfig
from engine.training.build import build_network
from engine.training.networks import Tensors
from tests.conftest import PROJECT, TINY, mixed
from tests.test_training import CPU, squares
from tests.test_training_run import Killed, weights_of

PHANTOMS = PROJECT / "federations" / "phantoms.toml"
EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
OBJECTIVES = {"hospital-a": "rotation", "hospital-b": "simclr", "hospital-c": "simclr"}


def data_of(data: FederationData, federation: Federation) -> FederationData:
    return dataclasses.replace(data, federation=federation)


class Ear:
    """Hears everything that travels."""

    def __init__(self, transport: InProcessTransport) -> None:
        self._transport = transport
        self.trainers = transport.trainers
        self.settle, self.validate, self.kept = transport.settle, transport.validate, transport.kept
        self.down: list[set[str]] = []
        self.up: dict[str, set[str]] = {}

    def train(self, sent: Tensors, number: int, hospitals: list[str]) -> Iterator[Update | HospitalFailure]:
        self.down.append(set(sent))
        for reply in self._transport.train(sent, number, hospitals):
            assert isinstance(reply, Update), reply
            self.up[reply.hospital] = set(reply.tensors)
            yield reply


class Look:
    def __init__(self) -> None:
        self.lines: list[RoundLine] = []

    def write_round(self, state: TrainingState, lines: list[RoundLine]) -> None:
        self.lines += lines


def one_training(federation: Federation) -> tuple[Ear, TrainingState, set[str]]:
    """The federated arm on drawn squares; the ear, the end, and the encoder's names."""
    plain = build_network(federation.model, 2, seed=0)
    network, rules = with_heads(plain, federation), rules_of(federation)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    private = rules.private(network)
    sets = {hospital.id: squares(8, seed=n) for n, hospital in enumerate(federation.hospital)}
    transport = InProcessTransport(
        network,
        federation,
        training_sets=sets,
        validation_sets=sets,
        device=CPU,
        on_images=lambda *_: None,
        rules=rules,
        at_start={f"private/{name}": start[name] for name in private},
        tasks=make_tasks(network, federation, "federated"),
    )
    shared = {name: tensor for name, tensor in start.items() if name not in private}
    ear = Ear(transport)
    state = run_rounds(
        "federated",
        "global",
        federation.training,
        ear,
        TrainingState(shared, shared),
        Look(),
        rules,  # type: ignore[arg-type]
    )
    return ear, state, {name for name in start if not name.startswith("pretext.")}


def test_a_private_head_never_leaves_its_hospital() -> None:
    ear, state, encoder = one_training(mixed("training.rounds=2"))
    assert ear.down == [encoder, encoder]
    assert ear.up == dict.fromkeys(OBJECTIVES, encoder)
    assert state.weights.keys() == encoder
    for hospital, kept in state.hospitals.items():
        assert {name.split(".")[0] for name in kept} == {"private/pretext"}
        assert {name.split(".")[1] for name in kept} == {OBJECTIVES[hospital]}
    heads = [state.hospitals[hospital]["private/pretext.simclr.0.weight"] for hospital in ("hospital-b", "hospital-c")]
    assert not torch.equal(*heads), "each hospital's head is its own"


def test_a_shared_head_travels_among_the_hospitals_of_its_objective_alone() -> None:
    ear, state, encoder = one_training(mixed("pretext.heads='shared'"))
    for hospital, names in ear.up.items():
        assert encoder < names
        assert {name.split(".")[1] for name in names - encoder} == {OBJECTIVES[hospital]}
    assert {name.split(".")[1] for name in state.weights.keys() - encoder} == {"rotation", "simclr"}
    assert not any(state.hospitals.values())


def test_the_mean_of_a_head_is_over_those_who_sent_it() -> None:
    def update(hospital: str, n_images: int, **tensors: float) -> Update:
        return Update(hospital, {name: torch.tensor([value]) for name, value in tensors.items()}, n_images, EPOCHS, 0.1)

    updates = [update("a", 1, w=0.0, r=5.0), update("b", 3, w=4.0, s=1.0), update("c", 6, w=10.0, s=4.0)]
    mean = federated_average(updates)
    assert mean is not None
    assert {name: tensor.item() for name, tensor in mean.items()} == pytest.approx({"w": 7.2, "r": 5.0, "s": 3.0})
    alike = federated_average(updates, {"a": "rotation", "b": "simclr", "c": "simclr"})
    assert alike is not None
    assert alike["w"].item() == pytest.approx((0.0 + 8.0) / 2), "rotation's mean and SimCLR's weigh the same"
    assert alike["s"].item() == pytest.approx(3.0)


def test_weighing_by_objective_reaches_the_strategy() -> None:
    assert rules_of(mixed()).strategy.group_of is None
    assert rules_of(mixed("pretext.weigh='objectives'")).strategy.group_of == OBJECTIVES


def test_an_update_with_anothers_head_is_refused() -> None:
    rules = Rules(make_strategy(mixed().aggregation, 3), objectives=OBJECTIVES)
    sent = {"w": torch.zeros(1), "pretext.rotation.bias": torch.zeros(1), "pretext.simclr.bias": torch.zeros(1)}
    message = rules.message(sent, "hospital-a")
    assert message.keys() == {"w", "pretext.rotation.bias"}
    check_update(Update("hospital-a", message, 1, EPOCHS, 0.1), like=message)
    with pytest.raises(UpdateError, match="unknown"):
        check_update(Update("hospital-a", sent, 1, EPOCHS, 0.1), like=message)
    with pytest.raises(UpdateError, match="missing"):
        check_update(Update("hospital-a", {"w": torch.zeros(1)}, 1, EPOCHS, 0.1), like=message)


def test_a_head_that_nobody_sent_stays_as_it_was() -> None:
    """One hospital a round, with a server optimiser too: heads of the others' objective do not move."""
    for settings in ((), ("aggregation.strategy='fedadam'",)):
        federation = mixed("pretext.heads='shared'", "training.rounds=1", "training.hospital_fraction=0.3", *settings)
        ear, state, encoder = one_training(federation)
        (asked,) = ear.up
        start = with_heads(build_network(federation.model, 2, seed=0), federation).state_dict()
        for name in state.weights.keys() - encoder:
            is_its = name.split(".")[1] == OBJECTIVES[asked]
            assert torch.equal(state.weights[name], start[name]) != is_its, name


def test_a_run_without_labels_says_what_it_is(ssl_run: Run) -> None:
    ssl_run.verify(with_weights=True)
    lines = ssl_run.rounds()
    assert list(dict.fromkeys(line.model for line in lines)) == [
        "global",
        *(f"local/{h}" for h in OBJECTIVES),
        "central",
    ]
    seen = [line.validation for line in lines if line.validation]
    assert len(seen) == 3 * (4 + 3 * 2 + 4), "rounds x (federated, each alone, pooled), and a sum for each model"
    assert all(one.macro_f1 is None and 0 <= one.accuracy <= 1 for one in seen)
    by_loss = [line.validation.loss for line in summaries(lines, "global")]  # type: ignore[union-attr]
    best = [line.round for line in summaries(lines, "global") if line.is_best_so_far][-1]
    assert by_loss[best - 1] == min(by_loss)
    assert "evaluation.json" not in ssl_run.manifest.files
    assert "predictions.parquet" not in ssl_run.manifest.files
    shared = load_file(ssl_run.weights("global"))
    assert not any(name.startswith("pretext.") for name in shared)
    own = load_file(ssl_run.weights("local/hospital-a"))
    assert {name.split(".")[1] for name in own.keys() - shared.keys()} == {"rotation"}


def test_readers_of_its_opinions_say_in_one_line_that_it_has_none(
    ssl_run: Run, ssl_data: FederationData, tmp_path: Path
) -> None:
    for read in (
        ssl_run.predictions,
        lambda: ssl_run.read_json("evaluation.json"),
        lambda: publish_run(ssl_run, "phantoms", ssl_data, tmp_path),
        lambda: open_run_panel(ssl_run),
    ):
        with pytest.raises(RunError, match=r"learned without labels.*--set model.weights=run-001") as raised:
            read()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("heads", ["private", "shared"])
def test_a_stopped_run_resumes_to_the_same_end(heads: str, tiny_data: FederationData, tmp_path: Path) -> None:
    data = data_of(tiny_data, mixed(f"pretext.heads='{heads}'", "arms=['federated']"))
    whole = train_run(start_run(data, "f.toml", tmp_path / "whole"), data)

    def stop_in_the_last_round(progress: Progress) -> None:
        if progress.round == progress.rounds and progress.hospital == "hospital-c":
            raise Killed

    run = start_run(data, "f.toml", tmp_path / "stopped")
    with pytest.raises(Killed):
        train_run(run, data, stop_in_the_last_round)
    resumed = train_run(reopen_run(tmp_path / "stopped", "run-001"), data)
    expected, got = weights_of(whole), weights_of(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())

    def told(run: Run) -> list[object]:
        return [(line.hospital, line.validation, line.fit and line.fit.loss) for line in run.rounds()]

    assert told(whole) == told(resumed), "the private heads too: each hospital's loss is its head's"


def test_a_supervised_run_starts_from_the_encoder_and_names_the_file(ssl_run: Run, tiny_data: FederationData) -> None:
    federation = load_federation(
        PHANTOMS, [*TINY, "model.weights='run-001'", "training.rounds=1", "arms=['federated']"]
    )
    network = build_network(federation.model, 4, seed=5, artifacts=ssl_run.folder.parent)
    for name, tensor in load_file(ssl_run.weights("global")).items():
        assert torch.equal(network.state_dict()[name], tensor)
    data = data_of(tiny_data, federation)
    run = start_run(data, "f.toml", ssl_run.folder.parent)
    assert run.config.starting_weights_sha256 == ssl_run.manifest.files["weights/global-best.safetensors"].sha256
    assert start_run(data_of(tiny_data, mixed()), "f.toml", run.folder.parent).config.starting_weights_sha256 is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["pretext.objective='jigsaw'"], "pretext.objective"),
        (["pretext.tempreature=1"], "did you mean 'temperature'"),
        (["model.freeze_backbone=true", "model.weights='some.safetensors'"], "trains a head alone"),
        (["model.dropout=0.2"], "which [pretext] has not"),
        (["training.class_weights='balanced'"], "needs labels"),
        (["training.label_smoothing=0.1"], "needs labels"),
        (["training.labelled_fraction=0.1"], "learns from all images"),
        (["training.augment.blur=1.0"], "[pretext.views]"),
        (["pretext.views.grayscale=0.2"], "model.colour is false"),
        (["aggregation.strategy='fedper'"], "one encoder"),
        (["aggregation.strategy='fedbn'", "model.architecture='patch-cnn'"], "one encoder"),
        (["aggregation.strategy='median'", "pretext.weigh='objectives'"], "weighs none"),
    ],
)  # fmt: skip
def test_what_cannot_be_true_together_is_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_federation(PHANTOMS, [*TINY, "pretext.objective='simclr'", *settings])
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", [MedianConfig(), ScaffoldConfig(), FedBNConfig(), FedAdamConfig()])
def test_shared_heads_of_several_objectives_need_a_strategy_that_takes_unlike_updates(config: object) -> None:
    federation = mixed("pretext.heads='shared'").model_copy(update={"aggregation": config})
    if isinstance(config, FedAdamConfig):
        Federation.model_validate(federation.model_dump())
        return
    with pytest.raises(ValueError, match=r"private|one encoder"):
        Federation.model_validate(federation.model_dump())


def test_objective_and_views_of_a_hospital_need_a_pretext(tmp_path: Path) -> None:
    text = PHANTOMS.read_text(encoding="utf-8").replace('id = "hospital-b"', 'id = "hospital-b"\nobjective = "simclr"')
    file = tmp_path / "phantoms.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="hospital hospital-b: 'objective' belongs to \\[pretext\\]"):
        load_federation(file)
    assert load_federation(file, ["pretext.objective='rotation'"]).objectives["hospital-b"] == "simclr"


def test_resnet50_is_an_architecture() -> None:
    assert build_network(ModelConfig(architecture="resnet50", image_size_px=32), 3, seed=0).fc.in_features == 2048


def test_hospital_lines_sum_up_as_means(ssl_run: Run) -> None:
    first = [line for line in ssl_run.rounds() if line.model == "global" and line.round == 1]
    seen = {line.hospital: line.validation for line in first if line.validation}
    whole = seen.pop(ALL)
    expected = sum(v.loss * v.n_images for v in seen.values()) / sum(v.n_images for v in seen.values())
    assert whole.loss == pytest.approx(expected)
    assert whole.n_images == sum(v.n_images for v in seen.values())


@pytest.mark.parametrize("name", ["brain-mri", "cifar10", "skin"])
def test_the_bundled_federations_without_labels_are_whole(name: str) -> None:
    """An encoder of each fits the network that a supervised federation of the same data starts from it."""
    federation = load_federation(PROJECT / "federations" / f"{name}-ssl.toml")
    assert federation.pretext is not None
    assert set(federation.objectives) == {hospital.id for hospital in federation.hospital}
    assert len(set(federation.objectives.values())) == (1 if name == "cifar10" else 2)
    if name != "cifar10":
        labelled = load_federation(PROJECT / "federations" / f"{name}.toml", ["model.architecture='resnet18'"])
        if labelled.source is not None:  # subgroups are of scores, and an encoder has none
            source = labelled.source.model_copy(update={"subgroups": {}})
            labelled = labelled.model_copy(update={"source": source})
        same = ("data", "classes", "split", "source", "simulated", "licence")
        assert all(getattr(labelled, key) == getattr(federation, key) for key in same)
        assert [hospital.id for hospital in labelled.hospital] == [hospital.id for hospital in federation.hospital]
        assert labelled.model.colour == federation.model.colour


def test_two_classes_at_each_client_is_a_comment_away(tmp_path: Path) -> None:
    text = (PROJECT / "federations" / "cifar10-ssl.toml").read_text(encoding="utf-8")
    first, second = text.index('[partition]\nmethod = "iid"'), text.index("# [partition]")
    end = text.index("[split]")
    quotas = "".join(line.removeprefix("# ") for line in text[second:end].splitlines(keepends=True))
    file = tmp_path / "cifar10-ssl.toml"
    file.write_text(text[:first] + quotas + text[end:], encoding="utf-8")
    partition = load_federation(file).partition
    assert partition is not None
    assert all(len(parts) == 2 for parts in partition.quotas.values())
