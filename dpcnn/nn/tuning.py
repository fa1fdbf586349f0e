"""Constants that decide the shapes of matrix products, together with the network's shapes, for each numerics."""

from typing import NamedTuple

from dpcnn.base import startup


class Tuning(NamedTuple):
    """Constants for speed, which change the last bits of results.

    Attributes:
        winograd_tiles: tiles of a row of Winograd's convolution that are multiplied at once.
        copied: multiplications of a product from which on BLAS copies its factors first; 0: it always does.
        small_product: the largest number of multiplications in one product of a linear layer's gradient.
    """

    winograd_tiles: int
    copied: int
    small_product: int


TUNING = {
    "native": Tuning(winograd_tiles=1, copied=1_000_001, small_product=1_000_000),  # AVX-512
    "portable": Tuning(winograd_tiles=4, copied=0, small_product=3_300_000),  # AVX2: few large products are faster
}[startup.numerics]
"""Of this process."""
