"""What people write into federation files and after --set, and in which words it is refused: file, line, key."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import ConfigError


def apply_override(raw: dict[str, Any], override: str) -> tuple[str, str]:
    """Put one `--set KEY=VALUE` into `raw`, a federation file as TOML reads it; a hospital is named by its ID.

    Gives back where the value now stands, in the words of pydantic's errors (hospital.0.objective), and the key as it
    was given.
    """
    key, equals, value_text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write it as section.key=value, e.g. training.rounds=5")
    try:
        value: Any = tomllib.loads(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError:
        value = value_text
    table, rest, place = raw, parts, []
    if parts[0] == "hospital" and len(parts) > 1 and isinstance(raw.get("hospital"), list):
        hospitals = [one for one in raw["hospital"] if isinstance(one, dict)]
        index = next((index for index, one in enumerate(hospitals) if one.get("id") == parts[1]), None)
        if index is None or len(parts) == 2:
            ids = ", ".join(str(one.get("id")) for one in hospitals)
            raise ConfigError(f"--set {override}: write it as hospital.ID.key=value; ID is one of {ids}")
        table, rest, place = hospitals[index], parts[2:], ["hospital", str(index)]
    for part in rest[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{part}' is no section")
        table = inner
    table[rest[-1]] = value
    return ".".join([*place, *rest]), key.strip()


def explain(
    error: ValidationError,
    file: Path,
    text: str,
    changed: Mapping[str, str],
    sections: Sequence[type[BaseModel]],
) -> str:
    """The first thing wrong, as 'FILE:LINE: key: what to do'; one at a time is what people mend.

    `changed` is what `apply_override` gave back, by place; `sections` know which keys there are.
    """
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    found = first["input"]
    if path[:1] == ["aggregation"]:
        if first["type"] == "unknown_strategy" and isinstance(found, dict):
            path, found = ["aggregation", "strategy"], found["strategy"]
        else:  # a union's errors carry the tag of the strategy, which is no key of the file
            path = [path[0], *path[2:]]
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return f"{file}: {message}"
    dotted = ".".join(path)
    if first["type"] == "missing":
        return f"{file}: the key '{dotted}' is missing"
    line = _line_of(path, text)
    where = f"{file}:{line}" if line else str(file)
    for key, given in changed.items():
        if dotted == key or dotted.startswith(f"{key}."):
            where = f"{file} with --set {given}{dotted.removeprefix(key)}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key '{dotted}'{_did_you_mean(path, sections)}"
    said = "" if isinstance(found, dict) else f" (found {found!r})"
    return f"{where}: {dotted}: {message}{said}"


def _did_you_mean(path: Sequence[str], sections: Sequence[type[BaseModel]]) -> str:
    known = {name for section in sections for name in section.model_fields}
    if path[-1] in known:
        return "; it belongs to another section, or to another aggregation.strategy"
    close = difflib.get_close_matches(path[-1], sorted(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _line_of(path: Sequence[str], text: str) -> int | None:
    """Line of a dotted key in TOML text (tomllib keeps no positions): its section, then the key or the table it is in.

    Below the n-th `[[hospital]]` a section of it, like `[hospital.scanner]`, is the n-th hospital's.
    """
    dotted = ".".join(part for part in path if not part.isdigit())
    occurrence = next((int(part) for part in path if part.isdigit()), 0)
    section, root, n_seen = "", "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*(\[{1,2})\s*([\w.\-\" ]+?)\s*\]{1,2}", line)
        if header:
            section = header.group(2).replace(" ", "")
            root = section.partition(".")[0]
            if header.group(1) == "[[":
                n_seen[section] = n_seen.get(section, -1) + 1
        if root in n_seen and n_seen[root] != occurrence:
            continue
        if header:
            if section == dotted:
                return number
            continue
        key = re.match(r"\s*[\"']?([\w.\- ]+?)[\"']?\s*=", line)
        here = f"{section}.{key.group(1)}" if key and section else key.group(1) if key else ""
        if here and (here == dotted or dotted.startswith(f"{here}.")):
            return number
    return None
