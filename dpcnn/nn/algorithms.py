"""The choice of a convolution's algorithm. It depends on shapes, the number of images included, and on the width of
vectors only, and so do the bits of the result."""

from math import prod

from dpcnn.base.arrays import Shape
from dpcnn.nn.convolution import Kernel, bands, output_length
from dpcnn.nn.direct import Direct
from dpcnn.nn.grouped import Depthwise, Grouped, Pointwise, Whole
from dpcnn.nn.large import Large
from dpcnn.nn.mec import Mec
from dpcnn.nn.strided import Dilated, Strided, blocks
from dpcnn.nn.tuning import TUNING
from dpcnn.nn.winograd import MOST_SIDE, Winograd

WINOGRAD_CHANNELS, LARGE_CHANNELS = 4, 8
"""With fewer input channels the transforms cost more than the multiplications that they save; for a kernel with a side
of more than :data:`MOST_SIDE`, the second number."""

BLOCK_CHANNELS = 8
"""The fewest channels of an image of blocks whose copy pays."""

FILLED = 0.7
"""The least part of its blocks that a kernel fills, for images of few channels, if Winograd's transforms are slow."""

FEW_WEIGHTS = 64 * 64
"""The largest C F and C C for a convolution in blocks whose kernel spans less than two strides. With more weights, even
fast transforms of Winograd cost more than the products that they save."""

LARGE_KERNEL = 1 << 13
"""The fewest weights at a position of the kernel with which the transforms of the kernel take much time."""

TRANSFORMS = 2.5
"""How often the transforms of a large kernel count where those of the images are saved too."""

FEW_OUTPUTS = 64
"""The most outputs of an image with which :class:`~dpcnn.nn.direct.Direct` is chosen."""

MANY_WEIGHTS, MANY_IN_BLOCKS, MANY_IN_LARGE = 1 << 15, 1 << 14, 1 << 9
"""For so few outputs, the fewest weights at a position of the kernel with which it pays to use each weight once, and as
it is: in general, in place of blocks of pixels, and for a kernel with more than :data:`MOST_SIDE` squared positions."""

SLOW_TILES = 1.5
"""How many products by position take as long as one over tiles of a large kernel, whose sums need more passes."""

GROUPED_CHANNELS = 32
"""The most channels of neighbouring groups that are computed together."""


def choose_algorithm(
    shape: Shape,
    filters: int,
    kernel_size: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
    images: int = 32,
) -> Kernel:
    """The fastest kernel for ``images`` inputs (H, W, C) and ``filters`` filters."""
    H, W, C = shape
    if groups == C == filters > 1:
        return Depthwise(kernel_size, stride, padding, dilation)
    if groups > 1:
        parts, kernels = bands(groups, C // groups, GROUPED_CHANNELS), []
        for start, stop in parts:
            channels, part_filters = ((stop - start) * count // groups for count in (C, filters))
            of_part = (H, W, channels), part_filters, kernel_size, stride, padding, 1, dilation, images
            kernels.append(choose_algorithm(*of_part))
        return Grouped(kernels, parts)
    if kernel_size == (1, 1) and padding == 0:
        return Pointwise(stride)
    if kernel_size == (H, W) and padding == 0:
        return Whole()
    r, width = kernel_size
    channels = WINOGRAD_CHANNELS if r <= MOST_SIDE else LARGE_CHANNELS
    pays_in_tiles = r == width > 1 and stride == 1 and channels <= C
    if pays_in_tiles and dilation == 1:
        return in_tiles(shape, filters, r, padding, images)
    if pays_in_tiles:
        size = -(-(H + 2 * padding) // dilation), -(-(W + 2 * padding) // dilation)
        plain = choose_algorithm((*size, C), filters, kernel_size, images=dilation**2 * images)
        return Dilated(plain, size, dilation, padding)
    output = output_length(H, r, stride, padding, dilation), output_length(W, width, stride, padding, dilation)
    weights = C * filters if prod(output) <= FEW_OUTPUTS else 0
    windows_are_blocks = r == stride and padding == 0
    in_blocks = r == width and dilation == 1 < stride and pays_in_blocks(r, stride, C, filters)
    if in_blocks and (weights < MANY_IN_BLOCKS or windows_are_blocks):
        q = blocks(r, stride)
        image = (output[0] + q - 1, output[1] + q - 1, stride**2 * C)
        return Strided(choose_algorithm(image, filters, (q, q), images=images), output, r, stride, padding)
    many = MANY_IN_BLOCKS if in_blocks else MANY_IN_LARGE if r * width > MOST_SIDE**2 else MANY_WEIGHTS
    return (Direct if weights >= many else Mec)(kernel_size, stride, padding, dilation)


def in_tiles(shape: Shape, filters: int, r: int, padding: int, images: int) -> Kernel:
    """The fastest kernel for filters of r by r with stride 1, r > 1: over tiles, or by position."""
    output = output_length(shape[0], r, 1, padding), output_length(shape[1], r, 1, padding)
    weights = shape[-1] * filters
    kernel_tiles = TUNING.kernel_images / images if weights >= LARGE_KERNEL else 0
    if r > MOST_SIDE:
        tiles: Winograd | Large = Large(shape, padding, r)
        may_be_slower, slow = weights >= MANY_IN_LARGE, SLOW_TILES
    else:
        tiles = Winograd(shape, padding, r, kernel_tiles)
        may_be_slower, slow = weights >= MANY_WEIGHTS and prod(output) <= FEW_OUTPUTS, 1
    cost = slow * (tiles.products + TRANSFORMS * kernel_tiles * tiles.positions)
    slower = may_be_slower and positions(shape, output, r, padding) <= cost
    return Direct((r, r), 1, padding) if slower else tiles


def positions(shape: Shape, output: tuple[int, int], r: int, padding: int) -> int:
    """The pairs of a pixel and an output that a kernel of r by r with stride 1 connects."""
    H, W, _ = shape
    return prod(
        sum(0 <= o + i - padding < length for o in range(outputs) for i in range(r))
        for length, outputs in zip((H, W), output, strict=True)
    )


def pays_in_blocks(r: int, stride: int, channels: int, filters: int) -> bool:
    """Whether a convolution of r by r with a stride is faster by :class:`dpcnn.nn.strided.Strided`."""
    if r >= 2 * stride:
        filled = r > 2 * stride and r**2 >= FILLED * (stride * blocks(r, stride)) ** 2
        enough = channels >= WINOGRAD_CHANNELS or TUNING.fast_transforms or filled
        return enough and stride**2 * channels >= BLOCK_CHANNELS
    few = TUNING.fast_transforms and channels * max(channels, filters) <= FEW_WEIGHTS
    return r >= stride and channels >= WINOGRAD_CHANNELS and (r == stride or few)
