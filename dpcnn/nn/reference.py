"""The layers and the optimizer Adam, written as their definitions: slow, but simple enough to check by reading.

The tests compare the fast code with these functions. Shapes: see layer.py.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dpcnn.base.arrays import Array


def conv2d(x: Array, w: Array, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1) -> Array:
    """y[i,j,n,f] = sum over p,q,c of x[i*stride+p*dilation-padding, j*stride+q*dilation-padding, n, c] * w[p,q,c,f].

    With several groups, c runs over the channels of the group of f.
    """
    KH, KW, _, _ = w.shape
    around = ((padding, padding), (padding, padding), (0, 0), (0, 0))
    sides = dilation * (KH - 1) + 1, dilation * (KW - 1) + 1
    windows = sliding_window_view(np.pad(x, around), sides, axis=(0, 1))  # (OH', OW', N, C, KH', KW')
    windows = windows[::stride, ::stride, ..., ::dilation, ::dilation]
    parts = zip(np.split(windows, groups, axis=3), np.split(w, groups, axis=3), strict=True)
    return np.concatenate([np.einsum("ijncpq,pqcf->ijnf", *part) for part in parts], axis=-1)


def max_pool2d(x: Array, kernel_size: int, stride: int, padding: int = 0) -> Array:
    """y[i,j,n,c] = max over p,q < kernel_size of x[i*stride+p-padding, j*stride+q-padding, n, c]."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)), constant_values=-np.inf)
    windows = sliding_window_view(x, (kernel_size, kernel_size), axis=(0, 1))
    y: Array = windows[::stride, ::stride].max(axis=(-2, -1))
    return y


def avg_pool2d(x: Array, kernel_size: int, stride: int, padding: int = 0) -> Array:
    """y[i,j,n,c] = mean over p,q < kernel_size of x[i*stride+p-padding, j*stride+q-padding, n, c], 0 outside."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)))
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


def group_norm(x: Array, w: Array, b: Array, groups: int, epsilon: float) -> Array:
    """y[..,n,c] = (x[..,n,c] - mean) / sqrt(variance + epsilon) * w[c] + b[c], over all pixels of c's group in n."""
    parts = []
    for part in np.split(x, groups, axis=-1):
        axes = (*range(x.ndim - 2), -1)
        parts.append((part - part.mean(axes, keepdims=True)) / np.sqrt(part.var(axes, keepdims=True) + epsilon))
    y: Array = np.concatenate(parts, axis=-1) * w + b
    return y
