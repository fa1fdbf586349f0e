"""Data sets: sources, shards, their bytes on any number of ranks, and damage of every kind."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command, dispatch, training
from conftest import MNIST, Job, run, train
from sources import edit_manifest, synthetic, write_source

from dpcnn.base.rng import SHUFFLE, permutation
from dpcnn.data import inputs
from dpcnn.data.dataset import Samples, find_data, load
from dpcnn.data.reading import read_source
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, read_manifest
from dpcnn.data.sources import Source
from dpcnn.errors import ConfigError, DataError
from dpcnn.parallel.comm import SerialComm


def data(*arguments, ranks: int = 1, status: int = 0):
    result = command("data", *arguments, ranks=ranks)
    assert result.status == status, result.err
    return result


FORMS = ["idx", "idx.gz", "csv", "csv with header", "npz"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    source = read_source(write_source(tmp_path / "source", form))
    for split, (images, labels) in {"train": synthetic(300, 1), "test": synthetic(80, 2)}.items():
        found_images, found_labels = whole(source, split)
        np.testing.assert_array_equal(found_images[..., 0], images)
        np.testing.assert_array_equal(found_labels, labels)


def whole(source: Source, split: str) -> list[np.ndarray]:
    """All images and labels of a split of a source."""
    return [np.concatenate(parts) for parts in zip(*source.blocks(split, 0, source.samples(split)), strict=True)]


@pytest.mark.parametrize("layout", [[], ["--contiguous"]])
def test_the_bytes_don_t_depend_on_the_ranks(layout, tmp_path):
    source = write_source(tmp_path / "source", "idx")
    found = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"on {ranks}" / "set"
        data("prepare", source, "--out", out, "--shards", "5", *layout, ranks=ranks)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert not list(out.parent.glob(".*"))
    assert set(found[0]) == {MANIFEST, *(f"train-0{n}.h5" for n in range(5)), "test-00.h5", "test-01.h5"}
    assert all(files == found[0] for files in found)


@pytest.mark.parametrize("layout", [[], ["--contiguous"]])
@pytest.mark.parametrize("shards", ["1", "4"])
def test_samples_come_back(layout, shards, tmp_path):
    out = tmp_path / "set"
    data("prepare", write_source(tmp_path / "source", "npz"), "--out", out, "--shards", shards, *layout)
    images, labels = synthetic(300, 1)
    samples = load(out, "train", SerialComm())
    assert (samples.manifest.compressed, samples.manifest.classes, len(samples)) == (not layout, 10, 300)
    numbers = np.random.default_rng(0).permutation(300)
    taken, taken_labels = samples.take(numbers)
    np.testing.assert_array_equal(taken[..., 0], images[numbers])
    np.testing.assert_array_equal(taken_labels, labels[numbers])


def test_name_and_sharding_and_compression_don_t_change_the_checksum(tmp_path):
    source = write_source(tmp_path / "source", "npz")
    checksums = set()
    for number, flags in enumerate((["--shards", "2"], ["--shards", "7"], ["--contiguous"])):
        out = tmp_path / str(number)
        data("prepare", source, "--out", out, *flags)
        checksums.add(read_manifest(out).checksum)
    assert len(checksums) == 1


def test_the_bytes_are_the_same_under_mpirun(tmp_path):
    source = write_source(tmp_path / "source", "idx")
    data("prepare", source, "--out", tmp_path / "threads" / "set")
    result = run(3, "-m", "dpcnn.data", "prepare", source, "--out", tmp_path / "mpirun" / "set")
    assert result.status == 0, result.err
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / how / "set").iterdir()} for how in ("threads", "mpirun")
    )
    assert first == second


def test_a_bar_shows_the_progress_on_a_terminal(npz, tmp_path):
    spawn = "import pty, sys; sys.exit(pty.spawn(['bash', '-c', sys.argv[1]]) >> 8)"
    words = [sys.executable, "-m", "dpcnn.data", "prepare", str(npz), "--out", str(tmp_path / "set")]
    result = Job([sys.executable, "-c", spawn, f"stty rows 24 cols 100; mpirun -n 2 {shlex.join(words)}"]).wait()
    assert result.status == 0, result.out
    assert re.search(r"writing 100% \|.*\|.* images/s, 00:00 left", result.out), result.out


def test_shuffled_by_a_seed_on_any_ranks(tmp_path):
    source = write_source(tmp_path / "source", "csv")
    for ranks in (1, 3):
        data("prepare", source, "--out", tmp_path / str(ranks) / "set", "--shuffle", "7", "--shards", "2", ranks=ranks)
    one, three = ({path.name: path.read_bytes() for path in (tmp_path / n / "set").iterdir()} for n in ("1", "3"))
    assert one == three
    out = tmp_path / "1" / "set"
    assert read_manifest(out).source["order"] == "shuffled by seed 7"
    for number, (split, seed) in enumerate({"train": 1, "test": 2}.items()):
        images, labels = synthetic(300 if split == "train" else 80, seed)
        order = permutation(7, number, len(labels), SHUFFLE)
        samples = load(out, split, SerialComm())
        found, found_labels = samples.take(np.arange(len(samples)))
        np.testing.assert_array_equal(found[..., 0], images[order])
        np.testing.assert_array_equal(found_labels, labels[order])
        content = hashlib.sha256(images[order].tobytes() + labels[order].tobytes()).hexdigest()
        assert read_manifest(out).content[split] == content
    assert (order != np.arange(80)).any()


def test_a_new_set_has_the_permissions_of_a_new_folder(npz, tmp_path):
    (tmp_path / "folder").mkdir()
    planted = tmp_path / ".set.part"
    planted.symlink_to(tmp_path / "folder")
    data("prepare", npz, "--out", tmp_path / "set", ranks=2)
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert planted.is_symlink() and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shards", "0"], "--shards: expected a whole number from 1 to 400, not 0"),
        (["--shuffle", "-1"], "--shuffle: expected a whole number from 0"),
        (["--name", "\x1b[31m"], "--name: expected a name of printable characters"),
    ],
)
def test_wrong_flags_are_told(flags, message, npz, tmp_path):
    with pytest.raises(ConfigError) as caught:
        dispatch(SerialComm(), ["prepare", str(npz), "--out", str(tmp_path / "set"), *flags])
    assert str(caught.value).startswith(message)


def test_what_compresses_too_well_is_refused_when_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LEAST_ALLOWANCE", 1000)
    zeros = {f"x_{split}": np.zeros((9000, 12, 12), np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "zeros.npz", **zeros, y_train=np.arange(9000) % 10, y_test=np.arange(9000) % 10)
    command = ["prepare", str(tmp_path / "zeros.npz"), "--out", str(tmp_path / "set"), "--shards", "1"]
    with pytest.raises(DataError, match=r"set \(train\): asks for 1,305,000 bytes .* prepare it with --contiguous"):
        dispatch(SerialComm(), command)
    assert [path.name for path in tmp_path.iterdir()] == ["zeros.npz"]
    dispatch(SerialComm(), [*command, "--contiguous"])
    assert len(load(tmp_path / "set", "train", SerialComm())) == 9000


def test_a_file_in_place_of_a_data_set_is_told_with_its_command(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(npz, "x.npz")
    with pytest.raises(DataError, match="x.npz: a file, .*: dpcnn data prepare x.npz --out x$"):
        find_data("x.npz")
    with pytest.raises(DataError, match=r"no data set '\\x1b\[2J': no manifest.json in"):
        find_data("\x1b[2J")


def test_prepare_writes_over_nothing(small, npz):
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    result = data("prepare", npz, "--out", small, ranks=2, status=2)
    assert result.errors == [f"dpcnn: error: {small}: exists already; give another --out, or remove it"]
    assert {path.name: path.read_bytes() for path in small.iterdir()} == before


def test_info_counts_and_verifies(small):
    _, labels = synthetic(700, 1)
    for ranks in (1, 3):
        text = data("info", small, ranks=ranks).out
        rows = [line.split() for line in text.splitlines()]
        assert [row[:2] for row in rows[3:13]] == [[str(n), str(c)] for n, c in enumerate(np.bincount(labels))]
        assert ["all", "700", "150"] in rows and ["shards", "3", "1"] in rows
        assert "images 12 x 12 x 1, 10 classes" in text and "every shard verified" in text


def test_the_committed_mnist_is_the_real_one():
    text = data("info", MNIST).out.splitlines()
    columns = list(zip(*(line.split() for line in text[1:15] if "-" not in line), strict=True))
    assert columns[0] == ("class", *map(str, range(10)), "all", "shards")
    assert columns[1] == ("train", *"5923 6742 5958 6131 5842 5421 5918 6265 5851 5949 60000 8".split())
    assert columns[2] == ("test", *"980 1135 1032 1010 982 892 958 1028 974 1009 10000 2".split())
    samples = load(MNIST, "train", SerialComm())
    assert samples.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert hashlib.sha256(struct.pack(">IIII", 2051, 60000, 28, 28) + samples.pieces[0].tobytes()).hexdigest() == (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    )
    assert {"NOTICE", "LICENSE", MANIFEST} <= {path.name for path in MNIST.iterdir()}


# Samples in use


@pytest.fixture
def contiguous(npz, tmp_path):
    data("prepare", npz, "--out", tmp_path / "contiguous", "--shards", "3", "--contiguous")
    return tmp_path / "contiguous"


def test_a_file_shortened_in_use_is_an_error_and_no_signal(contiguous):
    samples = load(contiguous, "train", SerialComm())
    os.truncate(contiguous / "train-02.h5", 9000)
    samples.take(np.arange(100))
    with pytest.raises(DataError, match="train-02.h5: has been shortened while it was in use"):
        samples.take(np.arange(600, 700))
    with pytest.raises(DataError, match="train-02.h5: was changed while it was in use"):
        samples.check_unchanged()


def test_changes_in_use_are_found_and_same_bytes_are_accepted(contiguous):
    samples = load(contiguous, "train", SerialComm())
    path = contiguous / "train-01.h5"
    before = path.read_bytes()
    samples.check_unchanged()
    path.write_bytes(before)  # the same file, written again
    os.utime(path, ns=(1, 1))
    samples.check_unchanged()
    flip(path, 9000)
    os.utime(path, ns=(2, 2))
    with pytest.raises(DataError, match="train-01.h5: was changed while it was in use: .*; restore it"):
        samples.check_unchanged()
    path.write_bytes(before)
    samples.check_unchanged()
    replaced = contiguous / "train-00.h5"
    expected, _ = samples.take(np.arange(10))
    replaced.unlink()
    replaced.write_bytes(b"another file")
    samples.check_unchanged()
    np.testing.assert_array_equal(samples.take(np.arange(10))[0], expected)


def test_a_set_in_memory_doesn_t_care_for_its_files(small, tmp_path):
    shutil.copytree(small, tmp_path / "set")
    samples = load(tmp_path / "set", "train", SerialComm())
    shutil.rmtree(tmp_path / "set")
    samples.check_unchanged()
    samples.take(np.arange(5))


def test_numbers_beyond_the_samples_are_refused(contiguous):
    samples = load(contiguous, "test", SerialComm())
    for wrong in ([150], [-1], [0, 10**12]):
        with pytest.raises(IndexError):
            samples.take(np.array(wrong))
    assert samples.take(np.array([], int))[0].shape == (0, 12, 12, 1)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 12, 12, 1), np.float32), np.zeros(4, int), "not float32 (4, 12, 12, 1); convert and reshape"),
        (np.zeros((4, 12, 12), np.uint8), np.zeros(4, int), "not uint8 (4, 12, 12); convert and reshape them"),
        (np.zeros((4, 12, 12, 1), np.uint8), np.zeros(4), "expected integer labels (4,), one for each image"),
        (np.zeros((4, 12, 12, 1), np.uint8), np.zeros(3, int), "expected integer labels (4,), one for each image"),
        (np.zeros((5, 12, 12, 1), np.uint8), np.zeros(4, int), "expected the bounds [0, 5] from the images of each"),
        (np.zeros((4, 12, 12, 1), np.uint8), np.array([0, 1, -1, 9]), "expected labels from 0 to 9, one per class"),
    ],
)
def test_samples_are_bytes_and_labels_belong_to_them(images, labels, message, small):
    with pytest.raises(DataError) as caught:
        Samples(read_manifest(small), (images,), np.array([0, 4]), labels)
    assert message in str(caught.value)


# Damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def reseal(folder: Path, name: str) -> None:
    """Let the manifest vouch for a changed shard: only what is inside can give it away."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for shard in manifest["splits"]["train"]:
        if shard["file"] == name:
            shard["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def wrong_shape(folder: Path) -> None:
    with h5py.File(folder / "train-01.h5", "a") as file:
        images = file["images"][...]
        del file["images"]
        file["images"] = images[:, :-1]
    reseal(folder, "train-01.h5")


def outside(folder: Path) -> None:
    with h5py.File(folder / "train-01.h5", "a") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink("train-00.h5", "images")
    reseal(folder, "train-01.h5")


def bad_label(folder: Path) -> None:
    with h5py.File(folder / "train-01.h5", "a") as file:
        file["labels"][5] = 10
    reseal(folder, "train-01.h5")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def not_hdf5(folder: Path) -> None:
    (folder / "train-01.h5").write_bytes(b"no HDF5 at all" * 1000)
    reseal(folder, "train-01.h5")


DAMAGE = {
    "missing": (
        lambda d: (d / "train-01.h5").unlink(),
        "train-01.h5: No such file or directory, but manifest.json names",
    ),
    "truncated": (
        lambda d: (d / "train-01.h5").write_bytes((d / "train-01.h5").read_bytes()[:-100]),
        "train-01.h5: damaged",
    ),
    "flipped at the start": (lambda d: flip(d / "train-01.h5", 3), "train-01.h5: damaged"),
    "flipped in the middle": (lambda d: flip(d / "train-01.h5", 4000), "train-01.h5: damaged"),
    "flipped at the end": (lambda d: flip(d / "train-01.h5", -1), "train-01.h5: damaged"),
    "exchanged": (lambda d: shutil.copy(d / "train-00.h5", d / "train-01.h5"), "train-01.h5: damaged or replaced"),
    "wrong shape": (wrong_shape, "train-01.h5: images are uint8 (233, 11, 12, 1), but manifest.json says uint8"),
    "outside": (outside, "train-01.h5: holds no dataset 'images' of its own"),
    "bad label": (bad_label, "train-01.h5: sample 5 has label 10, but there are 10 classes"),
    "not HDF5": (not_hdf5, "train-01.h5: not an HDF5 file"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "no data set"),
    "manifest cut": (
        lambda d: (d / MANIFEST).write_text((d / MANIFEST).read_text()[:-20]),
        "not a manifest of format 1",
    ),
    "manifest of the future": (lambda d: edit_manifest(d, lambda m: m.update(format=9)), "not a manifest of format 1"),
    "manifest that names a shard twice": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["train"].append(m["splits"]["train"][0])),
        "a file occurs twice",
    ),
    "a pipe for a shard": (lambda d: pipe(d / "train-01.h5"), "train-01.h5: not a plain file"),
    "a pipe for the manifest": (lambda d: pipe(d / MANIFEST), "no data set"),
    "manifest with a path": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["train"][0].update(file="../train-00.h5")),
        "invalid file name '../train-00.h5'",
    ),
    "manifest with another count": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["train"][0].update(samples=7)),
        "train-00.h5: images are uint8 (233, 12, 12, 1), but manifest.json says uint8 (7, 12, 12, 1)",
    ),
    "manifest with a huge count": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["train"][0].update(samples=10**11)),
        "not a manifest of format 1 (split train is too large)",
    ),
    "manifest with nonsense": (lambda d: (d / MANIFEST).write_text("[1, 2]"), "not a manifest of format 1"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_by_whichever_rank_and_told_once(kind, small, quick, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(small, folder)
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(DataError) as caught:
        load(find_data(str(folder)), "train", SerialComm())
    assert message in str(caught.value)

    result = training(*quick, "--data", folder, "--out", tmp_path / "run", ranks=3)
    assert result.status == 2
    assert result.errors == [f"dpcnn: error: {caught.value}"]
    assert not (tmp_path / "run").exists()


def test_damage_under_mpirun(small, quick, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(small, folder)
    flip(folder / "train-01.h5", 4000)
    result = train(3, *quick, "--data", folder, "--out", tmp_path / "run")
    assert result.status == 2
    assert len(result.errors) == 1 and "train-01.h5: damaged" in result.errors[0]
    assert not (tmp_path / "run").exists()


def test_damage_in_a_contiguous_set(npz, tmp_path):
    folder = tmp_path / "set"
    data("prepare", npz, "--out", folder, "--shards", "3", "--contiguous")
    flip(folder / "train-02.h5", 9000)
    result = training("--data", folder, "--validation", "100", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2
    assert len(result.errors) == 1 and "train-02.h5: damaged" in result.errors[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_damaged_sources_are_named(tmp_path):
    for number, form in enumerate(("idx", "idx.gz", "npz")):
        source = write_source(tmp_path / str(number), form)
        broken = source if form == "npz" else next(source.glob("train-images*"))
        cut(broken)
        with pytest.raises(DataError, match=broken.name):
            read_source(source)
    with pytest.raises(
        DataError, match="nowhere.csv: no such file or folder; expected an NPZ file .*, an HDF5 or CSV file"
    ):
        read_source(tmp_path / "nowhere.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected a folder of pictures for each class, or train-images-idx3-ubyte"):
        read_source(tmp_path / "empty")


def test_a_failed_prepare_leaves_nothing(tmp_path):
    source = write_source(tmp_path / "source", "idx")
    cut(source / "t10k-labels-idx1-ubyte")
    result = data("prepare", source, "--out", tmp_path / "set", ranks=2, status=2)
    assert len(result.errors) == 1 and "t10k-labels-idx1-ubyte: its header says" in result.errors[0]
    assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".*"))


def test_more_shards_than_open_files(small, monkeypatch):
    def refused(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("dpcnn.data.shard_files.open_plain", refused)
    with pytest.raises(DataError, match=r"\.h5: Too many open files, raise the limit: ulimit -n$"):
        ShardFile(small, read_manifest(small).shards[0])
