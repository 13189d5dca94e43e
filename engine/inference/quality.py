"""What is unusual about an image's quality, one plain sentence each. A remark, never a refusal."""

from engine.data.statistics import STATISTICS, Vector
from engine.inference.gate import Gate

UNUSUAL = 3.0  # standard deviations of the training images
SENTENCES = {  # too low, too high
    "brightness": ("It is darker than the training images.", "It is brighter than the training images."),
    "contrast": (
        "Its contrast is weaker than the training images'.",
        "Its contrast is harder than the training images'.",
    ),
    "sharpness": ("It is more blurred than the training images.", "It is sharper or noisier than the training images."),
    "saturation": ("It is less colourful than the training images.", "It is more colourful than the training images."),
    "aspect": ("", "It is longer and narrower than the training images."),
}


def quality_remarks(gate: Gate, statistics: Vector, model_side_px: int) -> tuple[str, ...]:
    """Sentences about one image's STATISTICS; empty where all is usual."""
    values = dict(zip(STATISTICS, statistics, strict=True))
    scores = dict(zip(STATISTICS, gate.standardise(statistics[None])[0], strict=True))
    remarks = [sentences[int(scores[name] > 0)] for name, sentences in SENTENCES.items() if abs(scores[name]) > UNUSUAL]
    shorter = round(2.0 ** values["resolution"])
    if shorter < model_side_px:
        remarks.append(
            f"Its shorter side is {shorter:,} px, less than the {model_side_px} px that the models look at: "
            "what was lost in saving it small is lost to them too."
        )
    return tuple(remark for remark in remarks if remark)
