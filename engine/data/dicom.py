"""One DICOM file -> uint8 pixels, and what its header tells. Pixels are read through engine.data.images alone.

Headers are other people's secrets and a stranger's input: only the elements that make the picture are parsed, sizes are
checked before memory is taken, and no message repeats a value from the file, neither ours nor pydicom's.
"""

import io
import logging
import math
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config, uid
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from engine.data.images import MAX_PIXELS, Pixels, is_dicom, refuse_frame, refuse_size, spread, stretch
from engine.errors import ImageError

Values = npt.NDArray[Any]

LARGEST_WINDOW = 1e9  # values beyond come from a broken or a hostile header
MAX_INFLATED_BYTES = 4 * MAX_PIXELS
MAX_FRAMES = 100_000
MAX_READS = 300_000  # of a header; some 2 per element
MAX_SEQUENCE_BYTES = 8_000_000
JPEG_LS_SECONDS = 15

# One decoder per syntax, so that every hospital and the dashboard get the same pixels. GDCM decodes them all, but a
# damaged file makes it abort the whole process (python-gdcm issue 34).
_OURS = "consilium"
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_PLUGINS: dict[str, str] = {
    **dict.fromkeys(_JPEG + _JPEG_LS, _OURS),
    **dict.fromkeys(_JPEG_2000, "pillow"),
    uid.JPEGBaseline8Bit: "pillow",
    uid.RLELossless: "pydicom",
}
_PALETTE = [
    f"{prefix}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue", "Alpha")
    for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_FRAME_VALUES = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
_HEADER = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPresentation", "ModalityLUTSequence"),
    *("VOILUTSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", *_FRAME_VALUES, *_GROUPS, *_PALETTE),
)

# pydicom's remarks quote what they complain about.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
config.settings.reading_validation_mode = config.IGNORE
_one_at_a_time = threading.Lock()  # warning filters belong to the process


@dataclass(frozen=True)
class Window:
    """A reader's window, in values after the modality rescale (CT: Hounsfield units): finite, width over 0."""

    centre: float
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centre) and math.isfinite(self.width) and self.width > 0):
            raise ImageError("the window's centre and width must be numbers, its width above 0")


def read_dicom(content: bytes, *, frame: int | None = None, window: Window | None = None) -> Pixels:
    """Decode one frame (0-based; may stay None where there is one alone): uint8, (height, width) or (.., .., 3).

    Modality rescale, then `window`, else the file's own, else the range that is there. MONOCHROME1 is turned so that
    bright is dense. A window means nothing to colours. Raises ImageError.
    """
    with refusals():
        dataset, values = _decode(content, frame)
        if values.ndim == 3:
            return stretch(values)
        if window is not None:
            _set_window(dataset, window)
        return _grey(dataset, values)


def count_frames(content: bytes) -> int:
    """From the header alone; 1 for PNG, JPEG, a single-frame DICOM, and where the header cannot be read."""
    if not is_dicom(content):
        return 1
    try:
        with refusals():
            return max(1, _n_frames(parse_header(content, ("NumberOfFrames",), pixels=False)))
    except ImageError:
        return 1


def suggested_window(content: bytes, *, frame: int | None = None) -> Window | None:
    """For a slider to start from: the file's first window, else all rescaled values (8 bits: 0 to 255).

    Of frame 0 unless told. Reading with it changes the picture by one grey level at most. None where a window means
    nothing: PNG, JPEG, colours, and files that cannot be read.
    """
    if not is_dicom(content):
        return None
    try:
        with refusals():
            dataset, values = _decode(content, frame or 0)
            if values.ndim == 3:
                return None
            if "WindowCenter" in dataset:
                return _first_window(dataset)
            rescaled = apply_modality_lut(values, dataset)
            low, high = float(rescaled.min()), float(rescaled.max())
            if values.dtype == np.uint8 and np.array_equal(rescaled, values):
                low, high = 0.0, 255.0
            window = Window((low + high) / 2 + 0.5, high - low + 1)  # PS3.3 C.11.2.1.2.1: from low to high exactly
            return window if _is_usable(window) else None
    except ImageError:
        return None


def _first_window(dataset: pydicom.Dataset) -> Window:
    return Window(*(float(np.ravel(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth")))


def _is_usable(window: Window) -> bool:
    """Else its ends, and a slider's, would be no numbers, or one and the same."""
    return max(abs(window.centre), window.width) < LARGEST_WINDOW and window.width > abs(window.centre) / LARGEST_WINDOW


@contextmanager
def refusals() -> Iterator[None]:
    """Whatever goes wrong inside becomes an ImageError without a word from the file, on no stream either."""
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files; its words may quote tags
        raise ImageError(f"is a DICOM file that cannot be decoded ({type(error).__name__})") from None


class _Counted(io.BytesIO):
    """A header of millions of tiny elements would fill the memory."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ImageError("is a DICOM file whose header is too long")
        return super().read(size)


def parse_header(content: bytes, tags: Sequence[str] | None, *, pixels: bool) -> pydicom.FileDataset:
    """The elements named (None: all) as far as the pixels, or with them; always the file's meta information."""
    stream = _Counted(_inflated(content))
    names = None if tags is None else [*tags, *(("PixelData",) if pixels else ())]
    return pydicom.dcmread(stream, stop_before_pixels=not pixels, specific_tags=cast(Any, names))


def _inflated(content: bytes) -> bytes:
    """A deflated file as a plain one: pydicom would inflate it without a limit. Others stay as they are."""
    stream = _Counted(content)
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return content
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(content[stream.tell() :], MAX_INFLATED_BYTES)
    if not inflater.eof:
        large = len(body) >= MAX_INFLATED_BYTES
        raise ImageError("is a DICOM file that is too large once inflated" if large else "is a DICOM file cut short")
    syntax = uid.ExplicitVRLittleEndian.encode() + b"\0"
    return content[:132] + b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax + body


def _n_frames(dataset: pydicom.Dataset) -> int:
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames > MAX_FRAMES:
        raise ImageError(f"is a DICOM file that claims more than {MAX_FRAMES:,} frames")
    return frames


def items_of(dataset: pydicom.Dataset, tag: str | int) -> Sequence[pydicom.Dataset]:
    """A sequence's items, or none. Raises ImageError where parsing it would take too much."""
    if tag not in dataset:
        return ()
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and len(element.value or b"") > MAX_SEQUENCE_BYTES:
        raise ImageError("is a DICOM file whose header is too long")
    return cast(Sequence[pydicom.Dataset], dataset[tag].value or ())


def _take_frames_own(dataset: pydicom.Dataset, frame: int) -> None:
    """Enhanced objects keep rescale and window in functional groups: what all frames share, then this frame's own."""
    for name, index in zip(_GROUPS, (0, frame), strict=True):
        for group in items_of(dataset, name)[index : index + 1]:
            for inner in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in items_of(group, inner)[:1]:
                    for keyword in set(_FRAME_VALUES) & set(item.dir()):
                        dataset.add(item[keyword])


def _set_window(dataset: pydicom.Dataset, window: Window) -> None:
    for name, number in (("WindowCenter", window.centre), ("WindowWidth", window.width)):
        dataset.add(DataElement(name, "DS", float(number), validation_mode=config.IGNORE))
    if window.width < 1:  # LINEAR is not defined there; it is meant for whole numbers
        dataset.VOILUTFunction = "LINEAR_EXACT"


def _drop_unusable_window(dataset: pydicom.Dataset) -> None:
    """A window of no width, or out of all bounds, shows nothing: then the whole range is shown, as without one."""
    if "WindowCenter" in dataset:
        try:
            usable = _is_usable(_first_window(dataset))
        except (ImageError, KeyError, ValueError, TypeError, IndexError):  # no width, none above 0, no number
            usable = False
        if not usable:
            del dataset.WindowCenter


def _decode(content: bytes, frame: int | None) -> tuple[pydicom.Dataset, Values]:
    """The header with this frame's own rescale and window, and its stored values (h, w), or its colours (h, w, 3)."""
    dataset = parse_header(content, _HEADER, pixels=True)
    if "PixelData" not in dataset:
        raise ImageError("is a DICOM file without pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _PLUGINS and syntax not in uid.UncompressedTransferSyntaxes:
        name = syntax.name if syntax.type == "Transfer Syntax" else "an unknown kind"  # else .name is the value itself
        raise ImageError(
            f"is a DICOM file compressed as {name}, which cannot be decoded here; "
            "export it as uncompressed DICOM or as PNG"
        )
    frames = _n_frames(dataset)
    if frame is None and frames > 1:
        raise ImageError(f"is a DICOM file with {frames} frames; choose one (predict: --frame N)")
    frame = frame or 0
    refuse_frame(frame, max(1, frames))
    refuse_size(int(dataset.Columns), int(dataset.Rows))
    if dataset.BitsAllocated not in (1, 8, 16, 32) or dataset.SamplesPerPixel not in (1, 3):
        raise ImageError("is a DICOM file of a bit depth or number of colours that cannot be decoded")
    _take_frames_own(dataset, frame)
    _drop_unusable_window(dataset)
    if syntax in _PLUGINS:
        _keep_frame(dataset, frame, frames)
        frame = 0
    values, _ = get_decoder(syntax).as_array(dataset, index=frame, decoding_plugin=_PLUGINS.get(syntax, ""))
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    return dataset, values


def _grey(dataset: pydicom.Dataset, values: Values) -> Pixels:
    """Modality rescale, then the window (or the full range), MONOCHROME1 turned so that bright is dense."""
    rescaled = apply_modality_lut(values, dataset)
    if "WindowCenter" in dataset:
        # The window's own ends, not the image's darkest and brightest value, are black and white.
        ends = apply_voi_lut(np.array([-1e9, 1e9]), dataset, prefer_lut=False)
        grey = spread(apply_voi_lut(rescaled, dataset, prefer_lut=False), float(ends[0]), float(ends[1]))
    elif "VOILUTSequence" in dataset:
        grey = stretch(apply_voi_lut(rescaled, dataset).astype(np.float64))
    else:
        grey = stretch(values if np.array_equal(rescaled, values) else rescaled)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _keep_frame(dataset: pydicom.Dataset, frame: int, frames: int) -> None:
    """Leave one compressed frame in the dataset, once its own header agrees with the file's about its size."""
    tables = [dataset.pop(name, None) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = cast(Any, [table.value for table in tables] if all(tables) else None)
    stream = get_frame(dataset.PixelData, frame, number_of_frames=frames, extended_offsets=offsets)
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _JPEG_2000:
        stream = stream[max(0, stream.find(b"\xff\x4f\xff\x51")) :]  # without boxes: pydicom can loop on them for ever
        right = _size_of_jpeg_2000(stream) == (rows, columns, samples)
    elif syntax == uid.RLELossless:
        right = _longest_rle(stream) <= 2 * rows * columns + 1024
    else:
        right = _size_of_jpeg(stream) == (rows, columns, samples)
    if not right:
        raise ImageError("is a DICOM file whose compressed picture is damaged or not of the size that it should be")
    dataset.PixelData = encapsulate([stream])
    dataset.NumberOfFrames = 1


def _size_of_jpeg(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) of a JPEG or JPEG-LS frame header (ISO 10918-1 B.2.2), None where there is none."""
    at = 2
    while stream[:2] == b"\xff\xd8" and len(stream) >= at + 10 and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(stream[at + 5 : at + 7]), int.from_bytes(stream[at + 7 : at + 9]), stream[at + 9]
        elif marker in (0x01, 0xD8, 0xDA):
            return None
        else:
            at += 2 + max(2, int.from_bytes(stream[at + 2 : at + 4]))
    return None


def _size_of_jpeg_2000(stream: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) of the SIZ marker (ISO 15444-1 A.5.1), None where it is not in its place."""
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[at : at + 4]) for at in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(stream[40:42])


def _longest_rle(stream: bytes) -> int:
    """Bytes that the longest of the segments unpacks to (PS3.5 annex G)."""
    starts = [int.from_bytes(stream[at : at + 4], "little") for at in range(4, 4 + 4 * min(15, stream[0]), 4)]
    longest = 0
    for start, end in zip(starts, [*starts[1:], len(stream)], strict=True):
        at, unpacked = start, 0
        while at < min(end, len(stream)):
            head = stream[at]
            unpacked += 257 - head if head > 128 else head + 1 if head < 128 else 0
            at += 2 if head > 128 else head + 2 if head < 128 else 1
        longest = max(longest, unpacked)
    return longest


# A decoder for pydicom, which asks the module for these three names.
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG[1:] + _JPEG_LS, ("imagecodecs",))
_DECODE_JPEG_LS = (
    "import sys, imagecodecs; sys.stdout.buffer.write(imagecodecs.jpegls_decode(sys.stdin.buffer.read()).tobytes())"
)
is_available = DECODER_DEPENDENCIES.__contains__


def _decode_frame(source: bytes, runner: Any) -> bytes:
    if runner.transfer_syntax in _JPEG_LS:
        # CharLS can loop for ever on a damaged file, so it runs where it can be stopped.
        command = [sys.executable, "-P", "-c", _DECODE_JPEG_LS]
        done = subprocess.run(command, input=source, capture_output=True, timeout=JPEG_LS_SECONDS, check=True)
        decoded = done.stdout
    else:
        import imagecodecs  # costs memory that only few need

        as_is = "RGB" if runner.samples_per_pixel == 3 else None  # pydicom converts: it knows the colours
        decoded = imagecodecs.jpeg8_decode(source, colorspace=as_is, outcolorspace=as_is).tobytes()
    runner.set_option("bits_allocated", 8 * len(decoded) // (runner.rows * runner.columns * runner.samples_per_pixel))
    runner.set_option("planar_configuration", 0)
    return decoded


for _syntax in DECODER_DEPENDENCIES:
    if _OURS in get_decoder(_syntax).available_plugins:  # of this module before Streamlit reloaded it
        get_decoder(_syntax).remove_plugin(_OURS)
    get_decoder(_syntax).add_plugin(_OURS, (__name__, _decode_frame.__name__))
