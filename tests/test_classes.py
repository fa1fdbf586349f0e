"""Class names: from any kind of labels into the manifest, and from there to everything that a user sees."""

import json

import numpy as np
import pytest
from commands import command, training
from sources import edit_manifest, synthetic

from dpcnn.data.classes import in_order, number_labels, read_names
from dpcnn.data.dataset import load
from dpcnn.data.reading import read_source
from dpcnn.data.shards import MANIFEST, read_manifest
from dpcnn.data.source_options import SourceOptions
from dpcnn.errors import ConfigError, DataError
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

NAMES = ("T-shirt", "Hose", "größer", "a, b", "€ $x$", "five", "6", "<b>bold</b>", "x" * 255, "犬")


def arrays(**changes) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file with some of them changed."""
    (x_train, y_train), (x_test, y_test) = synthetic(200, 1), synthetic(60, 2)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test} | changes


def prepare(tmp_path, *flags, status: int = 0, **changes):
    """Prepare such arrays as tmp_path/set; returns the result of the command."""
    np.savez(tmp_path / "x.npz", **arrays(**changes))
    result = command("data", "prepare", tmp_path / "x.npz", "--out", tmp_path / "set", *flags)
    assert result.status == status, result.err
    return result


def test_names_of_a_list_and_of_a_file(tmp_path):
    assert read_names("cat, dog,a bird") == ("cat", "dog", "a bird")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    assert read_names(str(tmp_path / "names.txt")) == NAMES
    for wrong, message in (
        ("cat,cat", "--names: two classes have the name 'cat'"),
        ("cat,,dog", "--names: expected a name of printable characters, not ''"),
        ("cat,\x1b[2J", "--names: expected a name of printable characters"),
        ("cat," + "x" * 256, "--names: expected a name of printable characters"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_names(wrong)
        assert str(caught.value).startswith(message)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_names(str(tmp_path / "names.txt"))


def test_numbers_are_ordered_by_their_value():
    assert in_order(["10", "9", "0"]) == ["0", "9", "10"]
    assert in_order(["10", "9", "a"]) == ["10", "9", "a"]


EXPECTED = synthetic(200, 1)[1], synthetic(60, 2)[1]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda y: y[:, None], [str(n) for n in range(10)]),
        (lambda y: np.eye(10)[y], [str(n) for n in range(10)]),
        (lambda y: np.eye(12, dtype=bool)[y], [str(n) for n in range(12)]),
        (lambda y: np.array(list("abcdefghij"))[y], list("abcdefghij")),
        (lambda y: np.array(list("abcdefghij"))[y][:, None].astype("S"), list("abcdefghij")),
        (lambda y: np.array([str(n + 5) for n in range(10)])[y], [str(n) for n in range(5, 15)]),
    ],
)
def test_labels_of_every_kind_are_the_same_numbers(form, names, tmp_path):
    prepare(tmp_path, y_train=form(EXPECTED[0]), y_test=form(EXPECTED[1]))
    assert list(read_manifest(tmp_path / "set").class_names) == names
    for split, labels in zip(("train", "test"), EXPECTED, strict=True):
        np.testing.assert_array_equal(load(tmp_path / "set", split, SerialComm()).labels, labels)


def test_given_names_decide_the_order_of_strings(tmp_path):
    letters = np.array(list("jihgfedcba"))
    prepare(tmp_path, "--names", ",".join("jihgfedcbak"), y_train=letters[EXPECTED[0]], y_test=letters[EXPECTED[1]])
    assert read_manifest(tmp_path / "set").classes == 11
    np.testing.assert_array_equal(load(tmp_path / "set", "train", SerialComm()).labels, EXPECTED[0])


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (np.array([[0, 1], [1, 1]]), None, "expected one-hot rows"),
        (np.array([[0.5, 0.5], [0, 1]]), None, "expected one-hot rows"),
        (np.zeros((2, 65_536), bool), None, "one-hot labels of 65,536 classes; 65,535 are supported"),
        (np.zeros((2, 2, 2), int), None, "expected labels of whole numbers or text, not int64 (2, 2, 2)"),
        (np.array([0, 2]), ("a", "b"), "labels up to 2, but --names has 2 names"),
        (np.array(["a", "c"]), ("a", "b"), "the class 'c' is not in --names"),
        (np.array(["a", "\x1b[2J"]), None, "class names: expected a name of printable characters"),
        (np.array(["a", ""]), None, "class names: expected a name of printable characters"),
        (np.array([str(n) for n in range(65_536)]), None, "65,536 classes; at most 65,535"),
        (np.array([f"{n:0200}" for n in range(20_000)]), None, "20,000 names take more than 2,097,152 bytes"),
        (np.array([0x61, 0x110000], np.uint32).view("U1"), None, "change the labels"),
    ],
)
def test_labels_that_are_no_classes(labels, names, message, tmp_path):
    with pytest.raises(DataError) as caught:
        number_labels(tmp_path / "x", {"train": labels}, names)
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_text_and_numbers_are_not_mixed(tmp_path):
    result = prepare(tmp_path, y_test=np.array(["a"] * 60), status=2)
    assert "some labels are text and some are numbers" in result.err


def test_a_manifest_of_before_names_its_classes_by_numbers(tmp_path):
    prepare(tmp_path, "--names", ",".join("abcdefghij"))
    before = read_manifest(tmp_path / "set").checksum
    edit_manifest(tmp_path / "set", lambda m: (m.pop("class_names"), m.pop("resize")))
    manifest = read_manifest(tmp_path / "set")
    assert manifest.class_names == tuple("0123456789") and manifest.resize == "crop" and manifest.checksum == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "class_names: expected 10 names, not 1"),
        (["a"] * 10, "class_names: two classes have the name 'a'"),
        (["\x1b[2J", *"bcdefghij"], "class_names: expected a name of printable characters"),
        ([1, *"bcdefghij"], "class_names: expected a name of printable characters"),
        ("abcdefghij", "class_names: expected a list"),
    ],
)
def test_a_manifest_with_wrong_names(names, message, tmp_path):
    prepare(tmp_path)
    edit_manifest(tmp_path / "set", lambda m: m.update(class_names=names))
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "set")
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_an_array_in_the_order_of_pytorch_is_not_guessed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 9), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(30) % 3, x_test=images, y_test=np.arange(30) % 3)
    with pytest.raises(DataError, match=r"images \(3, 8, 9\) look like \(channels, height, width\); give --layout chw"):
        read_source(tmp_path / "x.npz")
    for layout, expected in (("chw", images.transpose(0, 2, 3, 1)), ("hwc", images)):
        source = read_source(tmp_path / "x.npz", SourceOptions(layout=layout))
        assert source.image_shape == expected.shape[1:]
        np.testing.assert_array_equal(np.concatenate([i for i, _ in source.blocks("train", 0, 30)]), expected)


def test_a_source_without_test_samples_gives_some_of_each_class(tmp_path):
    images, labels = synthetic(200, 1)
    np.save(tmp_path / "x_train.npy", images)
    np.save(tmp_path / "y_train.npy", labels)
    found = []
    for ranks, seed in ((1, 0), (3, 0), (1, 1)):
        out = tmp_path / f"{ranks} {seed}" / "set"
        words = [tmp_path, "--out", out, "--test", "0.25", "--seed", str(seed), "--shards", "3"]
        assert command("data", "prepare", *words, ranks=ranks).status == 0
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1] != found[2]
    test, train = (load(tmp_path / "1 0" / "set", split, SerialComm()) for split in ("test", "train"))
    assert (len(test), len(train)) == (50, 150)
    assert np.abs(np.bincount(test.labels, minlength=10) - np.bincount(labels) / 4).max() < 1
    every = [image.tobytes() for samples in (test, train) for image in samples.pieces[0]]
    assert sorted(every) == sorted(image.tobytes() for image in images)
    for wrong in ("0", "200", "nan", "-1"):
        assert command("data", "prepare", tmp_path, "--out", tmp_path / "x", "--test", wrong).status == 2


def test_a_source_with_test_samples_gives_its_own(tmp_path):
    assert "has test samples of its own; drop the option" in prepare(tmp_path, "--test", "0.1", status=2).err
    assert "test samples of its own, so none are drawn" in prepare(tmp_path, "--seed", "0", status=2).err


@pytest.fixture(scope="module")
def named_run(tmp_path_factory):
    """A short run on classes with names of all kinds."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    prepare(folder, "--names", str(folder / "names.txt"))
    words = ["--validation", "50", "--batch", "50", "--epochs", "1", "--model", "small-cnn", "--warmup", "0"]
    result = training("--data", folder / "set", *words, "--out", folder / "run", ranks=2)
    assert result.status == 0, result.err
    return folder


def test_names_are_in_the_checkpoint_and_in_every_result(named_run):
    assert read(named_run / "run" / "checkpoints" / "last.h5").class_names == NAMES
    result = command("evaluate", named_run / "run", "--json", ranks=2)
    assert [each["name"] for each in json.loads(result.out)["classes"]] == list(NAMES)
    table = command("evaluate", named_run / "run", "--classes").out
    assert all(name in table for name in NAMES)
    assert all(name in command("data", "info", named_run / "set").out for name in NAMES)


def test_names_are_in_predictions(named_run, tmp_path):
    np.savez(tmp_path / "x.npz", x=synthetic(3, 4)[0])
    lines = command("predict", named_run / "run", tmp_path / "x.npz", "--json").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert all(list(each["probabilities"]) == list(NAMES) and NAMES[each["class"]] == each["name"] for each in found)
    text = command("predict", named_run / "run", tmp_path / "x.npz", "--top", "1").out.splitlines()
    assert [line.rpartition(" (")[0].partition(": ")[2] for line in text] == [each["name"] for each in found]
    assert command("predict", named_run / "run", tmp_path / "x.npz", "--top", "0").status == 2


def test_names_are_in_the_report(named_run, tmp_path):
    pytest.importorskip("matplotlib")
    result = command("report", named_run / "run", "--out", tmp_path / "page.html")
    assert result.status == 0 and not result.err, result.err
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<td>&lt;b&gt;bold&lt;/b&gt;</td>" in text and "<td>a, b</td>" in text and "digit" not in text


def test_names_go_out_and_come_back(named_run, tmp_path):
    pytest.importorskip("safetensors")
    onnx = pytest.importorskip("onnx")
    for form in ("onnx", "safetensors"):
        words = [named_run / "run", "--format", form, "--out", tmp_path / f"net.{form}"]
        assert command("export", *words).status == 0
    assert command("import", tmp_path / "net.safetensors", "--out", tmp_path / "net.h5").status == 0
    assert read(tmp_path / "net.h5").class_names == NAMES
    (entry,) = onnx.load(tmp_path / "net.onnx").metadata_props
    assert json.loads(entry.value)["class_names"] == list(NAMES)


def test_data_with_other_classes_is_refused(named_run, tmp_path):
    prepare(tmp_path, "--names", ",".join([*NAMES[:3], "else", *"efghij"]))
    for ranks in (1, 2):
        result = command("evaluate", named_run / "run", "--data", tmp_path / "set", ranks=ranks)
        assert (
            result.status == 2 and "its class 'a, b' is 'else' in set; prepare the data with the --names" in result.err
        )
    edit_manifest(tmp_path / "set", lambda m: m.pop("class_names"))
    assert (tmp_path / "set" / MANIFEST).exists()
    assert command("evaluate", named_run / "run", "--data", tmp_path / "set").status == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no names; expected one per line"),
        ("cat\n\ndog\n", "expected a name of printable characters, not ''"),
    ],
)
def test_a_file_of_names_without_names_or_with_a_gap_is_refused(tmp_path, content, message):
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_names(str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    assert read_names(str(tmp_path / "names.txt")) == ("cat", "dog")
