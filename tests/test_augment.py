"""Changed training images: each change by hand, and the same image in any batch."""

import numpy as np
import pytest

from dpcnn.base.rng import SampleRng
from dpcnn.data.augment import Augment, bilinear, smoothing

SHAPE = (9, 12, 2)
IMAGES = np.random.default_rng(5).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
PIXELS = np.indices(SHAPE[:2], np.float32).reshape(2, -1)


def places(change: Augment, angle: float = 0, zoom: float = 0, down: float = 0, right: float = 0) -> np.ndarray:
    """Of one image, for these random numbers."""
    return change.affine(np.array([[angle, zoom]], np.float32), np.array([[down, right]], np.float32))


def changed(places: np.ndarray) -> np.ndarray:
    return bilinear(IMAGES[:1], places)[0]


def test_nothing_asked_for_is_nothing_done():
    assert Augment(SHAPE, 0, 0, 0, 0)(IMAGES, SampleRng(0, 0, np.arange(6))) is IMAGES


def test_a_place_that_stays_keeps_its_value():
    np.testing.assert_array_equal(bilinear(IMAGES, np.broadcast_to(PIXELS, (6, 2, 108))), IMAGES)


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -3), (-1, 1)])
def test_a_shift_by_whole_pixels(down, right):
    expected = np.zeros(SHAPE)
    expected[max(0, down) : 9 + min(0, down), max(0, right) : 12 + min(0, right)] = IMAGES[
        0, max(0, -down) : 9 + min(0, -down), max(0, -right) : 12 + min(0, -right)
    ]
    found = changed(places(Augment(SHAPE, 4, 0, 0, 0), down=down / 4, right=right / 4))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_half_a_pixel_is_the_mean_of_two():
    found = changed(places(Augment(SHAPE, 1, 0, 0, 0), down=-0.5))
    below = np.concatenate([IMAGES[0, 1:], np.zeros((1, 12, 2))])
    np.testing.assert_allclose(found, (IMAGES[0].astype(float) + below) / 2, atol=1e-3)


def test_a_quarter_turn():
    square = (9, 9, 1)
    there = places(Augment(square, 0, 90, 0, 0), angle=1)
    found = bilinear(IMAGES[:1, :, :9, :1], there)[0]
    np.testing.assert_allclose(found, np.rot90(IMAGES[0, :, :9, :1], -1), atol=0.01)


def test_a_zoom_moves_places_towards_the_centre_or_away():
    change = Augment(SHAPE, 0, 0, 0.25, 0)
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
    moved = Augment((60, 60, 1), 0, 0, 0, 1.5)(rows, SampleRng(0, 0, np.arange(200)))
    moves = (moved - rows)[:, 10:50, 10:50]
    assert abs(moves.mean()) < 0.1 and abs(moves.std() / 1.5 - 1) < 0.05
    assert abs(np.diff(moves, axis=2)).max() < 1.5, "neighbours go together"


def test_an_image_is_changed_alike_in_any_batch_and_otherwise_in_another_epoch():
    change = Augment(SHAPE, 2, 20, 0.2, 0.5)
    whole = change(IMAGES, SampleRng(3, 1, np.arange(6)))
    assert whole.dtype == np.float32 and whole.min() >= 0 and whole.max() <= 255
    np.testing.assert_array_equal(change(IMAGES[[4, 2]], SampleRng(3, 1, np.array([4, 2]))), whole[[4, 2]])
    for other in (SampleRng(3, 2, np.arange(6)), SampleRng(4, 1, np.arange(6))):
        assert (np.abs(change(IMAGES, other) - whole).max(axis=(1, 2, 3)) > 1).all()
