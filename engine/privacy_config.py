"""`[privacy]` of a federation file: hospitals train with differential privacy, and what cannot be true together then.

docs/privacy.md says what that protects and what it does not.
"""

from pydantic import Field

from engine.aggregation_config import StrategyConfig
from engine.pretext_config import PretextConfig
from engine.sections import ModelConfig, Section, TrainingConfig


class PrivacyConfig(Section):
    """DP-SGD at every hospital, with as much noise as lets all planned rounds together spend `epsilon`.

    Hospitals differ in images, so each has a noise of its own. A claim is about adding or removing one image.
    """

    epsilon: float = Field(gt=0, le=100, description="at most this much is spent on any image by the last round")
    delta: float = Field(1e-5, gt=0, lt=0.1, description="below 1 / training images of every hospital")
    max_grad_norm: float = Field(1.0, gt=0, description="one image's gradient is scaled down to this length")


def refuse_impossible_privacy(
    privacy: PrivacyConfig | None,
    aggregation: StrategyConfig,
    training: TrainingConfig,
    model: ModelConfig,
    pretext: PretextConfig | None,
) -> None:
    """Raise ValueError for settings that cannot be true together."""
    if privacy is None:
        return
    if pretext is not None:
        raise ValueError(
            "[privacy] bounds what one image changes, and [pretext] compares the images of a batch; take one away"
        )
    if model.has_batch_norm and not model.freeze_backbone:
        raise ValueError(
            f"[privacy] bounds what one image changes, and {model.architecture}'s BatchNorm mixes the images of a "
            "batch; set model.norm = 'group', or model.freeze_backbone"
        )
    if training.class_weights != "none":
        raise ValueError(
            f"training.class_weights = '{training.class_weights}' is computed from all labels of a hospital, without "
            "noise, and [privacy] promises noise; take 'none'"
        )
    if aggregation.strategy == "scaffold":
        raise ValueError(
            "aggregation.strategy = 'scaffold' sends a second set of tensors, whose noise every round carries on, "
            "and nobody has measured that with [privacy]; take 'fedavg' or 'fedprox'"
        )
