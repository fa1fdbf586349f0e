"""What the layers compute, written as their definitions: slow, and plain enough to be believed.

The tests hold :mod:`dpcnn.nn.layers` against these functions. Shapes: see there.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]


def conv2d(x: Array, w: Array, stride: int = 1, padding: int = 0) -> Array:
    """y[i,j,n,f] = sum over p,q,c of x[i*stride+p-padding, j*stride+q-padding, n, c] * w[p,q,c,f]."""
    KH, KW, _, _ = w.shape
    around = ((padding, padding), (padding, padding), (0, 0), (0, 0))
    windows = sliding_window_view(np.pad(x, around), (KH, KW), axis=(0, 1))  # (OH', OW', N, C, KH, KW)
    y: Array = np.einsum("ijncpq,pqcf->ijnf", windows[::stride, ::stride], w)
    return y


def max_pool2d(x: Array, kernel_size: int, stride: int) -> Array:
    """y[i,j,n,c] = max over p,q < window of x[i*stride+p, j*stride+q, n, c]."""
    windows = sliding_window_view(x, (kernel_size, kernel_size), axis=(0, 1))
    y: Array = windows[::stride, ::stride].max(axis=(-2, -1))
    return y


def avg_pool2d(x: Array, kernel_size: int, stride: int) -> Array:
    """y[i,j,n,c] = mean over p,q < window of x[i*stride+p, j*stride+q, n, c]."""
    windows = sliding_window_view(x, (kernel_size, kernel_size), axis=(0, 1))
    y: Array = windows[::stride, ::stride].mean(axis=(-2, -1))
    return y


def local_response_norm(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    """y[..,c] = x[..,c] / (k + alpha * sum of x[..,d]^2 over abs(d - c) <= size // 2)^beta."""
    C = x.shape[-1]
    near = np.abs(np.subtract.outer(np.arange(C), np.arange(C))) <= size // 2
    y: Array = x / (k + alpha * np.square(x) @ near) ** beta
    return y


def batch_norm(x: Array, w: Array, b: Array, epsilon: float) -> Array:
    """y = (x - mean) / sqrt(variance + epsilon) * w + b, with each channel's mean and variance over x."""
    others = tuple(range(x.ndim - 1))
    y: Array = (x - x.mean(axis=others)) / np.sqrt(x.var(axis=others) + epsilon) * w + b
    return y


def cross_entropy(logits: Array, targets: Array) -> float:
    """The sum over a batch of -sum_k targets[n,k] * log softmax(logits)[n,k]."""
    exponentials = np.exp(logits)
    return float(-(targets * np.log(exponentials / exponentials.sum(axis=1, keepdims=True))).sum())


def adam(p: Array, m: Array, v: Array, g: Array, t: int, lr: float, b1: float, b2: float, epsilon: float) -> None:
    """One step of Kingma and Ba, "Adam" (2015), algorithm 1, in place; t counts from 1."""
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * g**2
    p -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
