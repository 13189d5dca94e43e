"""FedAvg over named tensors, and the check that stands before it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UpdateError
from engine.federation.aggregation import federated_average
from engine.federation.updates import Update, check_update
from engine.results.rounds import Epoch
from engine.training.networks import Tensors

EPOCHS = (Epoch(loss=1.0, accuracy=0.5, seconds=0.1),)


def update(tensors: Tensors, n_images: int = 1, hospital: str = "h") -> Update:
    return Update(hospital, tensors, n_images, EPOCHS, 0.1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 10_000), st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_average_is_the_image_weighted_mean(hospitals: list[tuple[int, list[float]]]) -> None:
    updates = [update({"w": torch.tensor(values)}, n_images) for n_images, values in hospitals]
    naive = sum(n * np.array(values, np.float64) for n, values in hospitals) / sum(n for n, _ in hospitals)
    average = federated_average(iter(updates))
    assert average is not None
    assert average["w"].dtype == torch.float32
    np.testing.assert_allclose(average["w"].numpy(), naive.astype(np.float32), rtol=1e-6, atol=1e-6)


def test_one_update_averages_to_itself_bit_for_bit() -> None:
    tensors = {"w": torch.randn(1000), "count": torch.tensor(7)}
    average = federated_average([update(tensors, n_images=769)])
    assert average is not None
    assert torch.equal(average["w"], tensors["w"])
    assert torch.equal(average["count"], tensors["count"])


def test_integer_buffers_take_the_largest_value_and_stay_integers() -> None:
    average = federated_average([update({"count": torch.tensor(n)}, n) for n in (3, 9, 4)])
    assert average is not None
    assert average["count"].dtype == torch.int64
    assert average["count"].item() == 9


def test_half_precision_is_summed_in_double() -> None:
    updates = [update({"w": torch.full((1,), 1.0, dtype=torch.float16)}, 1000) for _ in range(5000)]
    average = federated_average(updates)
    assert average is not None
    assert average["w"].dtype == torch.float16
    assert average["w"].item() == 1.0


def test_updates_are_consumed_before_the_next_is_made() -> None:
    """A transport reuses one network: its tensors change as soon as the next reply is drawn."""
    working_copy = torch.zeros(2)

    def stream() -> object:
        for value in (1.0, 3.0):
            working_copy.fill_(value)
            yield update({"w": working_copy})

    average = federated_average(stream())  # type: ignore[arg-type]
    assert average is not None
    assert average["w"].tolist() == [2.0, 2.0]


def test_no_update_has_no_average() -> None:
    assert federated_average([]) is None


LIKE = {"w": torch.zeros(2, 2), "n": torch.tensor(0)}


@pytest.mark.parametrize(
    ("tensors", "n_images", "says"),
    [
        ({"w": torch.zeros(2, 2)}, 1, "tensor n is missing"),
        ({**LIKE, "x": torch.zeros(1)}, 1, "tensor x is unknown"),
        ({**LIKE, "w": torch.zeros(2, 3)}, 1, r"tensor w is torch.float32 \(2, 3\), not torch.float32 \(2, 2\)"),
        ({**LIKE, "w": torch.zeros(2, 2, dtype=torch.float64)}, 1, "torch.float64"),
        ({**LIKE, "w": torch.tensor([[0.0, float("nan")], [0.0, 0.0]])}, 1, "NaN or infinity"),
        ({**LIKE, "w": torch.tensor([[0.0, float("inf")], [0.0, 0.0]])}, 1, "NaN or infinity"),
        (LIKE, 0, "n_images is 0"),
        (LIKE, -5, "n_images is -5"),
    ],
)
def test_bad_updates_are_refused_naming_hospital_and_tensor(tensors: Tensors, n_images: int, says: str) -> None:
    with pytest.raises(UpdateError, match=f"north.*{says}"):
        check_update(update(tensors, n_images, hospital="north"), like=LIKE)


def test_a_good_update_passes() -> None:
    check_update(update({"w": torch.ones(2, 2), "n": torch.tensor(3)}, 1), like=LIKE)


def test_a_negative_variance_is_refused() -> None:
    """The average of such a model reads every image as NaN."""
    like = {"bn.running_var": torch.ones(3)}
    bad = Update("north", {"bn.running_var": torch.tensor([1.0, -0.2, 1.0])}, 10, EPOCHS, 0.1)
    with pytest.raises(UpdateError, match=r"north.*bn.running_var is a variance and holds negative values"):
        check_update(bad, like)
