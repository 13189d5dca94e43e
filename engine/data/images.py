"""One image file -> uint8 pixels of a fixed size. Training and serving both read images here and nowhere else."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageOps, UnidentifiedImageError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from engine.errors import ImageError

Pixels = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
MAX_PIXELS = 50_000_000  # a 50-megapixel radiograph passes, a decompression bomb does not
FIT_RULE = "longest side resized to the model's side (bilinear, antialiased), centred, padded with black; v1"


def read_image(source: Path | bytes, *, colour: bool) -> Pixels:
    """Decode PNG (8 or 16 bit), JPEG or single-frame DICOM.

    Returns uint8, (height, width) when colour is False, else (height, width, 3).
    Raises ImageError whose message does not repeat the file's name.
    """
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from None
    if not content:
        raise ImageError("the file is empty")
    if content[128:132] == b"DICM":
        return _convert(_read_dicom(content), colour=colour)
    return _convert(_read_picture(content), colour=colour)


def fit(pixels: Pixels, size_px: int) -> Pixels:
    """Resize with aspect kept and pad to (size_px, size_px, channels); grey has one channel. See FIT_RULE."""
    image = Image.fromarray(pixels)
    scale = size_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = Image.new(image.mode, (size_px, size_px))
    canvas.paste(
        image.resize((width, height), Image.Resampling.BILINEAR), ((size_px - width) // 2, (size_px - height) // 2)
    )
    return np.asarray(canvas).reshape(size_px, size_px, -1)


def _read_picture(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        _refuse_size(*image.size)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format == "PNG":
            raise ImageError(f"is animated ({frames} frames); give a single picture")
        image.load()
        return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("is no PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise ImageError(f"has more than {MAX_PIXELS:,} pixels; give a smaller copy") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ImageError(f"is damaged ({type(error).__name__}: {error})") from None


def _read_dicom(content: bytes) -> Image.Image:
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        if "PixelData" not in dataset:
            raise ImageError("is a DICOM file without pixels")
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        if frames > 1:
            raise ImageError(f"is a DICOM file with {frames} frames; export the one to be read")
        _refuse_size(int(dataset.Columns), int(dataset.Rows))
        return Image.fromarray(_dicom_pixels(dataset))
    except ImageError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files; its words may quote tags
        raise ImageError(f"is a DICOM file that cannot be decoded ({type(error).__name__})") from None


def _dicom_pixels(dataset: pydicom.Dataset) -> Pixels:
    """Modality rescale, then the file's window (or its full range), MONOCHROME1 turned so that bright is dense."""
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    values: npt.NDArray[Any] = dataset.pixel_array  # YBR comes as RGB already
    if photometric == "PALETTE COLOR":
        return _stretch(apply_color_lut(values, dataset))
    if values.ndim == 3:
        return _stretch(values)
    rescaled = apply_modality_lut(values, dataset)
    if "WindowCenter" in dataset:
        # The window's own ends, not the image's darkest and brightest value, are black and white.
        ends = apply_voi_lut(np.array([-1e9, 1e9]), dataset, prefer_lut=False)
        windowed = apply_voi_lut(rescaled, dataset, prefer_lut=False)
        grey = _spread(windowed, float(ends[0]), float(ends[1]))
    elif "VOILUTSequence" in dataset:
        grey = _stretch(apply_voi_lut(rescaled, dataset).astype(np.float64))
    else:
        grey = _stretch(values if np.array_equal(rescaled, values) else rescaled)
    return 255 - grey if photometric == "MONOCHROME1" else grey


def _stretch(values: npt.NDArray[Any]) -> Pixels:
    """The range that is there to 0..255; uint8 stays as it is."""
    if values.dtype == np.uint8:
        return values
    return _spread(values, float(values.min()), float(values.max()))


def _spread(values: npt.NDArray[Any], low: float, high: float) -> Pixels:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.round((values.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.uint8)


def _convert(image: Image.Image, *, colour: bool) -> Pixels:
    if image.mode.startswith(("I", "F")):  # 16-bit greys: scanners use a part of the range, so stretch what is there
        image = Image.fromarray(_stretch(np.asarray(image)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return np.asarray(image.convert("RGB" if colour else "L"))


def _refuse_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width:,} x {height:,} px, over the limit of {MAX_PIXELS:,} pixels; give a smaller copy")
    if min(width, height) < 1:
        raise ImageError("has no pixels")
