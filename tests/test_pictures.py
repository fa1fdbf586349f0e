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

from dpcnn.data.dataset import find_data, load
from dpcnn.data.decoding import read_image
from dpcnn.data.file_names import names_of
from dpcnn.data.inputs import Input, open_input
from dpcnn.data.reading import read_source
from dpcnn.data.shards import read_manifest
from dpcnn.data.source_options import SourceOptions
from dpcnn.errors import ConfigError, DataError
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
        assert f"skipped {source}/dog/notes.txt: expected a PNG, JPEG, WebP or TIFF file; it starts with " in result.out
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
    for split, samples in zip(("train", "test"), both, strict=True):
        order = np.random.default_rng(1).permutation(len(samples))
        names = names_of(tmp_path / "1" / "set", manifest, split, order)
        classes = [manifest.class_names[label] for label in samples.labels[order]]
        assert [os.path.dirname(name) for name in names] == classes
        for name, number in zip(names, order.tolist(), strict=True):
            (exact,) = samples.take(np.array([number]))[0]
            with open_input(source / name) as file:
                np.testing.assert_array_equal(exact, read_image(file, manifest.image_shape, "crop"))
        red = samples.pieces[0][..., 0].astype(int).reshape(len(samples), -1)
        expected = np.array([40 * list(CLASSES).index(name) + 20 for name in manifest.class_names])
        assert np.abs(red - expected[samples.labels][:, None]).max() <= 3


def test_names_of_files_are_not_trusted(tmp_path):
    prepare(write_folder(tmp_path / "source", {"cat": 6, "dog": 6}), tmp_path / "set", "--test", "4", "--shards", "1")
    manifest, path = read_manifest(tmp_path / "set"), tmp_path / "set" / "test-00.txt"

    def names():
        return names_of(tmp_path / "set", manifest, "test", np.array([3, 0]))

    path.write_bytes(b"a\x1b[2J\nb\nc\n" + b"d" * 1000 + b"\xff\n")
    last, first = names()
    assert first == r"a\x1b[2J" and len(last) == 255 and last.endswith("d\N{REPLACEMENT CHARACTER}")
    path.write_bytes(b"a\nb\nc\n")
    with pytest.raises(DataError, match="test-00.txt: 3 names of 4 samples; delete it, or prepare again"):
        names()
    path.unlink()
    assert names() == []
    os.mkfifo(path)
    with pytest.raises(DataError, match="test-00.txt: not a plain file"):
        names()


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
    assert f"{source}/cat/x.gif: a GIF picture; expected a PNG, JPEG, WebP or TIFF file" in result.err
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
        ("", "no files; expected lines of file,label"),
        ("file,label\n", "no files; expected lines of file,label"),
        ("a.png\n", "line 1 has 1 value; expected lines of file,label"),
        ("a.png,cat\nb.png,cat,dog\n", "line 2 has 3 values"),
        ("a\0.png,cat\n", "line 1 has a zero byte"),
        ("file;label\na.png;cat\n", "line 1 has semicolons between its values in place of commas; expected lines"),
        ("a.png\tcat\n", "line 1 has tabs between its values in place of commas"),
        ("a.png,cat\rb.png,dog\r", "line 1 has a carriage return (CR) inside; end the lines with LF or CR LF"),
        ("label,file\ncat,a.png\n", "line 1 has the label before the file; exchange the columns"),
        ("file,label\na.png,cat\ndog,B.JPG\n", "line 3 has the label before the file; exchange the columns"),
        ("a.png,chat\nb.png,\udce9l\udce9phant\n", "line 2 is not in UTF-8, but perhaps in Latin-1; save the file as"),
        ("a.png,\x1b[2J\n", "class names: expected a name of printable characters"),
        ("a.png,cat\nb.png,dog\n", "none of the train pictures can be read; the first: "),
        ("".join(f"{n}.png,{n}\n" for n in range(65_536)), "more than 65,535 classes"),
        ("a.png,cat\n" * 20_000 + f"{'b' * 100_000},dog\n", "shorten the one of 100,000 bytes"),
    ],
)
def test_lists_that_are_not_so(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text, errors="surrogateescape")
    error = prepare(tmp_path / "list.csv", tmp_path / "set", "--test", "1", status=2).err
    assert message in error and not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "holds pictures; give the height and width of the images, as in --size 64x64"),
        (["--size", "6x4x3"], "--size: expected a height and a width up to 4096, as in 64x64, not '6x4x3'"),
        (["--size", "large"], "--size: expected a height"),
        (["--size", "0x64"], "--size: expected a height"),
        (["--size", "64x99999"], "--size: expected a height"),
        (["--size", "8x8", "--layout", "chw"], "--layout and --max-value are for arrays"),
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
    with pytest.raises(ConfigError, match="--colour: is for pictures"):
        read_source(npz, SourceOptions(colour="rgb"))


def test_one_side_makes_a_square(tmp_path):
    for number, size in enumerate(("8", "8x8", "8X8")):
        out = tmp_path / str(number) / "set"
        command("data", "prepare", write_folder(tmp_path / f"{number} of"), "--out", out, "--size", size)
        assert read_manifest(out).image_shape == (8, 8, 3)


def test_a_folder_of_another_form_is_told_with_what_to_do(tmp_path):
    source = write_folder(tmp_path / "photos", {"cat": 12, "dog": 9})
    write_folder(tmp_path / "parts" / "train", {"cat": 3})
    write_folder(tmp_path / "parts" / "val", {"cat": 2})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    for folder, message in (
        (
            source / "cat",
            f"{source}/cat: pictures without a folder for their class, such as 00.png; expected a folder ",
        ),
        (tmp_path, f"{tmp_path}: the pictures lie deeper, such as "),
        (tmp_path / "parts", f"{tmp_path}/parts: expected the folders train and test, not val; a training draws its "),
        (tmp_path / "empty", f"{tmp_path}/empty: no pictures; expected a folder of pictures for each class, as in "),
        (tmp_path / "nothing", f"{tmp_path}/nothing: expected a folder of pictures for each class, or train-images"),
        (source / "cat" / "00.png", f"{source}/cat/00.png: expected an NPZ file with x_train and y_train"),
    ):
        error = prepare(folder, tmp_path / "set", status=2).err
        assert message in error and error.count("\n") == 1, error
    (tmp_path / "parts" / "val").rename(tmp_path / "parts" / "Test")
    prepare(tmp_path / "parts", tmp_path / "set")
    assert read_manifest(tmp_path / "set").samples("test") == 2


def test_a_training_on_pictures_tells_how_to_prepare_them(tmp_path, monkeypatch):
    write_folder(tmp_path / "my photos", {"cat": 2})
    monkeypatch.chdir(tmp_path)
    made = "dpcnn data prepare 'my photos' --out 'my photos-set' --size 64x64; then give --data my photos-set"
    with pytest.raises(DataError, match=f"my photos: pictures, not a data set; make one from them: {made}$"):
        find_data("my photos")


def test_classes_that_are_too_small_and_files_that_are_left_out_are_told(tmp_path):
    source = write_folder(tmp_path / "source", {"cat": 12, "dog": 1, "eel": 2, "fox": 3})
    (source / "gnu").mkdir()
    (source / "cat" / "kittens").mkdir()
    (source / "beside.JPG").write_bytes(b"")
    for picture in (source / "eel").iterdir():
        picture.write_bytes(b"")
    (source / "fox" / "00.png").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (source / "fox" / "01.jpeg").unlink()
    lines = prepare(source, tmp_path / "set", "--test", "1").out.splitlines()
    assert lines[:-5] == [
        f"warning: {source}/beside.JPG: pictures outside the folders of the classes are left out",
        f"warning: {source}/cat/kittens: a folder within that of a class is left out",
        f"warning: {source}/gnu: holds no files, so it is no class",
        "warning: classes without training samples: eel",
        "warning: classes with a single training sample: dog, fox",
    ]
    expected = "expected a PNG, JPEG, WebP or TIFF file"
    assert lines[-5:-2] == [
        *(f"skipped {source}/eel/0{n}.{form}: an empty file; {expected}; get the file again, or delete it"
          for n, form in ((0, "png"), (1, "jpeg"))),
        f"skipped {source}/fox/00.png: a HEIC picture; {expected}; convert it to JPEG or PNG",
    ]  # fmt: skip
    alone = prepare(write_folder(tmp_path / "one", {"cat": 8}), tmp_path / "alone", "--shards", "1").out
    assert alone == (
        "warning: the training samples are all of one class; a network needs two or more\n"
        f"{tmp_path}/alone: 8 samples in 2 shards\n"
    )


def test_one_file_is_not_files(tmp_path):
    source = write_folder(tmp_path / "source", {"cat": 5, "dog": 5})
    (source / "cat" / "x.gif").write_bytes(b"GIF89a")
    assert "\n1 file skipped, see " in prepare(source, tmp_path / "set").out
    assert read_manifest(tmp_path / "set").source["skipped"] == "1 file that can't be read, listed in skipped.txt"


STARTS_OF_OTHERS = {
    b"\0\0\0\x18ftypmif1": "a HEIC picture",
    b"\0\0\0\x1cftypavif": "an AVIF picture",
    b"\0\0\0\x20ftypisom": "a film",
    b"GIF89a": "a GIF picture",
    b"BM6\0\0\0": "a BMP picture",
    b"%PDF-1.7": "a PDF document",
    b"II*\0\x10\0\0\0CR\2\0": "a raw picture of a camera (CR2)",
    b"IIRO\x08\0\0\0": "a raw picture of a camera (ORF)",
    b"IIU\0\x18\0\0\0": "a raw picture of a camera (RW2)",
}


@pytest.mark.parametrize("start", STARTS_OF_OTHERS)
def test_files_of_other_types_are_named(start, tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "cat" / name).write_bytes(start + bytes(40))
    error = prepare(tmp_path, tmp_path / "set", "--strict", "--test", "1", status=2).err
    expected = "expected a PNG, JPEG, WebP or TIFF file; convert it to JPEG or PNG"
    assert f".jpg: {STARTS_OF_OTHERS[start]}; {expected}" in error


def tiff(order: str, *tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF file of 2 x 2 grey pixels; ``tags``: in place of its own, or besides them, (tag, type, count, value)."""
    own = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    own += [(277, 3, 1, 1), (278, 4, 1, 2), (279, 4, 1, 4)]
    entries = {entry[0]: entry for entry in [*own, *tags]}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 12) + bytes([0, 80, 160, 240])
    body = [
        struct.pack(f"{order}HHI", *entry[:3]) + struct.pack(f"{order}H2x" if entry[1] == 3 else f"{order}I", entry[3])
        for _, entry in sorted(entries.items())
    ]
    return head + struct.pack(f"{order}H", len(body)) + b"".join(body) + bytes(4)


REDUCED, PAGE = (254, 4, 1, 1), (254, 4, 1, 2)
MORE = (330, 4, 1, 8)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("tags", "raw"),
    [
        ([(50706, 1, 4, 0x01040000)], True),  # DNG
        ([REDUCED, MORE], True),  # NEF and ARW: a thumbnail, and the sensor's picture behind it
        ([(262, 3, 1, 32803)], True),
        ([(262, 3, 1, 34892)], True),
        ([], False),
        ([REDUCED], False),
        ([PAGE, MORE], False),
    ],
)
def test_raw_pictures_of_cameras_are_told_from_other_tiff_files(order, tags, raw):
    content = tiff(order, *tags)
    if not raw:
        assert image(content, (2, 2, 1)).ravel().tolist() == [0, 80, 160, 240]
        return
    with pytest.raises(DataError, match="picture: a raw picture of a camera, .*; convert it to JPEG or PNG"):
        image(content)


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
    bad = [source / "dog" / "notes.txt", tmp_path / "nowhere.png"]
    some = command("predict", tmp_path / "run", bad[0], source / "cat" / "00.png", bad[1], "--json", ranks=2)
    assert some.status == 2 and json.loads(some.out)["file"] == str(source / "cat" / "00.png")
    assert [line.partition(": ")[2].split(": ")[1] for line in some.errors] == [str(path) for path in bad]
    (tmp_path / "none").mkdir()
    none = command("predict", tmp_path / "run", tmp_path / "none", tmp_path / "none")
    assert none.status == 2 and none.out == "" and "none: no file in this folder can be read" in none.errors[0]
    images = read_source(source, SourceOptions(size=(8, 12))).take("train", np.arange(24))[0]
    for each, image in zip(found[::5], images[::5], strict=True):
        np.savez(tmp_path / "x.npz", x=image[None])
        (alone,) = command("predict", tmp_path / "run", tmp_path / "x.npz", "--json").out.splitlines()
        assert json.loads(alone)["probabilities"] == each["probabilities"]
    assert read(tmp_path / "run" / "checkpoints" / "last.h5").resize == "crop"
