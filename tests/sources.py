"""Data sets for tests: small ones, as sources of every form, and changes to their manifests."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np

from dpcnn.data.shards import MANIFEST


def synthetic(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (samples, 12, 12) of ten classes, each a bright square in its own place, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, samples).astype(np.uint8)
    images = rng.integers(0, 120, (samples, 12, 12))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[1 + 3 * row : 4 + 3 * row, 3 * column : 3 + 3 * column] += 100
    return images.astype(np.uint8), labels


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_source(folder: Path, form: str) -> Path:
    """The same data in each of the forms that are read."""
    folder.mkdir()
    splits = {"train": synthetic(300, 1), "test": synthetic(80, 2)}
    if form == "npz":
        arrays = {
            f"{key}_{split}": array for split, pair in splits.items() for key, array in zip("xy", pair, strict=True)
        }
        np.savez_compressed(folder / "set.npz", **arrays)
        return folder / "set.npz"
    for split, (images, labels) in splits.items():
        if form.startswith("idx"):
            prefix, suffix = {"train": "train", "test": "t10k"}[split], ".gz" if form == "idx.gz" else ""
            write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
            write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        else:
            rows = np.column_stack([labels, images.reshape(len(images), -1)])
            lines = [",".join(map(str, row)) for row in rows.tolist()]
            if form == "csv with header":
                lines.insert(0, "label," + ",".join(f"pixel{number}" for number in range(144)))
            (folder / f"mnist_{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def edit_manifest(folder: Path, change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
