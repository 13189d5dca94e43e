"""One file from a public host: resumed where it broke off, and refused where it is not whole or not as published."""

import hashlib
import http.client
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

from engine.data.catalogue import DataSet, RemoteFile
from engine.errors import DataError, SpaceError
from engine.results.files import cannot_write, read_json, write_json

TIMEOUT_SECONDS = 30.0  # to connect, and between two pieces
PIECE_BYTES = 1 << 20
SPARE_BYTES = 500_000_000  # left free on the disk, for whoever else writes to it

OnBytes = Callable[[int, int | None], None]  # bytes so far, bytes in all where the host says


def download(file: RemoteFile, data_set: DataSet, folder: Path, on_bytes: OnBytes) -> Path:
    """Fetch one file into `folder`, or go on with what an earlier call left there.

    A partial download is kept as NAME.part, and goes on only if the host says that its file is the same still. Raises
    DataError: host out of reach, refusal, a download cut short, a file that is not what was published.
    """
    target = folder / file.name
    if target.is_file():  # it got this name when it was whole
        check(target, file)
        return target
    part = folder / f"{file.name}.part"
    by_hand = (
        f"or download by hand from {data_set.page} and: python -m engine data import FILE --as {data_set.name} --to DIR"
    )
    try:
        total = _fetch(file, part, on_bytes)
    except urllib.error.HTTPError as error:
        reason = {401: "wants a login", 403: "refuses", 404: "has no such file any more", 410: "has removed the file"}
        what = reason.get(error.code, "answers with an error; try again later")
        raise DataError(f"{file.url}: the host {what} (HTTP {error.code}); {by_hand}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"{file.url}: {_in_words(error)} The same command goes on later, {by_hand}") from None
    except OSError as error:
        raise cannot_write(part, error) from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise DataError(
            f"{file.url}: the download ended after {size:,} of {total:,} bytes; the same command goes on from there"
        )
    _note_of(part).unlink(missing_ok=True)
    check(part, file)
    part.replace(target)
    return target


def check(path: Path, file: RemoteFile) -> None:
    """Raises DataError, and takes the file away, where its checksum is not the published one."""
    for kind, published in (("md5", file.md5), ("sha256", file.sha256)):
        if published is not None and (found := checksum(path, kind)) != published:
            path.unlink()
            raise DataError(
                f"{file.url}: what came is not what was published ({kind} {found} instead of {published}) and was "
                "deleted; try again, and if it comes so once more, the host has changed the file: do not use it"
            )


def checksum(path: Path, kind: str) -> str:
    """`kind` is md5 or sha256; MD5 only because hosts publish it. Returns lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def require_space(folder: Path, n_bytes: int) -> None:
    """Raises SpaceError where the disk that holds (or will hold) `folder` has not so much room and some to spare."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes + SPARE_BYTES:
        room = f"{free / 1e9:,.1f} GB free, about {(n_bytes + SPARE_BYTES) / 1e9:,.1f} GB needed"
        raise SpaceError(f"{existing}: {room}; free some disk or name another folder")


def _fetch(file: RemoteFile, part: Path, on_bytes: OnBytes) -> int | None:
    """Fill `part`. Returns how many bytes the whole file has, None where the host does not say."""
    start, validator = _left_before(file, part)
    headers = {"User-Agent": "consilium", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    request = urllib.request.Request(file.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after `start`
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return start  # all of it came before
        part.unlink()
        raise DataError(f"{file.url}: the earlier part does not fit any more and was deleted; try again") from None
    with answer:
        if file.url.startswith("https:") and not answer.url.startswith("https:"):
            raise DataError(f"{file.url}: leads to an address without encryption; nothing was downloaded")
        if answer.headers.get_content_type() == "text/html":
            raise DataError(f"{file.url}: answers with a web page instead of the file; has it moved?")
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if answer.status == 206:
            total = _whole_size(file, answer.headers, start)
        else:
            start = 0  # the host has another file by now, or cannot go on in the middle
        write_json(_note_of(part), {"url": file.url, "validator": _validator(answer.headers)})
        n_bytes = start
        with part.open("ab" if start else "wb") as stream:
            while piece := answer.read(PIECE_BYTES):
                stream.write(piece)
                n_bytes += len(piece)
                on_bytes(n_bytes, total)
    return total


def _left_before(file: RemoteFile, part: Path) -> tuple[int, str]:
    """How many bytes can be kept, and by what the host knows that its file is still the same one."""
    try:
        note: Any = read_json(_note_of(part))
        if note["url"] == file.url and note["validator"]:
            return part.stat().st_size, str(note["validator"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no part, or nobody knows of what: start at the beginning
    return 0, ""


def _validator(headers: Message) -> str:
    """A weak ETag says that two files mean the same, not that their bytes are the same."""
    tag = headers.get("ETag", "")
    return str(tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", ""))


def _whole_size(file: RemoteFile, headers: Message, start: int) -> int | None:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise DataError(f"{file.url}: the host sent another part than the one asked for; try again later")
    return None if found[2] == "*" else int(found[2])


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _in_words(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return "the host's name cannot be found; is this machine offline?"
    if isinstance(reason, TimeoutError):
        return f"the host said nothing for {TIMEOUT_SECONDS:.0f} seconds."
    if isinstance(reason, ConnectionRefusedError):
        return "the host refuses the connection; is this machine offline?"
    return f"the connection failed ({reason})."
