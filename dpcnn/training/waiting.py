"""The time that ranks wait for each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Waiting:
    """Charges the waiting of each step to the rank that waited least: the others waited for it.

    Attributes:
        seconds: for each rank, by its number at the start, the seconds that others have waited for it.
    """

    def __init__(self, ranks: int) -> None:
        self.seconds, self._waited = np.zeros((2, ranks))

    def charge(self, members: Sequence[int], waited: NDArray[np.float64]) -> None:
        """Add a step; ``waited`` are the seconds that each of the ranks ``members`` has waited so far."""
        ranks = list(members)
        since, self._waited[ranks] = waited - self._waited[ranks], waited
        self.seconds[ranks[since.argmin()]] += (since - since.min()).sum()
