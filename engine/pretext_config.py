"""`[pretext]` of a federation file: hospitals learn without labels, and what cannot be true together then.

docs/pretext.md says what the objectives are and when to take which.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from engine.aggregation_config import StrategyConfig
from engine.sections import AugmentConfig, Hospital, ModelConfig, ObjectiveName, Section, TrainingConfig, ViewsConfig


class PretextConfig(Section):
    """`objective` and `views` are every hospital's that names none of its own, and the pooled arm's.

    `heads` stand behind the encoder, one for each objective: "private" ones never leave their hospital, "shared" ones
    are averaged among the hospitals of that objective. `weigh`: hospitals count by their images, or all hospitals of
    an objective together as much as those of any other.
    """

    objective: ObjectiveName
    heads: Literal["private", "shared"] = "private"
    weigh: Literal["images", "objectives"] = "images"
    temperature: float = Field(0.5, gt=0, le=10, description="simclr: divides the cosines")
    projection: int = Field(128, ge=4, le=8192, description="simclr, simsiam: width of what a head answers")
    views: ViewsConfig = ViewsConfig()


def refuse_impossible_pretext(
    pretext: PretextConfig | None,
    aggregation: StrategyConfig,
    training: TrainingConfig,
    model: ModelConfig,
    hospitals: Sequence[Hospital],
) -> None:
    """Raise ValueError for settings that cannot be true together."""
    if pretext is None:
        for hospital in hospitals:
            if hospital.objective is not None or hospital.views is not None:
                key = "views" if hospital.objective is None else "objective"
                raise ValueError(f"hospital {hospital.id}: '{key}' belongs to [pretext], and there is none")
        return
    for views in (pretext.views, *(hospital.views for hospital in hospitals if hospital.views)):
        if views.grayscale and not model.colour:
            raise ValueError("pretext views: grayscale takes colour away, and model.colour is false: there is none")
    unused = {
        "model.freeze_backbone trains a head alone, and [pretext] trains the encoder": model.freeze_backbone,
        "model.dropout stands before the head of the classes, which [pretext] has not": model.dropout,
        "training.augment is for labelled images; [pretext.views] says how views differ": (
            training.augment != AugmentConfig()
        ),
        "training.label_smoothing needs labels, and [pretext] has none": training.label_smoothing,
        "training.class_weights needs labels, and [pretext] has none": training.class_weights != "none",
        "labelled_fraction needs labels, and [pretext] learns from all images": (
            training.labelled_fraction < 1 or any(hospital.labelled_fraction for hospital in hospitals)
        ),
    }
    for why, is_set in unused.items():
        if is_set:
            raise ValueError(f"{why}; take it away")
    _refuse_strategy(pretext, aggregation, {hospital.objective or pretext.objective for hospital in hospitals})


def _refuse_strategy(pretext: PretextConfig, aggregation: StrategyConfig, objectives: set[ObjectiveName]) -> None:
    name = f"aggregation.strategy = '{aggregation.strategy}'"
    if aggregation.keeps_private:
        raise ValueError(
            f"{name} leaves each hospital {aggregation.keeps_private}, and [pretext] is for one encoder; "
            "take another strategy (heads are private by pretext.heads)"
        )
    if pretext.weigh == "objectives" and aggregation.is_robust:
        raise ValueError(f"pretext.weigh = 'objectives' weighs hospitals, and {name} weighs none; take 'images'")
    if (
        pretext.heads == "shared"
        and len(objectives) > 1
        and (aggregation.is_robust or aggregation.strategy == "scaffold")
    ):
        why = "compares whole updates" if aggregation.is_robust else "keeps one control for all hospitals"
        raise ValueError(
            f"pretext.heads = 'shared' with several objectives: hospitals send different heads, and {name} {why}; "
            "take heads = 'private'"
        )
