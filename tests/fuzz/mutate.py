"""Mutations of real files: bytes, text, JSON; in checkpoints and data sets with their sums made right again."""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpcnn.runs.checkpoint_file import BLOCK, MAGIC

Rng = np.random.Generator

WEIRD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 255, 256, 2**16, 2**31, 2**32, 2**53, 2**63, 10**40, 10**400, 0.5, -0.0, 1e-320),
    *(
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\n",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "../../x",
        "/etc/passwd",
    ),
    *("x" * 100_000, "0" * 64, [], [[]], {}, [1, 2, 3], {"a": 1}, [True, 28, 1]),
]
NUMBERS = [
    b"0",
    b"-1",
    b"1e999",
    b"nan",
    b"true",
    b"2147483648",
    b"9" * 30,
    b"9" * 5000,
    b"0x10",
    b'"x"',
    b"[]",
    b"1.5",
]


def any_bytes(content: bytes, rng: Rng) -> bytes:
    """One to four changes of bytes: flips, cuts, holes, copies, insertions."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not changed:
            return bytes(changed)
        place, length = int(rng.integers(len(changed))), int(2 ** rng.integers(0, 10))
        kind = rng.integers(8)
        if kind <= 2:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            changed[place] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == 6:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = rng.bytes(length)
    return bytes(changed[: int(rng.integers(len(changed) + 1))] if rng.random() < 0.1 else changed)


def text(content: bytes, rng: Rng) -> bytes:
    """A text with a number or a line that is another one, or nested without end."""
    kind = rng.integers(5)
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if kind <= 1 and numbers:
        match = numbers[rng.integers(len(numbers))]
        return content[: match.start()] + NUMBERS[rng.integers(len(NUMBERS))] + content[match.end() :]
    if kind == 2:
        lines = content.split(b"\n")
        one, other = rng.integers(len(lines), size=2)
        lines[one] = lines[other] if rng.random() < 0.5 else rng.bytes(20)
        return b"\n".join(lines)
    if kind == 3:
        place = int(rng.integers(len(content) + 1))
        return (
            content[:place]
            + rng.choice([b"[", b'{"a":', b"\x1b[2J", b"\xff\xfe"]) * int(rng.integers(1, 60_000))
            + content[place:]
        )
    return any_bytes(content, rng)


def value(found: Any, rng: Rng) -> Any:
    """A JSON value with one place in it that is another one."""
    if isinstance(found, dict | list) and found and rng.random() < 0.85:
        keys = list(found) if isinstance(found, dict) else list(range(len(found)))
        key, changed = keys[rng.integers(len(keys))], found.copy()
        if rng.random() < 0.15:
            del changed[key]
        elif rng.random() < 0.05 and isinstance(changed, dict):
            changed[str(WEIRD[rng.integers(len(WEIRD))])[:300]] = changed.pop(key)
        else:
            changed[key] = value(found[key], rng)
        return changed
    return WEIRD[rng.integers(len(WEIRD))]


def as_json(content: bytes, rng: Rng) -> bytes:
    """A JSON text with another value in it, or as a text."""
    if rng.random() < 0.3:
        return text(content, rng)
    return json.dumps(value(json.loads(content), rng)).encode()


def lines_of_json(content: bytes, rng: Rng) -> bytes:
    """The same for a text of a JSON value each line."""
    lines = content.splitlines()
    place = rng.integers(len(lines))
    lines[place] = as_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def hdf5(content: bytes, rng: Rng) -> bytes:
    """An HDF5 file with other datasets, or other bytes, most of them where its headers lie."""
    kind = rng.random()
    if kind < 0.4:
        at = int(rng.integers(min(len(content), 6000)))
        return content[:at] + any_bytes(content[at : at + 64], rng) + content[at + 64 :]
    if kind < 0.5:
        return any_bytes(content, rng)
    image = io.BytesIO(content)
    with h5py.File(image, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[rng.integers(len(names))]
        if isinstance(file[name], h5py.Group):
            name = f"{name}/x" if rng.random() < 0.5 else name
        _replace(file, name, rng)
    return image.getvalue()


def _replace(file: h5py.File, name: str, rng: Rng) -> None:
    old = file[name][...] if name in file and isinstance(file[name], h5py.Dataset) else np.zeros(3, np.float32)
    kind = rng.integers(9 if name in file else 8)
    if name in file and kind != 8:
        del file[name]
    if kind == 0:
        return
    if kind == 1:
        file[name] = h5py.ExternalLink("/etc/passwd", "x")
    elif kind == 2:
        file[name] = h5py.SoftLink("/state")
    elif kind == 3:
        file.create_dataset(name, (int(10 ** rng.integers(1, 12)),), old.dtype)
    elif kind == 4:
        file.create_dataset(name, (10**9,), old.dtype, chunks=(10**6,), compression="gzip")
    elif kind == 5:
        file[name] = old.astype(rng.choice(["f8", "i8", "u1", "f2"]))
    elif kind == 6:
        file[name] = np.full(max(old.size, 1), np.nan, np.float32).reshape(old.shape or (1,))
    elif kind == 7:
        file.create_dataset(name, data=old.ravel()[: int(rng.integers(0, old.size + 1))])
    else:
        for number in range(300):
            file[f"parameters/{number}" if "parameters" in file else str(number)] = file[name]


def checkpoint(content: bytes, rng: Rng) -> bytes:
    """A checkpoint with another state or other arrays, and the right sum; now and then the wrong one."""
    kind = rng.random()
    if kind < 0.1:
        return any_bytes(content, rng)
    if kind < 0.6:
        image = io.BytesIO(content)
        with h5py.File(image, "a") as file:
            state = as_json(file["state"][()].tobytes(), rng)
            del file["state"]
            file["state"] = np.frombuffer(state, np.uint8)
        changed = image.getvalue()
    else:
        changed = hdf5(content, rng)
    body = changed[BLOCK:]
    return (MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n").ljust(BLOCK, b"\0") + body


def shard(folder: Path, name: str, rng: Rng) -> None:
    """Change a data set's shard in place, and its sum in the manifest."""
    path = folder / name
    path.write_bytes(hdf5(path.read_bytes(), rng))
    manifest = json.loads((folder / "manifest.json").read_text())
    for shards in manifest["splits"].values():
        for told in shards:
            if told["file"] == name:
                told["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
