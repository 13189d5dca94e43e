"""Atomic writes and hashes: a file is either the old one or the new one, never half of one."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engine.errors import ConsiliumError, RunError

M = TypeVar("M", bound=BaseModel)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary file beside `path`, fsync it, and rename it into place."""
    writer = f"{os.getpid()}-{threading.get_ident()}"  # two sessions of one server are two threads
    temporary = path.with_name(f".{path.name}.{writer}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot write: {error.strerror or error}; free disk space or mend permissions")


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """As `write_json` writes it."""
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def sweep_partial(folder: Path) -> None:
    """Take away what writes that were killed left in a folder."""
    for left_over in folder.glob(".*.partial"):
        left_over.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Raises ValueError (json's own is one) or OSError; the caller knows what the file means."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_model(path: Path, model: type[M], error: type[ConsiliumError], remedy: str) -> M:
    """A JSON file as a validated model; whatever is wrong becomes `error`, one line that ends in the remedy."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as reason:
        raise error(f"{path}: cannot be read ({reason}); {remedy}") from None
    if not isinstance(content, dict):
        raise error(f"{path}: is no JSON object; {remedy}")
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        if first["loc"] == ("schema_version",):
            raise error(f"{path}: has schema {first['input']!r}, unknown to this program; update it") from None
        where = ".".join(str(part) for part in first["loc"])
        raise error(f"{path}: {where}: {first['msg']}; {remedy}") from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
