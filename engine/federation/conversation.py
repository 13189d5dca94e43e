"""What a coordinator asks hospitals on other machines, and all that they answer: this file is what crosses the wire.

Tensors travel beside a question or an answer. Everything else is in these models, and they have room for counts and
means alone: no row about an image, no path, no hash of an image, no pixel.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.data.splits import Part
from engine.federation.secure_aggregation import Reply, Request
from engine.results.rounds import Epoch, RoundLine
from engine.results.summaries import ScoreSummary

TRAINING_ID = re.compile("[0-9a-f]{16}")
Count = Annotated[int, Field(ge=0, le=10**9)]
Score = Annotated[float, Field(ge=-(10.0**9), le=10.0**9)]
Kind = Literal["join", "exchange", "train", "validate", "local", "evaluate"]


class _Said(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64"
    )


class Question(_Said):
    """`training` names one training at a coordinator and outlives its resumes; `federation` is its whole file.

    `accepted` is the last round whose update of this hospital was averaged: what the hospital keeps between rounds
    follows from it, so neither side needs to remember what the other has heard. `best` is the same of the best round.
    With secure aggregation `request` is one exchange beside the training, and `peers` are whose masks an update has.
    """

    kind: Kind
    training: str = Field(pattern=f"^{TRAINING_ID.pattern}$")
    hospital: str
    federation: dict[str, Any]
    round: int = Field(0, ge=0)
    accepted: int = Field(0, ge=0)
    best: int = Field(0, ge=0)
    request: Request | None = None
    peers: tuple[str, ...] = ()


class Joined(_Said):
    """Images by part and class, and how many things the hospital's own audit found, by their severity."""

    said: Literal["joined"] = "joined"
    counts: dict[Part, dict[str, Count]] = Field(min_length=3)
    unreadable: Count
    exact_duplicates: Count
    findings: dict[Literal["error", "warning", "note"], Count]
    patients_known: bool
    image_bytes: int = Field(ge=0, le=10**15)


class Exchanged(_Said):
    """Keys and sealed shares of secure aggregation."""

    said: Literal["exchanged"] = "exchanged"
    reply: Reply


class Trained(_Said):
    """Beside the update's tensors."""

    said: Literal["trained"] = "trained"
    n_images: int = Field(gt=0, le=10**9)
    epochs: tuple[Epoch, ...] = Field(min_length=1, max_length=1000)
    seconds: Score
    epsilon: Score | None = None


class Validated(_Said):
    said: Literal["validated"] = "validated"
    loss: Score | None  # None where it is no finite number
    confusion_matrix: tuple[tuple[Count, ...], ...]


class Compared(_Said):
    """Validation where nobody has labels."""

    said: Literal["compared"] = "compared"
    loss: Score | None
    share: Score
    n_images: int = Field(gt=0, le=10**9)


class TrainedAlone(_Said):
    """The rounds of the hospital's own model, which stays where it is."""

    said: Literal["trained-alone"] = "trained-alone"
    rounds: tuple[RoundLine, ...]


class Evaluated(_Said):
    """By part and model. Beside it the tensors of the hospital's own model, if the hospital gives it away."""

    said: Literal["evaluated"] = "evaluated"
    scores: dict[Literal["validation", "test"], dict[str, ScoreSummary]]


class Declined(_Said):
    """Why a hospital does not do as it was asked, in words that name none of its files; its own log says more."""

    said: Literal["declined"] = "declined"
    reason: str = Field(max_length=300)


Saying = Joined | Exchanged | Trained | Validated | Compared | TrainedAlone | Evaluated | Declined
