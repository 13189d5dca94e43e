"""`[secure_aggregation]` of a federation file: the coordinator sees sums of updates alone, and what cannot go with it.

docs/secure-aggregation.md says what that protects and what it does not.
"""

from pydantic import Field

from engine.aggregation_config import CommunicationConfig, StrategyConfig
from engine.pretext_config import PretextConfig
from engine.sections import Section, TrainingConfig

FEWEST = 3  # of two hospitals each knows the other's update: the sum less its own


class SecureAggregationConfig(Section):
    """Pairwise masks that cancel in the sum, and shares of their keys for when a hospital drops out."""

    threshold: float = Field(2 / 3, gt=0.5, le=1, description="share of a round's hospitals that must answer")

    def minimum(self, n_hospitals: int) -> int:
        """How many of a round's hospitals must answer, and how many shares open a secret: the nearest whole number to
        the threshold, always more than half, so that no two sets of hospitals can open two different sums."""
        return max(n_hospitals // 2 + 1, round(self.threshold * n_hospitals))


def refuse_impossible_secure_aggregation(
    secure: SecureAggregationConfig | None,
    aggregation: StrategyConfig,
    communication: CommunicationConfig,
    training: TrainingConfig,
    pretext: PretextConfig | None,
    objectives: set[str],
    n_hospitals: int,
) -> None:
    """Raise ValueError for settings that cannot be true together. `objectives` are the hospitals' without labels."""
    if secure is None:
        return
    name = aggregation.strategy
    if aggregation.is_robust or name == "scaffold":
        why = "compares single updates" if aggregation.is_robust else "needs a second sum, with other weights"
        raise ValueError(
            f"[secure_aggregation] opens one sum of all updates and no more, and "
            f"aggregation.strategy = '{name}' {why}; "
            "take 'fedavg', 'fedprox', 'fedavgm' or 'fedadam'"
        )
    if communication.compression != "none":
        raise ValueError(
            "[secure_aggregation] sends masked numbers, which look random and cannot be made smaller; "
            f"communication.compression = '{communication.compression}' must be 'none'"
        )
    per_round = training.hospitals_per_round(n_hospitals)
    if per_round < FEWEST:
        raise ValueError(
            f"[secure_aggregation] needs at least {FEWEST} hospitals in a round, or one knows the other's update; "
            f"there are {per_round}"
        )
    if pretext is not None and pretext.weigh == "objectives":
        raise ValueError(
            "[secure_aggregation] opens one sum over all hospitals, and pretext.weigh = 'objectives' needs one for "
            "each objective; take 'images'"
        )
    if pretext is not None and pretext.heads == "shared" and len(objectives) > 1:
        raise ValueError(
            "[secure_aggregation] adds up the same tensors of every hospital, and pretext.heads = 'shared' with "
            "several objectives sends different ones; take heads = 'private'"
        )
