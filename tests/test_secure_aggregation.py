"""Secure aggregation: exact sums whoever drops out, what the coordinator sees, and a run that equals FedAvg's."""

import contextlib
import dataclasses
import itertools
import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.aggregation_config import FedAdamConfig, FedAvgConfig, FedAvgMConfig, FedProxConfig, StrategyConfig
from engine.config import load_federation
from engine.data.federation_data import FederationData
from engine.errors import ConfigError, RunError, UpdateError
from engine.federation.audited import fingerprint
from engine.federation.estimate import estimate_training
from engine.federation.hospital_round import Message
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.secure_aggregation import (
    PRIME,
    Advertise,
    Participant,
    PublicKeys,
    Reply,
    Request,
    ShareKeys,
    Shares,
    Unmask,
    Unmasking,
    Vector,
    join_secret,
    message_bytes,
    remove_masks,
    split_secret,
)
from engine.federation.secure_round import MASKED, STEP, key_bytes, mask_update
from engine.federation.strategies import make_strategy
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.federation.transports import in_process
from engine.federation.transports.in_process import InProcessTransport
from engine.federation.updates import HospitalFailure, Update
from engine.results.audit_log import RoundDone
from engine.results.rounds import ALL, Epoch, RoundLine
from engine.results.run_folder import Progress, Run
from engine.results.sweeps import reference_key, run_key
from engine.sections import TrainingConfig
from engine.secure_aggregation_config import SecureAggregationConfig
from engine.training.networks import Tensors
from tests.conftest import mixed
from tests.test_rounds import Kept
from tests.test_training_run import Killed

PROJECT = Path(__file__).resolve().parent.parent
EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
NAMES = ("a", "b", "c", "d", "e", "f")
SECURE = SecureAggregationConfig()

# --- the pieces ----------------------------------------------------------------------------------------------------


def test_the_field_is_one() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 60):  # Miller-Rabin
        x = pow(base, odd, PRIME)
        assert x in (1, PRIME - 1) or any(pow(x, 2**k, PRIME) == PRIME - 1 for k in range(1, twos))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.integers(0, 4), st.randoms())
def test_any_threshold_of_the_shares_make_the_secret_and_fewer_do_not(
    secret: bytes, threshold: int, more: int, random: object
) -> None:
    shares = dict(enumerate(split_secret(secret, threshold, threshold + more), start=1))
    chosen = random.sample(sorted(shares), threshold)  # type: ignore[attr-defined]
    assert join_secret({x: shares[x] for x in chosen}) == secret
    assert join_secret(shares) == secret
    if threshold > 1:
        with contextlib.suppress(RunError):  # a number above every secret
            assert join_secret({x: shares[x] for x in chosen[1:]}) != secret


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(2 / 3, [2, 3, 3, 4, 5]), (0.67, [2, 3, 3, 4, 5]), (0.51, [2, 3, 3, 4, 4]), (1, [3, 4, 5, 6, 7])],
)
def test_the_threshold_is_the_nearest_number_of_hospitals_and_a_majority(threshold: float, expected: list[int]) -> None:
    assert [SecureAggregationConfig(threshold=threshold).minimum(n) for n in range(3, 8)] == expected


def put_away(participant: Participant) -> Participant:
    """As a hospital does that keeps nothing in memory between two messages."""
    fields = json.loads(json.dumps(dataclasses.asdict(participant), default=bytes.hex))
    keys = {
        name: PublicKeys(bytes.fromhex(one["cipher"]), bytes.fromhex(one["mask"]))
        for name, one in fields.pop("keys").items()
    }
    secret, peers = bytes.fromhex(fields.pop("secret")), tuple(fields.pop("peers"))
    return Participant(secret=secret, keys=keys, peers=peers, **fields)


def agreed(
    names: Sequence[str], threshold: int
) -> tuple[dict[str, Participant], dict[str, PublicKeys], dict[str, Shares]]:
    participants = {name: Participant(name) for name in names}
    keys = {name: one.answer(Advertise()) for name, one in participants.items()}
    shares = {name: one.answer(ShareKeys(keys, threshold)) for name, one in participants.items()}  # type: ignore[arg-type]
    return participants, keys, shares  # type: ignore[return-value]


def inbox(shares: Mapping[str, Shares], name: str) -> dict[str, bytes]:
    return {sender: one.sealed[name] for sender, one in shares.items()}


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_opened_sum_is_the_plain_one_whoever_drops_out(data: st.DataObject) -> None:
    """Before sharing, before masking, before unmasking; the message order is any."""
    names = data.draw(st.permutations(NAMES[: data.draw(st.integers(3, 6))]))
    threshold = SECURE.minimum(len(names))
    participants = {name: Participant(name) for name in names}
    keys = {name: one.answer(Advertise()) for name, one in participants.items()}
    sharing = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=threshold))
    shares = {name: participants[name].answer(ShareKeys(keys, threshold)) for name in sharing}  # type: ignore[arg-type]
    survivors = data.draw(st.lists(st.sampled_from(sharing), unique=True, min_size=threshold))
    helpers = data.draw(st.lists(st.sampled_from(survivors), unique=True, min_size=threshold))
    numbers = st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5)
    vectors = {name: np.array(data.draw(numbers), np.uint64) for name in survivors}
    total = np.zeros(5, np.uint64)
    for name, vector in vectors.items():
        participants[name] = put_away(participants[name])
        masked = vector.copy()
        participants[name].mask(masked, sharing)
        assert not np.array_equal(masked, vector)
        total += masked
    answers = {
        name: put_away(participants[name]).answer(Unmask(tuple(survivors), inbox(shares, name)))  # type: ignore[arg-type]
        for name in helpers
    }
    dropped = [name for name in sharing if name not in survivors]
    remove_masks(total, keys, survivors, dropped, answers, threshold)  # type: ignore[arg-type]
    assert np.array_equal(total, np.sum(list(vectors.values()), axis=0, dtype=np.uint64))


def test_a_masked_vector_looks_like_noise_whatever_is_in_it() -> None:
    """Chi-square of its bytes, and none of them tell of the next round: the same numbers look unlike."""
    rows = []
    for round_number, content in itertools.product((1, 2), (0, 2**63 + 12345)):
        participants = {
            name: Participant(name, secret=f"{round_number} {name}".encode().ljust(32, b"."))
            for name in NAMES[:3]
        }  # fmt: skip
        keys = {name: one.answer(Advertise()) for name, one in participants.items()}
        participants["b"].answer(ShareKeys(keys, 2))  # type: ignore[arg-type]
        vector = np.full(50_000, content, np.uint64)
        participants["b"].mask(vector, NAMES[:3])
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = vector.nbytes / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert 170 < statistic < 350, "255 degrees of freedom: 255 +/- 4 x 23"
        rows.append(vector)
    first, same_round, next_round, _ = rows
    # Which is why a participant masks once: under the same masks a difference shows.
    assert set(same_round - first) == {2**63 + 12345}
    assert abs(np.corrcoef(first.astype(float), next_round.astype(float))[0, 1]) < 0.02


def test_a_vector_that_comes_late_is_still_hidden() -> None:
    """The coordinator has c's vector after all, and helped by a and b c's mask key: c's own mask is left."""
    participants, keys, shares = agreed(NAMES[:3], 2)
    plain = {name: np.arange(5, dtype=np.uint64) for name in NAMES[:3]}
    masked = {name: vector.copy() for name, vector in plain.items()}
    for name, participant in participants.items():
        participant.mask(masked[name], NAMES[:3])
    answers = {name: participants[name].answer(Unmask(("a", "b"), inbox(shares, name))) for name in "ab"}
    total = masked["a"] + masked["b"]
    remove_masks(total, keys, ["a", "b"], ["c"], answers, 2)  # type: ignore[arg-type]
    assert np.array_equal(total, plain["a"] + plain["b"])
    total = masked["a"] + masked["b"] + masked["c"]  # no mask of a pair is left in all three together
    own = {name: dataclasses.replace(answer, mask_keys={}) for name, answer in answers.items()}  # type: ignore[type-var]
    remove_masks(total, keys, ["a", "b"], [], own, 2)  # type: ignore[arg-type]
    assert not set((total - plain["a"] - plain["b"]).tolist()) & set(plain["c"].tolist())


# --- what a hospital refuses ---------------------------------------------------------------------------------------


@pytest.fixture
def masked() -> tuple[dict[str, Participant], dict[str, Shares]]:
    """Of a, b, c and d all have masked with one another; two thirds of four are three."""
    participants, _, shares = agreed(NAMES[:4], 3)
    for participant in participants.values():
        participant.mask(np.zeros(3, np.uint64), NAMES[:4])
    return participants, shares


def test_it_answers_once_and_masks_once(masked: tuple[dict[str, Participant], dict[str, Shares]]) -> None:
    participants, shares = masked
    one = participants["a"]
    with pytest.raises(UpdateError, match="two vectors under one mask"):
        one.mask(np.zeros(3, np.uint64), NAMES[:4])
    one.answer(Unmask(("a", "b", "c"), inbox(shares, "a")))
    with pytest.raises(UpdateError, match="both kinds of share"):
        one.answer(Unmask(("a", "b", "d"), inbox(shares, "a")))
    with pytest.raises(UpdateError, match="once a round"):
        one.answer(Advertise())


@pytest.mark.parametrize(
    ("survivors", "words"),
    [
        (("a", "b"), "2 survivors are fewer than 3"),
        (("b", "c", "d"), "not among those it masked with"),
        (("a", "b", "e"), "not among those it masked with"),
    ],
)
def test_it_opens_no_sum_of_too_few_nor_of_strangers(
    masked: tuple[dict[str, Participant], dict[str, Shares]], survivors: tuple[str, ...], words: str
) -> None:
    participants, shares = masked
    with pytest.raises(UpdateError, match=words):
        participants["a"].answer(Unmask(survivors, inbox(shares, "a")))


def test_shares_are_for_one_hospital_and_changed_ones_are_refused(
    masked: tuple[dict[str, Participant], dict[str, Shares]],
) -> None:
    participants, shares = masked
    with pytest.raises(UpdateError, match="what a sealed for b was changed"):
        participants["b"].answer(Unmask(NAMES[:4], inbox(shares, "a")))
    for torn in (bytes(82), b""):
        with pytest.raises(UpdateError, match="what d sealed for c was changed"):
            put_away(participants["c"]).answer(Unmask(NAMES[:4], {**inbox(shares, "c"), "d": torn}))


def test_it_shares_nothing_under_strange_keys_or_a_minority() -> None:
    participants = {name: Participant(name) for name in NAMES[:4]}
    keys = {name: one.answer(Advertise()) for name, one in participants.items()}
    for request, words in (
        (ShareKeys({**keys, "a": keys["b"]}, 3), "not those it sent"),  # type: ignore[dict-item]
        (ShareKeys(keys, 2), "no majority"),  # type: ignore[arg-type]
        (ShareKeys({**keys, "d": PublicKeys(bytes(32), bytes(32))}, 3), "no X25519 key"),  # type: ignore[dict-item]
    ):
        with pytest.raises(UpdateError, match=words):
            Participant("a", participants["a"].secret).answer(request)
    with pytest.raises(UpdateError, match="a peer has no keys"):
        participants["b"].mask(np.zeros(3, np.uint64), NAMES[:4])


# --- rounds --------------------------------------------------------------------------------------------------------

SENT = {
    "conv.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
    "bn.running_var": torch.tensor([0.5, 0.0, 2.0]),
    "bn.num_batches_tracked": torch.tensor(7),
    "fc.bias": torch.tensor([1e-6, 100.0]),
}
SIZES = {"a": 30, "b": 7, "c": 111, "d": 2}
STAGES = {Advertise: "keys", ShareKeys: "shares", Unmask: "unmask"}


def trained(sent: Tensors, hospital: str, round_number: int) -> Tensors:
    generator = torch.Generator().manual_seed(1000 * round_number + ord(hospital))
    new = {}
    for name, tensor in sent.items():
        if not tensor.is_floating_point():
            new[name] = tensor + SIZES[hospital]
        else:
            new[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
    new["bn.running_var"] = sent["bn.running_var"] * torch.rand(3, generator=generator)
    return new


class Hospitals:
    """A transport whose hospitals drop out where the test says: asked for "keys", "shares", a "vector", to "unmask".

    `seen` is all that the coordinator gets.
    """

    def __init__(self, drops: Mapping[str, str] | None = None, secure: bool = True) -> None:
        self.trainers = tuple(SIZES)
        self._drops = drops or {}
        self._secure = secure
        self._participants: dict[str, Participant] = {}
        self.seen: list[tuple[str, Reply | Update]] = []

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | HospitalFailure]:
        replies: dict[str, Reply | HospitalFailure] = {}
        for hospital, request in requests.items():
            if self._drops.get(hospital) == STAGES[type(request)]:
                replies[hospital] = HospitalFailure(hospital, "no power")
                continue
            if isinstance(request, Advertise):
                self._participants[hospital] = Participant(hospital)
            reply = self._participants[hospital].answer(request)
            self.seen.append((hospital, reply))
            replies[hospital] = reply
        return replies

    def train(self, sent: Tensors, number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        for hospital in hospitals:
            if not self._secure and hospital in self._drops and self._drops[hospital] != "unmask":
                continue
            if self._drops.get(hospital) == "vector":
                yield HospitalFailure(hospital, "no power")
                continue
            update = Update(hospital, trained(sent, hospital, number), SIZES[hospital], EPOCHS, 0.1)
            if self._secure:
                update = mask_update(update, sent, self._participants[hospital], hospitals)
            self.seen.append((hospital, update))
            yield update

    def settle(self, refused: Collection[str]) -> None:
        pass

    def validate(self, weights: Tensors, round_number: int) -> Iterator[HospitalFailure]:
        return iter(())

    def kept(self) -> dict[str, Tensors]:
        return {}


def rounds_of(
    transport: Hospitals, config: StrategyConfig | None = None, rounds: int = 1, threshold: float = 2 / 3
) -> tuple[TrainingState, list[RoundLine]]:
    secure = SecureAggregationConfig(threshold=threshold) if transport._secure else None
    rules = Rules(make_strategy(config or FedAvgConfig(), len(SIZES)), secure_aggregation=secure)
    kept = Kept()
    state = TrainingState(SENT, SENT)
    training = TrainingConfig(rounds=rounds)
    return run_rounds("federated", "global", training, transport, state, kept, rules), kept.lines


def assert_close(got: Tensors, plain: Tensors) -> None:
    """Half a step for each hospital's rounding, divided by all images, and a float32's own rounding of either."""
    assert got.keys() == plain.keys()
    for name, tensor in plain.items():
        assert got[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            bound = len(SIZES) * STEP / 2 / min(SIZES.values()) + 2.0**-23 * tensor.abs().double()
            assert bool(((got[name].double() - tensor.double()).abs() <= bound).all()), name
        else:
            assert torch.equal(got[name], tensor), "integers are exactly FedAvg's: the largest stands"


@pytest.mark.parametrize(
    "drops",
    [
        {},
        {"a": "keys"},
        {"b": "shares"},
        {"c": "vector"},
        {"d": "unmask"},
    ],
    ids=str,
)
def test_a_round_is_the_plain_average_of_who_answered(drops: dict[str, str]) -> None:
    secure, lines = rounds_of(Hospitals(drops))
    plain, _ = rounds_of(Hospitals(drops, secure=False))
    assert_close(secure.weights, plain.weights)
    failed = {line.hospital: line.failure for line in lines if line.failure}
    assert failed == {name: "no power" for name, stage in drops.items() if stage != "unmask"}
    fits = {line.hospital: line.fit for line in lines if line.fit and line.hospital != ALL}
    assert {name: fit.n_images for name, fit in fits.items()} == {n: SIZES[n] for n in SIZES if n not in failed}


@pytest.mark.parametrize("config", [FedProxConfig(), FedAvgMConfig(), FedAdamConfig(tau=0.1)], ids=str)
def test_other_means_are_theirs_too(config: StrategyConfig) -> None:
    secure, _ = rounds_of(Hospitals(), config, rounds=3)
    plain, _ = rounds_of(Hospitals(secure=False), config, rounds=3)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(secure.weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("drops", "words"),
    [
        ({"a": "keys", "b": "keys"}, "2 of at least 3 hospitals sent keys"),
        ({"a": "keys", "b": "shares"}, "2 of at least 3 hospitals shared their keys"),
        ({"a": "vector", "b": "shares"}, "2 of at least 3 hospitals returned a usable update"),
        ({"a": "vector", "b": "unmask"}, "2 of at least 3 hospitals helped to open the sum"),
    ],
    ids=str,
)
def test_below_the_threshold_nothing_is_opened(drops: dict[str, str], words: str) -> None:
    with pytest.raises(RunError, match=f"secure aggregation: {words}") as caught:
        rounds_of(Hospitals(drops))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drops", [{}, {"a": "vector"}, {"c": "unmask"}, {"b": "shares"}], ids=str)
def test_the_coordinator_never_gets_both_kinds_of_share_nor_a_plain_tensor(drops: dict[str, str]) -> None:
    transport = Hospitals(drops)
    rounds_of(transport)
    kinds: dict[str, set[str]] = {}
    for hospital, message in transport.seen:
        if isinstance(message, Unmasking):
            for kind, owned in (("self mask", message.self_masks), ("mask key", message.mask_keys)):
                for owner in owned:
                    kinds.setdefault(owner, set()).add(kind)
        elif isinstance(message, Update):
            assert message.tensors.keys() == {MASKED, "bn.num_batches_tracked"}
            numbers = trained(SENT, hospital, 1)
            vector = message.tensors[MASKED].numpy().view(np.uint64)
            change = (numbers["conv.weight"] - SENT["conv.weight"]).double() * SIZES[hospital] / STEP
            assert not set(vector.tolist()) & set(change.round().long().flatten().numpy().view(np.uint64).tolist())
            assert SIZES[hospital] not in vector
    shared = {name for name in SIZES if drops.get(name) != "shares"}
    assert kinds == {name: {"mask key" if drops.get(name) == "vector" else "self mask"} for name in shared}


def test_bytes_are_those_of_vectors_keys_and_shares() -> None:
    transport = Hospitals()
    _, lines = rounds_of(transport)
    n_numbers = sum(tensor.numel() for tensor in SENT.values() if tensor.is_floating_point())
    down, up = key_bytes(len(SIZES))
    message = sum(tensor.nbytes for tensor in SENT.values())
    fits = [line.fit for line in lines if line.fit and line.hospital != ALL]
    assert [fit.bytes_up for fit in fits] == [8 * (n_numbers + 1) + 8 + up] * 4
    assert [fit.bytes_down for fit in fits] == [message + down] * 4
    sent = sum(m.n_bytes if isinstance(m, Update) else message_bytes(m) for _, m in transport.seen)
    assert sent == sum(fit.bytes_up for fit in fits)


class Careless(Hospitals):
    """Its hospital b masks these numbers without a look at them; or sends them without a mask."""

    def __init__(self, numbers: Vector, masks: bool) -> None:
        super().__init__()
        self._numbers, self._masks = numbers, masks

    def train(self, sent: Tensors, number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        for update in super().train(sent, number, hospitals):
            if isinstance(update, Update) and update.hospital == "b":
                again = Participant("b", self._participants["b"].secret, 3, self._participants["b"].keys)
                if self._masks:
                    again.mask(self._numbers, hospitals)
                vector = torch.from_numpy(self._numbers.view(np.int64))
                update = dataclasses.replace(update, tensors={**update.tensors, MASKED: vector})
            yield update


def numbers(**changes: int) -> Vector:
    vector = np.zeros(sum(tensor.numel() for tensor in SENT.values() if tensor.is_floating_point()) + 1, np.int64)
    vector[12] = changes.get("first_variance", 0)
    vector[-1] = SIZES["b"]
    return vector.view(np.uint64)


def test_a_sum_with_a_mask_left_in_it_is_not_taken() -> None:
    with pytest.raises(RunError, match="what was opened is not the sum"):
        rounds_of(Careless(numbers(), masks=False))


def test_a_poisoned_sum_is_refused_though_nobody_knows_whose_it_is() -> None:
    with pytest.raises(RunError, match=r"running_var is a variance and holds negative .* cannot say whose"):
        rounds_of(Careless(numbers(first_variance=-(2**40)), masks=True))
    rounds_of(Careless(numbers(first_variance=-1), masks=True))


# --- numbers -------------------------------------------------------------------------------------------------------


def one_masked(change: float, n_images: int = 10, peers: Sequence[str] = NAMES[:3]) -> Update:
    participants, _, _ = agreed(peers, SECURE.minimum(len(peers)))
    sent = {"w": torch.zeros(2)}
    update = Update("a", {"w": torch.tensor([0.0, change])}, n_images, EPOCHS, 0.1)
    return mask_update(update, sent, participants["a"], peers)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_might_wrap_the_sum_around_is_refused(sign: int) -> None:
    limit = 2.0**63 * STEP / 3 / 10
    one_masked(sign * limit * 0.999999)
    with pytest.raises(UpdateError, match=r"update of a: tensor w: .* is above 1\.83e\+11, the most"):
        one_masked(sign * limit * 1.000001)
    with pytest.raises(UpdateError, match="is above"):
        one_masked(sign * limit * 0.999999, n_images=11)
    with pytest.raises(UpdateError, match="is above"):
        one_masked(sign * limit * 0.999999, peers=NAMES[:4])


def test_the_largest_numbers_of_all_hospitals_add_up_without_wrapping() -> None:
    limit = np.nextafter(2.0**63 / 3, 0)
    assert 3 * int(limit) < 2**63
    assert -3 * int(limit) >= -(2**63)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hospital_sends_no_masked_nonsense(value: float) -> None:
    with pytest.raises(UpdateError, match="update of a: tensor w holds NaN or infinity"):
        one_masked(value)


def test_a_variance_of_nothing_stays_one() -> None:
    """Every hospital's is a little less than half a step above zero, and rounding would make it negative."""

    class Still(Hospitals):
        def train(self, sent: Tensors, number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
            for one in hospitals:
                new = {**sent, "bn.running_var": torch.full((3,), 1e-12)}
                yield mask_update(Update(one, new, 1, EPOCHS, 0.1), sent, self._participants[one], hospitals)

    sent = {**SENT, "bn.running_var": torch.full((3,), STEP * 0.49)}
    state = TrainingState(sent, sent)
    rules = Rules(secure_aggregation=SECURE)
    transport = Still()
    run_rounds("federated", "global", TrainingConfig(rounds=1), transport, state, None, rules)
    assert bool((state.weights["bn.running_var"] >= 0).all())
    assert float(state.weights["bn.running_var"].max()) < STEP


# --- a run ---------------------------------------------------------------------------------------------------------


def secure(data: FederationData, *changes: str) -> FederationData:
    small = ("model.architecture='compact-cnn'", "model.image_size_px=32", "training.rounds=2")
    given = (*small, "training.batch_size=8", "arms=['federated']", *changes)
    return dataclasses.replace(data, federation=load_federation(PROJECT / "federations" / "phantoms.toml", given))


ON = "secure_aggregation.threshold=0.67"


def train(data: FederationData, artifacts: Path) -> Run:
    return train_run(start_run(data, "federations/phantoms.toml", artifacts), data)


def last_weights(run: Run) -> Tensors:
    return load_file(run.folder / "weights" / "global-last.safetensors")


@pytest.fixture(scope="module")
def secure_run(tiny_data: FederationData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds, finished. Read only."""
    return train(secure(tiny_data, ON), tmp_path_factory.mktemp("secure"))


def test_a_run_says_what_was_on_and_who_survived(secure_run: Run) -> None:
    told = secure_run.read_json("secure_aggregation.json")
    hospitals = ["hospital-a", "hospital-b", "hospital-c"]
    assert told["threshold"] == 0.67
    assert told["fixed_point"] == {"bits": 64, "fraction_bits": 24}
    assert told["simulated"] is True
    assert told["rounds"] == [
        {"round": number, "needed": 2, "participants": hospitals, "survivors": hospitals} for number in (1, 2)
    ]
    assert "secure_aggregation.json" in secure_run.manifest.files
    secure_run.verify(with_weights=True)


def test_a_run_equals_plain_fedavg_but_for_the_fixed_point(tiny_data: FederationData, tmp_path: Path) -> None:
    """Of one round: later ones train on from weights that differ in their last bit."""
    plain = train(secure(tiny_data, "training.rounds=1"), tmp_path / "plain")
    masked = train(secure(tiny_data, "training.rounds=1", ON), tmp_path / "masked")
    assert_close(last_weights(masked), last_weights(plain))
    assert not (plain.folder / "secure_aggregation.json").exists()


def test_a_runs_traffic_is_what_the_estimate_said(secure_run: Run, tiny_data: FederationData, tmp_path: Path) -> None:
    travelled = secure_run.read_json("communication.json")["hospitals"]
    estimate = estimate_training(secure(tiny_data, ON), tmp_path)
    assert {name: one.model_dump() for name, one in estimate.hospitals.items()} == travelled
    n_numbers = sum(t.numel() for t in last_weights(secure_run).values() if t.is_floating_point())
    assert estimate.memory_bytes["masked updates"] == 2 * 8 * (n_numbers + 1)


def test_the_audit_log_has_the_masked_updates_fingerprints(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = [{}, {}]
    honest = InProcessTransport.train

    def watched(self: InProcessTransport, tensors: Tensors, number: int, hospitals: Sequence[str]) -> object:
        for reply in honest(self, tensors, number, hospitals):
            assert isinstance(reply, Update)
            assert MASKED in reply.tensors
            sent[number - 1][reply.hospital] = fingerprint(reply.tensors)
            yield reply

    monkeypatch.setattr(InProcessTransport, "train", watched)
    run = train(secure(tiny_data, ON), tmp_path)
    log = run.verify_audit_log()
    rounds = [entry.what for entry in log.entries if isinstance(entry.what, RoundDone)]
    assert [one.updates for one in rounds] == sent
    assert rounds[-1].weights == fingerprint(last_weights(run))


def test_a_killed_run_resumes_to_the_same_weights(secure_run: Run, tiny_data: FederationData, tmp_path: Path) -> None:
    """The masks are other ones, and cancel all the same."""
    data = secure(tiny_data, ON)
    left = 20

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
    expected, got = last_weights(secure_run), last_weights(resumed)
    assert all(torch.equal(expected[name], tensor) for name, tensor in got.items())
    assert resumed.read_json("secure_aggregation.json") == secure_run.read_json("secure_aggregation.json")


def test_the_run_folder_keeps_no_secret(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bytes] = []
    honest = secrets.token_bytes

    def remembered(n: int) -> bytes:
        drawn.append(honest(n))
        return drawn[-1]

    monkeypatch.setattr("secrets.token_bytes", remembered)
    run = train(secure(tiny_data, ON), tmp_path)
    assert len(set(drawn)) == len(drawn) == 6, "one for each hospital and round"
    for path in run.folder.rglob("*"):
        content = b"" if path.is_dir() else path.read_bytes()
        assert not any(secret in content or secret.hex().encode() in content for secret in drawn), path


def test_a_hospital_that_fails_in_training_is_recovered_from(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = in_process.train_one_round

    def fails(*arguments: object, **more: object) -> object:
        message = next(one for one in arguments if isinstance(one, Message))
        if (message.hospital, message.round_number) == ("hospital-b", 2):
            raise RuntimeError("no power")
        return honest(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(in_process, "train_one_round", fails)
    plain = train(secure(tiny_data), tmp_path / "plain")
    masked = train(secure(tiny_data, ON), tmp_path / "masked")
    for name, tensor in last_weights(plain).items():
        torch.testing.assert_close(last_weights(masked)[name], tensor, rtol=1e-2, atol=1e-3)
    survived = [one["survivors"] for one in masked.read_json("secure_aggregation.json")["rounds"]]
    assert survived == [["hospital-a", "hospital-b", "hospital-c"], ["hospital-a", "hospital-c"]]
    assert ["no power" in (line.failure or "") for line in masked.rounds() if line.hospital == "hospital-b"] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    "changes",
    [
        ("aggregation.strategy='fedper'",),
        ("aggregation.strategy='fedadam'",),
        pytest.param(("privacy.epsilon=8", "privacy.delta=1e-3"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_secure_aggregation_goes_with(changes: tuple[str, ...], tiny_data: FederationData, tmp_path: Path) -> None:
    run = train(secure(tiny_data, ON, "training.rounds=1", *changes), tmp_path)
    assert len(run.read_json("secure_aggregation.json")["rounds"]) == 1


def test_it_goes_with_hospitals_of_several_objectives_and_private_heads(
    tiny_data: FederationData, tmp_path: Path
) -> None:
    data = dataclasses.replace(tiny_data, federation=mixed("arms=['federated']", "training.rounds=1", ON))
    run = train(data, tmp_path)
    assert not any(name.startswith("heads") for name in last_weights(run))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("aggregation.strategy='median'",), r"one sum .* 'median' compares single updates; take 'fedavg'"),
        (("aggregation.strategy='trimmed-mean'", "aggregation.trim=0.34"), r"'trimmed-mean' compares single updates"),
        (("aggregation.strategy='krum'", "aggregation.n_malicious=0"), r"'krum' compares single updates"),
        (("aggregation.strategy='scaffold'",), r"'scaffold' needs a second sum"),
        (("communication.compression='int8'",), r"compression = 'int8' must be 'none'"),
        (("communication.compression='topk'",), r"compression = 'topk' must be 'none'"),
        (("training.hospital_fraction=0.67",), r"needs at least 3 hospitals in a round, .* there are 2"),
        (("pretext.objective='simclr'", "pretext.weigh='objectives'"), r"pretext\.weigh = 'objectives' needs one for"),
        (("secure_aggregation.threshold=0.5",), r"secure_aggregation\.threshold: Input should be greater than 0\.5"),
        (("secure_aggregation.threshold=1.1",), r"secure_aggregation\.threshold: Input should be less than or equal"),
        (("secure_aggregation.masks=2",), r"unknown key 'secure_aggregation\.masks'"),
    ],
)
def test_what_cannot_go_with_it_is_refused_in_one_line(
    tiny_data: FederationData, changes: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        secure(tiny_data, ON, *changes)
    assert "\n" not in str(caught.value)


def test_shared_heads_of_several_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pretext\.heads = 'shared' with several objectives sends different ones"):
        mixed(ON, "pretext.heads='shared'")


def test_the_other_arms_are_the_same_training_with_it_and_without(tiny_data: FederationData) -> None:
    plain, masked = (secure(tiny_data, *changes).federation for changes in ((), (ON,)))
    assert reference_key(plain) == reference_key(masked)
    assert run_key(plain) != run_key(masked)
