"""Every beginning of an image file, as an upload that broke off leaves it."""

from engine.data.images import read_image
from engine.errors import ImageError


def crashes_when_cut(content: bytes) -> dict[int, str]:
    """By length: what a file cut there raised that is no ImageError. Empty where all are read or refused."""
    crashes: dict[int, str] = {}
    for length in range(len(content)):
        try:
            read_image(content[:length], colour=False)
        except ImageError:
            pass
        except Exception as error:
            crashes[length] = f"{type(error).__name__}: {error}"
    return crashes
