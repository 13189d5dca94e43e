"""What travels: its bytes, what comes out of it, and that what is left out comes later."""

import math

import pytest
import torch

from engine.aggregation_config import CommunicationConfig
from engine.errors import UpdateError
from engine.federation.compression import decode, encode
from engine.federation.named_tensors import is_learned
from engine.federation.updates import Update, check_update, count_bytes
from engine.results.rounds import Epoch
from engine.sections import ModelConfig
from engine.training.build import build_network
from engine.training.networks import Tensors

EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)
WAYS = {
    "none": CommunicationConfig(),
    "fp16": CommunicationConfig(compression="fp16"),
    "int8": CommunicationConfig(compression="int8"),
    "topk": CommunicationConfig(compression="topk", fraction=0.05),
}
lossy = pytest.mark.parametrize("way", ["fp16", "int8", "topk"])


def message() -> Tensors:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(8, 4, 3, 3),
        "conv.bias": torch.randn(8),
        "bn.running_mean": torch.randn(8),
        "bn.running_var": torch.rand(8) + 0.5,
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.scale": torch.tensor(1.5),
    }


def trained(sent: Tensors, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor + 5
        for name, tensor in sent.items()
    }


def there_and_back(tensors: Tensors, sent: Tensors, residual: Tensors, way: str) -> tuple[Tensors, Tensors]:
    payload, residual = encode(tensors, sent, residual, WAYS[way])
    back = decode(Update("north", payload, 10, EPOCHS, 0.1), sent, WAYS[way])
    check_update(back, like=sent)
    return back.tensors, residual


def test_uncompressed_tensors_come_back_as_they_are() -> None:
    tensors = trained(message())
    back, residual = there_and_back(tensors, message(), {}, "none")
    assert all(back[name] is tensor for name, tensor in tensors.items())
    assert not residual


@pytest.mark.parametrize(("way", "tolerance"), [("fp16", 3e-5), ("int8", 0.05 / 127), ("topk", 0.05)])
def test_what_comes_back_is_near_and_the_residual_is_the_rest(way: str, tolerance: float) -> None:
    sent = message()
    tensors = trained(sent)
    back, residual = there_and_back(tensors, sent, {}, way)
    assert residual.keys() == {name for name, tensor in sent.items() if is_learned(name, tensor)}
    for name, left in residual.items():
        assert float((back[name] - tensors[name]).abs().max()) <= tolerance
        torch.testing.assert_close(back[name] + left, tensors[name], rtol=1e-6, atol=1e-6)


@lossy
def test_integers_arrive_whole_and_statistics_as_near_as_half_precision(way: str) -> None:
    tensors = trained(message())
    tensors["bn.running_var"] = torch.tensor([1e-6, 1e-4, 0.5, 1.0, 2.0, 100.0, 1e3, 6e4])
    back, _ = there_and_back(tensors, message(), {}, way)
    assert torch.equal(back["bn.num_batches_tracked"], tensors["bn.num_batches_tracked"])
    torch.testing.assert_close(back["bn.running_var"], tensors["bn.running_var"], rtol=1e-3, atol=1e-7)
    assert (back["bn.running_var"] >= 0).all()


@lossy
def test_statistics_beyond_half_precision_travel_in_full(way: str) -> None:
    tensors = trained(message())
    tensors["bn.running_var"] = torch.full((8,), 1e6)
    back, _ = there_and_back(tensors, message(), {}, way)
    assert torch.equal(back["bn.running_var"], tensors["bn.running_var"])


@lossy
def test_error_feedback_makes_good_what_was_left_out(way: str) -> None:
    """A hospital that moves by the same step every round: what it sent adds up to the steps, but for one rest."""
    sent, residual = message(), {}
    begin = {name: tensor.clone() for name, tensor in sent.items()}
    step = {name: tensor - sent[name] for name, tensor in trained(sent).items()}
    rounds = 40
    for _ in range(rounds):
        wanted = {name: tensor + step[name] for name, tensor in sent.items()}
        sent, residual = there_and_back(wanted, sent, residual, way)
    for name, left in residual.items():
        torch.testing.assert_close(sent[name] + left, begin[name] + rounds * step[name], rtol=1e-4, atol=1e-4)
        assert float(left.abs().max()) < 0.02 * 25, "the rest does not grow with the rounds"


def test_int8_has_a_scale_for_each_output_channel() -> None:
    sent = {"w": torch.zeros(2, 100)}
    tensors = {"w": torch.stack([torch.linspace(-1, 1, 100), torch.linspace(-1e-4, 1e-4, 100)])}
    payload, _ = encode(tensors, sent, {}, WAYS["int8"])
    assert payload["w#int8"].dtype == torch.int8
    assert payload["w#scale"].shape == (2,)
    back, _ = there_and_back(tensors, sent, {}, "int8")
    torch.testing.assert_close(back["w"][1], tensors["w"][1], rtol=0, atol=1e-4 / 127)


@pytest.mark.parametrize(
    ("size", "kind"), [(256, torch.uint8), (257, torch.uint16), (2**16, torch.uint16), (2**16 + 1, torch.int32)]
)
def test_topk_sends_the_largest_with_the_smallest_index_that_fits(size: int, kind: torch.dtype) -> None:
    sent, tensors = {"w": torch.zeros(size)}, {"w": torch.linspace(1, 2, size)}
    payload, _ = encode(tensors, sent, {}, CommunicationConfig(compression="topk", fraction=0.01))
    count = math.ceil(0.01 * size)
    assert payload["w#index"].dtype == kind
    assert payload["w#index"].tolist() == list(range(size - count, size))
    back, _ = there_and_back(tensors, sent, {}, "topk")
    assert torch.equal(back["w"][-count:], tensors["w"][-count:])


@pytest.mark.parametrize("architecture", ["resnet18", "efficientnet-lite0"])
@pytest.mark.parametrize(("way", "limit"), [("fp16", 0.51), ("int8", 0.26), ("topk", 0.04)])
def test_the_bytes_that_travel(architecture: str, way: str, limit: float) -> None:
    network = build_network(ModelConfig(architecture=architecture), 4, seed=0)  # type: ignore[arg-type]
    sent = dict(network.state_dict())
    config = CommunicationConfig(compression=way)  # type: ignore[arg-type]  # topk sends 1%
    payload, _ = encode(trained(sent), sent, {}, config)
    assert 0 < count_bytes(payload) <= limit * count_bytes(sent), count_bytes(payload) / count_bytes(sent)


@pytest.mark.parametrize(
    ("way", "damage", "says"),
    [
        ("int8", lambda p: p.pop("conv.weight#scale"), "tensor conv.weight#scale is missing"),
        ("topk", lambda p: p.pop("bn.num_batches_tracked"), "tensor bn.num_batches_tracked is missing"),
        ("topk", lambda p: p.update({"conv.weight": torch.zeros(1)}), "tensor conv.weight is unknown"),
        ("int8", lambda p: p.update({"conv.weight#int8": torch.zeros(3, dtype=torch.int8)}), "no int8 tensor"),
        ("fp16", lambda p: p.update({"conv.bias#half": torch.zeros(3)}), "no fp16 tensor"),
        ("topk", lambda p: p.update({"conv.weight#index": torch.full((15,), 10**6)}), "no topk tensor"),
        ("topk", lambda p: p.update({"conv.weight#index": torch.full((15,), -1)}), "no topk tensor"),
        ("int8", lambda p: p.update({"conv.weight#scale": torch.full((8,), float("nan"))}), "NaN or infinity"),
    ],
)
def test_a_payload_that_cannot_be_read_names_hospital_and_tensor(way: str, damage: object, says: str) -> None:
    sent = message()
    payload, _ = encode(trained(sent), sent, {}, WAYS[way])
    damage(payload)  # type: ignore[operator]
    with pytest.raises(UpdateError, match=f"north.*{says}"):
        check_update(decode(Update("north", payload, 10, EPOCHS, 0.1), sent, WAYS[way]), like=sent)
