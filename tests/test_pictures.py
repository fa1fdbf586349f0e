"""Pictures of any format, colour, orientation and size become images of one shape, and bad ones are skipped."""

import io
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from commands import command, training
from conftest import peak_of_prepare, run
from test_predict import damaged, sized

from dpcnn.data.dataset import load
from dpcnn.data.decoding import read_image
from dpcnn.data.inputs import Input
from dpcnn.data.reading import read_source
from dpcnn.data.shards import read_manifest
from dpcnn.data.source_options import SourceOptions
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
HERE = Path("picture")
RNG = np.random.default_rng(5)


def smooth(height: int, width: int) -> np.ndarray:
    """A colour picture (height, width, 3) without an axis of symmetry, uint8."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * x, 255 * y, 60 + 130 * x * y], axis=-1).round().astype(np.uint8)


def saved(picture, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def image(content: bytes, shape=(24, 32, 3)) -> np.ndarray:
    return read_image(Input(HERE, io.BytesIO(content)), shape, "crop")


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The mean absolute difference of two images of the same shape and type."""
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return float(np.abs(one.astype(int) - other).mean())


LOSSLESS = [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_a_picture_of_the_right_size_is_not_changed(form, options):
    picture = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    np.testing.assert_array_equal(image(saved(Image.fromarray(picture), form, **options)), picture)
    grey = saved(Image.fromarray(picture[..., 0]), form, **options)
    np.testing.assert_array_equal(image(grey, (24, 32, 1))[..., 0], picture[..., 0])
    np.testing.assert_array_equal(image(grey), np.repeat(picture[..., :1], 3, axis=2))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("sides", [(24, 32), (48, 64), (300, 400), (300, 500), (700, 400), (12, 16), (9, 700)])
def test_the_centre_is_cut_out_and_resized(form, sides):
    H, W = sides
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    found = image(saved(Image.fromarray(smooth(H, W)), form, **options))
    h, w = min(H, W * 24 / 32), min(W, H * 32 / 24)
    x, y = ((np.arange(n) + 0.5) / n for n in (32, 24))
    x, y = 0.5 + (x - 0.5) * w / W, 0.5 + (y - 0.5) * h / H
    expected = np.stack([*np.meshgrid(255 * x, 255 * y), 60 + 130 * np.outer(y, x)], axis=-1)
    assert np.abs(found[2:-2, 2:-2].astype(float) - expected[2:-2, 2:-2]).mean() < 5


TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
TURNS |= {5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 8: lambda a: np.rot90(a, -1)}
TURNS |= {7: lambda a: a[::-1, ::-1].transpose(1, 0, 2)}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", TURNS)
def test_pictures_are_turned_upright(form, number):
    """What a camera has stored is the upright picture, turned back; its EXIF says how to turn it upright."""
    upright, tag = smooth(300, 400), Image.Exif()
    tag[0x112] = number
    stored = Image.fromarray(np.ascontiguousarray(TURNS[number](upright)))
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    found = image(saved(stored, form, exif=tag, **options))
    assert difference(found, image(saved(Image.fromarray(upright), "PNG"))) < 4


def test_every_mode_gives_the_same_picture():
    colour = smooth(100, 120)
    expected = image(saved(Image.fromarray(colour), "PNG"))
    for mode, form in (
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
        ("P", "PNG"),
        ("LAB", "TIFF"),
    ):
        assert difference(image(saved(Image.fromarray(colour).convert(mode), form)), expected) < 8, mode
    grey = colour[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for picture, form in ((deep, "PNG"), (deep, "TIFF"), (Image.fromarray(grey.astype(np.float32)), "TIFF")):
        found = image(saved(picture, form), (24, 32, 1))
        assert difference(found, image(saved(Image.fromarray(grey), "PNG"), (24, 32, 1))) <= 1
    black_and_white = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
    assert set(np.unique(image(saved(black_and_white, "PNG"), (100, 120, 1)))) == {0, 255}


def test_transparent_pixels_are_white():
    layered = np.zeros((24, 32, 4), np.uint8)
    layered[:, :16] = 10, 20, 30, 255
    for mode, expected in (("RGBA", [10, 20, 30]), ("LA", [18, 18, 18])):
        found = image(saved(Image.fromarray(layered).convert(mode), "PNG"))
        assert (found[:, 16:] == 255).all() and (found[:, :16] == expected).all()
    paletted = Image.fromarray(layered[..., :3]).convert("P")
    found = image(saved(paletted, "PNG", transparency=paletted.getpixel((20, 3))))
    assert (found[:, 16:] == 255).all()


def test_floats_that_are_no_numbers_are_black():
    values = np.full((24, 32), np.nan, np.float32)
    values[0, :2] = np.inf, -np.inf
    assert image(saved(Image.fromarray(values), "TIFF"), (24, 32, 1)).max() <= 255


@pytest.mark.parametrize(("width", "height"), [(1, 50_000_000), (6000, 6000), (20_001, 1), (100_000, 100_000)])
def test_a_picture_of_too_many_pixels_is_not_unpacked(width, height):
    with pytest.raises(DataError, match="at most 32,000,000 are read, and 20,000 a side"):
        image(sized(width, height))


def test_a_tile_of_too_many_pixels_is_not_unpacked():
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    for tag in (65_001, 65_002):  # of nobody; afterwards they are those of the tiles' sides
        tags[tag], tags.tagtype[tag] = 30_000, 4
    content = saved(Image.fromarray(smooth(20, 20)), "TIFF", tiffinfo=tags, compression="tiff_lzw")
    for before, after in ((65_001, 322), (65_002, 323)):
        content = content.replace(struct.pack("<HHI", before, 4, 1), struct.pack("<HHI", after, 4, 1))
    with pytest.raises(DataError, match="30000 x 30000 pixels"):
        image(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF of LZW", "TIFF of JPEG"])
def test_damaged_pictures_are_one_kind_of_error(form, capfd):
    """Pillow and its libraries raise many kinds of errors; only ours come out, and nothing is printed."""
    compression = {"TIFF of LZW": "tiff_lzw", "TIFF of JPEG": "jpeg"}.get(form)
    tag, options = Image.Exif(), {"compression": compression} if compression else {}
    tag[0x112], tag[0x10E] = 6, "text"
    whole = saved(Image.fromarray(smooth(60, 80)), form.partition(" ")[0], exif=tag, **options)
    draw, refused = random.Random(form), 0
    for number in range(200):
        try:
            image(damaged(whole, draw, form == "PNG" and number % 2))
        except DataError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 20 and capfd.readouterr() == ("", "")


# From a folder to a data set

CLASSES = {"cat": 13, "dog": 8, "a bird": 5, "10": 3, "9": 4}


def write_folder(folder: Path, counts: dict[str, int] = CLASSES, seed: int = 0) -> Path:
    """A folder of pictures per class, each of one colour, of every format and of different sizes."""
    rng, forms = np.random.default_rng(seed), ("png", "jpeg", "webp", "tiff")
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            colour = np.array([40 * number + 20, rng.integers(256), n], np.uint8)
            sides = rng.integers(10, 90, 2)
            picture = Image.fromarray(np.broadcast_to(colour, (*sides, 3)).copy())
            picture.save(folder / name / f"{n:02}.{forms[n % 4]}", **({"lossless": True} if n % 4 == 2 else {}))
    return folder


def prepare(folder: Path, out: Path, *flags, ranks: int = 1, status: int = 0):
    words = [folder, "--out", out, "--size", "8x12", "--shards", "5", *flags]
    result = command("data", "prepare", *words, ranks=ranks)
    assert result.status == status, result.err
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_per_class_is_the_same_on_any_ranks(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "dog" / "notes.txt").write_text("no picture")
    (source / "dog" / ".hidden.png").write_text("no picture")
    (source / "cat" / "cut.png").write_bytes((source / "cat" / "00.png").read_bytes()[:50])
    (source / "cat" / "nowhere.png").symlink_to("nowhere")
    os.mkfifo(source / "cat" / "pipe.png")
    (source / ".hidden").mkdir()
    found = []
    for ranks in (1, 2, 3):
        out = tmp_path / str(ranks) / "set"
        result = prepare(source, out, "--test", "0.2", "--shuffle", "3", ranks=ranks)
        assert "4 files skipped, see " in result.out and result.out.count("skipped ") == 4
        assert f"skipped {source}/dog/notes.txt: expected a PNG, JPEG, WebP or TIFF file\n" in result.out
        found.append(files(out))
        assert not list(out.parent.glob(".*"))
    assert found[0] == found[1] == found[2]
    assert [line.partition(":")[0] for line in found[0]["skipped.txt"].decode().splitlines()] == [
        f"{source}/{name}" for name in ("cat/cut.png", "cat/nowhere.png", "cat/pipe.png", "dog/notes.txt")
    ]
    manifest = read_manifest(tmp_path / "1" / "set")
    assert manifest.class_names == ("10", "9", "a bird", "cat", "dog") and manifest.image_shape == (8, 12, 3)
    assert manifest.source["skipped"] == "4 files that can't be read, listed in skipped.txt"
    both = [load(tmp_path / "1" / "set", split, SerialComm()) for split in ("train", "test")]
    counts = sum(np.bincount(samples.labels, minlength=5) for samples in both)
    assert counts.tolist() == [3, 4, 5, 13, 8]
    for samples in both:
        red = samples.pieces[0][..., 0].astype(int).reshape(len(samples), -1)
        expected = np.array([40 * list(CLASSES).index(name) + 20 for name in manifest.class_names])
        assert np.abs(red - expected[samples.labels][:, None]).max() <= 3


def test_the_bytes_are_the_same_under_mpirun(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "cat" / "cut.png").write_bytes(b"\x89PNG")
    prepare(source, tmp_path / "threads" / "set")
    words = ["--out", tmp_path / "mpirun" / "set", "--size", "8x12", "--shards", "5"]
    assert run(3, "-m", "dpcnn.data", "prepare", source, *words).status == 0
    assert files(tmp_path / "threads" / "set") == files(tmp_path / "mpirun" / "set")


def test_strict_refuses_what_would_be_skipped(tmp_path):
    source = write_folder(tmp_path / "source")
    (source / "cat" / "x.gif").write_bytes(b"GIF89a")
    result = prepare(source, tmp_path / "set", "--strict", ranks=2, status=2)
    assert f"{source}/cat/x.gif: expected a PNG, JPEG, WebP or TIFF file" in result.err
    assert not (tmp_path / "set").exists()


def test_folders_train_and_test_are_the_splits(tmp_path):
    for split, counts in (("train", CLASSES), ("test", {"dog": 3, "cat": 2})):
        write_folder(tmp_path / "source" / split, counts)
    prepare(tmp_path / "source", tmp_path / "set", "--colour", "grey")
    train, test = (load(tmp_path / "set", split, SerialComm()) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [3, 4, 5, 13, 8] and np.bincount(test.labels).tolist() == [
        0,
        0,
        0,
        2,
        3,
    ]
    assert train.manifest.image_shape == (8, 12, 1)
    result = prepare(tmp_path / "source", tmp_path / "other", "--test", "0.1", status=2)
    assert "--test: " in result.err and "has test samples of its own" in result.err


def test_a_csv_file_of_files_and_labels(tmp_path):
    source = write_folder(tmp_path / "source")
    rows = [(f"source/{name}/{n:02}.{form}", name) for name in ("cat", "dog") for n, form in ((0, "png"), (1, "jpeg"))]
    for header in ("", "file,label\n"):
        text = header + "\n".join(f'"{file}", {label}' for file, label in rows) + "\n\n"
        (tmp_path / "list.csv").write_text(text, encoding="utf-8-sig")
        out = tmp_path / f"set{len(header)}"
        prepare(tmp_path / "list.csv", out, "--test", "1", "--names", "dog,cat,bird")
        manifest = read_manifest(out)
        assert manifest.class_names == ("dog", "cat", "bird") and manifest.samples("train") == 3
    assert source.is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no files of the train samples"),
        ("file,label\n", "no files of the train samples"),
        ("a.png\n", "line 1 has 1 values; expected lines of file,label"),
        ("a.png,cat\nb.png,cat,dog\n", "line 2 has 3 values"),
        ("a\0.png,cat\n", "line 1 has a zero byte"),
        ("a.png,\x1b[2J\n", "class names: expected a name of printable characters"),
        ("a.png,cat\nb.png,dog\n", "none of the train pictures can be read; the first: "),
        ("".join(f"{n}.png,{n}\n" for n in range(65_536)), "more than 65,535 classes"),
    ],
)
def test_lists_that_are_not_so(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    error = prepare(tmp_path / "list.csv", tmp_path / "set", "--test", "1", status=2).err
    assert message in error and not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "holds pictures; give the height and width of the images, as in --size 64x64"),
        (["--size", "64"], "--size: expected a height and a width up to 4096, as in 64x64, not '64'"),
        (["--size", "0x64"], "--size: expected a height"),
        (["--size", "64x99999"], "--size: expected a height"),
        (["--size", "8x8", "--layout", "chw"], "--layout, --targets and --max-value are for arrays"),
        (["--size", "8x8", "--names", "cat,dog"], "the class '10' is not in --names"),
        (["--size", "8x8", "--resize", "mnist"], "--resize mnist makes grey images; give --colour grey"),
    ],
)
def test_wrong_flags_are_told(flags, message, tmp_path):
    source = write_folder(tmp_path / "source")
    result = command("data", "prepare", source, "--out", tmp_path / "set", *flags)
    assert result.status == 2 and message in result.err, result.err


def test_flags_of_pictures_are_refused_for_arrays(npz):
    with pytest.raises(DataError.__mro__[1], match="--size and --strict are for pictures"):
        read_source(npz, SourceOptions(size=(8, 8)))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path):
    write_folder(tmp_path / "few", {"a": 8, "b": 8})
    for name, count in (("few", 20), ("many", 600)):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                (tmp_path / name / label / f"link{n}.png").symlink_to(tmp_path / "few" / "a" / "00.png")
    peaks = []
    for name in ("few", "many"):
        words = (
            tmp_path / name,
            "--out",
            tmp_path / f"set of {name}",
            "--size",
            "256x256",
            "--contiguous",
            "--shards",
            "1",
        )
        peaks.append(peak_of_prepare(*words))
    assert (tmp_path / "set of many" / "train-00.h5").stat().st_size > 200_000_000
    assert peaks[1] - peaks[0] < 50_000


def test_predict_makes_images_as_prepare_does(tmp_path):
    source = write_folder(tmp_path / "source", {"cat": 12, "dog": 12})
    prepare(source, tmp_path / "set", "--test", "4")
    words = [
        "--validation",
        "4",
        "--batch",
        "8",
        "--microbatch",
        "4",
        "--epochs",
        "1",
        "--model",
        "mlp",
        "--warmup",
        "0",
    ]
    assert training("--data", tmp_path / "set", *words, "--out", tmp_path / "run").status == 0
    (source / "dog" / "notes.txt").write_text("no picture")
    whole = command("predict", tmp_path / "run", source, "--json", ranks=2)
    assert whole.status == 0 and whole.err.startswith(
        f"skipped {source}/dog/notes.txt: expected a PNG, JPEG, WebP, TIFF"
    )
    found = [json.loads(line) for line in whole.out.splitlines()]
    assert [each["file"] for each in found[:2]] == [f"{source}/cat/00.png", f"{source}/cat/01.jpeg"] and len(
        found
    ) == 24
    assert command("predict", tmp_path / "run", source / "dog" / "notes.txt").status == 2
    images = read_source(source, SourceOptions(size=(8, 12))).take("train", np.arange(24))[0]
    for each, image in zip(found[::5], images[::5], strict=True):
        np.savez(tmp_path / "x.npz", x=image[None])
        (alone,) = command("predict", tmp_path / "run", tmp_path / "x.npz", "--json").out.splitlines()
        assert json.loads(alone)["probabilities"] == each["probabilities"]
    assert read(tmp_path / "run" / "checkpoints" / "last.h5").resize == "crop"
