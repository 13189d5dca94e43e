"""Getting data: local archives, a local host, kagglehub replaced at its boundary; nothing half, nothing overwritten."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import inspect
import io
import json
import os
import shutil
import socket
import stat
import sys
import tarfile
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.cli import main
from engine.data import archives, download, importing
from engine.data.catalogue import CATALOGUE, CIFAR10_CLASSES, RemoteFile
from engine.data.cifar10 import RECORD_BYTES
from engine.errors import SpaceError
from engine.results.files import read_json

Run = Callable[..., "Said"]


@dataclasses.dataclass(frozen=True)
class Said:
    code: int
    err: str

    @property
    def error(self) -> str:
        assert self.code == 2, (self.code, self.err)
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]

    @property
    def success(self) -> str:
        assert self.code == 0, (self.code, self.err)
        return self.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`data ...` in this process, with a home of its own and nobody at the keyboard."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    for name in [name for name in os.environ if name.startswith("KAGGLE") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(download, "SPARE_BYTES", 0)

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["python -m engine", "data", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Said(int(ended.value.code or 0), capfd.readouterr().err)

    return command


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


def picture(shade: int, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("L", (16, 16), shade).save(content, kind)
    return content.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


BRAIN = {
    "Training/glioma_tumor/gg (1).jpg": picture(10),
    "Training/no_tumor/1.jpg": picture(20),
    "Testing/glioma_tumor/image(1).jpg": picture(30),
}
CHEST = {
    "chest_xray/train/NORMAL/IM-0115-0001.jpeg": picture(1),
    "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg": picture(2),
    "chest_xray/val/NORMAL/NORMAL2-IM-1427-0001.jpeg": picture(3),
    "chest_xray/test/NORMAL/IM-0001-0001.jpeg": picture(4),
    "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg": picture(5),
}
CSV = b"lesion_id,image_id,dx\nHAM_1,ISIC_0024306,nv\n"


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def nothing_was_left(to: Path) -> bool:
    return not to.exists() or not any(to.iterdir())


# --- import: what is laid out where --------------------------------------------------------------------------------


def test_brain_mri_keeps_its_folders_and_says_that_the_dealing_is_not_public(
    run: Run, tmp_path: Path, to: Path
) -> None:
    said = run("import", zipped(tmp_path / "archive.zip", BRAIN), "--as", "brain-mri", "--to", to).success
    assert below(to) == {"brain-mri/SOURCE.json", *(f"brain-mri/{name}" for name in BRAIN)}
    assert "dealt to them is not public" in said
    assert "3 images; the published set has 3,264" in said
    assert (to / "brain-mri" / "Training" / "no_tumor" / "1.jpg").read_bytes() == picture(20)


def test_hospitals_that_somebody_dealt_lead_to_the_audit(run: Run, tmp_path: Path, to: Path) -> None:
    deep = "dataset-3/Brain_Cancer raw MRI data/Brain_Cancer/brain_glioma/1.jpg"
    names = ("dataset-1/glioma/1.jpg", "dataset-2/pituitary tumor/1.jpg", deep)
    source = zipped(tmp_path / "mine.zip", {name: picture(9) for name in names})
    said = run("import", source, "--as", "brain-mri", "--to", to).success
    assert f"Next: python -m engine audit federations/brain-mri.toml --data {to / 'brain-mri'}" in said
    assert (to / "brain-mri" / deep).is_file()


def test_chest_xray_as_kaggle_zips_it_holds_everything_twice(run: Run, tmp_path: Path, to: Path) -> None:
    twice = CHEST | {f"chest_xray/{name}": content for name, content in CHEST.items()}
    litter = {"__MACOSX/chest_xray/train/NORMAL/._IM-0115-0001.jpeg": b"x", "chest_xray/train/.DS_Store": b"x"}
    source = zipped(tmp_path / "archive.zip", twice | litter)
    run("import", source, "--as", "chest-xray", "--to", to).success  # noqa: B018
    laid_out = {name.removeprefix("chest_xray/").replace("val/", "train/") for name in CHEST}
    assert below(to / "chest-xray") == laid_out | {"SOURCE.json"}


@pytest.mark.parametrize("wrapped", [True, False], ids=["archives in a folder", "plain folder"])
def test_ham10000_joins_its_two_parts_and_keeps_its_table(run: Run, tmp_path: Path, to: Path, wrapped: bool) -> None:
    parts = {1: "ISIC_0024306.jpg", 2: "ISIC_0024307.jpg"}
    source = tmp_path / "came"
    for number, name in parts.items():
        stem = f"HAM10000_images_part_{number}"
        if wrapped:
            zipped(source / f"{stem}.zip", {name: picture(number)})
        else:
            (source / stem).mkdir(parents=True)
            (source / stem / name).write_bytes(picture(number))
    (source / "HAM10000_metadata.csv").write_bytes(CSV)
    (source / "hmnist_8_8_L.csv").write_bytes(b"1,2")
    zipped(source / "ISIC2018_Task3_Test_Images.zip", {"ISIC_0034524.jpg": picture(7)})
    said = run("import", source, "--as", "ham10000", "--to", to).success
    assert "not for commercial use" in said
    wanted = {"SOURCE.json", "HAM10000_metadata.csv", *(f"images/{name}" for name in parts.values())}
    assert below(to / "ham10000") == wanted


def cifar_batch(*labels: int) -> bytes:
    rows = np.zeros((len(labels), RECORD_BYTES), np.uint8)
    rows[:, 0] = labels
    rows[:, 1:1025] = 200  # the red plane
    return rows.tobytes()


def test_cifar10_becomes_zips_of_class_folders(run: Run, tmp_path: Path, to: Path) -> None:
    folder = "cifar-10-batches-bin"
    batches = {f"{folder}/data_batch_{n}.bin": cifar_batch(0, 9, 0) for n in (1, 2)}
    files = batches | {f"{folder}/test_batch.bin": cifar_batch(3), f"{folder}/readme.html": b"<html>"}
    source = tarred(tmp_path / "cifar-10-binary.tar.gz", files)
    said = run("import", source, "--as", "cifar10", "--to", to).success
    assert "md5 NOT as published" in said
    assert below(to / "cifar10") == {"SOURCE.json", "cifar10-train.zip", "cifar10-test.zip"}
    with zipfile.ZipFile(to / "cifar10" / "cifar10-train.zip") as train:
        names = {f"train/airplane/{n:04d}.png" for n in range(4)} | {f"train/truck/{n:04d}.png" for n in range(2)}
        assert set(train.namelist()) == names
        pixels = np.asarray(Image.open(io.BytesIO(train.read("train/truck/0001.png"))))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == [200, 0, 0]).all()
    run("import", to / "cifar10", "--as", "cifar10", "--to", tmp_path / "again").success  # noqa: B018
    again = tmp_path / "again" / "cifar10"
    assert read_json(again / "SOURCE.json")["content_sha256"] == read_json(to / "cifar10/SOURCE.json")["content_sha256"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cifar-10-batches-py/data_batch_1": b"\x80\x02}q"}, "holds pickles, which are never opened here"),
        ({"data_batch_1.bin": b"\0" * (RECORD_BYTES - 1)}, "is no multiple of 3,073"),
        ({"data_batch_1.bin": cifar_batch(len(CIFAR10_CLASSES))}, "holds the label 10"),
    ],
    ids=["pickled", "cut short", "label"],
)
def test_cifar10_of_another_kind_is_refused(
    run: Run, tmp_path: Path, to: Path, files: dict[str, bytes], words: str
) -> None:
    source = tarred(tmp_path / "cifar.tar.gz", files)
    assert words in run("import", source, "--as", "cifar10", "--to", to).error
    assert nothing_was_left(to)


def test_the_note_says_where_it_came_from_and_what_it_may_be_used_for(run: Run, tmp_path: Path, to: Path) -> None:
    source = zipped(tmp_path / "archive.zip", BRAIN)
    said = run("import", source, "--as", "brain-mri", "--to", to).success
    note = read_json(to / "brain-mri" / "SOURCE.json")
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"archive.zip: no published checksum; SHA-256 of what came: {sha256}" in said
    assert note["files"] == [
        {"name": "archive.zip", "bytes": source.stat().st_size, "sha256": sha256, "checksum": "none published"}
    ]
    assert (note["data_set"], note["licence"], note["n_images"]) == ("brain-mri", "MIT", 3)


# --- import: what is refused ---------------------------------------------------------------------------------------


def test_nothing_is_overwritten(run: Run, tmp_path: Path, to: Path) -> None:
    (to / "brain-mri").mkdir(parents=True)
    source = zipped(tmp_path / "archive.zip", BRAIN)
    for arguments in (("import", source, "--as", "brain-mri"), ("get", "brain-mri", "--yes")):
        assert f"{to / 'brain-mri'}: exists already" in run(*arguments, "--to", to).error
    assert below(to) == set()


@pytest.mark.parametrize("name", ["../evil.jpg", "/Training/a/evil.jpg", "C:\\Training\\a\\b.jpg", "a\\..\\..\\b.jpg"])
@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_paths_that_lead_out_are_refused(
    run: Run, tmp_path: Path, to: Path, name: str, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    source = pack(tmp_path / ("evil.zip" if pack is zipped else "evil.tar.gz"), BRAIN | {name: picture(0)})
    assert "leads out of it" in run("import", source, "--as", "brain-mri", "--to", to).error
    assert nothing_was_left(to)
    assert not list(tmp_path.rglob("evil.jpg"))


def zip_with_a_link(path: Path) -> Path:
    zipped(path, BRAIN)
    link = zipfile.ZipInfo("Training/glioma_tumor/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    return path


def tar_with(path: Path, kind: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("Training/glioma_tumor/link.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return path


def folder_with_a_link(path: Path) -> Path:
    (path / "Training" / "glioma_tumor").mkdir(parents=True)
    (path / "Training" / "glioma_tumor" / "link.jpg").symlink_to("/etc/passwd")
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: zip_with_a_link(path / "a.zip"),
        lambda path: tar_with(path / "a.tar.gz", tarfile.SYMTYPE),
        lambda path: tar_with(path / "a.tar.gz", tarfile.LNKTYPE),
        lambda path: tar_with(path / "a.tar.gz", tarfile.FIFOTYPE),
        lambda path: folder_with_a_link(path / "a"),
    ],
    ids=["zip", "symbolic", "hard", "pipe", "folder"],
)
def test_links_and_devices_are_refused(run: Run, tmp_path: Path, to: Path, make: Callable[[Path], Path]) -> None:
    assert "is a link or a device" in run("import", make(tmp_path), "--as", "brain-mri", "--to", to).error
    assert nothing_was_left(to)


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_a_bomb_is_refused_before_it_is_unpacked(
    run: Run, tmp_path: Path, to: Path, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    bomb = {"Training/glioma_tumor/big.jpg": b"\0" * 60_000_000}
    source = pack(tmp_path / ("bomb.zip" if pack is zipped else "bomb.tar.gz"), bomb)
    assert "decompression bomb" in run("import", source, "--as", "brain-mri", "--to", to).error
    assert nothing_was_left(to)


def test_a_tar_header_of_impossible_size_is_not_read_into_memory(run: Run, tmp_path: Path, to: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 60_000_000
    source = tmp_path / "pax.tar.gz"
    source.write_bytes(gzip.compress(header.tobuf() + b"\0" * 60_000_000))
    assert "is damaged" in run("import", source, "--as", "brain-mri", "--to", to).error


def test_too_many_files_are_refused(run: Run, tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    source = zipped(tmp_path / "many.zip", BRAIN)
    assert "more than 2 files" in run("import", source, "--as", "brain-mri", "--to", to).error


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.97])
def test_an_archive_that_was_cut_short_is_refused(run: Run, tmp_path: Path, to: Path, name: str, keep: float) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    source = (zipped if name == "a.zip" else tarred)(tmp_path / name, BRAIN | {"Testing/noise.txt": noise})
    content = source.read_bytes()
    source.write_bytes(content[: int(keep * len(content))])
    assert str(source) in run("import", source, "--as", "brain-mri", "--to", to).error
    assert nothing_was_left(to)


def test_a_damaged_file_in_a_zip_is_refused(run: Run, tmp_path: Path, to: Path) -> None:
    source = zipped(tmp_path / "a.zip", BRAIN)
    content = bytearray(source.read_bytes())
    content[200] ^= 0xFF
    source.write_bytes(content)
    assert "is damaged" in run("import", source, "--as", "brain-mri", "--to", to).error
    assert nothing_was_left(to)


def test_only_images_and_text_are_taken(run: Run, tmp_path: Path, to: Path) -> None:
    odd = {"Training/glioma_tumor/setup.exe": b"MZ", "Training/glioma_tumor/fake.jpg": b"MZ", "model.pkl": b"\x80"}
    said = run("import", zipped(tmp_path / "a.zip", BRAIN | odd), "--as", "brain-mri", "--to", to).success
    assert below(to) == {"brain-mri/SOURCE.json", *(f"brain-mri/{name}" for name in BRAIN)}
    assert "left out: a/Training/glioma_tumor/fake.jpg: is no PNG, JPEG or DICOM image" in said


def test_two_files_that_want_one_place_are_refused(run: Run, tmp_path: Path, to: Path) -> None:
    source = zipped(tmp_path / "a.zip", BRAIN | {"old/Training/no_tumor/1.jpg": picture(99)})
    assert "another file of the same source is Training/no_tumor/1.jpg" in (
        run("import", source, "--as", "brain-mri", "--to", to).error
    )
    assert nothing_was_left(to)


def test_another_data_set_is_refused(run: Run, tmp_path: Path, to: Path) -> None:
    source = zipped(tmp_path / "a.zip", BRAIN)
    error = run("import", source, "--as", "chest-xray", "--to", to).error
    assert "has nothing for train/NORMAL, train/PNEUMONIA, test/NORMAL, test/PNEUMONIA of chest-xray" in error
    assert nothing_was_left(to)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_an_interrupted_import_leaves_nothing(
    run: Run, tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch, stop: Any
) -> None:
    source = zipped(tmp_path / "a.zip", BRAIN)
    to.mkdir()
    written = []
    write = importing._Files.write

    def interrupted(self: Any, *arguments: Any) -> None:
        written.append(arguments)
        if len(written) == 2:
            raise stop
        write(self, *arguments)

    monkeypatch.setattr(importing._Files, "write", interrupted)
    if stop is MemoryError:
        with pytest.raises(MemoryError):
            run("import", source, "--as", "brain-mri", "--to", to)
    else:
        said = run("import", source, "--as", "brain-mri", "--to", to)
        assert said.code == 130 if stop is KeyboardInterrupt else "No space left" in said.error
    assert nothing_was_left(to)


def test_what_a_killed_import_left_is_named(run: Run, tmp_path: Path, to: Path) -> None:
    (to / ".brain-mri.1.partial").mkdir(parents=True)
    said = run("import", zipped(tmp_path / "a.zip", BRAIN), "--as", "brain-mri", "--to", to).success
    assert f"warning: {to / '.brain-mri.1.partial'} is of an import that runs now or was killed" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "absent.zip", "--as", "brain-mri"), "absent.zip: no such file or folder"),
        (("import", __file__, "--as", "brain-mri"), "is no zip, tar.gz or folder"),
        (("import", ".", "--as", "brain"), "no known data set 'brain'; there are brain-mri, chest-xray"),
        (("get", "brain"), "no known data set 'brain'"),
        (("get", "cifar10", "--via", "kaggle"), "cifar10 is not taken from Kaggle"),
        (("get", "brain-mri", "--via", "public"), "brain-mri has no public host"),
    ],
)
def test_a_command_that_cannot_be_meant(run: Run, to: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in run(*arguments, "--to", to).error


def test_a_full_disk_is_said_first(run: Run, tmp_path: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    source = zipped(tmp_path / "a.zip", BRAIN)
    for arguments in (("import", source, "--as", "brain-mri"), ("get", "cifar10", "--yes")):
        assert "GB free, about" in run(*arguments, "--to", to).error
    assert nothing_was_left(to)


# --- get: a public host --------------------------------------------------------------------------------------------


class Host:
    """A local server. `send` cuts the body, `ranges` honours Range, `tag` is the ETag, `status` an error."""

    def __init__(self) -> None:
        self.body = b""
        self.send: int | None = None
        self.ranges = True
        self.tag: str | None = '"one"'
        self.status = 200
        self.kind = "application/octet-stream"
        self.asked: list[dict[str, str]] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(dict(self.headers))
                if host.status != 200:
                    self.send_error(host.status)
                    return
                start = 0
                same = host.tag is None or self.headers.get("If-Range") in (None, host.tag)
                if host.ranges and same and (asked := self.headers.get("Range")):
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(host.body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(host.body)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(host.body) - 1}/{len(host.body)}")
                if host.tag:
                    self.send_header("ETag", host.tag)
                self.send_header("Content-Type", host.kind)
                self.send_header("Content-Length", str(len(host.body) - start))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asked may have heard enough and hung up
                    self.wfile.write(host.body[start : None if host.send is None else host.send])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/file"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """Serves what the catalogue calls chest-xray, with its real checksum."""
    host = Host()
    noise = {"chest_xray/notes.txt": np.random.default_rng(0).bytes(3_000_000)}
    host.body = zipped(tmp_path / "served.zip", CHEST | noise).read_bytes()
    offer(monkeypatch, host, md5=hashlib.md5(host.body).hexdigest())
    yield host
    host.server.shutdown()
    host.server.server_close()


def offer(monkeypatch: pytest.MonkeyPatch, host: Host, **checksums: str) -> None:
    file = RemoteFile("ChestXRay2017.zip", host.url, about_bytes=len(host.body), **checksums)
    monkeypatch.setitem(CATALOGUE, "chest-xray", dataclasses.replace(CATALOGUE["chest-xray"], files=(file,)))


def get(run: Run, to: Path) -> Said:
    return run("get", "chest-xray", "--to", to, "--yes")


def test_get_says_size_and_licence_checks_and_lays_out(run: Run, to: Path, host: Host) -> None:
    said = get(run, to).success
    assert "Size: about 3 MB, 5,856 images" in said
    assert "Licence: CC BY 4.0" in said
    assert f"From: 127.0.0.1:{host.server.server_address[1]}" in said
    assert "ChestXRay2017.zip: md5 as published" in said
    assert "chest-xray/train/PNEUMONIA/person1_bacteria_1.jpeg" in below(to)
    assert [path.name for path in to.iterdir()] == ["chest-xray"]
    note = read_json(to / "chest-xray" / "SOURCE.json")
    assert note["from"] == [host.url]
    assert note["files"][0]["checksum"] == "md5 as published"


@pytest.mark.parametrize(("answer", "code"), [("n\n", 0), ("", 2), ("y\n", 0)])
def test_get_asks_before_it_downloads(
    run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    said = run("get", "chest-xray", "--to", to)
    assert said.code == code
    assert bool(host.asked) == (answer == "y\n") == (to / "chest-xray").is_dir()
    if code:
        assert "give --yes" in said.error


def test_without_a_published_checksum_the_command_says_so(
    run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, host)
    sha256 = hashlib.sha256(host.body).hexdigest()
    assert f"no published checksum; SHA-256 of what came: {sha256}" in get(run, to).success
    assert read_json(to / "chest-xray" / "SOURCE.json")["files"][0]["sha256"] == sha256


def test_a_download_that_broke_off_goes_on_where_it_stopped(run: Run, to: Path, host: Host) -> None:
    host.send = 1_500_000
    error = get(run, to).error
    assert f"the download ended after 1,500,000 of {len(host.body):,} bytes; the same command goes on" in error
    assert not (to / "chest-xray").exists()
    host.send = None
    assert get(run, to).success
    assert [asked.get("Range") for asked in host.asked] == [None, "bytes=1500000-"]
    assert (to / "chest-xray").is_dir()


@pytest.mark.parametrize("too_many", [0, 7])
def test_a_part_that_is_whole_is_kept_and_one_that_is_too_long_is_not(
    run: Run, to: Path, host: Host, too_many: int
) -> None:
    host.send = 1_500_000
    assert get(run, to).error
    host.send = None
    (part,) = to.rglob("*.part")
    part.write_bytes(host.body + b"x" * too_many)
    if too_many:
        assert "the earlier part does not fit any more and was deleted" in get(run, to).error
    assert get(run, to).success


def test_a_file_that_changed_meanwhile_is_downloaded_anew(
    run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host.send = 1_500_000
    assert get(run, to).error
    host.send, host.tag = None, '"two"'
    host.body = zipped(tmp_path / "other.zip", CHEST).read_bytes()
    offer(monkeypatch, host)
    assert get(run, to).success


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("tag", ['W/"weak"', None])
def test_without_a_way_to_know_the_file_again_it_starts_anew(
    run: Run, to: Path, host: Host, tag: str | None, ranges: bool
) -> None:
    host.send, host.tag, host.ranges = 1_500_000, tag, ranges
    assert get(run, to).error
    host.send = None
    assert get(run, to).success
    assert [asked.get("Range") for asked in host.asked] == [None, None]


def test_a_wrong_checksum_is_refused_and_nothing_of_it_kept(
    run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, host, sha256="0" * 64)
    assert "what came is not what was published (sha256" in get(run, to).error
    assert below(to) == set()
    assert not (to / "chest-xray").exists()


@pytest.mark.parametrize("flaw", ["damaged", "another data set"])
def test_a_download_that_is_no_good_is_not_kept_even_without_a_checksum(
    run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flaw: str
) -> None:
    good = host.body
    host.body = zipped(tmp_path / "other.zip", BRAIN).read_bytes() if flaw != "damaged" else good[:-30] + bytes(30)
    offer(monkeypatch, host)
    assert get(run, to).error.endswith("; what came was deleted")
    assert below(to) == set()
    host.body = good
    assert get(run, to).success


def test_a_full_disk_keeps_what_came(run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, host)
    full = SpaceError("0.0 GB free")
    monkeypatch.setattr(importing, "require_space", lambda *_: (_ for _ in ()).throw(full))
    assert "0.0 GB free" in get(run, to).error
    assert below(to) == {".chest-xray.download/ChestXRay2017.zip"}


def test_two_gets_of_one_data_set_do_not_mix(run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first is downloading; a third, after them, finds what the first made."""
    fetched, errors = download.download, []

    def slowly(*arguments: Any) -> Path:
        monkeypatch.setattr("engine.data_commands.download", fetched)
        errors.append(get(run, to).error)
        return fetched(*arguments)

    monkeypatch.setattr("engine.data_commands.download", slowly)
    assert get(run, to).success
    assert errors == [
        f"error: {to / 'chest-xray'}: is being downloaded by another process; wait for it or stop it first"
    ]
    assert len(host.asked) == 1
    assert [path.name for path in to.iterdir()] == ["chest-xray"]
    assert "exists already" in get(run, to).error


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "has no such file any more (HTTP 404)"), (403, "refuses (HTTP 403)"), (503, "try again later (HTTP 503)")],
)
def test_a_host_that_answers_with_an_error(run: Run, to: Path, host: Host, status: int, words: str) -> None:
    host.status = status
    error = get(run, to).error
    assert words in error
    assert "python -m engine data import FILE --as chest-xray" in error


def test_a_web_page_is_no_data_set(run: Run, to: Path, host: Host) -> None:
    host.kind = "text/html; charset=utf-8"
    assert "answers with a web page instead of the file" in get(run, to).error


def test_nobody_answers(run: Run, to: Path, host: Host) -> None:
    host.server.shutdown()
    host.server.server_close()
    assert "the host refuses the connection; is this machine offline?" in get(run, to).error


def test_an_unknown_host_is_offline(run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the host's name cannot be found; is this machine offline?" in get(run, to).error
    assert nothing_was_left(to)


def test_a_host_that_falls_silent(run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = RemoteFile("a.zip", f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip", 10)
        monkeypatch.setitem(CATALOGUE, "chest-xray", dataclasses.replace(CATALOGUE["chest-xray"], files=(file,)))
        assert "the host said nothing for" in get(run, to).error


def test_ctrl_c_keeps_what_came(run: Run, to: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.data_commands.download", stopped)
    said = run("get", "chest-xray", "--to", to, "--yes")
    assert said.code == 130
    assert "The same command goes on from there" in said.err


# --- get: Kaggle ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """kagglehub 1.0.2's `dataset_download`, with its signature, from a folder; or raising what is put in 'error'."""
    folder = tmp_path / "cache" / "versions" / "2"
    for name, content in BRAIN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    state: dict[str, Any] = {"asked": [], "error": None}

    def dataset_download(
        handle: str, path: str | None = None, *, force_download: bool | None = False, output_dir: str | None = None
    ) -> str:
        print("Downloading ...")  # noqa: T201
        state["asked"].append(handle)
        if state["error"]:
            raise state["error"]
        return str(folder)

    module = types.ModuleType("kagglehub")
    module.dataset_download = dataset_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return state


def test_the_stand_in_has_the_signature_of_the_real_one(
    kaggle: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = inspect.signature(sys.modules["kagglehub"].dataset_download)
    monkeypatch.delitem(sys.modules, "kagglehub")
    assert inspect.signature(pytest.importorskip("kagglehub").dataset_download) == pretended


def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", "0" * 32)


def test_kaggle_without_credentials_says_how_to_get_them(run: Run, to: Path, kaggle: dict[str, Any]) -> None:
    error = run("get", "brain-mri", "--to", to, "--yes").error
    assert "no Kaggle credentials: at https://www.kaggle.com/settings" in error
    assert "python -m engine data import FILE --as brain-mri" in error
    assert kaggle["asked"] == []


@pytest.mark.parametrize("way", ["environment", "file"])
def test_kaggle_lays_out_what_its_library_brings(
    run: Run, to: Path, kaggle: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    if way == "environment":
        signed_in(monkeypatch)
    else:
        (tmp_path / "home" / ".kaggle").mkdir(parents=True)
        (tmp_path / "home" / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "u", "key": "k"}))
    said = run("get", "brain-mri", "--to", to, "--yes").success
    assert kaggle["asked"] == ["sartajbhuvaji/brain-tumor-classification-mri"]
    assert "Size: about 90 MB" in said
    note = read_json(to / "brain-mri" / "SOURCE.json")
    assert note["from"] == "Kaggle sartajbhuvaji/brain-tumor-classification-mri, version 2"
    assert f"No published checksum; SHA-256 of what came: {note['content_sha256']}" in said
    assert below(to / "brain-mri") == {"SOURCE.json", *BRAIN}


def refused(status: int) -> Exception:
    error = OSError(f"{status} Client Error.\n\nYou don't have permission")  # as requests.HTTPError
    error.response = types.SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(401), "Kaggle refuses these credentials (HTTP 401)"),
        (refused(404), "no such data set any more (HTTP 404)"),
        (ConnectionError("Failed to resolve 'api.kaggle.com'"), "cannot reach Kaggle; is this machine offline?"),
        (ValueError("Invalid Kaggle credentials file\nat x"), "(ValueError: Invalid Kaggle credentials file)"),
    ],
    ids=["refused", "gone", "offline", "other"],
)
def test_kaggle_that_fails_is_one_line(
    run: Run, to: Path, kaggle: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    signed_in(monkeypatch)
    kaggle["error"] = error
    assert words in run("get", "brain-mri", "--to", to, "--yes").error
    assert nothing_was_left(to)


def test_kaggle_without_its_library(run: Run, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_in(monkeypatch)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    error = run("get", "brain-mri", "--to", to, "--yes").error
    assert "kagglehub is not installed: pip install -r requirements-engine.txt" in error
