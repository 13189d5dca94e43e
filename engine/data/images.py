"""One image file -> uint8 pixels of a fixed size. Training and serving both read images here and nowhere else."""

import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.errors import ImageError

if TYPE_CHECKING:
    from engine.data.dicom import Window

Pixels = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
MAX_PIXELS = 20_000_000  # a mammogram passes; more would not fit beside the models on a small host
FIT_RULE = "longest side resized to the model's side (bilinear, antialiased), centred, padded with black; v1"


def read_image(
    source: Path | bytes, *, colour: bool, frame: int | None = None, window: "Window | None" = None
) -> Pixels:
    """Decode PNG (8 or 16 bit), JPEG or DICOM.

    `frame` counts from 0; a DICOM file of several is refused without it. `window` replaces the one of a grey DICOM
    file and means nothing to others. Returns uint8, (height, width) when colour is False, else (height, width, 3).
    Raises ImageError whose message repeats neither the file's name nor a value from a DICOM header.
    """
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from None
    if not content:
        raise ImageError("the file is empty")
    if is_dicom(content):
        from engine.data.dicom import read_dicom  # it builds on this file, and few need pydicom's 20 MB

        return _convert(Image.fromarray(read_dicom(content, frame=frame, window=window)), colour=colour)
    refuse_frame(frame or 0, 1)
    return _convert(_read_picture(content), colour=colour)


def to_grey(pixels: Pixels) -> Pixels:
    """(height, width) of (height, width, 3): what `read_image` without colour makes of the same file."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"


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
        refuse_size(*image.size)
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


def _convert(image: Image.Image, *, colour: bool) -> Pixels:
    if image.mode.startswith(("I", "F")):  # 16-bit greys: scanners use a part of the range, so stretch what is there
        image = Image.fromarray(stretch(np.asarray(image)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    return np.asarray(image.convert("RGB" if colour else "L"))


def stretch(values: npt.NDArray[Any]) -> Pixels:
    """The range that is there to 0..255; uint8 stays as it is."""
    if values.dtype == np.uint8:
        return values
    return spread(values, float(values.min()), float(values.max()))


def spread(values: npt.NDArray[Any], low: float, high: float) -> Pixels:
    """low..high to 0..255, falling where low is the higher. Raises ImageError where the two are no finite numbers."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("holds values that are no finite numbers")
    result = np.zeros(values.shape, np.uint8)
    if high != low:
        for row, part in enumerate(
            values
        ):  # row by row: floats of a whole radiograph would take eight times its memory
            result[row] = np.round((part.astype(np.float64) - low) * (255.0 / (high - low)))
    return result


def refuse_size(width: int, height: int) -> None:
    """Raises ImageError for what is empty or too large to decode."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width:,} x {height:,} px, over the limit of {MAX_PIXELS:,} pixels; give a smaller copy")
    if min(width, height) < 1:
        raise ImageError("has no pixels")


def refuse_frame(frame: int, n_frames: int) -> None:
    """Raises ImageError where there is no such frame; `frame` counts from 0, the message from 1."""
    if not 0 <= frame < n_frames:
        raise ImageError(f"has {n_frames} frame{'s' if n_frames != 1 else ''}; there is no frame {frame + 1}")
