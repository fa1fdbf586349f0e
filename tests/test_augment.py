"""Changed training images: each change by hand, the same image in any batch, and the same run on any ranks."""

from pathlib import Path

import numpy as np
import pytest
from commands import dispatch, training

from dpcnn.base.options import options_of
from dpcnn.base.rng import SampleRng
from dpcnn.config import Config
from dpcnn.data.augment import AUGMENTATIONS, Augment, augmentations, colour_changes, jittered
from dpcnn.data.warp import Warp, bilinear, smoothing
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

SHAPE = (9, 12, 2)
IMAGES = np.random.default_rng(5).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
PIXELS = np.indices(SHAPE[:2], np.float32).reshape(2, -1)


def places(change: Warp, angle: float = 0, zoom: float = 0, down: float = 0, right: float = 0) -> np.ndarray:
    """Of one image, for these random numbers."""
    return change.affine(np.array([[angle, zoom]], np.float32), np.array([[down, right]], np.float32))


def changed(places: np.ndarray) -> np.ndarray:
    return bilinear(IMAGES[:1], places)[0]


def test_every_augmentation_is_listed():
    options = {each.name for each in options_of(Config) if each.metadata["help"].startswith("augmentation: ")}
    assert set(AUGMENTATIONS) == options
    assert augmentations(Config()) == "none"
    assert augmentations(Config(flip="both", crop_padding=4, zoom=0.25)) == "flip both, crop-padding 4, zoom 0.25"


def test_nothing_asked_for_is_nothing_done():
    assert Augment(SHAPE, Config())(IMAGES, SampleRng(0, 0, np.arange(6))) is IMAGES


def test_a_place_that_stays_keeps_its_value():
    np.testing.assert_array_equal(bilinear(IMAGES, np.broadcast_to(PIXELS, (6, 2, 108))), IMAGES)


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -3), (-1, 1)])
def test_a_shift_by_whole_pixels(down, right):
    expected = np.zeros(SHAPE)
    expected[max(0, down) : 9 + min(0, down), max(0, right) : 12 + min(0, right)] = IMAGES[
        0, max(0, -down) : 9 + min(0, -down), max(0, -right) : 12 + min(0, -right)
    ]
    found = changed(places(Warp(SHAPE, 4, 0, 0, 0), down=down / 4, right=right / 4))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_half_a_pixel_is_the_mean_of_two():
    found = changed(places(Warp(SHAPE, 1, 0, 0, 0), down=-0.5))
    below = np.concatenate([IMAGES[0, 1:], np.zeros((1, 12, 2))])
    np.testing.assert_allclose(found, (IMAGES[0].astype(float) + below) / 2, atol=1e-3)


def test_a_quarter_turn():
    square = (9, 9, 1)
    there = places(Warp(square, 0, 90, 0, 0), angle=1)
    found = bilinear(IMAGES[:1, :, :9, :1], there)[0]
    np.testing.assert_allclose(found, np.rot90(IMAGES[0, :, :9, :1], -1), atol=0.01)


def test_a_zoom_moves_places_towards_the_centre_or_away():
    change = Warp(SHAPE, 0, 0, 0.25, 0)
    centre = np.array([[4], [5.5]])
    np.testing.assert_allclose(places(change, zoom=1)[0] - centre, (PIXELS - centre) / 1.25, atol=1e-5)
    np.testing.assert_allclose(places(change, zoom=-1)[0] - centre, (PIXELS - centre) * 1.25, atol=1e-5)


def test_smoothing_leaves_the_variance_and_joins_neighbours():
    matrix = smoothing(28)
    covariance = matrix @ matrix.T
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-5)
    assert covariance[10, 11] > 0.98 and covariance[4, 24] < 0.02


def test_elastic_moves_have_the_deviation_asked_for(monkeypatch):
    """Of a picture whose values are the rows' numbers, so that what it becomes tells where it came from."""
    rows = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None], (200, 60, 60, 1))
    moved = Warp((60, 60, 1), 0, 0, 0, 1.5)(rows, SampleRng(0, 0, np.arange(200)))
    moves = (moved - rows)[:, 10:50, 10:50]
    assert abs(moves.mean()) < 0.1 and abs(moves.std() / 1.5 - 1) < 0.05
    assert abs(np.diff(moves, axis=2)).max() < 1.5, "neighbours go together"


def test_a_crop_of_the_whole_image_changes_no_place():
    whole = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    zero = np.zeros((1, 2), np.float32)
    np.testing.assert_allclose(Warp(SHAPE, 0, 0, 0, 0, 0.5).affine(zero, zero, whole)[0], PIXELS, atol=1e-6)


def test_crops_have_the_areas_and_proportions_asked_for_and_stay_within_the_image():
    change = Warp((40, 40, 1), 0, 0, 0, 0, 0.2)
    sides, offsets = change.crops(np.random.default_rng(1).random((2000, 4), np.float32))
    area, ratio = sides.prod(axis=1), sides[:, 1] / sides[:, 0]
    assert 0.19 < area.min() < 0.22 and area.max() > 0.97
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.34
    zeros = np.zeros((2000, 2), np.float32)
    found = change.affine(zeros, zeros, (sides, offsets))
    assert -1e-3 < found.min() < 0.01 and 38.99 < found.max() < 39.001


def augmented(images: np.ndarray, epoch: int = 0, **options) -> np.ndarray:
    """Images with these options, for the seed 3."""
    return Augment(images.shape[1:], Config(**options))(images, SampleRng(3, epoch, np.arange(len(images))))


MANY = np.broadcast_to(IMAGES[:1], (400, *SHAPE))


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", [()]), ("vertical", [(0,)]), ("both", [(), (0,)])])
def test_half_of_the_images_are_mirrored(flip, axes):
    """Each image is one of its mirror images, and each of these is found equally often."""
    possible = [np.flip(IMAGES[0], axis) for axis in axes if axis or flip != "vertical"]
    possible += [np.flip(each, 1) for each in possible] if flip != "vertical" else [IMAGES[0]]
    found = augmented(MANY, flip=flip)
    assert found.dtype == np.uint8
    counts = [int((found == each).all(axis=(1, 2, 3)).sum()) for each in possible]
    assert sum(counts) == len(MANY) and min(counts) > 0.7 * len(MANY) / len(possible)


def test_a_padded_crop_is_a_shift_by_whole_pixels():
    padded = np.pad(IMAGES[0], ((3, 3), (3, 3), (0, 0)))
    possible = [padded[row : row + 9, column : column + 12] for row in range(7) for column in range(7)]
    found = augmented(MANY, crop_padding=3)
    counts = [int((found == each).all(axis=(1, 2, 3)).sum()) for each in possible]
    assert found.dtype == np.uint8 and sum(counts) == len(MANY) and counts.count(0) < 3


def test_a_crop_from_beyond_the_image_is_empty():
    found = augmented(MANY, crop_padding=20)
    assert not found.reshape(400, -1).any(axis=1).all() and found.any()


@pytest.mark.parametrize("side", [1, 4, 30])
def test_cutout_is_a_square_of_zeros_within_the_image(side):
    images = np.full((300, 9, 12, 2), 7, np.uint8)
    holes = augmented(images, cutout=side)[..., 0] == 0
    assert images.all(), "the images themselves are unchanged"
    rows, columns = holes.any(axis=2), holes.any(axis=1)
    assert (holes == rows[:, :, None] & columns[:, None, :]).all(), "one rectangle in each image"
    assert rows.sum(axis=1).max() == min(side, 9) and columns.sum(axis=1).max() == min(side, 12)
    assert rows.any(axis=0).all() and columns.any(axis=0).all(), "everywhere"


def draws(brightness: float = 0.5, contrast: float = 0.5, saturation: float = 0.5) -> dict[str, np.ndarray]:
    """Random numbers of 16 bits for one image, given as fractions."""
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    return {name: np.array([round(65535 * value)], np.uint16) for name, value in given.items()}


COLOURED = np.random.default_rng(6).integers(60, 160, (1, 5, 4, 3), dtype=np.uint8)
GREY = COLOURED @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        ({"brightness": 1}, 1.4 * COLOURED),
        ({"brightness": 0}, 0.6 * COLOURED),
        ({"contrast": 0}, GREY.mean() + 0.6 * (COLOURED - GREY.mean())),
        ({"contrast": 1, "brightness": 0}, 0.6 * (GREY.mean() + 1.4 * (COLOURED - GREY.mean()))),
        ({"saturation": 0}, GREY[..., None] + 0.6 * (COLOURED - GREY[..., None])),
    ],
)
def test_colours_change_by_their_definitions(draw, expected):
    found = jittered(COLOURED, *colour_changes(COLOURED, draws(**draw), 0.4))
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.02)


def test_grey_images_have_brightness_and_contrast_only():
    grey = COLOURED[..., :1]
    maps = colour_changes(grey, draws(saturation=0), 0.4)
    np.testing.assert_allclose(jittered(grey, *maps), grey, atol=0.02)
    darker = jittered(grey, *colour_changes(grey, draws(brightness=0, saturation=1), 0.4))
    np.testing.assert_allclose(darker, 0.6 * grey, atol=0.02)


EVERYTHING = {
    "shift": 2.0, "rotation": 20.0, "zoom": 0.2, "elastic": 0.5,
    "flip": "both", "crop_padding": 2, "crop_area": 0.5, "colour_jitter": 0.3, "cutout": 3,
}  # fmt: skip


def test_an_image_is_changed_alike_in_any_batch_and_otherwise_in_another_epoch():
    change = Augment(SHAPE, Config(**EVERYTHING))
    whole = change(IMAGES, SampleRng(3, 1, np.arange(6)))
    assert whole.dtype == np.float32 and whole.min() >= 0 and whole.max() <= 255
    np.testing.assert_array_equal(change(IMAGES[[4, 2]], SampleRng(3, 1, np.array([4, 2]))), whole[[4, 2]])
    for other in (SampleRng(3, 2, np.arange(6)), SampleRng(4, 1, np.arange(6))):
        assert (np.abs(change(IMAGES, other) - whole).max(axis=(1, 2, 3)) > 1).all()


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    """70 training images of 8 x 8 x 3 in three classes."""
    folder, rng = tmp_path_factory.mktemp("coloured"), np.random.default_rng(5)
    arrays = {f"x_{split}": rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for split, n in (("train", 70), ("test", 4))}
    np.savez(folder / "source.npz", **arrays, y_train=np.arange(70) % 3, y_test=np.arange(4) % 3)
    dispatch(SerialComm(), ["prepare", str(folder / "source.npz"), "--out", str(folder / "set"), "--shards", "2"])
    return folder / "set"


CHANGES = [
    ["--flip", "both"],
    ["--crop-padding", "2"],
    ["--crop-area", "0.3"],
    ["--colour-jitter", "1"],
    ["--cutout", "3"],
]


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_each_change_gives_the_same_weights_on_any_ranks(change, coloured, tmp_path):
    fixed = [
        "--data",
        coloured,
        "--model",
        "mlp",
        "--epochs",
        "1",
        "--batch",
        "24",
        "--microbatch",
        "5",
        "--warmup",
        "0",
    ]
    found = {}
    for ranks in (1, 2, 3):
        result = training(*fixed, *change, "--out", tmp_path / str(ranks), ranks=ranks)
        assert result.status == 0, result.err
        found[ranks] = read(tmp_path / str(ranks) / "checkpoints" / "last.h5").weights_sha256
    plain = training(*fixed, "--out", tmp_path / "plain")
    assert plain.status == 0 and len(set(found.values())) == 1
    assert read(tmp_path / "plain" / "checkpoints" / "last.h5").weights_sha256 != found[1]
