"""Differential privacy: the accountant, the bound, the noise, and that a run spends what it says."""

import dataclasses
import itertools
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData
from engine.errors import ConfigError
from engine.federation.arms import image_sets
from engine.federation.named_tensors import of_kind
from engine.federation.privacy import ORDERS, Account, plan_noise, spent_epsilon
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.federation.transports.in_process import InProcessTransport
from engine.privacy_config import PrivacyConfig
from engine.results.run_folder import Progress, Run
from engine.results.sweeps import data_key, images_key, reference_key
from engine.sections import ModelConfig, TrainingConfig
from engine.sweep_grid import expand
from engine.training.build import build_network
from engine.training.features import FeatureSet, HeadNetwork
from engine.training.local import train_locally
from engine.training.networks import Network, Tensors
from engine.training.private import AT_ONCE, Noise, poisson_batches
from tests.test_frozen import STILL, Plain
from tests.test_training import COMPACT, CPU, squares
from tests.test_training_run import Killed

PROJECT = Path(__file__).resolve().parent.parent
GROUPED = [
    ModelConfig(architecture=name, image_size_px=32, norm="group")  # type: ignore[arg-type]
    for name in ("resnet18", "patch-cnn", "efficientnet-lite0")
]


# --- the accountant ------------------------------------------------------------------------------------------------


def log_moment(rate: float, multiplier: float, order: float) -> float:
    """log E[(p1/p0)^order] of N(0, s^2) against (1-q) N(0, s^2) + q N(1, s^2), by plain summation over a fine grid."""
    z, step = np.linspace(-12 * multiplier, order + 12 * multiplier, 400_001, retstep=True)
    log_density = -(z**2) / (2 * multiplier**2) - math.log(multiplier * math.sqrt(2 * math.pi))
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * multiplier**2))
    terms = log_density + order * log_ratio
    return float(terms.max() + math.log(np.exp(terms - terms.max()).sum() * step))


def closed_moment(rate: float, multiplier: float, order: int) -> float:
    """The same for whole orders as the paper's sum: Mironov, Talwar & Zhang 2019, section 3.3."""
    terms = [
        math.log(math.comb(order, k))
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * multiplier**2)
        for k in range(order + 1)
    ]
    return max(terms) + math.log(sum(math.exp(term - max(terms)) for term in terms))


def reference_epsilon(history: list[tuple[float, float, int]], delta: float) -> float:
    """Balle et al. 2020, theorem 21, over every third of our orders and the whole ones up to 64."""
    best = math.inf
    for order in sorted({*ORDERS[::3], *range(2, 65)}):
        moment = log_moment if order % 1 or order > 64 else closed_moment
        renyi = sum(steps * moment(rate, multiplier, int(order) if moment is closed_moment else order)  # type: ignore[operator]
                    for multiplier, rate, steps in history) / (order - 1)  # fmt: skip
        best = min(best, renyi + math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return best


@pytest.mark.parametrize(
    "history",
    [
        [(1.0, 0.01, 1000)],
        [(0.7, 0.02, 470)],
        [(2.0, 0.25, 50)],
        [(5.0, 0.7, 20)],
        [(1.1, 0.05, 1)],
        [(1.0, 0.01, 200), (1.5, 0.1, 30)],
    ],
    ids=str,
)
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_is_the_reference_accountants_within_a_percent(
    history: list[tuple[float, float, int]], delta: float
) -> None:
    ours = spent_epsilon(torch.tensor(history, dtype=torch.float64), delta)
    assert ours == pytest.approx(reference_epsilon(history, delta), rel=0.01)


def test_the_two_references_agree() -> None:
    for order in (2, 7, 40):
        assert log_moment(0.05, 1.2, order) == pytest.approx(closed_moment(0.05, 1.2, order), rel=1e-6)


@pytest.mark.parametrize(("epsilon", "n_images"), list(itertools.product([0.5, 8.0], [20, 130, 3000])))
def test_the_planned_noise_spends_the_budget_and_no_more(epsilon: float, n_images: int) -> None:
    training = TrainingConfig(rounds=7, local_epochs=2, batch_size=32)
    plan = plan_noise(PrivacyConfig(epsilon=epsilon), n_images, training)
    assert plan.sample_rate == min(1.0, 32 / n_images)
    steps = plan.steps_per_epoch * 2 * 7
    spent = spent_epsilon(torch.tensor([[plan.multiplier, plan.sample_rate, steps]], dtype=torch.float64), 1e-5)
    assert 0.995 * epsilon <= spent <= epsilon


def test_nothing_done_is_nothing_spent() -> None:
    assert spent_epsilon(Account.of({}).history, 1e-5) == 0


# --- one step ------------------------------------------------------------------------------------------------------


def one_step(network: Network, images: Plain | FeatureSet, model: ModelConfig, noise: Noise) -> Tensors:
    """What one step of SGD with learning rate 1 takes off each weight, times the expected batch: the noised sum."""
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    training = TrainingConfig(
        rounds=1, batch_size=max(2, len(images)), optimizer="sgd", learning_rate=1, weight_decay=0, momentum=0,
        schedule="constant", augment=STILL, precision="float32",
    )  # fmt: skip
    train_locally(network, images, model, training, round_number=1, seed=1, device=CPU, noise=noise)
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "summed_grad") for p in network.parameters())
    hooks = [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks or hasattr(m, "activations")]
    assert hooks == []
    return {
        name: (old - dict(network.named_parameters())[name].detach()) * training.batch_size
        for name, old in before.items()
    }


def length(tensors: Tensors) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def silent(bound: float) -> Noise:
    """Every image, its gradient bounded, and no noise."""
    return Noise(sample_rate=1.1, multiplier=0.0, max_grad_norm=bound, seed=1)


@pytest.mark.parametrize("model", [COMPACT, *GROUPED], ids=lambda model: model.architecture)
def test_a_step_is_the_sum_of_every_images_own_clipped_gradient(model: ModelConfig) -> None:
    images = Plain(squares(AT_ONCE + 3)._portions)  # more than are in memory at once
    network = build_network(model, 2, seed=0)
    network.train()
    expected: Tensors = {}
    lengths = []
    bound = 0.5 if model is COMPACT else 5.0
    for row in range(len(images)):
        pixels, labels = images.batch(torch.tensor([row]), CPU)
        network.zero_grad()
        functional.cross_entropy(network(network.normalise(pixels)), labels).backward()
        gradient = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        lengths.append(length(gradient))
        for name, tensor in gradient.items():
            expected[name] = expected.get(name, torch.zeros(())) + tensor * min(1.0, bound / lengths[-1])
    network.zero_grad(set_to_none=True)
    got = one_step(network, images, model, silent(bound))
    assert max(lengths) > bound, "somebody is clipped, or this tests nothing"
    off = {name: got[name] - tensor for name, tensor in expected.items()}
    assert length(off) < 2e-3 * length(expected)


def test_an_outlier_moves_the_step_by_no_more_than_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(1, 20, 128, generator=generator), torch.arange(20) % 2
    outlier = torch.cat([features, torch.full((1, 1, 128), 1e4)], dim=1)
    model = COMPACT.model_copy(update={"freeze_backbone": True})

    def step(features: torch.Tensor, labels: torch.Tensor, bound: float) -> Tensors:
        head = HeadNetwork(build_network(COMPACT, 2, seed=0))
        return one_step(head, FeatureSet(features, labels), model, silent(bound))

    def moved_by(bound: float) -> float:
        """By the outlier under its wrong label; under its right one it may have no gradient at all."""
        without = step(features, labels, bound)
        both = [step(outlier, torch.cat([labels, torch.tensor([label])]), bound) for label in (0, 1)]
        return max(length({name: beside[name] - tensor for name, tensor in without.items()}) for beside in both)

    assert 0.99 < moved_by(1.0) < 1.001
    assert moved_by(1e9) > 1000, "unbounded it would move it far"


@pytest.mark.parametrize(("multiplier", "bound"), [(1.0, 1.0), (2.5, 0.4)])
def test_the_noise_has_the_declared_deviation_even_where_nobody_was_drawn(multiplier: float, bound: float) -> None:
    def noise(seed: int) -> torch.Tensor:
        told = Noise(sample_rate=0.0, multiplier=multiplier, max_grad_norm=bound, seed=seed)
        step = one_step(build_network(COMPACT, 2, seed=0), Plain(squares(4)._portions), COMPACT, told)
        return torch.cat([tensor.flatten() for tensor in step.values()])

    one, again, other = noise(1), noise(1), noise(2)
    assert len(one) > 200_000
    assert float(one.std()) == pytest.approx(multiplier * bound, rel=0.01)
    assert abs(float(one.mean())) < 5 * multiplier * bound / math.sqrt(len(one))
    assert torch.equal(one, again)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.02


@given(st.integers(0, 2**31), st.integers(1, 500), st.floats(0.01, 1.0))
def test_poisson_batches_hold_each_image_with_the_same_probability(seed: int, n_images: int, rate: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = poisson_batches(n_images, 40, rate, generator)
    assert len(batches) == 40
    assert all(len(batch.unique()) == len(batch) for batch in batches)
    n_drawn = sum(map(len, batches))
    spread = math.sqrt(40 * n_images * rate * (1 - rate)) + 1
    assert abs(n_drawn - 40 * n_images * rate) < 6 * spread


@pytest.mark.parametrize("model", GROUPED, ids=lambda model: model.architecture)
def test_with_group_norm_no_image_sees_another(model: ModelConfig) -> None:
    network = build_network(model, 3, seed=0)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
    network.train()
    images = torch.rand(4, 3, 32, 32)
    alone = torch.cat([network(images[[row]]) for row in range(4)])
    torch.testing.assert_close(network(images), alone, rtol=1e-3, atol=1e-4)
    plain = build_network(model.model_copy(update={"norm": "batch"}), 3, seed=0).state_dict()
    own = network.state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {
        name: tensor.shape for name, tensor in plain.items() if "running" not in name and "num_batches" not in name
    }


# --- a run ---------------------------------------------------------------------------------------------------------


def private(data: FederationData, *settings: str) -> FederationData:
    changes = ("model.architecture='compact-cnn'", "model.image_size_px=32", "training.rounds=3")
    given = (*changes, "training.batch_size=8", "privacy.epsilon=6", "privacy.delta=1e-3", *settings)
    return dataclasses.replace(data, federation=load_federation(PROJECT / "federations" / "phantoms.toml", given))


def train(data: FederationData, artifacts: Path) -> Run:
    return train_run(start_run(data, "federations/phantoms.toml", artifacts), data)


@pytest.fixture(scope="module")
def private_run(tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All arms, finished. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_bytes", lambda n: bytes(range(n)))
        return train(private(tiny_data), tmp_path_factory.mktemp("private"))


def test_a_run_says_what_each_hospital_spent_on_each_model(private_run: Run, tiny_data: FederationData) -> None:
    told = private_run.read_json("privacy.json")
    sizes = {name: len(images) for name, images in image_sets(tiny_data, "train").items()}
    trainers = {model: {name: one["n_images"] for name, one in row.items()} for model, row in told["models"].items()}
    assert trainers == {
        "global": sizes,
        **{f"local/{name}": {name: n_images} for name, n_images in sizes.items()},
        "central": {"pooled": sum(sizes.values())},
    }
    training = private_run.federation.training
    for row in told["models"].values():
        for one in row.values():
            (done,) = one["history"]
            assert done["sample_rate"] == pytest.approx(8 / one["n_images"])
            assert done["steps"] == 3 * math.ceil(one["n_images"] / 8)
            assert 0.995 * 6 <= one["epsilon"] <= 6
            assert (
                done["noise_multiplier"]
                == plan_noise(PrivacyConfig(epsilon=6, delta=1e-3), one["n_images"], training).multiplier
            )
    assert "privacy.json" in private_run.manifest.files
    private_run.verify(with_weights=True)


def test_epsilon_grows_by_round_to_what_the_end_says(private_run: Run) -> None:
    told = private_run.read_json("privacy.json")["models"]
    lines = private_run.rounds()
    for model, row in told.items():
        for hospital, one in row.items():
            spent = [
                line.fit.epsilon for line in lines if line.model == model and line.hospital == hospital if line.fit
            ]
            assert spent == sorted(spent)
            assert 0 < spent[0] < spent[-1] == one["epsilon"]
    most = [line.fit.epsilon for line in lines if line.model == "global" and line.hospital == "all" if line.fit]
    assert most[-1] == max(one["epsilon"] for one in told["global"].values())


def test_a_run_without_privacy_claims_nothing(phantom_run: Path) -> None:
    run = Run(phantom_run / "run-001")
    assert not (run.folder / "privacy.json").exists()
    assert all(line.fit is None or line.fit.epsilon is None for line in run.rounds())


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.weights("global"))


def test_the_noise_follows_from_nothing_that_the_run_folder_holds(
    private_run: Run, tiny_data: FederationData, tmp_path: Path
) -> None:
    other = train(private(tiny_data, "arms=['federated']"), tmp_path)
    one, another = weights_of(private_run), weights_of(other)
    assert all(not torch.equal(one[name], tensor) for name, tensor in another.items())
    key = bytes(range(32))
    for path in private_run.folder.rglob("*"):
        assert path.is_dir() or key not in path.read_bytes(), path


def test_a_stopped_private_run_resumes_to_the_same_weights_and_epsilon(
    private_run: Run, tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that is trained again draws the same noise, so it is paid for once."""
    keys = iter([bytes(range(32))] * 3 + [bytes(range(100, 132))] * 99)  # another one after the first round
    monkeypatch.setattr("secrets.token_bytes", lambda n: next(keys))
    left = 20
    data = private(tiny_data, "arms=['federated']")

    def stop_later(progress: Progress) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    run = start_run(data, "federations/phantoms.toml", tmp_path)
    with pytest.raises(Killed):
        train_run(run, data, stop_later)
    assert json.loads((run.folder / "checkpoint" / "global.json").read_text())["round"] == 1
    resumed = train_run(reopen_run(tmp_path, "run-001"), data)
    whole = private_run.read_json("privacy.json")["models"]["global"]
    assert resumed.read_json("privacy.json")["models"]["global"] == whole
    expected, got = weights_of(private_run), weights_of(resumed)
    assert all(torch.equal(expected[name], tensor) for name, tensor in got.items())


def test_a_refused_update_is_paid_for_all_the_same(tiny_data: FederationData) -> None:
    data = private(tiny_data)
    network = build_network(data.federation.model, 4, seed=0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    sets = image_sets(data, "train")
    transport = InProcessTransport(
        network, data.federation, training_sets=sets, validation_sets={}, device=CPU, on_images=lambda *_: None
    )
    for number in (1, 2):
        assert len(list(transport.train(start, number, ["hospital-a", "hospital-b"]))) == 2
        transport.settle(refused={"hospital-b"})
    steps = {name: of_kind("privacy", kept)["history"][:, 2].tolist() for name, kept in transport.kept().items()}
    assert steps == {name: [2.0 * math.ceil(len(sets[name]) / 8)] for name in ("hospital-a", "hospital-b")}


@pytest.mark.parametrize(
    "settings",
    [
        ("aggregation.strategy='fedprox'",),
        ("aggregation.strategy='median'",),
        ("aggregation.strategy='fedper'",),
        ("communication.compression='topk'",),
        pytest.param(
            ("model.architecture='resnet18'", "model.norm='group'", "training.rounds=1"), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_privacy_goes_with(settings: tuple[str, ...], tiny_data: FederationData, tmp_path: Path) -> None:
    run = train(private(tiny_data, "arms=['federated']", *settings), tmp_path)
    assert all(0 < one["epsilon"] <= 6 for one in run.read_json("privacy.json")["models"]["global"].values())


def test_a_frozen_backbones_head_is_trained_privately(tiny_data: FederationData, tmp_path: Path) -> None:
    start = build_network(ModelConfig(architecture="resnet18", image_size_px=32), 4, seed=5).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in start.items()}, tmp_path / "start.safetensors")
    frozen = ("model.architecture='resnet18'", f"model.weights='{tmp_path / 'start.safetensors'}'")
    run = train(private(tiny_data, *frozen, "model.freeze_backbone=true", "arms=['federated']"), tmp_path)
    assert {one["n_images"] for one in run.read_json("privacy.json")["models"]["global"].values()}
    got = weights_of(run)
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, got[name])}
    assert changed == {"fc.weight", "fc.bias"}


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("model.architecture='resnet18'",), r"resnet18's BatchNorm mixes .* set model\.norm = 'group'"),
        (("training.class_weights='balanced'",), r"class_weights = 'balanced' is computed from all labels"),
        (("aggregation.strategy='scaffold'",), r"'scaffold' sends a second set of tensors"),
        (("aggregation.strategy='fedbn'",), r"'fedbn' keeps BatchNorm private, and compact-cnn has none"),
        (
            ("model.architecture='patch-cnn'", "model.norm='group'", "aggregation.strategy='fedbn'"),
            r"'fedbn' keeps BatchNorm private, and model\.norm = 'group' has none",
        ),
        (("pretext.objective='simclr'",), r"\[pretext\] compares the images of a batch; take one away"),
        (("model.norm='group'",), r"compact-cnn has none; take it away"),
        (("privacy.epsilon=0",), r"privacy\.epsilon: Input should be greater than 0"),
        (("privacy.sigma=1",), r"unknown key 'privacy\.sigma'"),
    ],
)
def test_what_cannot_be_private_is_refused_in_one_line(
    tiny_data: FederationData, settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        private(tiny_data, *settings)
    assert "\n" not in str(caught.value)


def test_imagenets_frozen_backbone_keeps_its_batch_norm(tiny_data: FederationData) -> None:
    settings = ("model.architecture='resnet18'", "model.weights='imagenet'", "model.freeze_backbone=true")
    assert private(tiny_data, *settings).federation.model.has_batch_norm
    with pytest.raises(ConfigError, match=r"norm = 'group' does not fit a frozen backbone"):
        private(tiny_data, *settings, "model.norm='group'")


def test_a_delta_that_promises_nothing_makes_no_run(tiny_data: FederationData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta = 0\.05 promises nothing to one of \d+ images"):
        start_run(private(tiny_data, "privacy.delta=0.05"), "x.toml", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_epsilon_compares_runs_on_the_same_images(tiny_data: FederationData) -> None:
    one, other = private(tiny_data).federation, private(tiny_data, "privacy.epsilon=1").federation
    none: Federation = one.model_copy(update={"privacy": None})
    keys: list[Callable[[Federation], str]] = [data_key, images_key]
    for key in keys:
        assert key(one) == key(other) == key(none)
    assert len({reference_key(one), reference_key(other), reference_key(none)}) == 3, "their pooled arms differ"


def test_the_docs_sweep_is_one_that_can_be_trained() -> None:
    text = (PROJECT / "docs" / "privacy.md").read_text()
    (command,) = re.findall(r"python -m engine (sweep .*?)\npython", text, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    options = list(itertools.pairwise(words))
    settings = [value for option, value in options if option == "--set"]
    (seeds,) = [value for option, value in options if option == "--seeds"]
    grids = [value for option, value in options if option == "--grid"]
    points = [load_federation(PROJECT / words[1], [*settings, *chosen]) for chosen in expand(grids, seeds)]
    budgets = {None if point.privacy is None else point.privacy.epsilon for point in points}
    assert budgets == {None, 8, 3, 1}
    assert all(point.model.freeze_backbone for point in points)
