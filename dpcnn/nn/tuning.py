"""Constants that decide the kernels, together with the shapes of the network, for each width of vectors."""

from typing import NamedTuple

from dpcnn.base import numerics


class Tuning(NamedTuple):
    """Constants for speed, which change the last bits of results.

    Attributes:
        winograd_tiles: tiles of a row of Winograd's convolution that are multiplied at once.
        copied: multiplications of a product from which on BLAS copies its factors first; 0: it always does.
        small_product: the largest number of multiplications in one product of a linear layer's gradient.
        kernel_images: for how many images the products of a tile take as long as Winograd's transforms of a kernel, if
            these do not fit into the processor's cache; 0: not measured.
    """

    winograd_tiles: int
    copied: int
    small_product: int
    kernel_images: int

    @property
    def fast_transforms(self) -> bool:
        """Whether Winograd's transforms are fast: BLAS does not copy the factors of small products."""
        return self.copied > 0


BY_WIDTH = {
    512: Tuning(winograd_tiles=1, copied=1_000_001, small_product=1_000_000, kernel_images=0),
    256: Tuning(winograd_tiles=4, copied=0, small_product=3_300_000, kernel_images=20),
}
"""The constants for vectors of so many bits."""

TUNING = BY_WIDTH[numerics.vectors()]
"""Those of this process."""
