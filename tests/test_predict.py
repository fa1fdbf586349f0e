"""Pictures of any size and polarity become what the network knows, and bad files are refused."""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import command
from conftest import ROOT, environment

from dpcnn.data.characters import like_mnist
from dpcnn.data.dataset import find_data, load
from dpcnn.data.inputs import Input
from dpcnn.data.pictures import open_pictures, read_pictures
from dpcnn.errors import DataError
from dpcnn.nn.losses import softmax
from dpcnn.parallel.comm import SerialComm

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
HERE = Path("picture.png")


def digits(count):
    samples = load(find_data(str(ROOT / "data" / "mnist")), "test", SerialComm())
    images, labels = samples.take(np.arange(count))
    return images[..., 0], labels


def enlarged(digit, times=4, canvas=(300, 220), at=(150, 20)):
    """A digit, larger, somewhere on an empty sheet."""
    sheet = np.zeros(canvas)
    large = digit.repeat(times, axis=0).repeat(times, axis=1)
    sheet[at[0] : at[0] + len(large), at[1] : at[1] + len(large)] = large
    return sheet


def pictures(content: bytes, shape) -> np.ndarray:
    return read_pictures(Input(HERE, io.BytesIO(content)), shape, "mnist")


def png(picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(picture, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_mnist_s_own_digits_come_out_as_they_went_in():
    images, _ = digits(200)
    errors = [np.abs(like_mnist(HERE, enlarged(digit), (28, 28)).astype(int) - digit).mean() for digit in images]
    assert np.median(errors) < 0.2  # of 255; a shift by one pixel gives some 15
    assert np.mean(np.array(errors) < 1) > 0.95


def test_place_ground_and_polarity_do_not_matter():
    digit = digits(1)[0][0]
    expected = like_mnist(HERE, enlarged(digit), (28, 28))
    np.testing.assert_array_equal(like_mnist(HERE, enlarged(digit, at=(3, 99)), (28, 28)), expected)
    np.testing.assert_array_equal(like_mnist(HERE, 255 - enlarged(digit), (28, 28)), expected)
    grey = like_mnist(HERE, 200 - 0.6 * enlarged(digit), (28, 28))
    assert np.abs(grey.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [(28, 28), (12, 12), (32, 48)])
def test_the_centre_of_mass_is_in_the_middle_and_the_box_is_five_sevenths(size):
    made = like_mnist(HERE, enlarged(digits(8)[0][3]), size).astype(float)
    for axis in (0, 1):
        mass = made.sum(axis=1 - axis)
        assert abs((mass * np.arange(size[axis])).sum() / mass.sum() - size[axis] / 2) <= 0.51
    sides = [np.flatnonzero(made.any(axis=axis)) for axis in (0, 1)]
    assert abs(max(side[-1] - side[0] + 1 for side in sides) - min(size) * 5 / 7) <= 1


def test_transparent_and_coloured_and_deep_pictures(tmp_path):
    digit = enlarged(digits(1)[0][0])
    expected = pictures(png(255 - digit), (28, 28, 1))
    layered = np.zeros((*digit.shape, 4), np.uint8)  # black, seen where the digit is
    layered[..., 3] = digit
    found = pictures(png(layered), (28, 28, 1))
    assert expected.shape == (1, 28, 28, 1) and np.abs(found.astype(int) - expected).max() <= 2
    found = pictures(png(np.stack([255 - digit] * 3, axis=-1)), (28, 28, 1))
    assert np.abs(found.astype(int) - expected).max() <= 2
    file = io.BytesIO()
    Image.fromarray(((255 - digit) * 257).astype(np.uint16)).save(file, "PNG")
    found = pictures(file.getvalue(), (28, 28, 1))
    assert np.abs(found.astype(int) - expected).max() <= 2


def npz_file(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


IDX = b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes() + bytes(2 * 784)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file; expected a PNG, JPEG, WebP, TIFF, IDX or NPZ file"),
        (b"abcdef", "expected a PNG, JPEG, WebP, TIFF, IDX or NPZ file; it starts with b'abcd'"),
        (b"GIF89a", "a GIF picture; expected a PNG, JPEG, WebP, TIFF, IDX or NPZ file; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypheic", "a HEIC picture; expected a PNG, JPEG, WebP, TIFF, IDX or NPZ file; convert it"),
        (png(enlarged(np.full((28, 28), 200)))[:-40], "can't be read as a picture"),
        (png(np.full((50, 40), 255)), "the picture is blank"),
        (IDX[:-1], "its header says (2, 28, 28)"),
        (gzip.compress(IDX)[:-9], "can't be unpacked"),
        (npz_file(a=np.zeros((2, 28, 28), np.uint8))[:-30], "can't be read as NPZ"),
        (npz_file(a=np.array([{}], object)), "a.npy holds Python objects; convert it to an array of numbers or text"),
        (npz_file(**{"\x1b[2J": np.zeros((2, 2, 2), np.uint8), "b": np.zeros((2, 2, 2))}), r"found \x1b[2J, b"),
        (npz_file(a=np.zeros((2, 28, 28), np.bool_)), "bool images of (28, 28, 1)"),
        (npz_file(a=np.zeros(3)), "expected one array of images (n, H, W), found none"),
        (
            npz_file(a=np.zeros((2, 28, 28)), b=np.zeros((2, 28, 28))),
            "expected one array of images (n, H, W), found a, b; save one alone",
        ),
        (npz_file(a=np.zeros((2, 28, 28))), "float64 images of (28, 28, 1); this network takes uint8 of (28, 28, 1)"),
        (
            npz_file(a=np.zeros((2, 9, 9), np.uint8)),
            "uint8 images of (9, 9, 1); this network takes uint8 of (28, 28, 1)",
        ),
    ],
)
def test_bad_files_are_refused(content, message):
    with pytest.raises(DataError) as caught:
        pictures(content, (28, 28, 1))
    assert str(caught.value).startswith(f"{HERE}: ") and message in str(caught.value)


def sized(width: int, height: int) -> bytes:
    """A PNG whose header tells of another size."""
    content = png(np.zeros((9, 9)))
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


@pytest.mark.parametrize(
    ("width", "height", "told"),
    [
        (1, 50_000_000, "1 x 50000000"),
        (6000, 6000, "6000 x 6000"),
        (20_001, 1, "20001 x 1"),
        (12_000, 10_000, "12000 x 10000"),  # Pillow warns
        (100_000, 100_000, "too many"),  # Pillow refuses
    ],
)
def test_a_picture_of_too_many_pixels_is_not_unpacked(width, height, told):
    with pytest.raises(DataError) as caught:
        pictures(sized(width, height), (28, 28, 1))
    expected = f"{told} pixels; at most 32,000,000 are read, and 20,000 a side: make it smaller"
    assert str(caught.value) == f"{HERE}: {expected}"


@pytest.mark.parametrize("mode", ["L", *(pytest.param(m, marks=pytest.mark.slow) for m in ("RGB", "RGBA", "I;16"))])
def test_a_large_picture_is_made_smaller_and_says_the_same(mode):
    digit = digits(1)[0][0]
    expected = pictures(png(255 - enlarged(digit)), (28, 28, 1))
    large = 255 - enlarged(digit, times=120, canvas=(4000, 5000), at=(300, 900))
    picture = Image.fromarray(large.astype(np.uint8)).convert(mode) if mode != "I;16" else None
    picture = picture or Image.fromarray((large * 257).astype(np.uint16))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    found = pictures(file.getvalue(), (28, 28, 1)).astype(int)
    assert np.abs(found - expected).mean() < 1


def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path):
    """In a process of its own: the peak of its memory is the system's to tell."""
    Image.new("RGBA", (8000, 4000), "white").save(tmp_path / "large.png", compress_level=1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom dpcnn.data.pictures import open_pictures, read_pictures\n"
        "from dpcnn.errors import DataError\n"
        "try: read_pictures(open_pictures(Path(sys.argv[1])), (28, 28, 1), 'mnist')\n"
        "except DataError as error: print(error)\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    words = [sys.executable, "-c", code, tmp_path / "large.png"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60)
    told, peak = done.stdout.splitlines()
    assert "the picture is blank" in told and int(peak) < 1_000_000 and not done.stderr


def test_a_jpeg_of_endless_scans_is_refused():
    file = io.BytesIO()
    Image.fromarray(np.full((50, 40), 255, np.uint8)).save(file, "JPEG")
    with pytest.raises(DataError, match="100 scans"):
        pictures(file.getvalue()[:-2] + b"\xff\xda" * 1001, (28, 28, 1))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_random_damage_of_pictures_is_refused_or_does_no_harm(form, capfd):
    """Pillow raises many kinds of errors; none but ours comes out, nothing is printed, and no warning is an error."""
    picture, told = Image.fromarray((255 - enlarged(digits(1)[0][0])).astype(np.uint8)), Image.Exif()
    told[0x112], told[0x10E] = 6, "text"
    file = io.BytesIO()
    picture.convert("RGB").save(file, form, exif=told.tobytes(), icc_profile=bytes(300))
    draw, refused = random.Random(form), 0
    for number in range(300):
        try:
            pictures(damaged(file.getvalue(), draw, form == "PNG" and number % 2), (28, 28, 1))
        except DataError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 50 and capfd.readouterr() == ("", "")


def damaged(content: bytes, draw: random.Random, recheck: bool) -> bytes:
    """A copy with some other bytes, perhaps cut short; with ``recheck``, checksums of PNG chunks fit."""
    copy = bytearray(content)
    for _ in range(draw.choice((1, 2, 9))):
        place = draw.randrange(min(len(copy), draw.choice((200, 900, 10**6))))
        copy[place] = draw.choice((0, 255, draw.randrange(256)))
    if recheck:
        copy = rechecked(copy)
    return bytes(copy[: draw.choice((len(copy), draw.randrange(len(copy))))])


def rechecked(content: bytearray) -> bytearray:
    """A PNG with the checksums of its pieces as they must be, so that only what is inside can give it away."""
    place = 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return content


def test_stdin_is_bounded(monkeypatch):
    monkeypatch.setattr("dpcnn.data.pictures.MOST_BYTES", 100)
    for length, refused in ((100, False), (101, True)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(length))))
        if refused:
            with pytest.raises(DataError, match="-: at most 100 bytes are read from stdin; give a file"):
                open_pictures(Path("-"))
        else:
            assert open_pictures(Path("-")).size == 100


def test_the_number_of_classes_per_line_of_text(mlp_checkpoint):
    for flags, message in (
        (["--top", "2", "--json"], "--top: has no effect with --json and --csv"),
        (["--top", "2", "--csv"], "--top: has no effect with --json and --csv"),
        (["--top", "0"], "--top: must be at least 1, not 0"),
    ):
        result = command("predict", mlp_checkpoint, "x.png", *flags, ranks=2)
        assert result.status == 2 and message in result.errors[0]


def test_softmax():
    p = softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3)]]))
    np.testing.assert_allclose(p, [[0.5, 0.5], [0.25, 0.75]])


@pytest.mark.slow
def test_digits_as_pictures_and_as_arrays(mlp_checkpoint, tmp_path):
    images, labels = digits(60)
    for number, digit in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(png(255 - enlarged(digit, times=3)))
    Image.fromarray((255 - enlarged(images[0])).astype(np.uint8)).save(tmp_path / "0.jpg")
    (tmp_path / "raw.idx").write_bytes(b"\0\0\x08\x03" + np.array([60, 28, 28], ">u4").tobytes() + images.tobytes())
    files = [tmp_path / f"{number}.png" for number in range(60)]
    words = [mlp_checkpoint, *files, tmp_path / "0.jpg", tmp_path / "raw.idx", "--json"]
    result = command("predict", *words, ranks=2)
    assert result.status == 0, result.err
    found = [json.loads(line) for line in result.out.splitlines()]
    assert len(found) == 121 and all(abs(sum(each["probabilities"].values()) - 1) < 1e-9 for each in found)
    pictures, raw = [each["class"] for each in found[:60]], [each["class"] for each in found[61:]]
    assert found[60]["class"] == found[0]["class"] and found[120]["image"] == 59
    assert (np.array(raw) == labels).mean() > 0.8
    assert (np.array(pictures) == labels).mean() > 0.8


@pytest.mark.slow
def test_text_csv_and_stdin(mlp_checkpoint, tmp_path):
    seven = png(255 - enlarged(digits(1)[0][0]))
    (tmp_path / "seven.png").write_bytes(seven)
    words = [sys.executable, "-m", "dpcnn.predict", mlp_checkpoint, "-"]
    done = subprocess.run(words, input=seven, capture_output=True, env=environment(), timeout=60)
    assert done.stdout.decode().startswith("-: 7 (0.")
    result = command("predict", mlp_checkpoint, tmp_path / "seven.png", "--csv")
    header, row = csv.reader(result.out.splitlines())
    assert header[:4] == ["file", "image", "class", "p(0)"] and row[:3] == [str(tmp_path / "seven.png"), "0", "7"]
    result = command("predict", mlp_checkpoint, tmp_path / "nowhere.png", ranks=2)
    assert result.status == 2
    assert result.errors == [
        f"dpcnn: error: {tmp_path / 'nowhere.png'}: No such file or directory; give another file, or fix this"
    ]
