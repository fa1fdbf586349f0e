"""Files from outside that are damaged or made to do harm: each ends as one line, at once, at no cost of memory."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import dispatch
from conftest import environment
from sources import edit_manifest, synthetic, write_idx, write_source

from dpcnn.data import inputs
from dpcnn.data.dataset import load
from dpcnn.data.formats import read_csv, read_idx
from dpcnn.data.inputs import Input, allowance
from dpcnn.data.npz import read_arrays, read_headers
from dpcnn.data.reading import read_source
from dpcnn.data.shards import MANIFEST, parse_manifest, read_manifest
from dpcnn.data.stage import stage
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm

HERE = Path("file")


def source(content: bytes) -> Input:
    return Input(HERE, io.BytesIO(content))


def refused(call, *arguments) -> str:
    """The one line with which a call refuses its arguments."""
    with pytest.raises(DataError) as caught:
        call(*arguments)
    told = str(caught.value)
    assert told.isprintable() and len(told) < 600
    return told


def test_a_file_may_ask_for_256_mib_or_20_times_its_size():
    assert allowance(100) == 256 << 20 and allowance(1 << 30) == 20 << 30


# IDX and gzip


def idx(*shape: int, body: int | None = None) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(24 if body is None else body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(2, 3, 4)[:-1], "its header says (2, 3, 4), but 23 bytes follow"),
        (idx(2, 3, 4) + b"x", "its header says (2, 3, 4), but more bytes follow"),
        (idx(2, 3, 4)[:9], "ends within its header"),
        (idx(2, 12), "not an IDX file of unsigned bytes in 1, 3 or 4 dimensions"),
        (idx(*[1] * 65), "not an IDX file of unsigned bytes in 1, 3 or 4 dimensions"),
        (b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"", "not an IDX file of unsigned bytes"),
        (idx(0, 28, 28), "holds no samples"),
        (idx(2**32 - 1, 2**32 - 1, 2**32 - 1), "bytes of memory, but a file of 40 bytes may ask for 268,435,456"),
        (idx(2**28 + 1), "asks for 268,435,457 bytes"),
        (gzip.compress(idx(2, 3, 4))[:-9], "can't be unpacked"),
        (gzip.compress(idx(2, 3, 4))[:-3], "can't be unpacked"),
        (gzip.compress(idx(2, 3, 4)) + b"garbage", "can't be unpacked"),
        (gzip.compress(idx(2, 3, 4, body=1 << 24)), "more bytes follow"),
        (b"\x1f\x8b" + b"x" * 50, "can't be unpacked"),
    ],
)
def test_idx_files_that_are_not_so(content, message):
    assert message in refused(read_idx, source(content))


def test_idx_of_labels_grey_and_coloured_images():
    for shape in ((24,), (2, 3, 4), (2, 2, 2, 3)):
        for content in (idx(*shape), gzip.compress(idx(*shape))):
            assert read_idx(source(content)).shape == shape


# CSV


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5,1,2,3,4\n6,1,2,3\n", "line 2: 4 values, but line 1 has 5"),
        ("label,a,b,c,d\n\n5,1,2,3,4\n\n6,1,2,3\n", "line 5: 4 values, but line 3 has 5"),
        ("5,1,2,3,4\n5,1,2,300,4\n", "line 2: 300 is above 255"),
        ("5,1,2,3,4\n5,1,2," + "9" * 6000 + ",4\n", f"line 2: {'9' * 20} is above 255"),
        ("5,1,2,,4\n", "line 1: '' is not a whole number"),
        ("5,1,2,3 3,4\n", "line 1: '3 3' is not a whole number"),
        ("5,1,2,x,4\n", "line 1: 'x' is not a digit or comma"),
        ("5,1,2,0x1,4\n", "line 1: 'x' is not a digit or comma"),
        ("5,1,2,-3,4\n", "line 1: '-' is not a digit or comma"),
        ("-5,1,2,3,4\n", "line 1: '-' is not a digit or comma"),
        ("5,1,2,3.5,4\n", "line 1: '.' is not a digit or comma"),
        ("inf,1,2,3,4\n", "line 1: 'i' is not a digit or comma"),
        ("label,a,b,c,d\n5,1,2,inf,4\n", "line 2: 'i' is not a digit or comma"),
        ('"5","1","2","3","4"\n', "line 1: '\"' is not a digit or comma"),
        ("5,1,2,\x1b[2J,4\n", r"line 1: '\x1b' is not a digit or comma"),
        ("5,1,2\n", "3 values per line; expected a label and the pixels of a square image"),
        ("5\n", "1 values per line"),
        ("", "holds no samples"),
        ("\n \n", "holds no samples"),
        ("label,a,b,c,d\n", "holds no samples"),
    ],
)
def test_csv_files_that_are_not_so(text, message):
    told = refused(read_csv, source(text.encode()))
    assert message in told and "pickle" not in told


def test_csv_in_utf_16_is_told():
    assert "line 1: '\\xff' is not a digit or comma; the text is in UTF-16" in refused(
        read_csv, source("5,1,2,3,4\n".encode("utf-16"))
    )


@pytest.mark.parametrize("text", ["5,1,2,3,4\n6,0,0,0,255", "label,a,b,c,d\r\n5,1, 2,3,4\r\n\r\n6,0,0,0,255\r\n"])
@pytest.mark.parametrize("form", [lambda text: text, lambda text: b"\xef\xbb\xbf" + text, gzip.compress])
def test_csv_with_what_programs_add(text, form):
    images, labels = read_csv(source(form(text.encode())))
    assert labels.tolist() == [5, 6] and images.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 255]]]


# NPZ


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def zipped(name: str, content: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as made:
        made.writestr(name, content)
    return file.getvalue()


def npy(shape: str, kind: str = "'|u1'", body: bytes = b"", version: bytes = b"\1\0", length: int = 0) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == b"\1\0" else "<I", length or len(header))
    return b"\x93NUMPY" + version + size + header + body


def encrypted() -> bytes:
    content = bytearray(zipped("a.npy", npy("(1,)", body=b"x")))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    return bytes(content)


def read_npz(file: Input) -> list[np.ndarray]:
    return read_arrays(file, read_headers(file).values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npz(a=np.zeros(9, np.uint8))[:-30], "can't be read as NPZ"),
        (npz(a=np.array([{}], object)), "a.npy holds Python objects; convert it to an array of numbers or text"),
        (npz(a=np.zeros(3, "M8[s]")), "not plain numbers"),
        (npz(a=np.zeros(3, [("x", "u1")])), "not plain numbers"),
        (zipped("a.npy", npy("(1,)", "'|V0'")), "not plain numbers"),
        (zipped("cat/1.jpg", b"text"), "cat/1.jpg is not an array; unpack an archive of pictures, and give its folder"),
        (zipped("\x1b[2J.npy", b"text"), "can't be read as NPZ"),
        (zipped("\x1b[2J", b"text"), r"\x1b[2J is not an array"),
        (zipped("a.npy", npy("(1,)", body=b"x"), zipfile.ZIP_BZIP2), "encrypted, or compressed otherwise"),
        (encrypted(), "encrypted, or compressed otherwise"),
        (zipped("a.npy", npy("(2,)", body=b"x")), "its header and its length disagree"),
        (zipped("a.npy", npy("(2,)", body=b"xyz")), "its header and its length disagree"),
        (zipped("a.npy", npy("(10**9, 10**9)", body=b"x")), "can't be read as NPZ"),
        (zipped("a.npy", npy("(1000000000, 1000)", body=b"x")), "asks for 1,000,000,000,000 bytes of memory"),
        (zipped("a.npy", npy(f"({2**70},)", body=b"x")), "has the shape"),
        (zipped("a.npy", npy("(-1,)", body=b"x")), "has the shape (-1,)"),
        (zipped("a.npy", npy("(" * 3000)), "can't be read as NPZ"),
        (zipped("a.npy", npy("(1,)", "'|S1000000000000'")), "can't be read as NPZ"),
        (zipped("a.npy", npy("(1,)", version=b"\2\0", length=2**32 - 1, body=bytes(1 << 22))), "can't be read as NPZ"),
        (zipped("a.npy", npy("(1,)", version=b"\3\0", body=b"x")), "is not a plain array"),
        (zipped("a.npy", npy("(1,)", version=b"\x09\0", body=b"x")), "can't be read as NPZ"),
        (zipped("a.npy", b""), "can't be read as NPZ"),
    ],
)
def test_npz_files_that_are_not_so(content, message):
    assert message in refused(read_npz, source(content))


def test_arrays_of_npz_files_come_back():
    arrays = {
        "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(5, dtype=">i8"),
        "none": np.zeros((0, 3), np.float32),
        "one": np.array(7),
    }
    for made in (npz(**arrays), gzip.compress(npz(**arrays))):
        for found, expected in zip(read_npz(source(made)), arrays.values(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_together_the_arrays_may_cost_no_more(monkeypatch):
    monkeypatch.setattr(inputs, "LEAST_ALLOWANCE", 10_000)
    content = npz(a=np.zeros(6000, np.uint8), b=np.zeros(6000, np.uint8))
    assert "asks for 12,000 bytes of memory" in refused(read_npz, source(content))
    assert "unpack it by hand" in refused(read_npz, source(gzip.compress(bytes(30_000), 9)))


KERAS = {"x_train": np.zeros((6, 4, 4), np.uint8), "y_train": np.arange(6)}
KERAS |= {key.replace("train", "test"): array for key, array in KERAS.items()}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"y_train": np.array([0, 1, 2, 65_535, 4, 5])},
            "labels up to 65,534 (65,535 classes) are supported, found 65535",
        ),
        ({"y_train": np.array([0, 1, 2, -3, 4, 5])}, "labels up to 65,534 (65,535 classes) are supported, found -3"),
        ({"y_test": np.zeros(6)}, "expected labels of whole numbers or text, not float64"),
        (
            {"x_train": np.zeros((6, 4, 4), np.float32)},
            "expected images of uint8, uint16, float16, float32, one type for all, not float32, uint8; convert them",
        ),
        ({"x_train": np.zeros((6, 4, 4), np.int64)}, "one type for all, not int64, uint8; convert them"),
        ({"x_train": np.zeros((5, 4, 4), np.uint8)}, "do not match"),
        ({"x_train": np.zeros((6, 4), np.uint8)}, "do not match"),
        ({"x_train": np.zeros((0, 4, 4), np.uint8), "y_train": np.zeros(0, int)}, "expected at least one"),
        ({"x_train": np.zeros((6, 1, 70_000), np.uint8)}, "with sides up to 65,536"),
        ({"x_test": np.zeros((6, 4, 5), np.uint8)}, "training images are (4, 4, 1), test images (4, 5, 1)"),
        (
            {"y_test": None},
            "holds x_train, y_train, x_test, but no y_test; expected an NPZ file with x_train and y_train",
        ),
    ],
)
def test_arrays_that_are_no_data_set(arrays, message, tmp_path):
    kept = {key: array for key, array in {**KERAS, **arrays}.items() if array is not None}
    np.savez(tmp_path / "x.npz", **kept)
    assert message in refused(read_source, tmp_path / "x.npz")


def test_other_names_of_arrays_are_told_with_the_expected_ones(tmp_path):
    np.savez(tmp_path / "x.npz", X=KERAS["x_train"], y=KERAS["y_train"])
    told = refused(read_source, tmp_path / "x.npz")
    assert "x.npz: holds X, y, but no x_train; expected an NPZ file with x_train and y_train" in told
    assert told.endswith("as in np.savez(FILE, x_train=images, y_train=labels)")


def test_a_single_file_that_is_no_source(tmp_path):
    (tmp_path / "mydata.csv").write_text("5,1,2,3,4\n")
    told = refused(read_source, tmp_path / "mydata.csv")
    assert (
        "line 1 has 5 values; expected lines of file,label in UTF-8; for pixels, a folder with mnist_train.csv" in told
    )
    write_idx(tmp_path / "x.idx", np.zeros((2, 3, 3), np.uint8))
    assert "expected an NPZ file with x_train" in refused(read_source, tmp_path / "x.idx")


# Pipes and devices

IMPORTS = (
    "from pathlib import Path\nfrom dpcnn.data.pictures import open_pictures, read_pictures\n"
    "from dpcnn.data.dataset import load\nfrom dpcnn.data.reading import read_source\n"
    "from dpcnn.data.stage import stage\nfrom dpcnn.parallel.comm import SerialComm\n"
)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_at_once(kind, small, tmp_path):
    """In processes of their own, so that one that waits is a failure of this test and no hang of all."""
    folder, shards = write_source(tmp_path / "idx", "idx"), tmp_path / "set"
    shutil.copytree(small, shards)
    for path in (folder / "train-images-idx3-ubyte", shards / "test-00.h5", tmp_path / "x.npz"):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for code, message in (
        (f"read_source(Path({str(folder)!r}))", "or train-images-idx3-ubyte"),
        (f"read_source(Path({str(tmp_path / 'x.npz')!r}))", "not a folder or a plain file"),
        (f"read_pictures(open_pictures(Path({str(tmp_path / 'x.npz')!r})), (28, 28, 1), 'mnist')", "not a plain file"),
        (
            f"load(Path({str(shards)!r}), 'test', SerialComm())",
            "test-00.h5: not a plain file, but manifest.json names it",
        ),
        (f"stage(Path({str(shards)!r}), Path({str(tmp_path / 'there')!r}), SerialComm())", "not a plain file"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS + code], capture_output=True, text=True, env=environment(), timeout=60
        )
        assert done.stderr.splitlines()[-1].startswith("dpcnn.errors.DataError: ") and message in done.stderr


# Manifests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(classes=True), "classes: expected a whole number from 1 to 65535, not True"),
        (lambda m: m.update(classes=65_536), "classes: expected a whole number from 1 to 65535"),
        (lambda m: m.update(image_shape=[True, 28, 28]), "image_shape: expected a whole number from 1 to 65536"),
        (lambda m: m.update(image_shape=[28, 28]), "image_shape: expected 3 whole numbers"),
        (lambda m: m.update(image_shape=[28, 28, 10**30]), "a number of more than 64 bits"),
        (lambda m: m.update(name="\ud800"), "name: expected a name of printable characters"),
        (lambda m: m.update(name="\x1b[2J"), "name: expected a name of printable characters"),
        (lambda m: m.update(name="x" * 256), "name: expected a name of printable characters"),
        (lambda m: m.update(compressed=1), "compressed: expected true or false, not 1"),
        (lambda m: m.update(splits=[]), "splits: expected a table"),
        (lambda m: m["splits"].update(test=[]), "splits.test: expected at least one shard"),
        (lambda m: m["splits"].update(test=m["splits"]["train"]), "a file occurs twice"),
        (lambda m: m["splits"].update(test=[{}] * 401), "401 values; at most 400"),
        (lambda m: m["splits"]["train"][0].update(samples=2.0), "samples: expected a whole number"),
        (lambda m: m["splits"]["train"][0].update(file="a\nb.h5"), "file: expected a name of printable characters"),
        (lambda m: m["content"].update(train="x"), "content.train: expected a sha256"),
        (lambda m: m["source"].update({"\x1b[2J": "x"}), "source: expected a name of printable characters"),
        (lambda m: m["source"].update(x="\x1b[2J"), "source.x: expected a name of printable characters"),
        (lambda m: m.pop("name"), "name is missing"),
    ],
)
def test_manifests_that_are_not_so(change, message, small, tmp_path):
    shutil.copy(small / MANIFEST, tmp_path)
    edit_manifest(tmp_path, change)
    assert message in refused(read_manifest, tmp_path)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"format": NaN}', b"\xff\xfe", b"9" * 5000, b"null"])
def test_a_manifest_that_is_no_table(content):
    assert "not a manifest of format 1" in refused(parse_manifest, HERE, content)


# Shards that are vouched for, and yet are not as they must be


def crafted(small: Path, folder: Path, make, samples: int | None = None, compressed: bool = True) -> Path:
    """A copy of a set whose one training shard is made by hand, as its manifest says."""
    shutil.copytree(small, folder)
    path = folder / "train-00.h5"
    path.unlink()
    with h5py.File(path, "w", libver="earliest") as file:
        make(file)

    def change(manifest):
        manifest["splits"]["train"] = manifest["splits"]["train"][:1]
        told = {"samples": samples or 40, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        manifest["splits"]["train"][0].update(told)
        manifest["compressed"] = compressed

    edit_manifest(folder, change)
    return folder


def images(file: h5py.File, samples: int = 40, written: int | None = None, labels: bool = True, **options) -> None:
    """Datasets of which only some samples are ever written."""
    made = file.create_dataset("images", (samples, 12, 12, 1), np.uint8, **options)
    made[: samples if written is None else written] = 5
    labelled = file.create_dataset("labels", (samples,), np.uint8)
    if labels:
        labelled[...] = 0


GZIP = {"chunks": (10, 12, 12, 1), "compression": "gzip"}


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((40, 12, 12, 1), np.uint8)
    layout[:] = h5py.VirtualSource("test-00.h5", "images", (40, 12, 12, 1))
    file.create_virtual_dataset("images", layout)
    file["labels"] = np.zeros(40, np.uint8)


@pytest.mark.parametrize(
    ("make", "samples", "compressed", "message"),
    [
        (lambda f: images(f, **GZIP, written=20), 40, True, "chunk storage is not allocated"),
        (lambda f: images(f, **GZIP, labels=False), 40, True, "holds only a part of its samples"),
        (lambda f: images(f, 6_000_000, written=150, **GZIP), 6_000_000, True, "chunk storage is not allocated"),
        (lambda f: images(f, written=0), 40, False, "holds only a part of its samples"),
        (lambda f: images(f), 40, True, "images are not compressed by gzip alone"),
        (lambda f: images(f, chunks=(10, 12, 12, 1)), 40, True, "images are not compressed by gzip alone"),
        (lambda f: images(f, **GZIP), 40, False, "holds samples that are not contiguous"),
        (lambda f: images(f, **GZIP, shuffle=True), 40, True, "images are not compressed by gzip alone"),
        (lambda f: images(f, **{**GZIP, "compression": "lzf"}), 40, True, "images are not compressed by gzip alone"),
        (lambda f: images(f, **{**GZIP, "chunks": (10, 6, 12, 1)}), 40, True, "differ from those of prepare"),
        (
            lambda f: images(f, 10_000, **{**GZIP, "chunks": (10_000, 12, 12, 1)}),
            10_000,
            True,
            "differ from those of prepare",
        ),
        (
            lambda f: images(f, external=[("test-00.h5", 0, 5760)], written=0),
            40,
            False,
            "samples that are not contiguous",
        ),
        (virtual, 40, False, "holds samples that are not contiguous"),
        (virtual, 40, True, "images are not compressed by gzip alone"),
        (lambda f: f.create_group("images"), 40, True, "holds no dataset 'images' of its own"),
        (lambda f: f.update(images=h5py.SoftLink("/labels")), 40, True, "holds no dataset 'images' of its own"),
        (
            lambda f: f.update(images=np.zeros((40, 12, 12, 1), np.int8)),
            40,
            False,
            "images are int8 (40, 12, 12, 1), but manifest.json says uint8 (40, 12, 12, 1)",
        ),
        (lambda f: f.update(images=h5py.Empty(np.uint8)), 40, False, "images are uint8 None"),
    ],
)
def test_shards_that_hold_something_else(make, samples, compressed, message, small, tmp_path, monkeypatch):
    def reserve(*_):
        raise AssertionError("memory was reserved before the check")

    monkeypatch.setattr("dpcnn.data.dataset.shared_array", reserve)
    folder = crafted(small, tmp_path / "set", make, samples, compressed)
    assert message in refused(load, folder, "train", SerialComm())


@pytest.mark.parametrize(
    ("length", "message"), [(1 << 20, "a chunk has another size"), (1 << 24, "is not compressed like those of prepare")]
)
def test_a_chunk_that_unpacks_to_more_is_refused(length, message, small, tmp_path):
    def make(file):
        images(file, **GZIP, written=0)
        for start in range(0, 40, 10):
            file["images"].id.write_direct_chunk((start, 0, 0, 0), zlib.compress(bytes(length)))

    assert message in refused(load, crafted(small, tmp_path / "set", make), "train", SerialComm())


def test_a_split_may_cost_no_more_than_its_files_allow(small, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LEAST_ALLOWANCE", 1000)
    folder = crafted(
        small, tmp_path / "set", lambda file: images(file, 5000, **GZIP | {"chunks": (5000, 12, 12, 1)}), 5000
    )
    told = refused(load, folder, "train", SerialComm())
    assert "set (train): asks for 725,000 bytes of memory" in told and "--contiguous" in told


def test_the_index_of_chunks_is_not_walked(small, tmp_path):
    """An index whose nodes name the same node below many times: a walk through it would take some days."""
    folder = crafted(small, tmp_path / "set", lambda file: images(file, **GZIP | {"chunks": (1, 12, 12, 1)}))
    path = folder / "train-00.h5"
    content = bytearray(path.read_bytes())
    root, key, below = content.index(b"TREE\1"), struct.Struct("<II5Q"), 0
    named, end = content.index(struct.pack("<Q", root)), content.index(struct.pack("<Q", len(content)))
    for level in range(10):
        used, place = 0 if level == 0 else 64, len(content)
        node = b"TREE\1" + bytes([level]) + struct.pack("<H", used) + b"\xff" * 16
        for child in range(used):
            node += key.pack(10, 0, child, 0, 0, 0, 0) + struct.pack("<Q", below)
        node += key.pack(10, 0, 10**6, 0, 0, 0, 0)
        content += node.ljust(24 + 64 * (key.size + 8) + key.size, b"\0")
        below = place
    content[named : named + 8], content[end : end + 8] = struct.pack("<Q", below), struct.pack("<Q", len(content))
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit_manifest(folder, lambda m: m["splits"]["train"][0].update(sha256=digest))
    assert "train-00.h5: not an HDF5 file, or a damaged one" in refused(load, folder, "train", SerialComm())


def test_a_set_that_was_staged_by_another_is_not_taken(small, tmp_path):
    copy = stage(small, tmp_path / "scratch", SerialComm())
    edit_manifest(copy, lambda m: m["content"].update(train="0" * 64))
    told = refused(stage, small, tmp_path / "scratch", SerialComm())
    assert f"--stage: {copy} is not your copy of {small}; remove it" in told


# Anything at all


def changed(content: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them flipped, cut off, left out or put in."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(min(len(made), draw.choice((600, len(made)))) or 1)
        kind = draw.randrange(6)
        if kind < 3:
            made[place : place + 1] = bytes([draw.choice((0, 1, 127, 255, draw.randrange(256)))])
        elif kind == 3:
            made[place : place + 8] = draw.randbytes(8)
        elif kind == 4:
            made[place : place + draw.randrange(1, 60)] = draw.randbytes(draw.randrange(60))
        else:
            del made[draw.randrange(len(made) or 1) :]
    return bytes(made)


def set_of(folder: Path, content: bytes) -> None:
    (folder / "train-00.h5").write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["splits"]["train"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    load(folder, "train", SerialComm())


@pytest.mark.parametrize("form", ["idx", "idx.gz", "csv", "npz", "manifest", "compressed", "contiguous"])
def test_random_damage_is_refused_or_does_no_harm(form, tmp_path, capfd):
    """Whatever is not refused is read; nothing else is raised, and nothing is printed."""
    pair = synthetic(60, 1)
    rows = np.column_stack([pair[1], pair[0].reshape(60, -1)]).tolist()
    np.savez(tmp_path / "x.npz", x_train=pair[0], y_train=pair[1], x_test=pair[0][:9], y_test=pair[1][:9])
    out, flags = tmp_path / "set", ["--contiguous"] if form == "contiguous" else []
    dispatch(SerialComm(), ["prepare", str(tmp_path / "x.npz"), "--out", str(out), "--shards", "1", *flags])
    capfd.readouterr()
    whole = struct.pack(">BBBB3I", 0, 0, 8, 3, *pair[0].shape) + pair[0].tobytes()
    content, read = {
        "idx": (whole, lambda found: read_idx(source(found))),
        "idx.gz": (gzip.compress(whole), lambda found: read_idx(source(found))),
        "csv": ("\n".join(",".join(map(str, row)) for row in rows).encode(), lambda found: read_csv(source(found))),
        "npz": ((tmp_path / "x.npz").read_bytes(), lambda found: read_npz(source(found))),
        "manifest": ((out / MANIFEST).read_bytes(), lambda found: parse_manifest(HERE, found)),
        "compressed": ((out / "train-00.h5").read_bytes(), lambda found: set_of(out, found)),
        "contiguous": ((out / "train-00.h5").read_bytes(), lambda found: set_of(out, found)),
    }[form]
    draw, count = random.Random(form), 0
    for _ in range(150):
        try:
            read(changed(content, draw))
        except DataError as error:
            assert str(error).isprintable()
            count += 1
    assert count > 50
    assert capfd.readouterr() == ("", "")
