"""Random maps of the plane for training images, as functions of seed, epoch and sample."""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import elementary
from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import CROP, IMAGE, SampleRng

SMOOTHNESS = 7
"""The side of the image, divided by the standard deviation of the Gaussian that smooths an elastic field."""


class Warp:
    """Transforms each image by a random map of the plane, with one bilinear interpolation.

    Affine maps; random resized crops (Szegedy et al., "Going deeper with convolutions", 2015, section 6); and the
    elastic distortions of Simard, Steinkraus and Platt, "Best practices for convolutional neural networks" (2003),
    section 2: each pixel is read from another position, displaced by random fields that a Gaussian has smoothed.

    Args:
        image_shape: (H, W, C).
        shift: the largest shift in pixels, along each axis and in either direction.
        rotation: the largest rotation in degrees, in either direction.
        zoom: the largest relative zoom: with 0.1, the factor lies between 1 / 1.1 and 1.1.
        elastic: the standard deviation of a pixel's elastic displacement, in pixels.
        crop_area: the smallest area of a random crop as a fraction of the image; 1: no crop.
    """

    def __init__(
        self, image_shape: Shape, shift: float, rotation: float, zoom: float, elastic: float, crop_area: float = 1.0
    ) -> None:
        H, W, _ = image_shape
        self.shift, self.rotation, self.zoom, self.elastic = shift, np.deg2rad(rotation), zoom, elastic
        self.crop_area = crop_area
        self.centre = np.array([[H - 1], [W - 1]], np.float32) / 2
        self.grid = np.indices((H, W), np.float32).reshape(2, -1) - self.centre
        self.smooth = [smoothing(length) for length in (H, W)]

    def __call__(self, images: Array, rng: SampleRng) -> Array:
        """Transform images (N, H, W, C) of any number type to float32 of 0..255, with zeros beyond the borders."""
        if not (self.shift or self.rotation or self.zoom or self.elastic or self.crop_area < 1):
            return images
        N, H, W, _ = images.shape
        fields = 2 * H * W if self.elastic else 0
        u = rng.bits(IMAGE, 4 + fields) * np.float32(2 / 65535) - 1  # (N, ..) of -1 .. 1
        crops = self.crops(rng.bits(CROP, 4) * np.float32(1 / 65535)) if self.crop_area < 1 else None
        positions = self.affine(u[:, :2], u[:, 2:4], crops)
        if fields:
            rows, columns = self.smooth
            displacement = rows @ u[:, 4:].reshape(N, 2, H, W) @ columns.T
            positions += np.float32(self.elastic * sqrt(3)) * displacement.reshape(N, 2, -1)  # u has the variance 1/3
        return bilinear(images, positions)

    def crops(self, u: Array) -> tuple[Array, Array]:
        """The sides of each image's crop, as fractions, and the offset of its centre in pixels, both (N, 2).

        The area is uniform from ``crop_area`` to 1, the logarithm of the proportions from 3/4 to 4/3; a side that would
        be longer than the image is as long as the image.

        Args:
            u: (N, 4) random numbers from 0 to 1: of the area, the proportions and the offset.
        """
        area = self.crop_area + (1 - self.crop_area) * u[:, 0]
        ratio = elementary.power(4 / 3, 2 * u[:, 1] - 1)
        sides = np.minimum(np.sqrt(np.stack([area / ratio, area * ratio], 1)), 1).astype(np.float32)
        return sides, (2 * u[:, 2:] - 1) * (1 - sides) * self.centre[:, 0]

    def affine(self, u: Array, shifts: Array, crops: tuple[Array, Array] | None = None) -> Array:
        """The source positions of each image's pixels, (N, 2, H * W): rows and columns."""
        angle, zoom = self.rotation * u[:, 0], elementary.power(1 + self.zoom, -u[:, 1])
        cos, sin = zoom * elementary.cos(angle), zoom * elementary.sin(angle)
        turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1).astype(np.float32)
        if crops:
            turn *= crops[0][:, None, :]
        positions: Array = turn @ self.grid
        positions += self.centre - np.float32(self.shift) * shifts[:, :, None]
        if crops:
            positions += crops[1][:, :, None]
        return positions


def smoothing(length: int) -> NDArray[np.float32]:
    """The matrix (length, length) of a Gaussian filter that keeps the variance of independent values."""
    position = np.arange(length)
    weights = elementary.exp(-0.5 * ((position[:, None] - position) * SMOOTHNESS / length) ** 2)
    normed: NDArray[np.float32] = (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)
    return normed


def bilinear(images: Array, positions: Array) -> Array:
    """Interpolate images (N, H, W, C) at positions (N, 2, H * W) between pixels; outside they are 0."""
    N, H, W, C = images.shape
    framed = np.zeros((N, H + 3, W + 3, C), np.float32)  # positions from -1 to H and W, and their neighbours
    framed[:, 1:-2, 1:-2] = images
    values = framed.reshape(-1, C)
    positions = np.clip(positions + 1, 0, np.array([[H + 1], [W + 1]], np.float32))
    corner = np.floor(positions)
    down, right = (positions - corner).transpose(1, 0, 2).reshape(2, -1, 1)
    row, column = corner.astype(np.int32).transpose(1, 0, 2)
    first = np.arange(N, dtype=np.int32)[:, None] * ((H + 3) * (W + 3))
    index = (first + row * (W + 3) + column).ravel()
    above, below = (between(values[at], values[at + 1], right) for at in (index, index + W + 3))
    return between(above, below, down).reshape(N, H, W, C)


def between(one: Array, other: Array, fraction: Array) -> Array:
    """Interpolate linearly from ``one`` to ``other``, in the memory of ``other``."""
    other -= one
    other *= fraction
    other += one
    return other
