"""Training images moved, turned, zoomed and bent at random: by seed, epoch and sample, so on any rank alike."""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import elementary
from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import IMAGE, SampleRng

SMOOTHNESS = 7
"""An elastic field is smoothed by a Gaussian whose standard deviation is this part of the image's side."""


class Augment:
    """Makes another image of each image, by a random map of the plane.

    Affine maps, and the elastic distortions of Simard, Steinkraus and Platt, "Best practices for convolutional neural
    networks" (2003), section 2: each pixel is fetched from another place, moved by random fields that a Gaussian has
    smoothed.

    Args:
        image_shape: (H, W, C).
        shift: pixels up to which an image is moved, down and right each, either way.
        rotation: degrees up to which it is turned, either way.
        zoom: part up to which it grows, or shrinks by as much: 0.1 is up to times 1.1 or over 1.1.
        elastic: standard deviation of a pixel's further move, in pixels.
    """

    def __init__(self, image_shape: Shape, shift: float, rotation: float, zoom: float, elastic: float) -> None:
        H, W, _ = image_shape
        self.shift, self.rotation, self.zoom, self.elastic = shift, np.deg2rad(rotation), zoom, elastic
        self.centre = np.array([[H - 1], [W - 1]], np.float32) / 2
        self.grid = np.indices((H, W), np.float32).reshape(2, -1) - self.centre
        self.smooth = [smoothing(length) for length in (H, W)]

    def __call__(self, images: Array, rng: SampleRng) -> Array:
        """Another (N, H, W, C), float32 of 0..255, of images of any number type; zeros come in at the borders."""
        if not (self.shift or self.rotation or self.zoom or self.elastic):
            return images
        N, H, W, _ = images.shape
        fields = 2 * H * W if self.elastic else 0
        u = rng.bits(IMAGE, 4 + fields) * np.float32(2 / 65535) - 1  # (N, ..) of -1 .. 1
        places = self.affine(u[:, :2], u[:, 2:4])
        if fields:
            rows, columns = self.smooth
            bent = rows @ u[:, 4:].reshape(N, 2, H, W) @ columns.T
            places += np.float32(self.elastic * sqrt(3)) * bent.reshape(N, 2, -1)  # u has the variance 1/3
        return bilinear(images, places)

    def affine(self, u: Array, shifts: Array) -> Array:
        """Where each image's pixels are fetched from, (N, 2, H * W): rows and columns."""
        angle, zoom = self.rotation * u[:, 0], elementary.power(1 + self.zoom, -u[:, 1])
        cos, sin = zoom * elementary.cos(angle), zoom * elementary.sin(angle)
        turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1).astype(np.float32)
        places: Array = turn @ self.grid
        places += self.centre - np.float32(self.shift) * shifts[:, :, None]
        return places


def smoothing(length: int) -> NDArray[np.float32]:
    """A Gaussian filter along a side as a matrix, that leaves the variance of independent values as it is."""
    place = np.arange(length)
    weights = elementary.exp(-0.5 * ((place[:, None] - place) * SMOOTHNESS / length) ** 2)
    normed: NDArray[np.float32] = (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)
    return normed


def bilinear(images: Array, places: Array) -> Array:
    """The values of images (N, H, W, C) at places (N, 2, H * W) between pixels; outside they are 0."""
    N, H, W, C = images.shape
    framed = np.zeros((N, H + 3, W + 3, C), np.float32)  # places from -1 on, up to H and W, and one more behind
    framed[:, 1:-2, 1:-2] = images
    values = framed.reshape(-1, C)
    places = np.clip(places + 1, 0, np.array([[H + 1], [W + 1]], np.float32))
    corner = np.floor(places)
    down, right = (places - corner).transpose(1, 0, 2).reshape(2, -1, 1)
    row, column = corner.astype(np.int32).transpose(1, 0, 2)
    first = np.arange(N, dtype=np.int32)[:, None] * ((H + 3) * (W + 3))
    index = (first + row * (W + 3) + column).ravel()
    above, below = (between(values[at], values[at + 1], right) for at in (index, index + W + 3))
    return between(above, below, down).reshape(N, H, W, C)


def between(one: Array, other: Array, part: Array) -> Array:
    """The value at this part of the way from one to the other, in the memory of the other."""
    other -= one
    other *= part
    other += one
    return other
