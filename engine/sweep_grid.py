"""`--grid` and `--seeds` of a sweep, as lists of settings.

    KEY=V1,V2,V3                        one setting, several values
    KEY=V1|V2,OTHER=W|KEY=V3            alternatives, each of one setting or several; a bare value is the first key's

A value is TOML, or a bare word, as `--set` takes it; quotes and brackets keep `,` and `|` inside a value.
"""

import itertools
import re
from collections.abc import Sequence

from engine.errors import ConfigError

Settings = tuple[str, ...]  # each KEY=VALUE


def expand(grids: Sequence[str], seeds: str) -> list[Settings]:
    """The product of all grids and the seeds, the last varying fastest; the seed stands last in each.

    Raises ConfigError for a grid or seeds that cannot be meant.
    """
    axes = [parse_grid(grid) for grid in grids]
    keys = [sorted({_key(setting) for alternative in axis for setting in alternative}) for axis in axes]
    for (first, own), (second, others) in itertools.combinations(zip(grids, keys, strict=True), 2):
        for key, other in itertools.product(own, others):
            if key == other:
                raise ConfigError(
                    f"--grid {second}: '{key}' is in --grid {first} too; write both as alternatives of one"
                )
            if covers(key, other) or covers(other, key):
                raise ConfigError(
                    f"--grid {second}: '{other}' and '{key}' of --grid {first} set the same section, and one would "
                    "overwrite the other; write both as alternatives of one"
                )
    ends = [(f"training.seed={seed}",) for seed in parse_seeds(seeds)]
    return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*axes, ends)]


def parse_grid(grid: str) -> list[Settings]:
    """The alternatives of one --grid."""
    alternatives = [_split(text, ",") for text in _split(grid, "|")]
    first_key = _key(alternatives[0][0])
    if "=" not in alternatives[0][0] or not first_key:
        raise _wrong(grid, "write it as KEY=V1,V2 or KEY=V1|V2,OTHER=W")
    if len(alternatives) == 1 and not any(_is_setting(text) for text in alternatives[0][1:]):
        alternatives = [[text] for text in alternatives[0]]
    parsed = []
    for first, *others in alternatives:
        start = first if _is_setting(first) else f"{first_key}={first}"
        for text in others:
            if not _is_setting(text):
                raise _wrong(grid, f"'{text}' belongs to no key; set alternatives apart with |")
        settings = tuple(text.strip() for text in (start, *others))
        for setting in settings:
            if not setting.partition("=")[2].strip():
                raise _wrong(grid, "a value is empty")
            if _key(setting) == "training.seed":
                raise _wrong(grid, "seeds are given with --seeds")
            if _key(setting) == "arms":
                raise _wrong(grid, "arms are given with --arms")
        if settings in parsed:
            raise _wrong(grid, f"'{', '.join(settings)}' stands twice")
        parsed.append(settings)
    return parsed


def parse_seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(r"\d{1,9}", word):
            raise ConfigError(f"--seeds {text}: '{word}' is no whole number from 0 on; write e.g. 0,1,2")
    seeds = [int(word) for word in words]
    if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ConfigError(f"--seeds {text}: {repeated[0]} stands twice")
    return seeds


def covers(key: str, other: str) -> bool:
    """Whether setting `key` also sets `other`: the same key, or the section that it is in."""
    return key == other or other.startswith(f"{key}.")


def _wrong(grid: str, why: str) -> ConfigError:
    return ConfigError(f"--grid {grid}: {why}")


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _is_setting(text: str) -> bool:
    """KEY=VALUE, not a value that has a '=' in it."""
    return re.match(r"\s*[\w.-]+\s*=", text) is not None


def _split(text: str, separator: str) -> list[str]:
    """At separators outside quotes and brackets."""
    parts, quote, depth = [""], "", 0
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == separator and depth <= 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts
