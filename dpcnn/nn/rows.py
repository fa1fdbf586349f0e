"""Arrays (.., N, C) as matrices of long rows, on which NumPy works fast, and their sums. Shapes: see layer.py."""

from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty, row_length
from dpcnn.nn.convolution import bands

ADDED = 1 << 12
"""The most pixels whose values are added one after the other: rounding errors grow with their number."""

SUMMED, CACHED = 1 << 22, 1 << 19
"""The largest sizes in bytes of the parts of an array on which layers work at a time: of those that it
sums, which decide the last bits, and of those that it passes over several times, in the processor's cache."""


def rows_of(array: Array) -> Array:
    """An array (.., N, C) as rows of whole pixels; a copy if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1, row_length(array.shape))  # a view of it might have other strides


def row_elements(shape: Shape, images: int) -> float:
    """The elements per image of a row of :func:`rows_of`, for inputs of ``shape``, without N."""
    return row_length((*shape[:-1], images, shape[-1])) / images


def empty_images(shape: Shape, dtype: Any, by_image: bool) -> Array:
    """An uninitialised array, which lies in memory as (N, H, W, C) if ``by_image`` is true and it is (H, W, N, C)."""
    if not by_image:
        return empty(shape, dtype)
    H, W, N, C = shape
    return empty((N, H, W, C), dtype).transpose(1, 2, 0, 3)


def in_bands(rows: Array, most: int) -> list[slice]:
    """Bands of ``rows`` of at most so many bytes."""
    return [slice(start, stop) for start, stop in bands(len(rows), rows[0].nbytes, most)]


def repeated(row: Array, times: int) -> Array:
    """``row`` (C,), several times: (times * C,); much faster than ``np.tile``."""
    rows = np.empty((times, len(row)), row.dtype)
    rows[...] = row
    return rows.reshape(-1)


def column_sums(rows: Array) -> Array:
    """The sum over the rows of an array (L, N C): (N C,). A product is faster than NumPy's sum."""
    total: Array = np.ones(len(rows), rows.dtype) @ rows
    return total


def sum_of_products(a: Array, b: Array, columns: int) -> Array:
    """The sum of a * b, contiguous arrays of one shape, over rows of so many columns: (columns,)."""
    a, b = a.reshape(-1, columns), b.reshape(-1, columns)
    first, *others = (np.einsum("ij,ij->j", a[i:j], b[i:j]) for i, j in bands(len(a), 1, ADDED))
    total: Array = first
    for share in others:
        total += share
    return total


def by_channel(sums: Array, channels: int) -> Array:
    """The sum of each channel, (C,), of a row (N * C,)."""
    total: Array = sums.reshape(-1, channels).sum(axis=0)  # (N, C) -> (C,)
    return total
