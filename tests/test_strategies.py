"""One conformance test for every strategy, and each against a naive reference."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.aggregation_config import (
    STRATEGIES,
    CommunicationConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedPerConfig,
    FedProxConfig,
    KrumConfig,
    MedianConfig,
    ScaffoldConfig,
    StrategyConfig,
    TrimmedMeanConfig,
)
from engine.config import Federation
from engine.federation.checkpoint import Checkpoint
from engine.federation.named_tensors import is_learned, label, of_kind
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.strategies import AnyStrategy, make_strategy
from engine.federation.strategies.robust import krum_scores
from engine.federation.transports.in_process import InProcessTransport
from engine.federation.updates import HospitalFailure, Update
from engine.results.rounds import Epoch, RoundLine
from engine.sections import ModelConfig
from engine.training.build import build_network
from engine.training.networks import Tensors
from tests.test_training import CPU, squares

EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
CONFIGS = [kind() if name != "krum" else KrumConfig(keep=2) for name, kind in STRATEGIES.items()]  # type: ignore[call-arg]
HOSPITALS = ("a", "b", "c", "d", "e")
every = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.strategy)


def weights(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, generator=generator),
        "bn.running_var": torch.rand(4, generator=generator) + 0.5,
        "bn.num_batches_tracked": torch.tensor(10 + seed),
    }


def moved(sent: Tensors, seed: int) -> Tensors:
    """What a hospital makes of the message: everything a little elsewhere, the counter further on."""
    generator = torch.Generator().manual_seed(seed)
    steps = {name: 0.1 * torch.rand(sent[name].shape, generator=generator) for name in sorted(sent)}
    return {name: t + (steps[name] if t.is_floating_point() else seed) for name, t in sent.items()}


def updates(sent: Tensors, hospitals: tuple[str, ...] = HOSPITALS) -> list[Update]:
    return [
        Update(h, moved(sent, 1 + HOSPITALS.index(h)), 10 * (1 + HOSPITALS.index(h)), EPOCHS, 0.1) for h in hospitals
    ]


def one_round(strategy: AnyStrategy, start: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    sent = strategy.sends(start, state)
    done = strategy.aggregate(iter(updates(sent)), sent, state)
    assert done is not None
    return done


@every
def test_equal_weights_are_a_fixed_point(config: StrategyConfig) -> None:
    strategy, now, state = make_strategy(config, len(HOSPITALS)), weights(), {}
    for _ in range(3):
        sent = strategy.sends(now, state)
        done = strategy.aggregate([Update(h, dict(sent), 7, EPOCHS, 0.1) for h in HOSPITALS], sent, state)
        assert done is not None
        now, state = done
        assert now.keys() == weights().keys()
        assert all(torch.equal(now[name], tensor) for name, tensor in weights().items())


@every
def test_the_order_of_hospitals_changes_nothing(config: StrategyConfig) -> None:
    strategy = make_strategy(config, len(HOSPITALS))
    sent = strategy.sends(weights(), {})
    ahead, back = (strategy.aggregate(order, sent, {}) for order in (updates(sent), updates(sent)[::-1]))
    assert ahead is not None
    assert back is not None
    for first, second in zip(ahead, back, strict=True):  # weights, state
        assert first.keys() == second.keys()
        for name, tensor in first.items():  # sums in float64, rounded once to float32
            torch.testing.assert_close(tensor, second[name], rtol=1e-6, atol=1e-7)


@every
def test_integer_buffers_stay_integers_that_some_hospital_sent(config: StrategyConfig) -> None:
    strategy = make_strategy(config, len(HOSPITALS))
    new, _ = one_round(strategy, weights(), {})
    assert new["bn.num_batches_tracked"].dtype == torch.int64
    assert new["bn.num_batches_tracked"].item() in {11, 12, 13, 14, 15}
    assert {name: tensor.dtype for name, tensor in new.items()} == {n: t.dtype for n, t in weights().items()}


@every
def test_a_missing_hospital_is_simply_not_there_and_none_is_none(config: StrategyConfig) -> None:
    strategy = make_strategy(config, len(HOSPITALS))
    sent = strategy.sends(weights(), {})
    done = strategy.aggregate(updates(sent, ("a", "b", "d", "e")), sent, {})
    assert done is not None
    assert all(torch.isfinite(tensor).all() for tensor in done[0].values())
    assert strategy.aggregate([], sent, {}) is None


@every
def test_updates_may_be_one_reused_working_copy(config: StrategyConfig) -> None:
    strategy = make_strategy(config, len(HOSPITALS))
    sent = strategy.sends(weights(), {})
    working = {name: tensor.clone() for name, tensor in sent.items()}

    def stream() -> Iterator[Update]:
        for update in updates(sent):
            for name, tensor in update.tensors.items():
                working[name].copy_(tensor)
            yield Update(update.hospital, working, update.n_images, EPOCHS, 0.1)

    done, expected = strategy.aggregate(stream(), sent, {}), strategy.aggregate(updates(sent), sent, {})
    assert done is not None
    assert expected is not None
    assert all(torch.equal(done[0][name], tensor) for name, tensor in expected[0].items())


@every
def test_the_state_survives_a_checkpoint_bit_for_bit(config: StrategyConfig, tmp_path: Path) -> None:
    strategy, checkpoint = make_strategy(config, len(HOSPITALS)), Checkpoint(tmp_path, keep_rounds=False)
    line = RoundLine(arm="federated", model="global", round=1, hospital="all")
    straight = stopped = TrainingState(weights(), weights())
    for number in range(1, 5):
        straight = TrainingState(*one_round_of(strategy, straight))
        stopped = TrainingState(*one_round_of(strategy, stopped))
        stopped.round = stopped.best_round = number
        checkpoint.write_round(stopped, [line])
        read = checkpoint.read("global")
        assert read is not None
        stopped = read
    assert straight.server.keys() == stopped.server.keys()
    assert all(torch.equal(stopped.server[name], tensor) for name, tensor in straight.server.items())
    assert all(torch.equal(stopped.weights[name], tensor) for name, tensor in straight.weights.items())
    assert len(list(checkpoint.folder.glob("*.safetensors"))) == (2 if straight.server else 1), "old rounds go"


def one_round_of(strategy: AnyStrategy, state: TrainingState) -> tuple[object, ...]:
    new, server = one_round(strategy, state.weights, state.server)
    return new, new, 0, 0, -1.0, float("inf"), server


class Ear:
    """A transport that lets all through and remembers the names that travelled."""

    def __init__(self, transport: InProcessTransport) -> None:
        self.inner, self.trainers, self.kept = transport, transport.trainers, transport.kept
        self.validate, self.settle = transport.validate, transport.settle
        self.up: set[str] = set()
        self.down: set[str] = set()

    def train(self, sent: Tensors, round_number: int, hospitals: tuple[str, ...]) -> Iterator[Update | HospitalFailure]:
        self.down |= sent.keys()
        for reply in self.inner.train(sent, round_number, hospitals):
            assert isinstance(reply, Update), reply
            self.up |= {name.partition("#")[0] for name in reply.tensors}
            yield reply


def federation_of(tiny: Federation, **sections: object) -> Federation:
    training = tiny.training.model_copy(
        update={"rounds": 1, "batch_size": 4, "learning_rate": 1e-2, "optimizer": "sgd"}
    )
    return tiny.model_copy(update={"training": training, "model": ModelConfig(image_size_px=32), **sections})


@every
def test_private_tensors_never_travel_and_all_others_do(config: StrategyConfig, tiny_federation: Federation) -> None:
    federation = federation_of(tiny_federation, aggregation=config)
    network = build_network(federation.model, 2, seed=0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    strategy = make_strategy(config, len(HOSPITALS))
    private = strategy.private(network)
    assert bool(private) == bool(config.keeps_private)
    images = {hospital: squares(4, seed=number) for number, hospital in enumerate(HOSPITALS)}
    at_start = label("private", {name: start[name] for name in private})
    transport = InProcessTransport(
        network,
        federation,
        training_sets=images,
        validation_sets=images,
        device=CPU,
        on_images=lambda *_: None,
        rules=Rules(strategy),
        at_start=at_start,
    )
    ear = Ear(transport)
    shared = {name: tensor for name, tensor in start.items() if name not in private}
    state = TrainingState(shared, shared)
    run_rounds("federated", "global", federation.training, ear, state, rules=Rules(strategy))  # type: ignore[arg-type]
    assert state.weights.keys() == start.keys() - private
    assert ear.up == ear.down >= start.keys() - private
    assert not (ear.up | ear.down) & private
    for hospital in HOSPITALS:
        kept = of_kind("private", transport.kept().get(hospital, {}))
        assert kept.keys() == private
        assert not private or any(not torch.equal(kept[name], start[name]) for name in private), "private parts learn"
    if private:
        first, second = (of_kind("private", transport.kept()[hospital]) for hospital in "ab")
        assert any(not torch.equal(first[name], second[name]) for name in private), "each has its own"


def test_what_is_learned_is_what_the_networks_call_parameters() -> None:
    for architecture in ("resnet18", "efficientnet-lite0", "compact-cnn"):
        network = build_network(ModelConfig(architecture=architecture), 3, seed=0)  # type: ignore[arg-type]
        learned = {name for name, tensor in network.state_dict().items() if is_learned(name, tensor)}
        assert learned == {name for name, _ in network.named_parameters()}


def test_fedbn_keeps_every_batchnorm_tensor_and_fedper_the_head() -> None:
    network = build_network(ModelConfig(), 3, seed=0)
    names = set(network.state_dict())
    fedbn = make_strategy(STRATEGIES["fedbn"](), 3).private(network)  # type: ignore[call-arg]
    assert fedbn == {name for name in names if "bn" in name or "downsample.1" in name}
    assert make_strategy(STRATEGIES["fedper"](), 3).private(network) == {"fc.weight", "fc.bias"}  # type: ignore[call-arg]


def test_fedavgm_is_momentum_over_the_average() -> None:
    strategy = make_strategy(FedAvgMConfig(server_learning_rate=0.5, server_momentum=0.8), 5)
    now, state, velocity = weights(), {}, np.zeros((4, 3))
    for _ in range(3):
        share = np.average([u.tensors["conv.weight"].numpy() for u in updates(now)], axis=0, weights=[1, 2, 3, 4, 5])
        velocity = 0.8 * velocity + (share - now["conv.weight"].numpy())
        expected = now["conv.weight"].numpy() + 0.5 * velocity
        now, state = one_round(strategy, now, state)
        np.testing.assert_allclose(now["conv.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert set(state) == {"momentum/conv.weight"}, "statistics have no momentum"


def test_fedadam_is_algorithm_2_without_bias_correction() -> None:
    strategy = make_strategy(FedAdamConfig(server_learning_rate=0.1, beta_1=0.8, beta_2=0.9, tau=0.01), 5)
    now, state, m, v = weights(), {}, np.zeros((4, 3)), np.full((4, 3), 0.01**2)
    for _ in range(3):
        share = np.average([u.tensors["conv.weight"].numpy() for u in updates(now)], axis=0, weights=[1, 2, 3, 4, 5])
        change = share - now["conv.weight"].numpy()
        m, v = 0.8 * m + 0.2 * change, 0.9 * v + 0.1 * change**2
        expected = now["conv.weight"].numpy() + 0.1 * m / (np.sqrt(v) + 0.01)
        now, state = one_round(strategy, now, state)
        np.testing.assert_allclose(now["conv.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_hospitals", [3, 4, 5])
def test_the_median_is_numpys(n_hospitals: int) -> None:
    sent = weights()
    given = updates(sent, HOSPITALS[:n_hospitals])
    done = make_strategy(MedianConfig(), n_hospitals).aggregate(given, sent, {})
    assert done is not None
    expected = np.median([update.tensors["conv.weight"].numpy() for update in given], axis=0)
    np.testing.assert_allclose(done[0]["conv.weight"].numpy(), expected, rtol=1e-6)


def test_the_trimmed_mean_leaves_out_both_ends() -> None:
    sent = weights()
    done = make_strategy(TrimmedMeanConfig(trim=0.2), 5).aggregate(updates(sent), sent, {})
    assert done is not None
    ordered = np.sort([update.tensors["conv.weight"].numpy() for update in updates(sent)], axis=0)
    np.testing.assert_allclose(done[0]["conv.weight"].numpy(), ordered[1:4].mean(axis=0), rtol=1e-6)


def test_krum_scores_are_the_naive_ones() -> None:
    given = [update.tensors for update in updates(weights())]
    both = ("conv.weight", "bn.running_var")
    flat = [np.concatenate([one[name].numpy().ravel() for name in both]).astype(np.float64) for one in given]
    expected = []
    for i, one in enumerate(flat):
        far = sorted(float(((one - other) ** 2).sum()) for j, other in enumerate(flat) if j != i)
        expected.append(sum(far[: 5 - 1 - 2]))
    np.testing.assert_allclose(krum_scores(given, 1).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("config", [MedianConfig(), TrimmedMeanConfig(), KrumConfig()], ids=lambda c: c.strategy)
def test_one_poisoned_hospital_moves_the_mean_and_not_the_robust(config: StrategyConfig) -> None:
    sent = weights()
    given = updates(sent)
    honest = given[:4]
    given[4] = Update("e", {n: -5 * t if is_learned(n, t) else t for n, t in sent.items()}, 10**9, EPOCHS, 0.1)

    def distance(one: StrategyConfig) -> float:
        done = make_strategy(one, 5).aggregate(given, sent, {})
        assert done is not None
        centre = torch.stack([update.tensors["conv.weight"] for update in honest]).mean(0)
        return float((done[0]["conv.weight"] - centre).abs().max())

    assert distance(config) < 0.1, "within what the honest ones span"
    assert distance(FedAvgConfig()) > 0.5


@pytest.mark.parametrize("config", [MedianConfig(), TrimmedMeanConfig(), KrumConfig(), KrumConfig(keep=2)])
def test_nor_does_one_that_poisons_batchnorms_statistics_alone(config: StrategyConfig) -> None:
    sent = weights()
    given = updates(sent)
    statistics = {n: t + 1e6 for n, t in sent.items() if t.is_floating_point() and not is_learned(n, t)}
    assert statistics
    given[4] = Update("e", {**sent, **statistics}, 50, EPOCHS, 0.1)
    done = make_strategy(config, 5).aggregate(given, sent, {})
    assert done is not None
    assert all(done[0][name].abs().max() < 1e3 for name in statistics)


def test_multi_krum_weighs_its_choice_alike() -> None:
    """A liar among the chosen would name itself a million images."""
    sent = weights()
    given = [replace(update, n_images=10 ** (place + 1)) for place, update in enumerate(updates(sent))]
    best = krum_scores([update.tensors for update in given], 1).argsort()[:3].tolist()
    done = make_strategy(KrumConfig(n_malicious=1, keep=3), 5).aggregate(given, sent, {})
    assert done is not None
    expected = torch.stack([given[index].tensors["conv.weight"].double() for index in best]).mean(0)
    torch.testing.assert_close(done[0]["conv.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_fedprox_trains_as_if_its_term_stood_in_the_loss() -> None:
    network = build_network(ModelConfig(architecture="compact-cnn", image_size_px=32), 2, seed=0)
    sent = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    images = torch.rand(4, 3, 32, 32)
    mu = 0.3

    def gradients(with_term: bool) -> list[torch.Tensor]:
        network.zero_grad()
        loss = network(images).square().mean()
        if with_term:
            near = sum((p - sent[name]).square().sum() for name, p in network.named_parameters())
            loss = loss + mu / 2 * near
        loss.backward()
        return [parameter.grad.clone() for parameter in network.parameters()]  # type: ignore[union-attr]

    expected = gradients(with_term=True)
    gradients(with_term=False)
    rule = make_strategy(FedProxConfig(mu=mu), 3).local_rule(network, sent, {})
    assert rule is not None
    rule.adjust_gradients()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_scaffolds_control_variate_is_the_papers_option_two_under_plain_sgd() -> None:
    torch.manual_seed(0)
    network = build_network(ModelConfig(architecture="compact-cnn", image_size_px=32), 2, seed=0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    strategy = make_strategy(ScaffoldConfig(), 3)
    common = {name: 0.01 * torch.randn(tensor.shape) for name, tensor in start.items()}
    own = {name: 0.01 * torch.randn(tensor.shape) for name, tensor in start.items()}
    sent = strategy.sends(start, label("control", common))
    rule = strategy.local_rule(network, sent, label("control", own))
    assert rule is not None
    rate, n_steps = 0.05, 4
    optimizer = torch.optim.SGD(network.parameters(), rate)
    for _ in range(n_steps):
        optimizer.zero_grad()
        network(torch.rand(4, 3, 32, 32)).square().mean().backward()
        rule.adjust_gradients()
        optimizer.step()
    beside, kept = rule.finish()
    for name, parameter in network.named_parameters():
        expected = own[name] - common[name] + (start[name] - parameter.detach()) / (n_steps * rate)
        torch.testing.assert_close(kept[f"control/{name}"], expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            beside[f"control/{name}"] - common[name], kept[f"control/{name}"] - own[name], rtol=1e-3, atol=1e-6
        )


def test_scaffolds_common_control_moves_by_the_share_that_answered() -> None:
    strategy = make_strategy(ScaffoldConfig(), 5)
    sent = strategy.sends(weights(), {})
    done = strategy.aggregate(updates(sent, ("a", "b")), sent, {})
    assert done is not None
    given = [update.tensors["control/conv.weight"].numpy() for update in updates(sent, ("a", "b"))]
    np.testing.assert_allclose(done[1]["control/conv.weight"].numpy(), 2 / 5 * np.mean(given, axis=0), rtol=1e-5)


def small(tiny: Federation, config: StrategyConfig, *, compression: str = "none", **training: object) -> tuple:
    """A federation of a small network, and its rules."""
    communication = CommunicationConfig(compression=compression)  # type: ignore[arg-type]
    federation = federation_of(tiny, aggregation=config, communication=communication)
    model = ModelConfig(architecture="compact-cnn", image_size_px=32)
    changes = {"model": model, "training": federation.training.model_copy(update=training)}
    return federation.model_copy(update=changes), Rules(make_strategy(config, len(HOSPITALS)), communication)


def unequal_hospitals(federation: Federation, rules: Rules) -> tuple[InProcessTransport, TrainingState]:
    """Hospitals of 4, 8, 12, ... images, and where the rounds begin."""
    network = build_network(federation.model, 2, seed=0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    private = rules.strategy.private(network)
    transport = InProcessTransport(
        network,
        federation,
        training_sets={hospital: squares(4 * n, seed=n) for n, hospital in enumerate(HOSPITALS, start=1)},
        validation_sets={},
        device=CPU,
        on_images=lambda *_: None,
        rules=rules,
        at_start=label("private", {name: start[name] for name in private}),
    )
    shared = {name: tensor for name, tensor in start.items() if name not in private}
    return transport, TrainingState(shared, shared)


def test_scaffolds_common_control_stays_the_plain_mean_of_all_hospitals_own(tiny_federation: Federation) -> None:
    """Of unequal hospitals, of which each round asks some: those that never answered have a control of zero."""
    federation, rules = small(tiny_federation, ScaffoldConfig(), rounds=4, hospital_fraction=0.4)
    transport, beginning = unequal_hospitals(federation, rules)
    n_answered = []

    class Look:
        def write_round(self, state: TrainingState, lines: object) -> None:
            n_answered.append(len(state.hospitals))
            for name, common in state.server.items():
                own = [kept[name].double() for kept in state.hospitals.values()]
                mean = torch.stack(own).sum(0) / len(HOSPITALS)
                torch.testing.assert_close(common.double(), mean, rtol=1e-4, atol=1e-7)
                assert common.abs().max() > 1e-4, "zero would be the mean of zeros"

    run_rounds("federated", "global", federation.training, transport, beginning, Look(), rules)  # type: ignore[arg-type]
    assert n_answered[0] == 2
    assert n_answered[-1] > 2, "several samples, so that old controls count too"


@pytest.mark.parametrize(
    ("config", "compression"),
    [(ScaffoldConfig(), "none"), (FedPerConfig(), "none"), (FedAvgConfig(), "int8")],
    ids=["control", "private", "residual"],
)
def test_a_refused_hospital_keeps_what_it_kept_before(
    config: StrategyConfig, compression: str, tiny_federation: Federation
) -> None:
    """Its round did not count, so its control, private part and residual may not move either."""
    federation, rules = small(tiny_federation, config, compression=compression, rounds=3)
    transport, beginning = unequal_hospitals(federation, rules)

    class Spoiling(Ear):
        """In round 2 the update of "b" says that it is of no images."""

        def train(self, sent: Tensors, number: int, hospitals: tuple[str, ...]) -> Iterator[Update | HospitalFailure]:
            for reply in super().train(sent, number, hospitals):
                assert isinstance(reply, Update)
                yield replace(reply, n_images=0) if (number, reply.hospital) == (2, "b") else reply

    rounds = []

    class Look:
        def write_round(self, state: TrainingState, lines: list[RoundLine]) -> None:
            rounds.append(state.hospitals)
            assert [line.hospital for line in lines if line.failure] == (["b"] if state.round == 2 else [])

    run_rounds("federated", "global", federation.training, Spoiling(transport), beginning, Look(), rules)  # type: ignore[arg-type]

    def moved_in(number: int) -> set[str]:
        before, after = rounds[number - 2], rounds[number - 1]
        return {h for h in HOSPITALS if any(not torch.equal(after[h][n], tensor) for n, tensor in before[h].items())}

    assert moved_in(2) == set("acde")
    assert moved_in(3) == set("abcde")
