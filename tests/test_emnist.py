"""EMNIST, from stand-ins of the same format: served by this machine, and damaged."""

import gzip
import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import command
from test_fetch import Server, server  # noqa: F401

from dpcnn.data.archives import unpack
from dpcnn.data.dataset import load
from dpcnn.data.downloads import DOWNLOADS
from dpcnn.data.emnist import CLASSES, names_of
from dpcnn.data.reading import read_source
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm

RNG = np.random.default_rng(5)
COUNTS = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def stand_in(division: str) -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The files of a division by name; and the upright images (n, 28, 28) and labels (n,) of each split."""
    files, splits = {}, {}
    for split, count in (("train", 130), ("test", 70)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % COUNTS[division]).astype(np.uint8)
        stored = images.transpose(0, 2, 1), labels + (division == "letters")
        files |= {name: idx(array) for name, array in zip(names_of(division, split), stored, strict=True)}
        splits[split] = images, labels
    return files, splits


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("division", CLASSES)
def test_a_division_is_fetched_and_prepared(server, division, tmp_path, monkeypatch):  # noqa: F811
    name = "emnist" if division == "balanced" else f"emnist-{division}"
    parts = {each: stand_in(each) for each in CLASSES}
    files = {f"gzip/{file}": content for of_files, _ in parts.values() for file, content in of_files.items()}
    write_archive(server.folder / "gzip.zip", {**files, "gzip/../../outside.gz": b"no", "gzip/readme.txt": b"no"})
    sha256 = "sha256:" + hashlib.sha256((server.folder / "gzip.zip").read_bytes()).hexdigest()
    known = replace(DOWNLOADS[name], mirrors=(server.address,), digests={"gzip.zip": sha256})
    monkeypatch.setitem(DOWNLOADS, name, known)
    found = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks) / name
        result = command("data", "fetch", name, "--out", out, ranks=ranks)
        assert result.status == 0, result.err
        assert [path.name for path in out.parent.iterdir()] == [name]
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    for split, (images, labels) in parts[division][1].items():
        samples = load(out, split, SerialComm())
        taken = samples.take(np.arange(len(labels)))
        np.testing.assert_array_equal(taken[0][..., 0], images)
        np.testing.assert_array_equal(taken[1], labels)
        assert len(samples.manifest.class_names) == COUNTS[division]
        assert samples.manifest.resize == "mnist"


def test_the_names_are_the_characters():
    assert "".join(CLASSES["balanced"]) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    assert (CLASSES["byclass"][9:12], CLASSES["byclass"][35:38], CLASSES["letters"][0]) == ("9AB", "Zab", "a")


def unpacked(folder: Path, division: str, **changed: bytes) -> Path:
    """A folder with the files of a division."""
    folder.mkdir(exist_ok=True)
    for name, content in (stand_in(division)[0] | changed).items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_with_one_division_is_a_source_and_one_with_several_is_not(tmp_path):
    source = read_source(unpacked(tmp_path / "x", "letters"))
    assert source.image_shape == (28, 28, 1) and source.labels["train"].min() == 0
    unpacked(tmp_path / "x", "digits")
    with pytest.raises(DataError, match="expected a folder of pictures"):
        read_source(tmp_path / "x")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels-idx1", idx(np.zeros(130, np.uint8)), "has the label 0, but those of letters start at 1"),
        ("images-idx3", idx(np.zeros(130, np.uint8)), "expected images (n, H, W), not (130,)"),
        ("images-idx3", idx(np.zeros((9, 28, 28), np.uint8)), "do not match"),
        ("images-idx3", b"\x1f\x8bno gzip", "can't be unpacked"),
    ],
)
def test_damaged_files_are_told(file, content, message, tmp_path):
    unpacked(tmp_path / "x", "letters", **{f"emnist-letters-train-{file}-ubyte.gz": content})
    result = command("data", "prepare", tmp_path / "x", "--out", tmp_path / "set", ranks=2)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]


def test_a_damaged_archive_is_told(tmp_path):
    members = DOWNLOADS["emnist"].members
    write_archive(tmp_path / "gzip.zip", {f"gzip/{members[0]}": bytes(5000)})
    content = bytearray((tmp_path / "gzip.zip").read_bytes())
    for damaged in (content[:-30], b"no archive", content.replace(bytes(40), bytes(39) + b"!", 1)):
        (tmp_path / "gzip.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"gzip\.zip: not a whole archive \(.*\); remove it and try again"):
            unpack(tmp_path, "gzip.zip", members)
