"""How unlike the hospitals' holdings are, in numbers: "non-IID" means little without them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Mix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Skew:
    """Jensen-Shannon divergences in bits (base 2): 0 is the same class mix, 1 no class in common.

    `from_federation` by hospital, None where it holds nothing; the pairwise figures and `quantity_ratio` (images of
    the largest over images of the smallest hospital) over the hospitals that hold images, None where there is one.
    """

    from_federation: dict[str, float | None]
    pairwise_mean: float | None
    pairwise_max: float | None
    quantity_ratio: float | None


def measure_skew(class_counts: Mapping[str, Mapping[str, int]]) -> Skew:
    """From images by hospital and class; every hospital counts the same classes."""
    counts = {hospital: np.array(list(mine.values()), np.float64) for hospital, mine in class_counts.items()}
    sizes = {hospital: float(mine.sum()) for hospital, mine in counts.items() if mine.sum()}
    whole = np.sum(list(counts.values()), axis=0)
    pairs = [divergence(counts[one], counts[other]) for one, other in combinations(sizes, 2)]
    return Skew(
        from_federation={
            hospital: divergence(mine, whole) if hospital in sizes else None for hospital, mine in counts.items()
        },
        pairwise_mean=float(np.mean(pairs)) if pairs else None,
        pairwise_max=max(pairs, default=None),
        quantity_ratio=max(sizes.values()) / min(sizes.values()) if pairs else None,
    )


def divergence(one: Mix, other: Mix) -> float:
    """Jensen-Shannon divergence in bits of two counts by class, neither of them empty. Lin, IEEE Trans. IT 1991."""
    first, second = one / one.sum(), other / other.sum()
    bits = _entropy((first + second) / 2) - (_entropy(first) + _entropy(second)) / 2
    return float(np.clip(bits, 0, 1))


def _entropy(shares: Mix) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())
