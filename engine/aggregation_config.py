"""`[aggregation]` and `[communication]` of a federation file: how updates become new weights, and how they travel.

`strategy` names one of the strategies below; each has its own keys and refuses those of another.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import Discriminator, Field, Tag, model_validator

from engine.sections import ModelConfig, Section, TrainingConfig


class StrategyConfig(Section):
    """What every strategy has. `minimum` is how many hospitals must answer for the rule to mean what it says."""

    keeps_private: ClassVar[str] = ""  # what stays at each hospital, in words
    is_robust: ClassVar[bool] = False  # judges updates by comparing them with one another
    strategy: str

    def minimum(self) -> int:
        return 1


class FedAvgConfig(StrategyConfig):
    strategy: Literal["fedavg"] = "fedavg"


class FedProxConfig(StrategyConfig):
    strategy: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, gt=0, description="pull of a hospital's weights towards the round's")


class FedAvgMConfig(StrategyConfig):
    strategy: Literal["fedavgm"] = "fedavgm"
    server_learning_rate: float = Field(1.0, gt=0)
    server_momentum: float = Field(0.9, ge=0, lt=1)


class FedAdamConfig(StrategyConfig):
    strategy: Literal["fedadam"] = "fedadam"
    server_learning_rate: float = Field(0.01, gt=0)
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0, description="the smaller, the more adaptive")


class ScaffoldConfig(StrategyConfig):
    strategy: Literal["scaffold"] = "scaffold"
    server_learning_rate: float = Field(1.0, gt=0)


class FedBNConfig(StrategyConfig):
    keeps_private: ClassVar[str] = "its own BatchNorm"
    strategy: Literal["fedbn"] = "fedbn"


class FedPerConfig(StrategyConfig):
    keeps_private: ClassVar[str] = "its own head"
    strategy: Literal["fedper"] = "fedper"


class MedianConfig(StrategyConfig):
    is_robust: ClassVar[bool] = True
    strategy: Literal["median"] = "median"

    def minimum(self) -> int:
        return 3  # the median of two is their mean


class TrimmedMeanConfig(StrategyConfig):
    is_robust: ClassVar[bool] = True
    strategy: Literal["trimmed-mean"] = "trimmed-mean"
    trim: float = Field(0.2, gt=0, lt=0.5, description="share of the updates left out at each end")

    def minimum(self) -> int:
        return max(3, math.ceil(1 / self.trim))  # fewer, and nobody is trimmed


class KrumConfig(StrategyConfig):
    is_robust: ClassVar[bool] = True
    strategy: Literal["krum"] = "krum"
    n_malicious: int = Field(1, ge=0, description="f of the paper")
    keep: int = Field(1, ge=1, description="updates averaged; more than one is Multi-Krum")

    def minimum(self) -> int:
        return max(2 * self.n_malicious + 3, self.keep)


STRATEGIES: dict[str, type[StrategyConfig]] = {
    str(kind.model_fields["strategy"].default): kind
    for kind in (
        FedAvgConfig,
        FedProxConfig,
        FedAvgMConfig,
        FedAdamConfig,
        ScaffoldConfig,
        FedBNConfig,
        FedPerConfig,
        MedianConfig,
        TrimmedMeanConfig,
        KrumConfig,
    )
}


def _strategy_of(value: Any) -> str:
    """The tag of the union; a section that names none means FedAvg."""
    return str(value.get("strategy", "fedavg") if isinstance(value, dict) else getattr(value, "strategy", ""))


if TYPE_CHECKING:
    AggregationConfig = StrategyConfig
else:  # the union of all STRATEGIES, which no type checker could read
    AggregationConfig = Annotated[
        Union[tuple(Annotated[kind, Tag(name)] for name, kind in STRATEGIES.items())],  # noqa: UP007
        Discriminator(
            _strategy_of,
            custom_error_type="unknown_strategy",
            custom_error_message=f"must be one of {', '.join(STRATEGIES)}",
        ),
    ]


class CommunicationConfig(Section):
    """How updates travel up. Weights travel down whole, in their own precision."""

    compression: Literal["none", "fp16", "int8", "topk"] = "none"
    fraction: float | None = Field(None, gt=0, le=1, description="topk: the share of values sent; default 0.01")

    @property
    def share(self) -> float:
        return 0.01 if self.fraction is None else self.fraction

    @model_validator(mode="after")
    def _fraction_is_of_topk(self) -> Self:
        if self.fraction is not None and self.compression != "topk":
            raise ValueError(f"fraction belongs to compression = 'topk', not to '{self.compression}'")
        return self


def refuse_impossible(
    aggregation: StrategyConfig,
    communication: CommunicationConfig,
    training: TrainingConfig,
    model: ModelConfig,
    n_hospitals: int,
) -> None:
    """Raise ValueError for settings that cannot be true together."""
    name = aggregation.strategy
    per_round = training.hospitals_per_round(n_hospitals)
    if aggregation.minimum() > per_round:
        raise ValueError(
            f"aggregation.strategy = '{name}' so set needs at least {aggregation.minimum()} hospitals in a round; "
            f"there are {per_round}"
        )
    if communication.compression == "topk" and (aggregation.is_robust or name == "scaffold"):
        why = "compares updates value by value" if aggregation.is_robust else "corrects every gradient"
        raise ValueError(
            f"communication.compression = 'topk' sends few values, and aggregation.strategy = '{name}' {why}; "
            "take 'int8' or 'fp16'"
        )
    if aggregation.keeps_private and model.freeze_backbone:
        raise ValueError(
            f"aggregation.strategy = '{name}' keeps {aggregation.keeps_private} private, "
            "and model.freeze_backbone trains the head alone: they leave nothing to learn together"
        )
    if name == "fedbn" and not model.has_batch_norm:
        what = "compact-cnn" if model.architecture == "compact-cnn" else "model.norm = 'group'"
        raise ValueError(f"aggregation.strategy = 'fedbn' keeps BatchNorm private, and {what} has none")
    if training.views and not model.freeze_backbone:
        raise ValueError("training.views counts the cached views of a frozen backbone; set model.freeze_backbone")
