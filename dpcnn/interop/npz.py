"""Networks as NPZ files of NumPy."""

import io
from typing import Any

import numpy as np

from dpcnn.interop.metadata import to_metadata
from dpcnn.runs.checkpoint import Checkpoint


def as_npz(checkpoint: Checkpoint) -> bytes:
    """The content of an NPZ file: each parameter under its name, in dpcnn's own layout, and the metadata."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {**checkpoint.parameters, **to_metadata(checkpoint)}
    np.savez(file, **arrays)
    return file.getvalue()
