"""One DICOM file -> uint8 pixels: every common encoding, no header value in any message, bounded memory and time."""

import contextlib
import io
import logging
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder
from pydicom.uid import JPEG2000, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from engine.data import dicom as reader
from engine.data.dicom import Window, count_frames, suggested_window
from engine.data.dicom_identity import identifying_fields
from engine.data.images import read_image
from engine.errors import ImageError
from tests.cut_short import crashes_when_cut

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def dicom(values: np.ndarray | None, *, syntax: str = ExplicitVRLittleEndian, **tags: object) -> bytes:
    """A DICOM file in memory; tags given win over those that follow from the values."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    if values is not None:
        bits = values.dtype.itemsize * 8
        dataset.Rows, dataset.Columns = values.shape[:2]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
        dataset.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
        if values.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def grey(content: bytes, **options: object) -> list[list[int]]:
    return read_image(content, colour=False, **options).tolist()


def refusal(content: bytes, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(content, colour=False, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# --- one frame, its rescale and window -----------------------------------------------------------------------------

VALUES = np.array([[0, 50], [120, 200]], np.uint16)


def test_a_dicom_without_a_window_is_stretched_over_its_range() -> None:
    assert grey(dicom(VALUES + 300)) == [[0, 64], [153, 255]]


def test_signed_dicom_values_are_stretched_from_their_lowest() -> None:
    assert grey(dicom(np.array([[-100, 100]], np.int16))) == [[0, 255]]


def test_a_dicom_window_cuts_what_lies_outside_it() -> None:
    # PS3.3 C.11.2.1.2: below 100 - 0.5 - 99/2 = 50 is black, above 100 - 0.5 + 99/2 = 149 is white.
    values = np.array([[0, 50, 149, 200]], np.uint16)
    assert grey(dicom(values, WindowCenter=100, WindowWidth=100)) == [[0, 0, 255, 255]]


def test_a_dicom_window_is_linear_inside() -> None:
    values = np.array([[0, 100, 125, 200]], np.uint16)
    expected = [0, round((0.5 / 99 + 0.5) * 255), round((25.5 / 99 + 0.5) * 255), 255]
    assert grey(dicom(values, WindowCenter=100, WindowWidth=100)) == [expected]


def test_a_dicom_window_wider_than_the_image_leaves_it_dim() -> None:
    values = np.array([[0, 100]], np.uint16)  # a tenth of the window 0..1000
    dark, bright = grey(dicom(values, WindowCenter=500.5, WindowWidth=1001))[0]
    assert dark == 0
    assert abs(bright - 25.5) <= 1


def test_a_full_window_leaves_8_bit_dicom_as_it_is() -> None:
    values = np.array([[10, 50], [100, 120]], np.uint8)
    assert grey(dicom(values, WindowCenter=128, WindowWidth=256)) == values.tolist()


def test_the_first_of_several_dicom_windows_counts() -> None:
    several = dicom(VALUES, WindowCenter=[100, 5], WindowWidth=[100, 10])
    assert grey(several) == grey(dicom(VALUES, WindowCenter=100, WindowWidth=100))


def test_dicom_values_are_rescaled_before_the_window() -> None:
    values = np.array([[0, 1000, 2000]], np.uint16)  # -1000, 0, 1000 after the rescale; the window is -500..499
    content = dicom(values, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=1000)
    black, middle, white = grey(content)[0]
    assert (black, white) == (0, 255)
    assert abs(middle - 127.5) <= 1


def test_a_falling_rescale_turns_dark_to_bright() -> None:
    assert grey(dicom(np.array([[0, 100]], np.uint16), RescaleSlope=-1, RescaleIntercept=0)) == [[255, 0]]


def test_monochrome1_is_turned_so_that_high_values_are_dark() -> None:
    assert grey(dicom(VALUES, PhotometricInterpretation="MONOCHROME1")) == [[255, 191], [102, 0]]


def test_monochrome1_is_turned_after_its_window() -> None:
    content = dicom(VALUES, PhotometricInterpretation="MONOCHROME1", WindowCenter=100, WindowWidth=20)
    assert grey(content) == [[255, 255], [0, 0]]


def test_8_bit_dicom_keeps_its_values() -> None:
    assert grey(dicom(RAMP)) == RAMP.tolist()


def test_a_dicom_in_colour_keeps_its_colours() -> None:
    values = np.array([[[10, 20, 30], [255, 0, 7]]], np.uint8)
    assert read_image(dicom(values), colour=True).tolist() == values.tolist()


def test_a_ybr_dicom_is_read_as_what_it_shows() -> None:
    red = np.full((2, 2, 3), (76, 85, 255), np.uint8)  # ITU-R BT.601, full range
    pixels = read_image(dicom(red, PhotometricInterpretation="YBR_FULL"), colour=True)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 2


def test_a_palette_dicom_is_read_through_its_palette() -> None:
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, table in (("Red", [0, 65535]), ("Green", [0, 0]), ("Blue", [65535, 0]))
        for part, value in (("Descriptor", [2, 0, 16]), ("Data", np.array(table, "<u2").tobytes()))
    }
    content = dicom(np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables)
    assert read_image(content, colour=True).tolist() == [[[0, 0, 255], [255, 0, 0]]]


def test_a_deflated_dicom_is_read() -> None:
    assert grey(dicom(VALUES, syntax=DeflatedExplicitVRLittleEndian)) == grey(dicom(VALUES))


def test_a_dicom_of_one_frame_that_says_so_is_read() -> None:
    assert grey(dicom(VALUES, NumberOfFrames=1)) == grey(dicom(VALUES))


def test_a_dicom_of_many_frames_is_refused_with_their_number() -> None:
    content = dicom(VALUES, NumberOfFrames=7, PixelData=VALUES.tobytes() * 7)
    assert refusal(content) == "is a DICOM file with 7 frames; choose one (predict: --frame N)"


def test_a_dicom_without_pixels_says_so() -> None:
    assert refusal(dicom(None)) == "is a DICOM file without pixels"


@pytest.mark.parametrize(
    "content",
    [
        dicom(VALUES, PixelData=VALUES.tobytes()[:4]),
        dicom(VALUES, PhotometricInterpretation="PALETTE COLOR"),
        dicom(VALUES, BitsAllocated=12),
        dicom(VALUES, syntax=JPEG2000, PixelData=encapsulate([b"nonsense"])),
        b"\0" * 128 + b"DICM" + b"nonsense" * 20,
        b"\0" * 128 + b"DICM",
    ],
    ids=["few-pixels", "no-palette", "12-bit-words", "not-jpeg2000", "nonsense", "magic-alone"],
)
def test_a_damaged_dicom_says_it_is_one(content: bytes) -> None:
    assert refusal(content).startswith("is a DICOM file ")


def test_a_dicom_of_400_million_pixels_is_refused_by_its_size() -> None:
    assert "20,000 x 20,000 px" in refusal(dicom(VALUES, Rows=20_000, Columns=20_000))


def test_a_dicom_of_no_rows_has_no_pixels() -> None:
    assert refusal(dicom(VALUES, Rows=0)) == "has no pixels"


def test_a_falling_rescale_with_a_window_is_dark_where_its_values_are_low() -> None:
    content = dicom(
        np.array([[0, 100]], np.uint16), RescaleSlope=-1, RescaleIntercept=0, WindowCenter=-50, WindowWidth=50
    )
    assert grey(content) == [[255, 0]]


@pytest.mark.parametrize("slope", ["1e308", "nan", "inf"])
def test_a_rescale_out_of_all_bounds_is_refused(slope: str) -> None:
    plain = dicom(VALUES, RescaleSlope="1.00000", RescaleIntercept=0)
    hostile = plain.replace(b"1.00000 ", slope.encode().ljust(8))
    assert hostile != plain
    with contextlib.suppress(ImageError):
        read_image(hostile, colour=False)


# --- frames --------------------------------------------------------------------------------------------------------

FRAMES = np.stack([RAMP, RAMP[::-1], 255 - RAMP])


def test_each_of_several_frames_is_read_by_its_number() -> None:
    content = dicom(RAMP, NumberOfFrames=3, PixelData=FRAMES.tobytes())
    assert count_frames(content) == 3
    for number, expected in enumerate(FRAMES):
        assert grey(content, frame=number) == expected.tolist()


@pytest.mark.parametrize("offsets", [True, False])
def test_each_of_several_compressed_frames_is_read_by_its_number(offsets: bool) -> None:
    frames = [imagecodecs.jpeg2k_encode(frame, level=0, reversible=True, codecformat="j2k") for frame in FRAMES]
    content = dicom(RAMP, syntax=uid.JPEG2000Lossless, NumberOfFrames=3, PixelData=encapsulate(frames, has_bot=offsets))
    assert [grey(content, frame=number) for number in range(3)] == FRAMES.tolist()
    assert "3 frames" in refusal(content)


def test_only_the_frame_asked_for_is_decoded() -> None:
    good = imagecodecs.jpeg2k_encode(RAMP, level=0, reversible=True, codecformat="j2k")
    content = dicom(
        RAMP, syntax=uid.JPEG2000Lossless, NumberOfFrames=2, PixelData=encapsulate([b"no picture at all", good])
    )
    assert grey(content, frame=1) == RAMP.tolist()
    assert "damaged" in refusal(content, frame=0)


@pytest.mark.parametrize("frame", [-1, 3, 10**9])
def test_a_frame_that_is_not_there_is_refused(frame: int) -> None:
    content = dicom(RAMP, NumberOfFrames=3, PixelData=FRAMES.tobytes())
    assert refusal(content, frame=frame) == f"has 3 frames; there is no frame {frame + 1}"


def test_a_single_frame_needs_no_number_and_has_no_second() -> None:
    assert grey(dicom(RAMP), frame=0) == RAMP.tolist()
    assert refusal(dicom(RAMP), frame=1) == "has 1 frame; there is no frame 2"


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 128 + b"DICM", dicom(RAMP), dicom(None)], ids=range(5))
def test_everything_else_has_one_frame(content: bytes) -> None:
    assert count_frames(content) == 1


def test_a_frame_brings_its_own_rescale_and_window() -> None:
    def group(intercept: float, centre: float) -> Dataset:
        item, transform, window = Dataset(), Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = 1, intercept
        window.WindowCenter, window.WindowWidth = centre, 256
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [transform], [window]
        return item

    content = dicom(
        RAMP,
        NumberOfFrames=2,
        PixelData=RAMP.tobytes() * 2,
        SharedFunctionalGroupsSequence=[group(0, 128)],
        PerFrameFunctionalGroupsSequence=[Dataset(), group(1000, 1000)],
    )
    assert grey(content, frame=0) == RAMP.tolist()
    assert grey(content, frame=1) == np.minimum(RAMP.astype(int) + 128, 255).tolist()
    assert suggested_window(content, frame=1) == Window(1000, 256)


# --- a reader's window ---------------------------------------------------------------------------------------------


def test_a_readers_window_replaces_the_files_own() -> None:
    content = dicom(VALUES, WindowCenter=5, WindowWidth=9, RescaleSlope=2, RescaleIntercept=-10)
    other = dicom(VALUES, WindowCenter=100, WindowWidth=100, RescaleSlope=2, RescaleIntercept=-10)
    assert grey(content, window=Window(100, 100)) == grey(other)
    assert grey(content, window=Window(100, 100)) != grey(content)


def test_a_readers_window_may_be_narrower_than_one() -> None:
    assert grey(dicom(VALUES), window=Window(50, 0.5)) == [[0, 128], [255, 255]]


@pytest.mark.parametrize(("centre", "width"), [(0, 0), (0, -5), (float("nan"), 5), (0, float("inf"))])
def test_a_window_that_is_none_is_refused(centre: float, width: float) -> None:
    with pytest.raises(ImageError, match="window"):
        Window(centre, width)


def test_the_files_first_window_is_suggested() -> None:
    assert suggested_window(dicom(VALUES, WindowCenter=[100, 5], WindowWidth=[90, 10])) == Window(100, 90)


def test_without_a_window_the_range_of_rescaled_values_is_suggested() -> None:
    content = dicom(VALUES, RescaleSlope=1, RescaleIntercept=-1000)
    assert suggested_window(content) == Window(-1000 + 100.5, 201)


@pytest.mark.parametrize("values", [VALUES, RAMP, (VALUES.astype(np.int16) - 100)], ids=["u16", "u8", "i16"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_suggested_window_changes_nothing(values: np.ndarray, photometric: str) -> None:
    content = dicom(values, PhotometricInterpretation=photometric)
    window = suggested_window(content)
    assert window is not None
    assert np.abs(np.subtract(grey(content, window=window), grey(content))).max() <= 1


def test_colours_and_pictures_have_no_window() -> None:
    assert suggested_window(dicom(np.zeros((2, 2, 3), np.uint8))) is None
    assert suggested_window(b"\x89PNG\r\n\x1a\n" + bytes(200)) is None
    assert suggested_window(b"\0" * 128 + b"DICM" + b"nonsense" * 9) is None


# --- transfer syntaxes ---------------------------------------------------------------------------------------------

GREY12 = np.random.default_rng(1).integers(0, 4096, (24, 20)).astype(np.uint16)
BITS12 = {"BitsStored": 12, "HighBit": 11}


def expected(values: np.ndarray) -> list[list[int]]:
    return grey(dicom(values, **BITS12))


def lossless_jpeg(values: np.ndarray, bits: int) -> bytes:
    """ITU-T T.81 annex H by hand, so that the decoder is not checked against its own encoder: predictor 1, no table."""
    height, width = values.shape
    codes = "".join(chr(category) for category in range(17)).encode("latin-1")
    counts = bytes([0, 0, 0, 0, 17, *([0] * 11)])  # 17 codes of 5 bits, in order
    stream = []
    for y in range(height):
        for x in range(width):
            left, above = (int(values[y, x - 1]) if x else None), (int(values[y - 1, x]) if y else 1 << (bits - 1))
            difference = (int(values[y, x]) - (above if left is None else left)) & 0xFFFF
            signed = difference - 0x10000 if difference > 0x8000 else difference
            category = abs(signed).bit_length()
            stream.append(f"{category:05b}")
            if 0 < category < 16:
                stream.append(f"{signed if signed > 0 else signed + (1 << category) - 1:0{category}b}")
    joined = "".join(stream)
    joined += "1" * (-len(joined) % 8)
    scan = int(joined, 2).to_bytes(len(joined) // 8, "big").replace(b"\xff", b"\xff\0")
    return (
        b"\xff\xd8\xff\xc3"
        + struct.pack(">HBHHBBBB", 11, bits, height, width, 1, 1, 0x11, 0)
        + b"\xff\xc4"
        + struct.pack(">HB", 2 + 1 + 16 + 17, 0)
        + counts
        + codes
        + b"\xff\xda"
        + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
        + scan
        + b"\xff\xd9"
    )


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_little_endian_files_are_read(syntax: str) -> None:
    assert grey(dicom(GREY12, syntax=syntax, **BITS12)) == expected(GREY12)


def test_rle_is_read() -> None:
    source = pydicom.dcmread(io.BytesIO(dicom(GREY12, **BITS12)))
    frame = get_encoder(uid.RLELossless).encode(source, index=0)
    assert grey(dicom(GREY12, syntax=uid.RLELossless, PixelData=encapsulate([frame]), **BITS12)) == expected(GREY12)


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_jpeg_is_read_exactly(syntax: str, bits: int) -> None:
    values = GREY12 << (bits - 12)
    tags = {"BitsStored": bits, "HighBit": bits - 1}
    frame = lossless_jpeg(values, bits)
    assert grey(dicom(values, syntax=syntax, PixelData=encapsulate([frame]), **tags)) == grey(dicom(values, **tags))


def test_signed_lossless_jpeg_is_read_exactly() -> None:
    values = GREY12.astype(np.int16) - 2048
    frame = lossless_jpeg(values.view(np.uint16), 16)
    assert grey(dicom(values, syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([frame]))) == grey(dicom(values))


def test_8_bit_lossless_jpeg_is_read_exactly() -> None:
    frame = lossless_jpeg(RAMP, 8)
    assert grey(dicom(RAMP, syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([frame]))) == RAMP.tolist()


def bundled(name: str) -> bytes:
    """A file that comes with pydicom: made by other people's encoders."""
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom comes without {name}")
    return Path(path).read_bytes()


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", 0),  # JPEG lossless, of three colours
        ("SC_rgb_rle.dcm", 0),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 20),  # JPEG baseline, RGB
        ("SC_rgb_jpeg_dcmtk.dcm", 20),  # JPEG baseline, YBR
        ("SC_rgb_jls_lossy_line.dcm", 3),
        ("SC_rgb_gdcm_KY.dcm", 20),  # JPEG 2000
    ],
)
def test_the_same_colours_come_from_every_encoding(name: str, tolerance: int) -> None:
    bars = read_image(bundled("SC_rgb_rle_2frame.dcm"), colour=True, frame=0).astype(int)
    assert np.abs(read_image(bundled(name), colour=True) - bars).max() <= tolerance


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"],
)
def test_the_same_mri_comes_from_every_lossless_encoding(name: str) -> None:
    assert grey(bundled(f"{name}.dcm")) == grey(bundled("MR_small.dcm"))


def test_12_bit_extended_jpeg_is_read() -> None:
    pixels = read_image(bundled("JPGExtended.dcm"), colour=False)
    assert pixels.shape == (1024, 256)
    assert pixels.std() > 5


def test_baseline_jpeg_is_read_as_pillow_reads_it() -> None:
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "JPEG", quality=95)
    content = dicom(RAMP, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([stream.getvalue()]))
    assert grey(content) == np.asarray(Image.open(stream)).tolist()


@pytest.mark.parametrize(("syntax", "words"), [(uid.MPEG2MPML, "MPEG2"), (uid.HTJ2K, "High-Throughput JPEG 2000")])
def test_an_encoding_that_nobody_here_decodes_is_named(syntax: str, words: str) -> None:
    message = refusal(dicom(RAMP, syntax=syntax, PixelData=encapsulate([b"1234"])))
    assert words in message
    assert message.endswith("export it as uncompressed DICOM or as PNG")


def test_an_encoding_without_a_name_is_not_repeated() -> None:
    message = refusal(dicom(RAMP, syntax="1.2.3.4567", PixelData=encapsulate([b"1234"])))
    assert "an unknown kind" in message
    assert "4567" not in message


# --- what identifies people ----------------------------------------------------------------------------------------

SECRET = "Zyxwvut"


def test_identifying_fields_are_named_by_their_kind() -> None:
    content = dicom(
        RAMP,
        PatientName=SECRET,
        PatientID=SECRET,
        PatientBirthDate="19700101",
        PatientSex="F",
        PatientAge="050Y",
        PatientAddress=SECRET,
        AccessionNumber=SECRET,
        StudyInstanceUID="1.2.3.4",
        StudyDate="20200101",
        InstitutionName=SECRET,
        ReferringPhysicianName=SECRET,
        DeviceSerialNumber=SECRET,
        StudyDescription=SECRET,
        BurnedInAnnotation="YES",
    )
    kinds = identifying_fields(content)
    wanted = ("patient name", "patient ID", "birth date", "sex", "age", "address or telephone", "accession number")
    assert kinds[:7] == wanted
    assert {"institution", "physicians or operators", "dates and times", "device"} < set(kinds)
    assert kinds[-1] == "text burned into the picture"
    assert SECRET not in " ".join(kinds)


def test_private_elements_overlays_and_nested_fields_are_found() -> None:
    source = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    source.private_block(0x0043, "MAKER", create=True).add_new(1, "LO", SECRET)
    source.add_new(0x60000010, "US", 8)
    request = Dataset()
    request.AccessionNumber = SECRET
    source.RequestAttributesSequence = [request]
    stream = io.BytesIO()
    source.save_as(stream)
    assert identifying_fields(stream.getvalue()) == (
        "accession number",
        "study, series or image UID",
        "private elements",
        "overlays",
    )


def test_empty_fields_hold_nothing() -> None:
    content = dicom(RAMP, PatientName="", PatientID=" ", SOPInstanceUID="")
    assert identifying_fields(content) == ()


@pytest.mark.parametrize("content", [b"", b"PNG", b"\0" * 128 + b"DICM" + b"xx" * 99], ids=["empty", "png", "damaged"])
def test_what_cannot_be_read_names_no_fields(content: bytes) -> None:
    assert identifying_fields(content) == ()


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


HOSTILE = {
    "name": element(0x10, 0x10, b"PN", SECRET.encode() * 2),
    "long": element(0x10, 0x20, b"LO", SECRET.encode() * 6000),
    "control": element(0x10, 0x20, b"LO", b"\x1b[31m" + SECRET.encode() + b"\r\n\0\x07 "),
    "vr": element(0x10, 0x20, b"ZZ", SECRET.encode() * 2),
    "date": element(0x10, 0x30, b"DA", SECRET.encode() * 2),
    "charset": element(0x08, 0x05, b"CS", SECRET.encode() * 2),
    "uid": element(0x08, 0x18, b"UI", SECRET.encode() * 2),
    "rows": element(0x28, 0x10, b"US", SECRET.encode() * 2),
    "frames": element(0x28, 0x08, b"IS", SECRET.encode() * 2),
    "photometric": element(0x28, 0x04, b"CS", SECRET.encode() * 2),
    "centre": element(0x28, 0x1050, b"DS", SECRET.encode() * 2) + element(0x28, 0x1051, b"DS", b"10"),
    "function": element(0x28, 0x1050, b"DS", b"10")
    + element(0x28, 0x1051, b"DS", b"10")
    + element(0x28, 0x1056, b"CS", SECRET.encode() * 2),
    "slope": element(0x28, 0x1052, b"DS", b"0 ") + element(0x28, 0x1053, b"DS", SECRET.encode() * 2),
}


def with_element(content: bytes, extra: bytes) -> bytes:
    """The extra element in its place or before the pixels: whatever comes later in a file wins."""
    pixels = content.index(b"\xe0\x7f\x10\x00")
    return content[:pixels] + extra + content[pixels:]


@pytest.mark.parametrize("extra", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_value_of_a_header_is_ever_repeated(
    extra: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    content = with_element(dicom(RAMP), extra)
    said = ""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            read_image(content, colour=False)
        except ImageError as error:
            said = str(error)
            assert error.__suppress_context__ or error.__context__ is None
        said += str(count_frames(content)) + str(suggested_window(content)) + str(identifying_fields(content))
    out = "".join(capfd.readouterr()) + caplog.text + "".join(str(warning.message) for warning in heard)
    assert SECRET not in said + out
    assert "\x1b" not in said
    assert out == ""


def test_a_transfer_syntax_that_is_a_name_is_not_repeated() -> None:
    plain = dicom(RAMP, syntax=uid.RLELossless, PixelData=encapsulate([b"1234"]))
    hostile = plain.replace(b"1.2.840.10008.1.2.5", (SECRET * 3)[:19].encode())
    assert hostile != plain
    assert SECRET not in refusal(hostile)


# --- bombs ---------------------------------------------------------------------------------------------------------


def peak_mb(content: bytes, tmp_path: Path) -> tuple[str, float]:
    """What a fresh process says of a file, and the megabytes it took beyond the bare library."""
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    code = (
        "import resource, sys, engine.data.dicom, pathlib\n"
        "from engine.data.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: said = str(read_image(pathlib.Path(sys.argv[1]), colour=False, frame=0).shape)\n"
        "except Exception as error: said = f'{type(error).__name__}: {error}'\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    kilobytes, said = done.stdout.split(" ", 1)
    return said.strip(), int(kilobytes) / 1024


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    megabyte = squeeze.compress(bytes(1_000_000)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    body = megabyte * 1000 + squeeze.flush()
    plain = dicom(VALUES, syntax=DeflatedExplicitVRLittleEndian)
    meta_end = 132 + 12 + int.from_bytes(plain[140:144], "little")
    said, megabytes = peak_mb(plain[:meta_end] + body, tmp_path)
    assert said == "ImageError: is a DICOM file that is too large once inflated"
    assert megabytes < 500


def test_a_header_of_very_many_elements_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_READS", 10_000)
    empty_items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 20_000
    sequence = struct.pack("<HH2sHI", 0x40, 0x275, b"SQ", 0, 0xFFFFFFFF) + empty_items
    content = with_element(dicom(RAMP), sequence)
    assert refusal(content).startswith("is a DICOM file")
    assert count_frames(content) == 1
    assert identifying_fields(content) == ()


@pytest.mark.parametrize(
    "claim",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2_000_000_000},
        {"BitsAllocated": 64, "BitsStored": 64},
        {"BitsAllocated": 65528},
        {"SamplesPerPixel": 65535},
    ],
    ids=lambda claim: next(iter(claim)),
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, uid.JPEGLosslessSV1, uid.RLELossless, JPEG2000])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(claim: dict[str, int], syntax: str) -> None:
    body = {} if syntax == ExplicitVRLittleEndian else {"PixelData": encapsulate([lossless_jpeg(RAMP, 8)])}
    started = time.monotonic()
    refusal(dicom(RAMP, syntax=syntax, **body, **claim), frame=0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, JPEG2000])
def test_a_compressed_picture_larger_than_the_header_says_is_refused(syntax: str) -> None:
    large = np.zeros((4000, 4000), np.uint8)
    stream = (
        imagecodecs.jpeg2k_encode(large, codecformat="j2k")
        if syntax == JPEG2000
        else imagecodecs.jpeg8_encode(large, lossless=syntax == uid.JPEGLosslessSV1)
    )
    content = dicom(RAMP, syntax=syntax, PixelData=encapsulate([stream]))
    assert "not of the size that it should be" in refusal(content)


def test_rle_that_unpacks_to_far_too_much_is_refused() -> None:
    stream = struct.pack("<16I", 1, 64, *([0] * 14)) + b"\x81\0" * 100_000
    content = dicom(RAMP, syntax=uid.RLELossless, PixelData=encapsulate([stream]))
    assert "not of the size that it should be" in refusal(content)


def test_boxes_without_a_length_do_not_hang_the_reader() -> None:
    stream = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64)
    assert "damaged" in refusal(dicom(RAMP, syntax=JPEG2000, PixelData=encapsulate([stream])))


def test_a_jpeg_ls_decoder_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "JPEG_LS_SECONDS", 1)
    monkeypatch.setattr(reader, "_DECODE_JPEG_LS", "while True: pass")
    stream = imagecodecs.jpegls_encode(RAMP)
    content = dicom(RAMP, syntax=uid.JPEGLSLossless, PixelData=encapsulate([stream]))
    assert refusal(content).startswith("is a DICOM file that cannot be decoded")


# --- damage --------------------------------------------------------------------------------------------------------

J2K = imagecodecs.jpeg2k_encode(RAMP, level=0, reversible=True, codecformat="j2k")
SEEDS = {
    "plain": dicom(VALUES, WindowCenter=5, WindowWidth=9, RescaleSlope=1, RescaleIntercept=0, PatientName=SECRET),
    "implicit": dicom(VALUES, syntax=uid.ImplicitVRLittleEndian, WindowCenter=5, WindowWidth=9, NumberOfFrames=1),
    "deflated": dicom(VALUES, syntax=DeflatedExplicitVRLittleEndian),
    "lossless": dicom(RAMP, syntax=uid.JPEGLosslessSV1, PixelData=encapsulate([lossless_jpeg(RAMP, 8)])),
    "baseline": dicom(
        RAMP, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([imagecodecs.jpeg8_encode(RAMP)]), NumberOfFrames=1
    ),
    "jpeg2000": dicom(RAMP, syntax=uid.JPEG2000Lossless, PixelData=encapsulate([J2K])),
}


def damaged(content: bytes, seed: int) -> bytes:
    """A few bytes changed, lost or added, somewhere after the preamble."""
    chance, mutant = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at, kind = chance.randrange(132, len(mutant)), chance.random()
        if kind < 0.7:
            mutant[at] = chance.choice((0, 1, 255, mutant[at] ^ (1 << chance.randrange(8))))
        elif kind < 0.85:
            del mutant[at : at + chance.randint(1, 12)]
            mutant += b"\0" * 4
        else:
            mutant[at:at] = chance.randbytes(chance.randint(1, 12))
    return bytes(mutant)


@pytest.mark.parametrize("content", SEEDS.values(), ids=SEEDS.keys())
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_ends_in_pixels_or_one_line(content: bytes, seed: int) -> None:
    mutant = damaged(content, seed)
    started = time.monotonic()
    try:
        pixels = read_image(mutant, colour=False, frame=0)
    except ImageError as error:
        assert "\n" not in str(error)
        assert SECRET not in str(error)
    else:
        assert pixels.dtype == np.uint8
    assert count_frames(mutant) >= 1
    assert SECRET not in " ".join(identifying_fields(mutant)) + str(suggested_window(mutant))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("content", [SEEDS["plain"], SEEDS["deflated"]], ids=["plain", "deflated"])
def test_a_file_cut_anywhere_is_read_or_refused_but_never_crashes(content: bytes) -> None:
    assert crashes_when_cut(content) == {}


def test_a_damaged_jpeg_ls_file_leaves_the_process_alone() -> None:
    source = pydicom.dcmread(io.BytesIO(bundled("MR_small_jpeg_ls_lossless.dcm")))
    frame = bytearray(next(generate_frames(source.PixelData, number_of_frames=1)))
    frame[200:260] = bytes(60)
    values = np.zeros((64, 64), np.uint16)
    with contextlib.suppress(ImageError):
        read_image(dicom(values, syntax=uid.JPEGLSLossless, PixelData=encapsulate([bytes(frame)])), colour=False)


@pytest.mark.parametrize("window", [(5, 0), (5, -3), (1e308, 1e308), (1e17, 1), (float("nan"), 2)])
def test_a_window_that_shows_nothing_is_passed_over(window: tuple[float, float]) -> None:
    """The whole range is shown then, and a slider starts from numbers it can bear."""
    content = dicom(VALUES, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_array_equal(read_image(content, colour=False), read_image(dicom(VALUES), colour=False))
    own = suggested_window(content)
    assert own == suggested_window(dicom(VALUES))
    assert own is not None and own.centre - 2 * own.width < own.centre < own.centre + 2 * own.width
