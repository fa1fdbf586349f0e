"""Constants that decide the shapes of matrix products, together with the shapes of the network, by width of vectors."""

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
    512: Tuning(winograd_tiles=1, copied=1_000_001, small_product=1_000_000),
    256: Tuning(winograd_tiles=4, copied=0, small_product=3_300_000),  # few large products are faster
}[startup.vectors]
"""Of this process."""
