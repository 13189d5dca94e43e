"""One image file -> uint8 pixels, and a clear line for every file that is none."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.data.images import fit, read_image, to_grey
from engine.errors import ImageError
from tests.cut_short import crashes_when_cut

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG made by hand, so that its header may say anything. `rows` without filter bytes."""
    stride = len(rows) // height if 0 < height <= len(rows) else len(rows)
    filtered = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), max(stride, 1)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + data


def grey(content: bytes) -> list[list[int]]:
    return read_image(content, colour=False).tolist()


def refusal(content: bytes | Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(content, colour=False)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# --- PNG -----------------------------------------------------------------------------------------------------------


def test_an_8_bit_png_keeps_its_values() -> None:
    pixels = read_image(encode(Image.fromarray(RAMP)), colour=False)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RAMP)


def test_a_file_and_its_bytes_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode(Image.fromarray(RAMP)))
    np.testing.assert_array_equal(read_image(path, colour=False), RAMP)


def test_grey_read_in_colour_has_three_equal_channels() -> None:
    pixels = read_image(encode(Image.fromarray(RAMP)), colour=True)
    np.testing.assert_array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_a_colour_png_keeps_its_colours() -> None:
    assert read_image(encode(Image.new("RGB", (1, 1), (10, 20, 30))), colour=True).tolist() == [[[10, 20, 30]]]


def test_a_colour_png_read_in_grey_becomes_its_luma() -> None:
    assert grey(encode(Image.new("RGB", (1, 1), (255, 0, 0)))) == [[76]]


def test_a_16_bit_png_is_stretched_over_the_range_it_uses() -> None:
    values = np.array([[1000, 1010], [1020, 1100]], np.uint16)
    assert grey(encode(Image.fromarray(values))) == [[0, 26], [51, 255]]


def test_a_16_bit_png_of_one_value_is_black() -> None:
    assert grey(encode(Image.fromarray(np.full((2, 2), 700, np.uint16)))) == [[0, 0], [0, 0]]


def test_a_16_bit_colour_png_is_read_in_colour() -> None:
    content = raw_png(1, 1, struct.pack(">HHH", 0xFFFF, 0x8000, 0), depth=16, colour=2)
    assert read_image(content, colour=True).tolist() == [[[255, 128, 0]]]


def test_what_is_transparent_is_black() -> None:
    values = np.array([[[200, 255], [200, 0]]], np.uint8)
    assert grey(encode(Image.fromarray(values, "LA"))) == [[200, 0]]


def test_half_transparent_colour_is_half_as_bright() -> None:
    pixels = read_image(encode(Image.new("RGBA", (1, 1), (200, 100, 0, 128))), colour=True)
    assert pixels.tolist() == [[[100, 50, 0]]]


def test_a_palettes_transparent_entry_is_black() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 250, 250, 90, 90, 90])
    image.putpixel((1, 0), 1)
    assert grey(encode(image, transparency=0)) == [[0, 90]]


def test_a_1_bit_png_is_black_and_white() -> None:
    assert grey(encode(Image.fromarray(np.array([[True, False]])))) == [[255, 0]]


# --- JPEG ----------------------------------------------------------------------------------------------------------


def test_a_jpeg_in_colour_keeps_its_colour() -> None:
    pixels = read_image(encode(Image.new("RGB", (16, 16), (200, 60, 20)), "JPEG", quality=95), colour=True)
    assert np.abs(pixels.astype(int) - (200, 60, 20)).max() <= 3


def test_a_grey_jpeg_keeps_its_grey() -> None:
    pixels = read_image(encode(Image.new("L", (16, 16), 77), "JPEG"), colour=False)
    assert pixels.shape == (16, 16)
    assert np.abs(pixels.astype(int) - 77).max() <= 1


def test_a_cmyk_jpeg_is_read_as_what_it_shows() -> None:
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    pixels = read_image(red, colour=True)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


LEFT_BRIGHT = np.repeat(np.array([[220] * 8 + [20] * 8], np.uint8), 16, axis=0)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, LEFT_BRIGHT),
        (2, LEFT_BRIGHT[:, ::-1]),
        (3, LEFT_BRIGHT[::-1, ::-1]),
        (4, LEFT_BRIGHT[::-1]),
        (5, LEFT_BRIGHT.T),
        (6, np.rot90(LEFT_BRIGHT, -1)),
        (7, LEFT_BRIGHT[::-1, ::-1].T),
        (8, np.rot90(LEFT_BRIGHT)),
    ],
)
def test_a_jpeg_is_turned_as_its_exif_says(orientation: int, expected: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    pixels = read_image(encode(Image.fromarray(LEFT_BRIGHT), "JPEG", exif=exif), colour=False)
    assert np.abs(pixels.astype(int) - expected).max() <= 5


def test_a_turned_jpeg_has_its_sides_exchanged() -> None:
    exif = Image.Exif()
    exif[274] = 6
    assert read_image(encode(Image.new("L", (16, 8)), "JPEG", exif=exif), colour=False).shape == (16, 8)


# --- files that are no image ---------------------------------------------------------------------------------------


def test_an_empty_file_says_so() -> None:
    assert refusal(b"") == "the file is empty"


@pytest.mark.parametrize(
    "content", [b"hello", b"\0" * 4096, b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"%PDF-1.7\n"]
)
def test_what_is_no_picture_says_what_is_taken(content: bytes) -> None:
    assert refusal(content) == "is no PNG, JPEG or DICOM image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_a_picture_of_another_kind_is_refused(kind: str) -> None:
    assert refusal(encode(Image.fromarray(RAMP), kind)) == "is no PNG, JPEG or DICOM image"


def test_text_named_png_is_refused_without_repeating_the_name(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_text("this is a letter", encoding="utf-8")
    assert refusal(path) == "is no PNG, JPEG or DICOM image"


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == "No such file or directory"


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "Is a directory"


def test_an_animated_png_is_refused_with_its_frames() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20, 30)]
    content = encode(frames[0], save_all=True, append_images=frames[1:])
    assert refusal(content) == "is animated (3 frames); give a single picture"


def test_a_picture_of_400_million_pixels_is_refused_by_its_header() -> None:
    assert "more than 20,000,000 pixels" in refusal(raw_png(20_000, 20_000, b"\0"))


def test_a_picture_a_little_over_the_limit_is_refused_with_its_size() -> None:
    assert refusal(raw_png(10_000, 2_001, b"\0")).startswith("is 10,000 x 2,001 px, over the limit of 20,000,000")


def test_a_long_thin_picture_within_the_limit_is_read() -> None:
    assert read_image(raw_png(20_000, 1, bytes(20_000)), colour=False).shape == (1, 20_000)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_width_or_height_is_refused(size: tuple[int, int]) -> None:
    assert refusal(raw_png(*size, b""))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"gAMA", b"\0"),
        chunk(b"tRNS", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"pHYs", b"\0")[:-1] + b"\0",
    ],
    ids=["gamma", "transparency", "animation", "checksum"],
)
def test_a_png_with_a_damaged_chunk_is_refused_as_damaged(extra: bytes) -> None:
    assert refusal(raw_png(2, 2, bytes(4), extra=extra)).startswith("is damaged (")


def test_a_png_with_damaged_exif_is_read_or_refused_but_never_crashes() -> None:
    content = raw_png(2, 2, bytes([1, 2, 3, 4]), extra=chunk(b"eXIf", b"garbage!"))
    try:
        assert grey(content) == [[1, 2], [3, 4]]
    except ImageError as error:
        assert "\n" not in str(error)


def test_a_jpeg_with_damaged_exif_is_read() -> None:
    content = encode(Image.new("L", (8, 8), 50), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert grey(content) == [[50] * 8] * 8


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_cut_short_is_refused_as_damaged(kind: str) -> None:
    content = encode(noise(64), kind)
    assert refusal(content[: len(content) // 2]).startswith("is damaged (")


CUT_SHORT = {
    "png": encode(noise(16)),
    "jpeg": encode(noise(16), "JPEG"),
}


@pytest.mark.parametrize("content", CUT_SHORT.values(), ids=CUT_SHORT.keys())
def test_a_file_cut_anywhere_is_read_or_refused_but_never_crashes(content: bytes) -> None:
    assert crashes_when_cut(content) == {}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_has_one_frame(kind: str) -> None:
    picture = encode(Image.fromarray(RAMP), kind)
    assert read_image(picture, colour=False, frame=0).shape == (8, 8)
    with pytest.raises(ImageError, match="has 1 frame; there is no frame 2"):
        read_image(picture, colour=False, frame=1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_damaged_picture_is_read_or_refused(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(encode(noise(16), kind))
    for _ in range(chance.randint(1, 5)):
        content[chance.randrange(8, len(content))] = chance.randrange(256)
    try:
        pixels = read_image(bytes(content), colour=False)
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8


# --- fit -----------------------------------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    np.testing.assert_array_equal(fit(RAMP, 8)[..., 0], RAMP)


@pytest.mark.parametrize(("shape", "channels"), [((20, 30), 1), ((20, 30, 3), 3)])
def test_fit_makes_a_square_with_the_channels_it_was_given(shape: tuple[int, ...], channels: int) -> None:
    fitted = fit(np.zeros(shape, np.uint8), 16)
    assert fitted.shape == (16, 16, channels)
    assert fitted.dtype == np.uint8


def test_a_wide_picture_is_centred_between_black_bands() -> None:
    fitted = fit(np.full((10, 20), 255, np.uint8), 8)[..., 0]
    np.testing.assert_array_equal(fitted[2:6], 255)
    np.testing.assert_array_equal(fitted[[0, 1, 6, 7]], 0)


def test_a_tall_picture_is_centred_between_black_bands() -> None:
    fitted = fit(np.full((20, 10), 255, np.uint8), 8)[..., 0]
    np.testing.assert_array_equal(fitted[:, 2:6], 255)
    np.testing.assert_array_equal(fitted[:, [0, 1, 6, 7]], 0)


def test_a_small_picture_is_enlarged_to_the_whole_side() -> None:
    np.testing.assert_array_equal(fit(np.full((2, 2), 90, np.uint8), 8), 90)


def test_shrinking_averages_instead_of_skipping() -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(fit(checks, 8).astype(int) - 127.5).max() < 8


def test_a_line_one_pixel_high_survives() -> None:
    fitted = fit(np.full((1, 1000), 200, np.uint8), 8)[..., 0]
    assert fitted.any(axis=1).sum() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_grey_of_the_colours_is_the_grey_of_the_file(mode: str) -> None:
    """So that one decoding serves the eye, the gate and a network of one channel."""
    colours = np.random.default_rng(3).integers(0, 256, (24, 32, 3), np.uint8)
    if mode == "I;16":
        image, kind = Image.fromarray(colours[..., 0].astype(np.uint16) * 251), "PNG"
    else:
        image, kind = Image.fromarray(colours).convert(mode), "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
        if mode == "PA":
            image, kind = Image.fromarray(colours).convert("P"), "PNG"
            image.info["transparency"] = 3
    content = encode(image, kind)
    np.testing.assert_array_equal(to_grey(read_image(content, colour=True)), read_image(content, colour=False))
