"""`policy.toml`: what a hospital's own node accepts, whatever a coordinator asks."""

import datetime
import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.config import Federation
from engine.errors import ConfigError

HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


class Policy(BaseModel):
    """Without a file: any federation at any hour, no minimum of privacy, and the own model stays at home.

    `hours` are local time and may pass midnight. `max_epsilon` asks for [privacy] with at most that epsilon, and
    `secure_aggregation` for a coordinator that sees no update but the sum of all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    federations: tuple[str, ...] = Field((), description="names of federations; none: any")
    hours: str | None = Field(None, pattern=HOURS, description='like "20:00-06:00"')
    max_rounds: int | None = Field(None, gt=0)
    max_epsilon: float | None = Field(None, gt=0)
    secure_aggregation: bool = False
    share_local_model: bool = False

    def refusal(self, federation: Federation, now: datetime.time) -> str | None:
        """Why this node takes no part now; None where it does."""
        if self.federations and federation.name not in self.federations:
            return f"this hospital's policy does not name the federation '{federation.name}'"
        if self.hours is not None and not _within(self.hours, now):
            return f"this hospital's policy allows work between {self.hours.replace('-', ' and ')} alone"
        if self.max_rounds is not None and federation.training.rounds > self.max_rounds:
            return f"this hospital's policy allows {self.max_rounds} rounds, not {federation.training.rounds}"
        if self.max_epsilon is not None:
            spent = federation.privacy.epsilon if federation.privacy is not None else None
            if spent is None or spent > self.max_epsilon:
                asked = "no [privacy] at all" if spent is None else f"epsilon {spent:g}"
                return f"this hospital's policy asks for an epsilon of at most {self.max_epsilon:g}, not {asked}"
        if self.secure_aggregation and federation.secure_aggregation is None:
            return "this hospital's policy asks for [secure_aggregation]"
        return None


def read_policy(path: Path | None) -> Policy:
    """Raises ConfigError with what is wrong; without a path the default."""
    if path is None:
        return Policy()
    try:
        return Policy.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Policy.model_fields)
        hint = f"; the keys are {known}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"{path}: {key}: {first['msg']}{hint}") from None


def _within(hours: str, now: datetime.time) -> bool:
    begin, end = (datetime.time.fromisoformat(part) for part in hours.split("-"))
    return begin <= now < end if begin < end else now >= begin or now < end
