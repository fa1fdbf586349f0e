"""HDF5 files of others as sources: every layout gives the same samples, and what leads out of the file is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command
from conftest import peak_of_prepare
from sources import synthetic

from dpcnn.data.dataset import load
from dpcnn.data.reading import read_source
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm

TRAIN, TEST = synthetic(300, 1), synthetic(80, 2)
LAYOUTS = {
    "contiguous": {},
    "chunks": {"chunks": (50, 12, 12)},
    "gzip": {"compression": "gzip", "chunks": (7, 12, 12)},
    "gzip of parts of images": {"compression": "gzip", "chunks": (64, 5, 7)},
    "shuffle and gzip": {"compression": "gzip", "shuffle": True},
    "chunks that the library chooses": {"compression": "gzip"},
}


def write(path: Path, **options) -> Path:
    """A file with the images and labels of two splits."""
    with h5py.File(path, "w") as file:
        for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
            file.create_dataset(f"{split}/x", data=images, **options)
            file.create_dataset(f"{split}/y", data=labels)
    return path


def check_samples(folder: Path, split: str, expected: tuple[np.ndarray, np.ndarray]) -> None:
    """The samples of a data set are these, in this order."""
    samples = load(folder, split, SerialComm())
    images, labels = samples.take(np.arange(len(samples)))
    np.testing.assert_array_equal(images[..., 0], expected[0])
    np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bytes_on_any_ranks(layout, tmp_path):
    path = write(tmp_path / "x.h5", **LAYOUTS[layout])
    found = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks) / "set"
        words = [f"{path}:train/x,train/y,test/x,test/y", "--out", out, "--shards", "3"]
        result = command("data", "prepare", *words, ranks=ranks)
        assert result.status == 0, result.err
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    check_samples(out, "train", TRAIN)
    check_samples(out, "test", TEST)


def test_test_samples_are_drawn_from_each_class(tmp_path):
    path = write(tmp_path / "x.h5", compression="gzip")
    words = [f"{path}:train/x,train/y", "--out", tmp_path / "set", "--test", "0.2", "--shuffle", "3"]
    assert command("data", "prepare", *words).status == 0
    parts = [load(tmp_path / "set", split, SerialComm()) for split in ("train", "test")]
    assert [len(part) for part in parts] == [240, 60]
    every = [image.tobytes() for part in parts for image in part.pieces[0]]
    assert sorted(every) == sorted(image.tobytes() for image in TRAIN[0])
    assert np.abs(np.bincount(parts[1].labels, minlength=10) - np.bincount(TRAIN[1]) / 5).max() < 1


@pytest.mark.parametrize(
    "labels",
    [
        TRAIN[1].astype(">i8"),
        TRAIN[1][:, None],
        np.eye(10, dtype=bool)[TRAIN[1]],
        np.eye(10, dtype=np.float32)[TRAIN[1]],
        np.array([b"%d" % label for label in TRAIN[1]]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}])
def test_labels_of_every_kind(labels, options, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = TRAIN[0]
        file.create_dataset("y", data=labels, **options)
    assert command("data", "prepare", f"{tmp_path / 'x.h5'}:x,y", "--out", tmp_path / "set", "--test", "60").status == 0
    counts = sum(
        np.bincount(load(tmp_path / "set", split, SerialComm()).labels, minlength=10) for split in ("train", "test")
    )
    np.testing.assert_array_equal(counts, np.bincount(TRAIN[1]))


def test_values_and_colour_and_a_block_before_the_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 9), np.uint8)
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        file["x"] = images
        file.create_dataset("y", data=np.linspace(-1, 1, 40), compression="gzip")
    words = [f"{tmp_path / 'x.mat'}:x,y", "--out", tmp_path / "set", "--targets", "values", "--layout", "chw"]
    result = command("data", "prepare", *words, "--test", "1")
    assert result.status == 0, result.err
    samples = load(tmp_path / "set", "train", SerialComm())
    assert samples.manifest.image_shape == (8, 9, 3) and samples.labels.dtype == np.float32
    every = {image.tobytes() for image in images.transpose(0, 2, 3, 1)}
    assert {image.tobytes() for image in samples.pieces[0]} < every


def test_noise_that_gzip_can_t_shrink_comes_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 9), np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=images, compression="gzip", chunks=(1, 1, 3))
        file["y"] = np.arange(40) % 4
    source = read_source(Path(f"{tmp_path / 'x.h5'}:x,y"))
    found = np.concatenate([source.images["train"][np.array([n])] for n in range(40)])
    np.testing.assert_array_equal(found[..., 0], images)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((300, 12, 12), np.uint8)
    layout[:] = h5py.VirtualSource(file.filename, "train/x", (300, 12, 12))
    file.create_virtual_dataset("x", layout)


def filled_later(file: h5py.File) -> None:
    file.create_dataset("x", (300, 12, 12), np.uint8, chunks=(100, 12, 12))


def bits(file: h5py.File) -> None:
    kind = h5py.h5t.STD_U16LE.copy()
    kind.set_precision(12)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((300, 12, 12)))


def text(file: h5py.File) -> None:
    file["x"] = ["a"] * 300


def external(file: h5py.File) -> None:
    file.create_dataset("x", (300, 12, 12), np.uint8, external=[("/etc/hostname", 0, 43_200)])


HOSTILE = {
    "external link": (
        lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/x.h5", "x")),
        "x.h5: x: is a link to elsewh",
    ),
    "soft link": (lambda f: f.__setitem__("x", h5py.SoftLink("/train/x")), "x.h5: x: is a link to elsewhere"),
    "virtual": (virtual, "x.h5: x: its values are in other files; copy them into this one"),
    "external values": (external, "x.h5: x: its values are in other files; copy them into this one"),
    "text of any length": (
        text,
        "x.h5: x: holds text of any length; expected plain numbers, or text of a fixed length",
    ),
    "references": (
        lambda f: f.create_dataset("x", (300,), h5py.ref_dtype),
        "x.h5: x: holds object; expected plain numbers",
    ),
    "records": (lambda f: f.create_dataset("x", (300,), [("a", "u1")]), "x.h5: x: holds [('a', 'u1')]; expected plain"),
    "lists": (
        lambda f: f.create_dataset("x", (9,), h5py.vlen_dtype(np.uint8)),
        "x.h5: x: holds object; expected plain",
    ),
    "enumeration": (lambda f: f.create_dataset("x", (9,), h5py.enum_dtype({"a": 1}, "u1")), "expected plain numbers"),
    "odd bits": (bits, "expected plain numbers"),
    "group": (lambda f: f.create_group("x"), "x.h5: x: is a group, not an array"),
    "nothing": (lambda f: None, "x.h5: x: there is no such array; give the names"),
    "one number": (lambda f: f.__setitem__("x", 5), "x.h5: x: has the shape (); expected 1 to 4 dimensions"),
    "no shape": (lambda f: f.__setitem__("x", h5py.Empty("u1")), "x.h5: x: has the shape None; expected"),
    "no samples": (lambda f: f.create_dataset("x", (0, 12, 12), "u1"), "x.h5: x: has the shape (0, 12, 12); expected"),
    "lzf": (
        lambda f: f.create_dataset("x", data=TRAIN[0], compression="lzf"),
        "x.h5: x: is compressed by lzf; write the array again with h5py, with compression='gzip' or none",
    ),
    "checksums": (
        lambda f: f.create_dataset("x", data=TRAIN[0], fletcher32=True),
        "is compressed by fletcher32; write",
    ),
    "a large chunk": (
        lambda f: f.create_dataset("x", (300, 700, 700), "u1", chunks=(300, 700, 700)),
        "x.h5: x: has chunks (300, 700, 700) of more than 67,108,864 bytes; write the array again",
    ),
    "chunks that were never written": (filled_later, "x.h5: can't be read as HDF5 ("),
    "never written": (lambda f: f.create_dataset("x", (300, 12, 12), np.uint8), "x.h5: x: its values were never writ"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_an_array_of_the_file_is_refused(kind, tmp_path):
    change, message = HOSTILE[kind]
    with h5py.File(write(tmp_path / "x.h5"), "a") as file:
        change(file)
    words = ["prepare", f"{tmp_path / 'x.h5'}:x,train/y", "--out", tmp_path / "set"]
    result = command("data", *words, ranks=2)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0], result.err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("x", "1 names of arrays; expected two, as in"),
        ("a,b,c", "3 names of arrays; expected two, as in"),
        ("train/x,train/x/y", "train/x/y: there is no such array"),
        ("train/x,", ": there is no such array"),
        ("train/x,\x1b[2J", r"\x1b[2J: there is no such array"),
        ("train/x,test/y", "images (300, 12, 12, 1) and labels (80,) do not match"),
        ("train/x,train/y,test/y,test/y", "images (80,) and labels (80,) do not match"),
    ],
)
def test_wrong_names_are_told(names, message, tmp_path):
    path = write(tmp_path / "x.h5")
    result = command("data", "prepare", f"{path}:{names}", "--out", tmp_path / "set")
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0], result.err


def test_a_file_without_names_is_told_how_to_give_them(tmp_path):
    path = write(tmp_path / "x.h5")
    with pytest.raises(DataError, match=r"x\.h5: give the names of its arrays, as in .*x\.h5:images,labels"):
        read_source(path)


def test_damaged_files_are_told(tmp_path):
    path = write(tmp_path / "x.h5", compression="gzip", chunks=(80, 12, 12))
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        place = file["train/x"].id.get_chunk_info(0).byte_offset
    content[place + 50 : place + 90] = bytes(40)
    path.write_bytes(content)
    words = [f"{path}:train/x,train/y", "--out", tmp_path / "set"]
    result = command("data", "prepare", *words, ranks=2)
    assert result.status == 2 and len(result.errors) == 1 and "x.h5: can't be read as HDF5 (" in result.errors[0]
    path.write_bytes(content[:5000])
    result = command("data", "prepare", *words)
    assert result.status == 2 and "x.h5: can't be read as HDF5 (" in result.errors[0]


def test_a_chunk_may_not_unpack_to_more_than_its_size(tmp_path):
    import zlib

    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", (300, 12, 12), np.uint8, chunks=(300, 12, 12), compression="gzip")
        dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(100 << 20)))
        file["y"] = TRAIN[1]
    result = command("data", "prepare", f"{tmp_path / 'x.h5'}:x,y", "--out", tmp_path / "set")
    assert result.status == 2 and "a chunk has another size" in result.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "compression_opts": 1}])
def test_memory_does_not_grow_with_the_file(options, tmp_path):
    peaks = []
    for count in (300, 1300):
        images = np.random.default_rng(0).integers(0, 4, (count, 256, 256), np.uint8)
        with h5py.File(tmp_path / f"{count}.h5", "w") as file:
            file.create_dataset("x", data=images, **options)
            file["y"] = np.arange(count) % 3
        words = (f"{tmp_path}/{count}.h5:x,y", "--out", tmp_path / f"set{count}", "--contiguous")
        peaks.append(peak_of_prepare(*words))
    assert peaks[1] - peaks[0] < 50_000
