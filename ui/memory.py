"""Memory that is free goes back to the machine.

glibc keeps what threads freed for their next use, and models come and go by the ten megabytes: three federations shown
one after the other held 400 MB, and 160 MB once it was asked for.
"""

import ctypes
import gc
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Nothing happens where the C library is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        gc.collect()
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
    return found
