"""CIFAR in its binary form, from stand-ins of the same format: served by this machine, and damaged."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import command
from test_fetch import Server, server  # noqa: F401

from dpcnn.data.archives import unpack
from dpcnn.data.cifar import CIFAR10, CIFAR100
from dpcnn.data.dataset import load
from dpcnn.data.downloads import DOWNLOADS
from dpcnn.parallel.comm import SerialComm

RNG = np.random.default_rng(3)
NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt"}


def stand_in(classes: int, samples: int = 20) -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The files of a small CIFAR by name; and the images (n, 32, 32, 3) and labels (n,) of each split."""
    files, splits = {NAMES[classes]: "".join(f"class {n}\n" for n in range(classes)).encode() + b"\n"}, {}
    for split, names in (CIFAR10 if classes == 10 else CIFAR100).items():
        count = samples * len(names)
        images = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = (np.arange(count) * 7 % classes).astype(np.uint8)
        columns = [labels[:, None], images.transpose(0, 3, 1, 2).reshape(count, -1)]
        rows = np.hstack([RNG.integers(0, 20, (count, 1), dtype=np.uint8), *columns] if classes == 100 else columns)
        files |= {name: rows[n * samples : (n + 1) * samples].tobytes() for n, name in enumerate(names)}
        splits[split] = images, labels
    return files, splits


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("classes", [10, 100])
def test_an_archive_is_fetched_and_prepared(server, classes, tmp_path, monkeypatch):  # noqa: F811
    files, splits = stand_in(classes)
    (archive,) = DOWNLOADS[f"cifar{classes}"].digests
    write_archive(server.folder / archive, {**files, "../../outside.bin": b"no", "readme.html": b"no"})
    sha256 = "sha256:" + hashlib.sha256((server.folder / archive).read_bytes()).hexdigest()
    name = f"cifar{classes}"
    known = replace(DOWNLOADS[name], mirrors=(server.address,), digests={archive: sha256})
    monkeypatch.setitem(DOWNLOADS, name, known)
    result = command("data", "fetch", f"cifar{classes}", "--out", tmp_path / "set", ranks=2)
    assert result.status == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served", "set"]
    for split, (images, labels) in splits.items():
        samples = load(tmp_path / "set", split, SerialComm())
        found = samples.take(np.arange(len(labels)))
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], labels)
        assert samples.manifest.class_names == tuple(f"class {n}" for n in range(classes))


def test_an_unpacked_folder_is_a_source(tmp_path):
    files, splits = stand_in(10)
    (tmp_path / "cifar").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar" / name).write_bytes(content)
    names = tmp_path / "cifar" / NAMES[10]
    result = command("data", "prepare", tmp_path / "cifar", "--out", tmp_path / "set", "--names", names)
    assert result.status == 0, result.err
    samples = load(tmp_path / "set", "test", SerialComm())
    np.testing.assert_array_equal(samples.take(np.arange(20))[0], splits["test"][0])


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    files, _ = stand_in(100)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content[:-1] if name == "test.bin" else content)
    result = command("data", "prepare", tmp_path, "--out", tmp_path / "set")
    assert result.status == 2 and f"{tmp_path / 'test.bin'}: 61,479 bytes, but expected samples of 3074" in result.err


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, kind in (("test_batch.bin", tarfile.SYMTYPE), ("data_batch_1.bin", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    unpack(tmp_path, "a.tar.gz", DOWNLOADS["cifar10"].members)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_that_is_cut_short_is_refused(server, tmp_path, monkeypatch):  # noqa: F811
    files, _ = stand_in(10)
    path = server.folder / "cifar-10-binary.tar.gz"
    write_archive(path, files)
    path.write_bytes(path.read_bytes()[:-4000])
    sha256 = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    known = replace(DOWNLOADS["cifar10"], mirrors=(server.address,), digests={path.name: sha256})
    monkeypatch.setitem(DOWNLOADS, "cifar10", known)
    result = command("data", "fetch", "cifar10", "--out", tmp_path / "set")
    assert result.status == 2 and "not a whole archive" in result.errors[0] and not (tmp_path / "set").exists()
