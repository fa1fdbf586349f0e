"""The choice of a convolution's algorithm. It depends on shapes only, and so do the bits of the result."""

from dpcnn.base.arrays import Shape
from dpcnn.nn.convolution import Kernel, Winograd
from dpcnn.nn.grouped import Depthwise, Grouped, Pointwise
from dpcnn.nn.mec import Mec

WINOGRAD_CHANNELS = 8
"""With fewer input channels the transforms cost more than the multiplications that they save."""


def choose_algorithm(
    shape: Shape,
    filters: int,
    kernel_size: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
) -> Kernel:
    """The fastest kernel for inputs (H, W, C) and ``filters`` filters."""
    H, W, C = shape
    if groups == C == filters > 1:
        return Depthwise(kernel_size, stride, padding, dilation)
    if groups > 1:
        part = (H, W, C // groups)
        return Grouped(
            [
                choose_algorithm(part, filters // groups, kernel_size, stride, padding, dilation=dilation)
                for _ in range(groups)
            ]
        )
    if kernel_size == (1, 1) and padding == 0:
        return Pointwise(stride)
    if kernel_size == (3, 3) and stride == dilation == 1 and C >= WINOGRAD_CHANNELS:
        return Winograd(shape, padding)
    return Mec(kernel_size, stride, padding, dilation)
