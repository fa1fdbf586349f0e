"""Where data comes from: IDX, CSV and NPZ files, and downloads. All of it is untrusted."""

import gzip
import hashlib
import io
import math
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpcnn.data.shards import Images, file_sha256
from dpcnn.errors import DataError


@dataclass(frozen=True)
class Source:
    """Images and labels as a source has them: for each split, images (n, H, W, C), labels (n,)."""

    splits: dict[str, tuple[Images, Images]]
    origin: dict[str, str]


IDX_NAMES = {"train": "train", "test": "t10k"}
CSV_NAMES = {"train": "mnist_train.csv", "test": "mnist_test.csv"}


def read_source(path: Path) -> Source:
    """Read a folder of IDX files, a folder of CSV files, or an NPZ file.

    Raises:
        DataError: nothing known is there, or what is there is damaged.
    """
    if path.is_file():
        return _read_npz(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected a folder of IDX or CSV files, or an NPZ file")
    for names, read in ((_idx_files, _read_idx_pair), (_csv_files, _read_csv_pair)):
        files = {split: names(path, split) for split in IDX_NAMES}
        if all(files.values()):
            splits = {split: read(found) for split, found in files.items()}
            used = [file for found in files.values() for file in found]
            return Source(splits, {file.name: f"sha256 {file_sha256(file)}" for file in used})
    raise DataError(
        f"{path}: expected train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        f"t10k-labels-idx1-ubyte (.gz or not), or {' and '.join(CSV_NAMES.values())}"
    )


def _idx_files(folder: Path, split: str) -> list[Path]:
    stems = [f"{IDX_NAMES[split]}-images-idx3-ubyte", f"{IDX_NAMES[split]}-labels-idx1-ubyte"]
    found = [_first(folder / f"{stem}.gz", folder / stem) for stem in stems]
    return [path for path in found if path] if all(found) else []


def _csv_files(folder: Path, split: str) -> list[Path]:
    name = CSV_NAMES[split]
    found = _first(folder / name, folder / f"{name}.gz")
    return [found] if found else []


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if its name ends in .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read or unpacked ({error}); get the file again") from None


def read_idx(path: Path) -> Images:
    """An IDX file of unsigned bytes, of one dimension or more.

    Raises:
        DataError: its header and its length don't agree, or it holds other numbers.
    """
    return parse_idx(path, _read_bytes(path))


def parse_idx(path: Path, content: bytes) -> Images:
    """The same for the bytes of such a file; ``path`` is for messages."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path}: not an IDX file of unsigned bytes: it starts with {content[:4]!r}")
    shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    body = content[4 + 4 * content[3] :]
    expected = 1
    for length in shape:
        expected *= length
    if len(body) != expected:
        raise DataError(f"{path}: its header says {shape}, but {len(body)} bytes follow; get the file again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read_idx_pair(files: Sequence[Path]) -> tuple[Images, Images]:
    images, labels = (read_idx(path) for path in files)
    return _checked(files[0], images, labels)


def _read_csv_pair(files: Sequence[Path]) -> tuple[Images, Images]:
    return read_csv(files[0])


def read_csv(path: Path) -> tuple[Images, Images]:
    """A CSV file: label, then the pixels of a square image, a sample a line; a header is skipped.

    Raises:
        DataError: with the line that is not so.
    """
    content = _read_bytes(path)
    if not content.strip():
        raise DataError(f"{path}: empty; expected label,pixel,pixel,.. in 0..255")
    header = not content.split(b",", 1)[0].strip().isdigit()
    try:
        table = np.loadtxt(io.BytesIO(content), np.uint8, delimiter=",", skiprows=int(header), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected label,pixel,pixel,.. in 0..255") from None
    side = math.isqrt(max(table.shape[1] - 1, 0))
    if not side or side * side + 1 != table.shape[1]:
        raise DataError(f"{path}: {table.shape[1]} values a line; expected a label and the pixels of a square image")
    return _checked(path, table[:, 1:].reshape(-1, side, side), np.ascontiguousarray(table[:, 0]))


def _read_npz(path: Path) -> Source:
    """An NPZ file with Keras' keys: x_train, y_train, x_test, y_test."""
    splits = {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            for split in IDX_NAMES:
                splits[split] = _checked(path, arrays[f"x_{split}"], arrays[f"y_{split}"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not an NPZ file with x_train, y_train, x_test and y_test of bytes ({error})"
        ) from None
    return Source(splits, {path.name: f"sha256 {file_sha256(path)}"})


def _checked(path: Path, images: Images, labels: Images) -> tuple[Images, Images]:
    """The images as (n, H, W, C) of bytes, the labels as (n,) of bytes."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise DataError(f"{path}: images {images.shape} and labels {labels.shape} don't belong together")
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 255:
        raise DataError(f"{path}: images are {images.dtype}, labels {labels.dtype}: expected bytes, 0..255")
    return images, labels.astype(np.uint8)


@dataclass(frozen=True)
class Download:
    """A set to be fetched: mirrors, each a base address, and files with their digests."""

    mirrors: tuple[str, ...]
    digests: dict[str, str]  # "sha256:.." or "md5:.." by file name
    licence: str


FILES = tuple(f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def _download(mirrors: tuple[str, ...], kind: str, digests: Sequence[str], licence: str) -> Download:
    return Download(mirrors, {name: f"{kind}:{digest}" for name, digest in zip(FILES, digests, strict=True)}, licence)


DOWNLOADS = {
    "mnist": _download(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        "sha256",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        "CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
    ),
    "fashion-mnist": _download(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        "sha256",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        "MIT, Zalando SE",
    ),
    "kmnist": _download(
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        "md5",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        "CC BY-SA 4.0, ROIS-DS Center for Open Data in the Humanities",
    ),
}


def fetch(download: Download, folder: Path, say: Callable[[str], None], timeout: float = 30) -> None:
    """Download every file that ``folder`` doesn't hold yet, checked by its digest.

    An interrupted download goes on where it stopped; where a mirror fails, the next is tried.

    Raises:
        DataError: no mirror gave the file, with each one's failure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in download.digests.items():
        if not (folder / name).exists():
            _fetch_file(name, digest, download.mirrors, folder, say, timeout)


def _fetch_file(
    name: str, digest: str, mirrors: Sequence[str], folder: Path, say: Callable[[str], None], timeout: float
) -> None:
    part = folder / f"{name}.part"
    failures = []
    for mirror in mirrors:
        address = mirror.rstrip("/") + "/" + name
        say(f"downloading {address}")
        try:
            _append(address, part, timeout)
        except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
            failures.append(f"{address}: {getattr(error, 'reason', None) or error}")
            continue
        kind, _, expected = digest.partition(":")
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if found == expected:
            part.rename(folder / name)
            return
        part.unlink()
        failures.append(f"{address}: its {kind} is {found[:16]}.., expected {expected[:16]}..")
    raise DataError(
        f"can't download {name}: {'; '.join(failures)}; copy the file to {folder} by hand and run this command again"
    )


def _append(address: str, part: Path, timeout: float) -> None:
    """Download ``address`` to the end of ``part``; anew where the server can't go on from there."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows: the part is whole, and its digest will tell
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        while block := response.read(1 << 16):
            file.write(block)
        if response.length:  # http.client ends such a read in silence
            raise ConnectionError(f"the connection broke off with {response.length} bytes to come")
