"""Random changes of training images, as functions of seed, epoch and sample."""

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.options import flag_of, options_of
from dpcnn.base.rng import CHANGE, SampleRng
from dpcnn.config import Config
from dpcnn.data.warp import Warp

DRAWS = (
    *("flip rows", "flip columns", "crop row", "crop column"),
    *("brightness", "contrast", "saturation", "cutout row", "cutout column"),
)
"""The random numbers of an image, in order."""

AUGMENTATIONS = "flip crop_padding shift rotation zoom crop_area elastic colour_jitter cutout".split()
"""The options of a run that change training images, in the order of the changes."""

LUMA = (0.299, 0.587, 0.114)
"""The parts of red, green and blue in a grey value: ITU-R BT.601."""


class Augment:
    """Changes images by the options of a run: flips and padded crops, a map of the plane, colours, cutout.

    Args:
        image_shape: (H, W, C).
        config: of the run.
    """

    def __init__(self, image_shape: Shape, config: Config) -> None:
        self._flip, self._padding = config.flip, config.crop_padding
        self._jitter, self._cutout = config.colour_jitter, config.cutout
        self._warp = Warp(image_shape, config.shift, config.rotation, config.zoom, config.elastic, config.crop_area)

    def __call__(self, images: Array, rng: SampleRng) -> Array:
        """Change images (N, H, W, C), uint8, to uint8 or float32 of 0..255; new arrays, unless nothing is changed."""
        moves = self._flip != "none" or self._padding
        if not (moves or self._jitter or self._cutout):
            return self._warp(images, rng)
        draws = dict(zip(DRAWS, rng.bits(CHANGE, len(DRAWS)).T, strict=True))
        changed = self._warp(self._flipped_and_cropped(images, draws) if moves else images, rng)
        if self._jitter:
            changed = jittered(changed, *colour_changes(images, draws, self._jitter))
        if self._cutout:
            changed = cut_out(changed, draws, self._cutout)
        return changed

    def _flipped_and_cropped(self, images: Array, draws: dict[str, Array]) -> Array:
        """Mirrored images, shifted by whole pixels, with zeros beyond the borders: no value is interpolated."""
        rows = (draws["flip rows"] & 1) * (self._flip in ("vertical", "both"))
        columns = (draws["flip columns"] & 1) * (self._flip in ("horizontal", "both"))
        down, right = (below(2 * self._padding + 1, draws[key]) - self._padding for key in ("crop row", "crop column"))
        changed = np.zeros_like(images)
        for n, image in enumerate(images):
            (to_rows, of_rows), (to_columns, of_columns) = (
                overlap(int(shift[n]), length) for shift, length in zip((down, right), image.shape, strict=False)
            )
            mirrored = image[:: 1 - 2 * int(rows[n]), :: 1 - 2 * int(columns[n])]
            changed[n, to_rows, to_columns] = mirrored[of_rows, of_columns]
        return changed


def augmentations(config: Config) -> str:
    """The options that change the training images of a run, with their values; or "none"."""
    defaults = {each.name: each.default for each in options_of(Config)}
    values = {name: getattr(config, name) for name in AUGMENTATIONS}
    changed = {flag_of(name)[2:]: value for name, value in values.items() if value != defaults[name]}
    words = [f"{flag} {value if isinstance(value, str) else f'{value:g}'}" for flag, value in changed.items()]
    return ", ".join(words) or "none"


def below(count: int, draws: Array) -> Array:
    """Whole numbers (N,) from 0 to ``count`` - 1, of draws (N,) of 16 bits."""
    numbers: Array = (draws.astype(np.int64) * count) >> 16
    return numbers


def overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where the pixels of a shifted axis go to that stay within it, and where they come from."""
    to = slice(max(0, shift), max(0, length + min(0, shift)))
    return to, slice(max(0, -shift), max(0, length - max(0, shift)))


def colour_changes(images: Array, draws: dict[str, Array], jitter: float) -> tuple[Array, Array, Array]:
    """Brightness, contrast and saturation of each image as one linear map: see :func:`jittered`.

    The brightness multiplies all values. The contrast multiplies their distance to the mean grey value of the image,
    the saturation that to the grey value of the pixel.

    Args:
        images: (N, H, W, C), uint8: their mean is exact, so it does not depend on the order of addition.
        draws: the random numbers.
        jitter: the factors are uniform from 1 - jitter to 1 + jitter.

    Returns:
        The factors of a value and of its pixel's grey value, and what is added, each (N, 1, 1, 1), float32.
    """
    _, H, W, C = images.shape
    brightness, contrast, saturation = (
        1 + jitter * (draws[key] * (2 / 65535) - 1) for key in ("brightness", "contrast", "saturation")
    )
    coloured = len(LUMA) == C
    parts = LUMA if coloured else (1 / C,) * C
    sums = images.sum(axis=(1, 2), dtype=np.int64)  # (N, C)
    mean = sum(part * sums[:, c] for c, part in enumerate(parts)) / (H * W)
    saturation = saturation if coloured else np.ones_like(saturation)
    factor = brightness * contrast
    maps = factor * saturation, factor * (1 - saturation), brightness * (1 - contrast) * mean
    own, grey, added = (each.astype(np.float32)[:, None, None, None] for each in maps)
    return own, grey, added


def jittered(images: Array, own: Array, grey: Array, added: Array) -> Array:
    """``own`` x + ``grey`` g + ``added`` for each value x of images (N, H, W, C) with its pixel's grey value g, as
    float32 from 0 to 255."""
    changed: Array = images * own
    changed += added
    if images.shape[-1] == len(LUMA):
        red, green, blue = (np.float32(part) * images[..., c : c + 1] for c, part in enumerate(LUMA))
        changed += (red + green + blue) * grey
    return np.clip(changed, 0, 255, out=changed)


def cut_out(images: Array, draws: dict[str, Array], side: int) -> Array:
    """Copies of images (N, H, W, C) with a square of zeros around a pixel, cut off at the borders.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017), section 3.
    """
    _, H, W, _ = images.shape
    changed = images.copy()
    rows, columns = below(H, draws["cutout row"]) - side // 2, below(W, draws["cutout column"]) - side // 2
    for image, row, column in zip(changed, rows.tolist(), columns.tolist(), strict=True):
        image[max(0, row) : max(0, row + side), max(0, column) : max(0, column + side)] = 0
    return changed
