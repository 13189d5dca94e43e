"""How sure a share of so many cases is."""

import math

Z_95 = 1.959964


def wilson(n_hits: int, n: int) -> tuple[float, float]:
    """95%: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927."""
    share, z2 = n_hits / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
