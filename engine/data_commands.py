"""`python -m engine data get` and `data import`: a public data set, or what was downloaded by hand, laid out for us."""

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.data.archives import archive_stem
from engine.data.catalogue import CATALOGUE, DataSet, find_data_set
from engine.data.download import checksum, download, require_space
from engine.data.importing import Imported, import_data, require_new
from engine.data.kaggle import fetch_from_kaggle, kaggle_cache, require_credentials
from engine.errors import DataError, SpaceError
from engine.results.files import cannot_write
from engine.results.lock import alone_with
from engine.results.run_folder import now
from engine.terminal import download_bar, progress_bar, say

PROJECT = Path(__file__).resolve().parent.parent
KNOWN = ", ".join(CATALOGUE)

data_app = typer.Typer(no_args_is_help=True, help="Get a public data set, or lay out what was downloaded by hand.")

To = Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the data set's folder is made, e.g. data")]


class Host(StrEnum):
    public = "public"
    kaggle = "kaggle"


@data_app.command("get")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {KNOWN}")],
    to: To,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before downloading")] = False,
    via: Annotated[Host | None, typer.Option(help="Default: the public host where there is one")] = None,
) -> None:
    """Download a public data set; size, licence and host are said first. The same command goes on where it stopped."""
    data_set = find_data_set(name)
    host = via or (Host.public if data_set.files else Host.kaggle)
    if host is Host.public and not data_set.files:
        raise DataError(f"{name} has no public host; leave --via public away")
    require_new(data_set, to)
    if host is Host.kaggle:
        _get_from_kaggle(data_set, to, yes)
    else:
        _get_from_public_host(data_set, to, yes)


@data_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="ZIP_OR_DIR", help="What was downloaded: zip, tar.gz or folder")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help=f"One of {KNOWN}")],
    to: To,
) -> None:
    """Lay out a data set that was downloaded by hand, as its federation expects it."""
    data_set = find_data_set(name)
    require_new(data_set, to)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    origin: dict[str, Any] = {"from": f"by hand: {source.name}", "at": now()}
    if source.is_file():
        if archive_stem(source.name) is None:
            raise DataError(f"{source}: is no zip, tar.gz or folder")
        require_space(to, source.stat().st_size)
        origin["files"] = [_recorded(data_set, source)]
        _say_checksums(origin["files"])
    _lay_out(data_set, source, to, origin)


def _get_from_public_host(data_set: DataSet, to: Path, yes: bool) -> None:
    about_bytes = sum(file.about_bytes for file in data_set.files)
    hosts = ", ".join(dict.fromkeys(file.url.split("/")[2] for file in data_set.files))
    _announce(data_set, f"{hosts} ({data_set.page})", about_bytes)
    require_space(to, 2 * about_bytes)  # the archives, and what they hold: pictures do not shrink
    _confirm(yes)
    with _alone(data_set, to):
        _download_and_lay_out(data_set, to)


@contextlib.contextmanager
def _alone(data_set: DataSet, to: Path) -> Iterator[None]:
    """Raises RunError where another `get` is at it, and DataError where another one was faster."""
    with alone_with(to / f".{data_set.name}.lock", f"{to / data_set.name}: is being downloaded"):
        require_new(data_set, to)
        yield


def _download_and_lay_out(data_set: DataSet, to: Path) -> None:
    folder = to / f".{data_set.name}.download"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    paths = []
    try:
        with download_bar() as bar:
            for file in data_set.files:
                task = bar.add_task(file.name, total=None)

                def show(done: int, of: int | None, task: Any = task) -> None:
                    bar.update(task, completed=done, total=of)

                paths.append(download(file, data_set, folder, show))
    except KeyboardInterrupt:
        say(f"Stopped; what came stays in {folder}. The same command goes on from there")
        raise typer.Exit(130) from None
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing came
    files = [_recorded(data_set, path) for path in paths]
    _say_checksums(files)
    origin = {"from": [file.url for file in data_set.files], "at": now(), "files": files}
    try:
        _lay_out(data_set, folder, to, origin)
    except SpaceError:
        raise  # what came is good
    except DataError as error:  # damaged, or not that data set: the next `get` must not find it again
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(f"{error}; what came was deleted") from None
    shutil.rmtree(folder, ignore_errors=True)


def _get_from_kaggle(data_set: DataSet, to: Path, yes: bool) -> None:
    if data_set.kaggle is None:
        raise DataError(f"{data_set.name} is not taken from Kaggle; leave --via kaggle away")
    require_credentials(data_set)
    about_bytes = data_set.kaggle_about_bytes
    _announce(data_set, f"Kaggle (https://www.kaggle.com/datasets/{data_set.kaggle})", about_bytes)
    require_space(kaggle_cache(), 2 * about_bytes)  # kagglehub unpacks its archive before it deletes it
    require_space(to, about_bytes)
    _confirm(yes)
    with _alone(data_set, to):
        folder = fetch_from_kaggle(data_set)
        version = re.search(r"versions[\\/](\d+)$", str(folder))
        where = f"Kaggle {data_set.kaggle}" + (f", version {version[1]}" if version else "")
        imported = _lay_out(data_set, folder, to, {"from": where, "at": now()})
    say(
        f"No published checksum; SHA-256 of what came: {imported.content_sha256}",
        f"Kaggle's own copy stays in {folder}; delete it when you want its space back",
    )


def _announce(data_set: DataSet, host: str, about_bytes: int) -> None:
    size = f"{about_bytes / 1e9:,.1f} GB" if about_bytes >= 1e9 else f"{about_bytes / 1e6:,.0f} MB"
    say(
        f"{data_set.name}: {data_set.title}",
        f"Size: about {size}, {data_set.n_images:,} images",
        f"From: {host}",
        f"Licence: {data_set.licence}",
        f"Cite: {data_set.citation}",
    )


def _confirm(yes: bool) -> None:
    """Raises typer.Exit(0) for a no, and DataError where nobody can answer."""
    if yes:
        return
    try:
        wanted = typer.confirm("Download it?", err=True)
    except typer.Abort:
        say("")
        if sys.stdin.isatty():  # Ctrl-C
            raise
        raise DataError("nothing was downloaded, for nobody answered; give --yes not to be asked") from None
    if not wanted:
        say("Nothing was downloaded")
        raise typer.Exit


def _recorded(data_set: DataSet, path: Path) -> dict[str, Any]:
    """What SOURCE.json says about one downloaded file."""
    known = next((file for file in data_set.files if file.name == path.name), None)
    state = "none published"
    for kind, published in (("sha256", known.sha256), ("md5", known.md5)) if known else ():
        if published is not None:
            state = f"{kind} as published" if checksum(path, kind) == published else f"{kind} NOT as published"
            break
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": checksum(path, "sha256"), "checksum": state}


def _say_checksums(files: list[dict[str, Any]]) -> None:
    for file in files:
        if file["checksum"] == "none published":
            say(f"{file['name']}: no published checksum; SHA-256 of what came: {file['sha256']}")
        else:
            say(f"{file['name']}: {file['checksum']}")


def _lay_out(data_set: DataSet, source: Path, to: Path, origin: dict[str, Any]) -> Imported:
    for left_over in to.glob(f".{data_set.name}.*.partial"):
        say(f"warning: {left_over} is of an import that runs now or was killed; delete it if none runs")
    with progress_bar() as bar:
        task = bar.add_task(f"Laying out {data_set.name}", total=None)
        imported = import_data(data_set, source, to, origin, lambda done: bar.update(task, completed=done))
    say(*(f"{folder}: {count:,}" for folder, count in imported.counts.items()))
    say(*(f"left out: {what}" for what in imported.left_out))
    if imported.n_images != data_set.n_images:
        say(f"warning: {imported.n_images:,} images; the published set has {data_set.n_images:,}")
    say(f"Laid out {imported.n_images:,} images in {imported.folder}; licence: {data_set.licence}")
    federation = f"federations/{imported.layout.federation}.toml"
    if imported.layout.federation and (PROJECT / federation).is_file():
        say(f"Next: python -m engine audit {federation} --data {shlex.quote(str(imported.folder))}")
    else:
        say(f"Next: {imported.layout.note or 'describe the hospitals in a TOML (README: Your own hospitals)'}")
    return imported
