"""Uploads that nobody should give: mutated, cut, misnamed, bombs, hostile tags. Never a crash, and memory comes back.

200 in `make test`, 2,000 in `make soak` (CONSILIUM_SOAK=1), through the page itself.
"""

import gc
import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from streamlit.testing.v1 import AppTest

PROJECT = Path(__file__).resolve().parent.parent
UPLOADS = 2_000 if os.environ.get("CONSILIUM_SOAK") == "1" else 200
WARM_UP = 40
MAX_GROWTH_MB = 50
SECRET = "DOE^JANE-7731"
SUFFIXES = ("png", "jpg", "dcm")

pytestmark = [pytest.mark.slow, pytest.mark.soak]


def picture(kind: str, rng: random.Random) -> bytes:
    side = rng.choice((20, 64, 300))
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (side, side), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(rng.choice(("L", "RGB"))).save(content, format=kind)
    return content.getvalue()


def dicom(rng: random.Random) -> bytes:
    """Valid, and full of what a page must never show."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.MRImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.PatientName, dataset.PatientID = SECRET, f"<script>{SECRET}</script>"
    dataset.PatientComments = SECRET * rng.choice((1, 400))
    dataset.Rows = dataset.Columns = 48
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation = rng.choice(("MONOCHROME1", "MONOCHROME2"))
    dataset.PixelData = bytes(rng.randrange(256) for _ in range(48 * 48))
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def bomb(rng: random.Random) -> bytes:
    """A PNG of a few kilobytes that claims, and would inflate to, a great many pixels."""
    side = rng.choice((7_200, 20_000, 60_000))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(200_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """A file's suffix and content."""
    draw = rng.random()
    if draw < 0.08:
        return "png", bomb(rng)
    if draw < 0.14:
        return rng.choice(SUFFIXES), rng.randbytes(rng.choice((0, 1, 200, 5_000)))
    suffix = rng.choice(SUFFIXES)
    content = {"png": lambda: picture("PNG", rng), "jpg": lambda: picture("JPEG", rng), "dcm": lambda: dicom(rng)}[
        suffix
    ]()
    if draw < 0.24:
        return rng.choice(SUFFIXES), content  # a suffix that lies, or a sound file
    damaged = bytearray(content)
    if draw < 0.40:
        return suffix, bytes(damaged[: rng.randrange(len(damaged))])
    for _ in range(rng.choice((1, 5, 60))):
        place = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            place = min(place, 400)  # headers break more than pixels do
        damaged[place] = rng.randrange(256)
    return suffix, bytes(damaged)


def memory_mb() -> float:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def everything_said(page: AppTest) -> str:
    parts = [*page.markdown, *page.caption, *page.subheader, *page.html, *page.error, *page.info, *page.warning]
    return "\n".join(str(part.value) for part in parts)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_no_upload_breaks_the_page_or_keeps_memory(
    phantom_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(phantom_version))
    monkeypatch.setenv("CONSILIUM_ARTIFACTS", str(tmp_path / "no-artifacts"))
    rng = random.Random(7)
    page = AppTest.from_file(str(PROJECT / "pages" / "4_Compare.py"), default_timeout=60).run()
    next(button for button in page.button if button.label == "I understand").click().run()
    before, read, unread = 0.0, 0, 0
    for number in range(UPLOADS):
        if number == WARM_UP:
            before = memory_mb()
        suffix, content = hostile(rng)
        page.file_uploader(key="upload").set_value([(f"{SECRET}.{suffix}", content, "image/png")]).run()
        said = everything_said(page)
        assert not page.exception, (number, suffix, content[:60])
        assert "Traceback" not in said
        assert SECRET not in said, (number, suffix)
        read, unread = read + (not page.error), unread + bool(page.error)
    page.file_uploader(key="upload").set_value([]).run()
    assert read > UPLOADS / 10, "hardly any upload was read: the fuzz is broken"
    assert unread > UPLOADS / 10, "hardly any upload was refused: the fuzz is broken"
    assert memory_mb() - before < MAX_GROWTH_MB
