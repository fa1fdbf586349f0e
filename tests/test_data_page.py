"""The page on a data set: what it counts, and what it finds."""

import re

import numpy as np
import pytest
from commands import command

from dpcnn.data.dataset import load
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.data_page import doubtful, spread

pytest.importorskip("matplotlib", reason="Matplotlib is not installed")

RNG = np.random.default_rng(5)


def prepared(folder, images, labels, *words):
    test = RNG.integers(0, 256, (6, *images.shape[1:]), dtype=np.uint8)
    test[2] = images[4]
    np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=test, y_test=labels[:6])
    result = command("data", "prepare", folder / "set.npz", "--out", folder / "set", *words)
    assert result.status == 0, result.err
    return folder / "set"


def test_doubtful_samples_are_found(tmp_path):
    images, labels = RNG.integers(0, 256, (40, 9, 7, 3), dtype=np.uint8), np.arange(40) % 4
    images[7], images[9], images[29], images[31] = 17, images[5], images[2], images[3]
    labels[31] = labels[3]
    folder = prepared(tmp_path, images, labels)
    found = doubtful({split: load(folder, split, SerialComm()) for split in ("train", "test")})
    assert list(found.values()) == ["1: 7", "0", "3: 9, 29, 31", "1: 29", "1: 2"]


@pytest.mark.parametrize("targets", ["classes", "multilabel", "values"])
def test_a_page_has_counts_names_and_a_picture(tmp_path, targets):
    images = RNG.integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)
    labels = np.arange(40) % 3 if targets == "classes" else RNG.integers(0, 2, (40, 3))
    folder = prepared(tmp_path, images, labels, "--names", "a<b,two,three", "--targets", targets)
    result = command("data", "show", folder, "--page", tmp_path / "page.html", ranks=2)
    assert result.status == 0 and result.out.startswith(f"{tmp_path / 'page.html'}: "), result.err
    page = (tmp_path / "page.html").read_text()
    counts = np.bincount(labels) if targets == "classes" else labels.sum(axis=0)
    rows = re.findall(r"<tr><t[dh][^>]*>(a&lt;b|two|three)</t[dh]><td[^>]*>(\d+)</td>", page)
    assert [int(count) for _, count in rows] == counts.tolist(), page[:3000]
    assert page.count("<img") + page.count("<svg") == 1 and "Files that could not be read" not in page


def test_a_page_replaces_no_other_file(tmp_path):
    folder = prepared(tmp_path, RNG.integers(0, 256, (40, 9, 7, 3), dtype=np.uint8), np.arange(40) % 3)
    (tmp_path / "own.txt").write_text("mine\n")
    for page, message in (
        (tmp_path / "own.txt", "this command did not write it"),
        (tmp_path / "none" / "x", "no such folder"),
    ):
        result = command("data", "show", folder, "--page", page)
        assert result.status == 2 and message in result.errors[0]
    assert (tmp_path / "own.txt").read_text() == "mine\n"


def test_skipped_files_are_listed(tmp_path):
    from PIL import Image

    for number in range(6):
        for name in ("cat", "dog"):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"no picture")
    words = ["--size", "8x8", "--out", tmp_path / "set", "--test", "2"]
    assert command("data", "prepare", tmp_path / "photos", *words).status == 0
    assert command("data", "show", tmp_path / "set").status == 0
    page = (tmp_path / "set" / "samples.html").read_text()
    assert "Files that could not be read" in page and "broken.png" in page


def test_samples_are_spread_over_a_class():
    np.testing.assert_array_equal(spread(np.arange(7)), np.arange(7))
    np.testing.assert_array_equal(spread(np.arange(100, 200)), [100, 111, 122, 133, 144, 155, 166, 177, 188, 199])
