"""The training samples held back for validation, as a pure function of labels, configuration and seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.rng import HOLDOUT, philox

DEFAULT = 0.1
"""The fraction held back if the requested number is too large."""

Indices = NDArray[np.int64]


class Holdout(NamedTuple):
    """The two parts of the training samples.

    Attributes:
        training, validation: sample numbers in ascending order.
        remarks: lines for people about an unexpected division.
    """

    training: Indices
    validation: Indices
    remarks: tuple[str, ...]


def hold_out(labels: NDArray[Any], amount: float, how: str, seed: int, names: Sequence[str] = ()) -> Holdout:
    """Divide the samples of ``labels`` (n,).

    Labels (n, K), several for each sample, have no classes to draw from: then the samples are drawn from all.

    Args:
        amount: the number of samples to hold back, or, below 1, their fraction.
        how: "last": the last ones; "stratified": drawn by seed, from each class in proportion to its samples.
        names: of the classes, for remarks; without them, remarks have the numbers of the classes.
    """
    samples, remarks = len(labels), []
    if labels.ndim > 1:
        labels = np.zeros(samples, np.int64)
    count = int(amount) if amount >= 1 else round(amount * samples)
    if count and count >= samples:
        count = round(DEFAULT * samples)
        remarks.append(
            f"--validation {amount:g} is not below the {samples:,} training samples: {count:,} of them are held back"
        )
    held = np.zeros(samples, bool)
    if how == "last":
        held[samples - count :] = True
    else:
        held[stratified(labels, count, seed)] = True
    kept, drawn = (np.bincount(labels[part], minlength=int(labels.max()) + 1) for part in (~held, held))
    missing = np.flatnonzero((kept > 0) & (drawn == 0)).tolist() if count else []
    if missing:
        some = ", ".join(names[label] if names else str(label) for label in missing[:10]) + (
            ", .." if len(missing) > 10 else ""
        )
        remarks.append(f"warning: none of the {count:,} validation samples is of class {some}")
    return Holdout(np.flatnonzero(~held), np.flatnonzero(held), tuple(remarks))


VALIDATION, TEST = 0, 1
"""Which samples are drawn: each has its own random keys."""


def stratified(labels: NDArray[np.integer], count: int, seed: int, purpose: int = VALIDATION) -> Indices:
    """The indices of ``count`` samples: per class its share by largest remainders, with the lowest random keys."""
    keys = philox(seed, HOLDOUT, purpose).random_raw(len(labels))
    _, sizes = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(sizes * count, len(labels))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    by_class = np.lexsort((keys, labels))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its class
    drawn: Indices = by_class[place < np.repeat(shares, sizes)]
    return drawn
