"""The shapes of matrix products, for each numerics: whatever else decides them is a network's own shapes."""

from dataclasses import dataclass

from dpcnn.base import startup


@dataclass(frozen=True)
class Tuning:
    """Constants that decide speed, and with it bits.

    Attributes:
        winograd_tiles: tiles of a row of Winograd's convolution that are multiplied at once.
        small_product: the most multiplications in one of the products that a linear layer's gradient consists of.
    """

    winograd_tiles: int
    small_product: int


TUNING = {
    "native": Tuning(winograd_tiles=1, small_product=1_000_000),  # AVX-512: products this small are not copied first
    "portable": Tuning(winograd_tiles=4, small_product=3_300_000),  # AVX2: all are, so that few large ones are faster
}[startup.numerics]
"""Of this process."""
