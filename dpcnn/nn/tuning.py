"""Constants that decide the kernels, together with the shapes of the network, for each width of vectors."""

from typing import NamedTuple

from dpcnn.base import numerics


class Tuning(NamedTuple):
    """Constants for speed, which change the last bits of results.

    Attributes:
        winograd_tiles: tiles of a row of Winograd's convolution that are multiplied at once.
        copied: multiplications of a product from which on BLAS copies its factors first; 0: it always does.
        small_product: the largest number of multiplications in one product of a linear layer's gradient.
        few_weights: the most of C F and C C for a convolution in blocks whose kernel spans less than two strides; with
            more, Winograd's transforms cost more than the products that they save.
        sparse_blocks: whether kernels that fill few blocks, or a part of them, pay in blocks of at most three channels.
    """

    winograd_tiles: int
    copied: int
    small_product: int
    few_weights: int
    sparse_blocks: bool


BY_WIDTH = {
    512: Tuning(winograd_tiles=1, copied=1_000_001, small_product=1_000_000, few_weights=64 * 64, sparse_blocks=True),
    256: Tuning(winograd_tiles=4, copied=0, small_product=3_300_000, few_weights=0, sparse_blocks=False),
}
"""The constants for vectors of so many bits."""

TUNING = BY_WIDTH[numerics.vectors()]
"""Those of this process."""
