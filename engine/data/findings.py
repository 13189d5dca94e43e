"""One thing that the audit found."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Severity = Literal["error", "warning", "note"]


class Finding(BaseModel):
    """One thing found. An error stops a training; a warning belongs beside every figure; a note is for the record."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    severity: Severity
    kind: str
    hospital: str | None
    sentence: str
    paths: tuple[str, ...] = ()
