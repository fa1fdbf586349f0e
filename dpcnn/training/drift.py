"""The drift check: do all ranks still have the same parameters?"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from dpcnn.base.arrays import Vector, bytes_of
from dpcnn.errors import DriftError

Hashes = dict[str, str]


def tensor_hashes(parameters: Mapping[str, Vector]) -> Hashes:
    """The first 16 hexadecimal digits of each parameter's sha256, by name."""
    return {name: hashlib.sha256(bytes_of(array)).hexdigest()[:16] for name, array in parameters.items()}


def check_drift(by_rank: Sequence[Hashes | None], step: int) -> None:
    """Compare the hashes of all ranks; None stands for a rank that shares the memory of another.

    Raises:
        DriftError: with the ranks that differ from most others, and the first parameter that does.
    """
    seen = {rank: tuple(hashes.items()) for rank, hashes in enumerate(by_rank) if hashes is not None}
    (usual, _), *others = Counter(seen.values()).most_common()
    if not others:
        return
    drifted = [rank for rank, hashes in seen.items() if hashes != usual]
    name = next(one[0] for one, other in zip(usual, seen[drifted[0]], strict=True) if one != other)
    raise DriftError(
        f"step {step}: rank{'s' * (len(drifted) > 1)} {', '.join(map(str, drifted))} of {len(by_rank)} "
        f"see{'s' * (len(drifted) == 1)} other parameters than the rest, first in {name}: a fault of memory, of the "
        "network or of the exchange; no checkpoint of it was written; continue with --resume, without that node"
    )
