"""The loss: a sum over the batch, never a mean, so that batches of any size add up."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax_cross_entropy(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    """Cross-entropy of softmax(logits) against smoothed targets, and its gradient.

    The target is 1 - smoothing + smoothing/K at the label and smoothing/K elsewhere (Szegedy et
    al., "Rethinking the Inception architecture", 2016, section 7), K being the number of classes.

    Args:
        logits: (N, K) floats.
        labels: (N,) integers in 0..K-1.
        smoothing: in [0, 1).

    Returns:
        losses (N,), and dlogits (N, K): the gradient of the losses' sum.
    """
    N, K = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    log_softmax = shifted - np.log(totals)
    rows = np.arange(N)
    losses = -(1 - smoothing) * log_softmax[rows, labels] - smoothing / K * log_softmax.sum(axis=1)
    dlogits = exponentials / totals
    dlogits -= dlogits.dtype.type(smoothing / K)
    dlogits[rows, labels] -= dlogits.dtype.type(1 - smoothing)
    return losses, dlogits


def softmax(logits: Array) -> Array:
    """The probabilities (N, K) that the logits (N, K) stand for."""
    exponentials: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
