"""Randomness of one round at one hospital."""

import zlib

import numpy as np


def derive_seed(seed: int, round_number: int, who: str) -> int:
    """The same whatever the order of hospitals, and whether the run was resumed."""
    return int(np.random.SeedSequence([seed, round_number, zlib.crc32(who.encode())]).generate_state(1)[0])
