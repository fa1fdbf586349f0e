"""Layers: against their definitions, and their gradients against finite differences in float64."""

from math import prod
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dpcnn.base import arrays
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn import (
    activations,
    algorithms,
    convolution,
    grouped,
    large,
    mec,
    pooling,
    reference,
    sample_norm,
    winograd,
)
from dpcnn.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from dpcnn.nn.algorithms import choose_algorithm
from dpcnn.nn.convolution import output_length
from dpcnn.nn.direct import Direct
from dpcnn.nn.grouped import Depthwise, Grouped, Pointwise, Whole
from dpcnn.nn.large import SIDES, Large
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Normalise, Scale
from dpcnn.nn.mec import Mec
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from dpcnn.nn.sample_norm import GroupNorm, LayerNorm, LocalResponseNorm
from dpcnn.nn.strided import SHORT_RUN, Dilated, Strided
from dpcnn.nn.tuning import BY_WIDTH
from dpcnn.nn.winograd import MOST_OUTPUTS, MOST_SIDE, POINTS, Winograd, cook_toom

RNG = np.random.default_rng(7)
EPSILON = 1e-6

CONVOLUTIONS = [  # (input H, W, C), filters, kernel, stride, padding
    ((28, 28, 1), 16, (3, 3), 1, 1),
    ((7, 9, 3), 4, (3, 3), 1, 1),
    ((8, 8, 2), 5, (5, 5), 1, 0),
    ((9, 7, 3), 2, (3, 2), 2, 1),
    ((11, 11, 2), 3, (4, 4), 3, 0),
    ((5, 5, 4), 6, (1, 1), 1, 0),
    ((6, 6, 1), 2, (5, 5), 2, 2),
    ((8, 6, 8), 5, (3, 3), 1, 1),  # from here on Winograd's
    ((3, 4, 9), 3, (3, 3), 1, 0),
    ((7, 5, 8), 3, (3, 3), 1, 2),
    ((14, 14, 16), 7, (3, 3), 1, 1),
    ((10, 9, 4), 3, (5, 5), 1, 2),
    ((7, 8, 5), 2, (7, 7), 1, 3),
    ((6, 5, 4), 3, (2, 2), 1, 0),
    ((12, 11, 2), 3, (5, 5), 2, 2),  # from here on by blocks
    ((13, 9, 3), 4, (7, 7), 2, 3),
    ((23, 20, 1), 2, (11, 11), 4, 2),
    ((9, 10, 9), 3, (3, 3), 2, 1),
    ((9, 8, 4), 5, (2, 2), 2, 0),
]


def image_batch(images: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Random images (H, W, N, C)."""
    H, W, C = shape
    return RNG.standard_normal((H, W, images, C))


def connected(layer: Layer, shape: tuple[int, ...], dtype=np.float64):
    """A layer with random weights."""
    layer.build(shape)
    return layer, {p.name: RNG.standard_normal(p.shape).astype(dtype) for p in layer.parameters}


def check_gradients(layer: Layer, weights: dict, x: np.ndarray, draw: SampleRng | None = None) -> None:
    """Along a random direction of everything, the loss sum(c * y) changes as the gradients say."""
    y, backward = layer.forward(x.copy(), weights, draw)
    c = RNG.standard_normal(y.shape)
    gradients = {name: np.full_like(w, np.nan) for name, w in weights.items()}
    dx = backward(c.copy(), gradients).copy()
    directions = {name: RNG.standard_normal(w.shape) for name, w in weights.items()}
    direction = RNG.standard_normal(x.shape)

    def loss(t: float) -> float:
        moved = {name: w + t * directions[name] for name, w in weights.items()}
        return float((c * layer.forward(x + t * direction, moved, draw)[0]).sum())

    numeric = (loss(EPSILON) - loss(-EPSILON)) / (2 * EPSILON)
    analytic = (dx * direction).sum() + sum((gradients[name] * directions[name]).sum() for name in weights)
    assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("shape", "filters", "kernel", "stride", "padding"), CONVOLUTIONS)
@pytest.mark.parametrize("images", [1, 5, 19])
@pytest.mark.parametrize("band", [1, 40_000, 1 << 30])  # bytes: one row at a time, some, all
def test_conv2d_is_its_definition(shape, filters, kernel, stride, padding, images, band, monkeypatch):
    monkeypatch.setattr(convolution, "BAND", band)
    layer, weights = connected(Conv2d(filters, kernel, stride, padding), shape)
    x = image_batch(images, shape)
    y, _ = layer.forward(x, weights)
    OH, OW, F = layer.build(shape)
    assert y.shape == (OH, OW, images, F)
    terms = reference.conv2d(np.abs(x), np.abs(weights["w"]), stride, padding).max()  # rounding errors grow with these
    np.testing.assert_allclose(y, reference.conv2d(x, weights["w"], stride, padding), rtol=0, atol=5e-14 * terms)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("band", [1, 1 << 20])
@pytest.mark.parametrize(("shape", "filters", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_conv2d_gradients(shape, filters, kernel, stride, padding, band, bias, monkeypatch):
    monkeypatch.setattr(convolution, "BAND", band)
    layer, weights = connected(Conv2d(filters, kernel, stride, padding, bias), shape)
    check_gradients(layer, weights, image_batch(18, shape))


GROUPED = [  # input H, W, C; filters, kernel, stride, padding, groups, dilation
    ((5, 6, 4), 3, (1, 1), 2, 0, 1, 1),
    ((6, 5, 4), 4, (1, 1), 1, 0, 2, 1),
    ((9, 7, 2), 3, (3, 2), 1, 2, 1, 2),
    ((9, 9, 8), 2, (3, 3), 2, 3, 1, 3),
    ((6, 7, 4), 4, (3, 3), 1, 1, 4, 1),
    ((9, 8, 3), 3, (5, 3), 2, 2, 3, 1),
    ((9, 8, 3), 3, (3, 3), 2, 2, 3, 2),
    ((6, 5, 3), 6, (3, 3), 1, 1, 3, 1),
    ((6, 6, 18), 4, (3, 3), 1, 1, 2, 1),
    ((6, 6, 12), 18, (3, 3), 1, 1, 6, 1),
    ((5, 6, 8), 8, (1, 1), 1, 0, 4, 1),
    ((5, 5, 10), 5, (3, 3), 1, 1, 5, 1),
    ((11, 12, 3), 3, (2, 5), 4, 3, 3, 3),
    ((4, 5, 3), 3, (1, 1), 3, 0, 3, 1),
]


@pytest.mark.parametrize(("shape", "filters", "kernel", "stride", "padding", "groups", "dilation"), GROUPED)
@pytest.mark.parametrize(("band", "together"), [(1, 1), (8, 4), (1 << 30, 1 << 30)])
def test_grouped_and_dilated_convolutions_are_their_definition_and_gradient(
    shape, filters, kernel, stride, padding, groups, dilation, band, together, monkeypatch
):
    monkeypatch.setattr(convolution, "BAND", band)
    monkeypatch.setattr(grouped, "SUMMED", band)
    monkeypatch.setattr(algorithms, "GROUPED_CHANNELS", together)
    layer, weights = connected(Conv2d(filters, kernel, stride, padding, True, groups, dilation), shape)
    x = image_batch(5, shape)
    y, _ = layer.forward(x, weights)
    expected = reference.conv2d(x, weights["w"], stride, padding, groups, dilation) + weights["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-11, atol=1e-11)
    check_gradients(layer, weights, x)


@pytest.mark.parametrize(("groups", "message"), [(3, "the 8 filters, not 3"), (4, "the 6 channels, not 4")])
def test_groups_divide_channels_and_filters(groups, message):
    with pytest.raises(ConfigError, match=f"groups: must divide {message}"):
        Conv2d(8, 3, groups=groups).build((5, 5, 6))


BANDS = pytest.mark.parametrize(("long", "most"), [(1, 1), (60, 1000), (1 << 11, 1 << 20)])  # one pixel, some, all


@BANDS
@pytest.mark.parametrize("kind", [ReLU, LeakyReLU, GELU, SiLU, Tanh, Sigmoid, LayerNorm, GlobalAvgPool])
@pytest.mark.parametrize("channels", [1, 6])
def test_new_layers_gradients(kind, channels, long, most, monkeypatch):
    in_bands(long, most, monkeypatch)
    layer, weights = connected(kind(), (3, 4, channels))
    check_gradients(layer, weights, image_batch(5, (3, 4, channels)))


def in_bands(long, most, monkeypatch):
    """Let rows have at least ``long`` elements, and bands at most ``most`` bytes."""
    monkeypatch.setattr(arrays, "LONG", long)
    for module in (activations, sample_norm):
        monkeypatch.setattr(module, "CACHED", most)
    monkeypatch.setattr(sample_norm, "SUMMED", 2 * most)


@BANDS
@pytest.mark.parametrize(("groups", "shape"), [(1, (3, 4, 6)), (3, (3, 4, 6)), (6, (3, 4, 6)), (2, (6,))])
def test_group_norm_is_its_definition_and_its_gradient(groups, shape, long, most, monkeypatch):
    in_bands(long, most, monkeypatch)
    layer, weights = connected(GroupNorm(groups, 0.01), shape)
    x = 3 + 2 * RNG.standard_normal((*shape[:-1], 5, shape[-1]))
    expected = reference.group_norm(x, weights["w"], weights["b"], groups, 0.01)
    np.testing.assert_allclose(layer.forward(x.copy(), weights)[0], expected, rtol=1e-11)
    check_gradients(layer, weights, x)


@pytest.mark.parametrize("values", [(0, 85), (-1.01, 1.01)])
@pytest.mark.parametrize("layer", [BatchNorm(), GroupNorm(3), GroupNorm(1)])
def test_a_normalisation_of_many_pixels_is_exact_in_float32(layer, values):
    """Equal values would all be rounded to the same side, if all were added one after the other."""
    x = np.random.default_rng(0).choice(np.array(values, np.float32), (500, 500, 1, 3))
    layer, weights = connected(layer, (500, 500, 3), np.float32)
    rng = SampleRng(0, 0, np.arange(1))
    expected, _ = layer.forward(x.astype(np.float64), {name: w.astype(np.float64) for name, w in weights.items()}, rng)
    y, _ = layer.forward(x, weights, rng)
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@BANDS
def test_layer_norm_normalises_the_channels_of_each_pixel(long, most, monkeypatch):
    in_bands(long, most, monkeypatch)
    layer, weights = connected(LayerNorm(0.01), (3, 4, 6))
    x = image_batch(5, (3, 4, 6))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.01) * weights["w"] + weights["b"]
    np.testing.assert_allclose(layer.forward(x, weights)[0], expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [(LayerNorm(), ["CACHED", "SUMMED", "CACHED"]), (GroupNorm(2), ["SUMMED", "CACHED", "SUMMED", "CACHED"])],
)
def test_a_normalisation_s_sums_have_bands_of_their_own(layer, sizes):
    layer, weights = connected(layer, (3, 4, 6))
    with mock.patch.object(sample_norm, "in_bands", wraps=sample_norm.in_bands) as in_bands:
        y, backward = layer.forward(image_batch(5, (3, 4, 6)), weights)
        backward(np.ones_like(y), {name: np.empty_like(w) for name, w in weights.items()})
    assert [call.args[1] for call in in_bands.call_args_list] == [getattr(sample_norm, name) for name in sizes]


def test_errors_of_normalisations_in_float32_beside_a_large_mean():
    for layer in (LayerNorm(), GroupNorm(4), GroupNorm(32)):
        found, (x, dy) = [], RNG.standard_normal((2, 40, 40, 3, 32))
        layer.build((40, 40, 32))
        for dtype in (np.float64, np.float32):
            weights = {"w": np.linspace(-1, 1, 32, dtype=dtype), "b": np.ones(32, dtype)}
            grads = {name: np.empty_like(value) for name, value in weights.items()}
            y, backward = layer.forward((x + 10).astype(dtype), weights)
            found.append((y, backward(dy.astype(dtype), grads), *grads.values()))
        for exact, single in zip(*found, strict=True):
            assert single.dtype == np.float32
            assert np.abs(single - exact).max() < 1e-5 * np.abs(exact).max()


def test_activations_at_large_numbers():
    x = np.array([[-1e4, -30, 0, 30, 1e4]], np.float32)
    with np.errstate(invalid="raise", divide="raise"):
        np.testing.assert_allclose(SiLU().forward(x.copy(), {})[0], [[0, 0, 0, 30, 1e4]], atol=1e-5)
        np.testing.assert_allclose(GELU().forward(x.copy(), {})[0], [[0, 0, 0, 30, 1e4]], atol=1e-5)
        np.testing.assert_allclose(LeakyReLU(0.1).forward(x.copy(), {})[0], [[-1e3, -3, 0, 30, 1e4]], rtol=1e-6)


def convolve(kernel, x: np.ndarray, w: np.ndarray, dy: np.ndarray):
    """The output, dw and dx."""
    y, dw, dx = (np.full_like(array, np.nan) for array in (dy, w, x))
    saved = kernel.forward(x, w, y)
    kernel.backward(saved, dy, w, dw, dx)
    return y, dw, dx


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 5),
    padding=st.integers(0, 5),
    dilation=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3, 4, 8, 11]),
    filters=st.sampled_from([1, 2, 3, 8]),
    most=st.sampled_from([1, 1000, 1 << 20]),
    algorithm=st.sampled_from([Mec, Direct]),
)
def test_a_convolution_of_any_shape_is_its_definition_and_the_gradients_are_its_adjoint(
    size, kernel_size, stride, padding, dilation, channels, filters, most, algorithm
):
    options = kernel_size, stride, padding
    with mock.patch.object(mec, "SHARES", most), mock.patch.object(convolution, "BAND", most):
        check_against_definition(algorithm(*options, dilation), (*size, channels), filters, *options, 1, dilation)


def check_against_definition(kernel, shape, filters, kernel_size, stride, padding, groups, dilation):
    """Compare the output with the definition, and test whether the gradients are its adjoint, for random numbers."""
    *size, channels = shape
    OH, OW = (output_length(*side, stride, padding, dilation) for side in zip(size, kernel_size, strict=True))
    assume(OH > 0 and OW > 0)
    rng = np.random.default_rng(channels)
    x, w = rng.standard_normal((*size, 2, channels)), rng.standard_normal((*kernel_size, channels // groups, filters))
    dy = rng.standard_normal((OH, OW, 2, filters))
    y, dw, dx = convolve(kernel, x, w, dy)
    np.testing.assert_allclose(y, reference.conv2d(x, w, stride, padding, groups, dilation), rtol=1e-10, atol=1e-10)
    product = np.sum(dy * y)  # is linear in x and in w
    np.testing.assert_allclose([np.sum(dx * x), np.sum(dw * w)], product, rtol=1e-9, atol=1e-9)


@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel_size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 5),
    padding=st.integers(0, 5),
    dilation=st.integers(1, 3),
    groups=st.integers(2, 7),
    group=st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1), (3, 4)]),
    most=st.sampled_from([1, 4, 32]),
    summed=st.sampled_from([1, 20, 1 << 10]),
)
def test_groups_are_their_definition_and_the_gradients_are_its_adjoint(
    size, kernel_size, stride, padding, dilation, groups, group, most, summed
):
    channels, filters = (groups * count for count in group)
    with mock.patch.object(algorithms, "GROUPED_CHANNELS", most), mock.patch.object(grouped, "SUMMED", summed):
        options = (*size, channels), filters, kernel_size, stride, padding, groups, dilation
        check_against_definition(choose_algorithm(*options), *options)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel_size=st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.integers(2, 9).map(lambda r: (r, r)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.sampled_from([1, 1, 2, 3]),
    channels=st.sampled_from([1, 3, 4, 9]),
    bits=st.sampled_from([*BY_WIDTH]),
)
def test_what_is_chosen_for_few_outputs_and_many_weights_is_their_definition(
    size, kernel_size, stride, padding, dilation, channels, bits
):
    options = (*size, channels), 2, kernel_size, stride, padding, 1, dilation
    many = dict.fromkeys(["MANY_WEIGHTS", "MANY_IN_BLOCKS", "MANY_IN_LARGE"], 1)
    with mock.patch.multiple(algorithms, TUNING=BY_WIDTH[bits], **many):
        check_against_definition(choose_algorithm(*options), *options)


def check_against_mec(kernel, size, r, stride, padding, images, channels, filters, dilation=1):
    """Compare the output and the gradients of another kernel with MEC's, for random numbers."""
    OH, OW = (output_length(side, r, stride, padding, dilation) for side in size)
    rng = np.random.default_rng(channels)
    x, w = rng.standard_normal((*size, images, channels)), rng.standard_normal((r, r, channels, filters))
    dy = rng.standard_normal((OH, OW, images, filters))
    theirs = convolve(Mec((r, r), stride, padding, dilation), x, w, dy)
    for mine, other in zip(convolve(kernel, x, w, dy), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


@given(
    size=st.tuples(st.integers(7, 17), st.integers(7, 17)),
    r=st.integers(2, MOST_SIDE),
    padding=st.integers(0, 3),
    images=st.integers(1, 9),
    channels=st.integers(1, 20),
    filters=st.integers(1, 20),
)
def test_winograd_s_convolution_and_gradients_are_mec_s(size, r, padding, images, channels, filters):
    kernel = Winograd((*size, channels), padding, r)
    check_against_mec(kernel, size, r, 1, padding, images, channels, filters)


@given(
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    r=st.integers(3, 16),
    side=st.sampled_from(SIDES),
    padding=st.integers(0, 16),
    images=st.integers(1, 4),
    channels=st.integers(1, 9),
    filters=st.integers(1, 9),
)
def test_a_large_kernel_in_blocks_and_its_gradients_are_mec_s(size, r, side, padding, images, channels, filters):
    assume(min(size) + 2 * padding >= r)
    with mock.patch.object(large, "SIDES", (side,)):
        kernel = Large((*size, channels), padding, r)
    assert kernel.s == side
    check_against_mec(kernel, size, r, 1, padding, images, channels, filters)


@pytest.mark.parametrize(("r", "side"), [(8, 4), (9, 5), (10, 5), (11, 4), (12, 4), (13, 5), (16, 4)])
def test_the_blocks_of_a_large_kernel_need_the_fewest_multiplications(r, side):
    kernel = Large((119 + r, 119 + r, 8), 0, r)  # 120 outputs in a row
    blocks, a = -(-r // side), 2 * side - 1
    assert kernel.s == side and kernel.positions == (a * blocks) ** 2
    assert kernel.products == (120 // side * a * blocks) ** 2


@given(
    size=st.tuples(*[st.integers(1, 7)] * 2),
    images=st.integers(1, 9),
    channels=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_a_kernel_as_large_as_the_image_is_mec_s(size, images, channels, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((*size, images, channels)), rng.standard_normal((*size, channels, seed + 1))
    dy = rng.standard_normal((1, 1, images, seed + 1))
    for mine, other in zip(convolve(Whole(), x, w, dy), convolve(Mec(size, 1, 0), x, w, dy), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    r=st.integers(2, 11),
    stride=st.integers(2, 5),
    padding=st.integers(0, 5),
    images=st.integers(1, 3),
    channels=st.integers(1, 9),
    filters=st.integers(1, 4),
)
def test_a_convolution_by_blocks_and_its_gradients_are_mec_s(size, r, stride, padding, images, channels, filters):
    assume(min(output_length(side, r, stride, padding) for side in size) > 0)
    kernel = choose_algorithm((*size, channels), filters, (r, r), stride, padding)
    assume(isinstance(kernel, Strided))
    check_against_mec(kernel, size, r, stride, padding, images, channels, filters)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    r=st.integers(2, 9),
    stride=st.integers(2, 5),
    padding=st.integers(0, 9),
    channels=st.sampled_from([1, SHORT_RUN - 1, SHORT_RUN]),
)
@example(size=(1, 9), r=3, stride=3, padding=1, channels=SHORT_RUN)  # fewer rows than a block has
def test_all_whole_blocks_are_copied_at_once_and_no_pixel_twice(size, r, stride, padding, channels):
    outputs = [output_length(side, r, stride, padding) for side in size]
    assume(min(outputs) > 0)
    kernel = Strided(None, outputs, r, stride, padding)
    copies, places = np.zeros((*size, 1, channels)), np.zeros((*kernel.size, 1, stride**2 * channels))
    parts = []
    for in_blocks, in_pixels in kernel._pairs(places, copies):
        assert in_blocks.shape == in_pixels.shape
        in_blocks += 1
        in_pixels += 1
        parts.append(in_blocks.size)
    reached = [min(side, stride * count - padding) for side, count in zip(size, kernel.size, strict=True)]
    assert copies[: reached[0], : reached[1]].all() and copies.sum() == places.sum() == prod(reached) * channels
    within = [[0 <= stride * k - padding <= side - stride for k in range(count)]
              for side, count in zip(size, kernel.size, strict=True)]  # fmt: skip
    whole = stride**2 * channels * sum(within[0]) * sum(within[1])
    if channels == SHORT_RUN and whole:
        assert parts[0] == whole
    else:
        assert max(parts) <= prod(kernel.size) * (channels if channels == SHORT_RUN else 1), "a phase"


@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    r=st.integers(2, 5),
    padding=st.integers(0, 5),
    dilation=st.integers(2, 4),
    images=st.integers(1, 3),
    channels=st.integers(4, 9),
    filters=st.integers(1, 4),
)
def test_a_dilated_convolution_by_phases_and_its_gradients_are_mec_s(
    size, r, padding, dilation, images, channels, filters
):
    assume(min(output_length(side, r, 1, padding, dilation) for side in size) > 0)
    kernel = choose_algorithm((*size, channels), filters, (r, r), 1, padding, 1, dilation)
    assert isinstance(kernel, Dilated)
    check_against_mec(kernel, size, r, 1, padding, images, channels, filters, dilation)


BOUNDS = {4: 1e-6, 5: 2e-6, 6: 5e-6, 7: 1e-5, 8: 2e-5, 9: 6e-5, 10: 1e-4}
"""Of the errors in float32, relative to the largest value, by the side of Winograd's tiles."""

FORMS = [(a, r) for a in BOUNDS for r in range(2, MOST_SIDE + 1) if 2 <= a - r + 1 <= MOST_OUTPUTS]


@pytest.mark.parametrize(("a", "r"), FORMS)
def test_cook_toom_s_matrices_give_correlations(a, r):
    AT, BT, G = cook_toom(a - r + 1, r, np.dtype(np.float64))
    d, g = RNG.standard_normal(a), RNG.standard_normal(r)
    np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), np.correlate(d, g), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("a", "r"), [(0, 3), (1, 3), *FORMS])
def test_errors_in_float32_relative_to_the_largest_value(a, r):
    """a = 0 stands for MEC, and 1 for products by position."""
    with mock.patch.object(winograd, "POINTS", {a: POINTS.get(a)}):
        kernel = Winograd((14, 14, 32), 1, r) if a > 1 else (Mec, Direct)[a]((r, r), 1, 1)
        check_errors(kernel, 14, r, BOUNDS.get(a, 1e-6))


@pytest.mark.parametrize(("r", "side"), [(9, 3), (12, 3), (8, 4), (11, 4), (9, 5), (15, 5)])
def test_errors_of_a_large_kernel_in_float32(r, side):
    with mock.patch.object(large, "SIDES", (side,)):
        kernel = Large((20, 20, 32), 1, r)
    check_errors(kernel, 20, r, BOUNDS[kernel.a])


def check_errors(kernel, length, r, bound):
    """Compare the errors in float32 for images of ``length`` x ``length`` with their bound."""
    side, rng = output_length(length, r, 1, 1), np.random.default_rng([length, r])
    x, w, dy = (rng.standard_normal(shape) for shape in ((length, length, 8, 32), (r, r, 32, 64), (side, side, 8, 64)))
    found = [convolve(kernel, *(array.astype(dtype) for array in (x, w, dy))) for dtype in (np.float64, np.float32)]
    for exact, single in zip(*found, strict=True):
        assert single.dtype == np.float32
        assert np.abs(single - exact).max() < bound * np.abs(exact).max()


@pytest.mark.parametrize(("side", "channels", "groups", "bound"), [(64, 8, 8, 1e-6), (16, 32, 8, 1e-4)])
def test_errors_of_groups_in_float32(side, channels, groups, bound):
    """Depthwise, and groups that Winograd's algorithm computes together."""
    rng, images = np.random.default_rng(0), (side, side, 4, channels)
    x, w, dy = (rng.standard_normal(shape) for shape in (images, (3, 3, channels // groups, channels), images))
    kernel = choose_algorithm((side, side, channels), channels, (3, 3), 1, 1, groups)
    exact, single = (convolve(kernel, *(a.astype(dtype) for a in (x, w, dy))) for dtype in (np.float64, np.float32))
    for right, found in zip(exact, single, strict=True):
        assert found.dtype == np.float32
        assert np.abs(found - right).max() < bound * np.abs(right).max()


def test_kernels_are_chosen_by_shape_alone(monkeypatch):
    monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[512])
    for shape, padding, m in (
        ((14, 14, 16), 1, 7),
        ((7, 7, 16), 1, 7),
        ((8, 8, 16), 0, 6),
        ((8, 8, 16), 1, 8),
        ((4, 4, 8), 0, 2),
        ((5, 5, 8), 1, 5),
    ):
        kernel = choose_algorithm(shape, 16, (3, 3), 1, padding)
        assert isinstance(kernel, Winograd) and kernel.m == m
    for kernel_size, stride, plain in ((3, 2, Winograd), (5, 2, Winograd), (2, 2, Pointwise), (16, 2, Large)):
        kernel = choose_algorithm((32, 32, 16), 16, (kernel_size, kernel_size), stride, 0)
        assert isinstance(kernel, Strided) and isinstance(kernel.plain, plain)
    for shape, filters, *options in (
        ((28, 28, 1), 16, (3, 3), 1, 1),
        ((8, 8, 96), 16, (3, 3), 2, 1),
        ((8, 8, 64), 65, (3, 3), 2, 1),
        ((8, 8, 1), 16, (5, 5), 2, 2),
        ((8, 8, 3), 16, (5, 5), 1, 1),
        ((8, 8, 16), 16, (5, 3), 1, 1),
        ((8, 8, 7), 16, (8, 8), 1, 1),
        ((8, 8, 16), 16, (3, 3), 2, 1, 1, 2),
        ((8, 8, 3), 16, (3, 3), 1, 1, 1, 2),
        ((8, 8, 16), 16, (1, 1), 1, 1),
    ):
        assert isinstance(choose_algorithm(shape, filters, *options), Mec)
    assert isinstance(choose_algorithm((8, 8, 16), 4, (1, 1), 2), Pointwise)
    assert isinstance(choose_algorithm((5, 4, 16), 4, (5, 4)), Whole)
    for shape, filters, options, kind in (
        ((2, 2, 256), 128, ((3, 3), 1, 1), Direct),
        ((2, 2, 256), 64, ((3, 3), 1, 1), Winograd),
        ((3, 3, 256), 256, ((3, 3), 1, 1), Winograd),
        ((3, 3, 256), 256, ((7, 7), 1, 3), Direct),
        ((16, 16, 128), 256, ((3, 3), 2, 1), Direct),
        ((18, 18, 128), 256, ((3, 3), 2, 1), Mec),
        ((9, 8, 256), 256, ((1, 5), 1, 1), Mec),
        ((8, 8, 256), 256, ((1, 5), 1, 1), Direct),
    ):
        assert isinstance(choose_algorithm(shape, filters, *options), kind)
    assert isinstance(choose_algorithm((9, 8, 16), 4, (3, 3), 1, 1, 1, 2).plain, Winograd)
    assert isinstance(choose_algorithm((8, 8, 16), 16, (3, 3), 2, 1, 16), Depthwise)
    assert isinstance(choose_algorithm((8, 8, 16), 32, (3, 3), 2, 1, 16), Grouped)
    for channels, groups, parts in (
        (16, 2, 1),
        (64, 2, 2),
        (48, 6, 2),
        (128, 32, 4),
        (37, 37, 2),
        (198, 3, 3),
        (33, 3, 2),
    ):
        kernel = choose_algorithm((8, 8, channels), 2 * channels, (3, 3), 1, 1, groups)
        assert len(kernel.kernels) == len(kernel.parts) == parts and kernel.groups == groups
        assert all(isinstance(part, Winograd) for part in kernel.kernels)


@pytest.mark.parametrize(
    ("shape", "filters", "options", "kinds"),
    [
        ((8, 8, 1), 1, ((3, 3), 1, 1), [Mec]),
        ((8, 8, 16), 16, ((7, 7), 1, 3), [Winograd]),
        ((8, 8, 2), 1, ((4, 4), 2), [Strided, Winograd]),
        ((8, 8, 1), 1, ((4, 4), 2), [Mec]),
        ((8, 8, 64), 64, ((3, 3), 2, 1), [Strided, Winograd]),
        ((8, 8, 17), 241, ((3, 3), 2, 1), [Mec]),  # 17 * 241 = 64 * 64 + 1
        ((8, 8, 4), 5, ((3, 3), 2, 1), [Strided, Winograd]),
        ((8, 8, 3), 5, ((3, 3), 2, 1), [Mec]),
        ((8, 8, 64), 65, ((2, 2), 2), [Strided, Pointwise]),
        ((8, 8, 8), 5, ((2, 2), 3), [Mec]),
        ((20, 20, 8), 5, ((7, 7), 1, 3, 1, 2), [Dilated, Winograd]),
        ((20, 20, 8), 5, ((8, 8), 1, 3, 1, 2), [Dilated, Large]),
        ((20, 20, 7), 5, ((8, 8), 1, 3, 1, 2), [Mec]),
        ((20, 20, 8), 5, ((3, 2), 1, 1, 1, 2), [Mec]),
        ((2, 2, 217), 151, ((3, 3), 1, 1), [Winograd]),  # 217 * 151 = 2^15 - 1
        ((2, 8, 256), 256, ((3, 3), 1, 1), [Winograd]),
        ((3, 15, 256), 256, ((1, 5), 1, 1), [Mec]),  # 5 x 13 outputs
        ((16, 16, 128), 128, ((4, 4), 2, 1), [Direct]),
        ((16, 16, 127), 129, ((4, 4), 2, 1), [Strided, Winograd]),  # 127 * 129 = 2^14 - 1
        ((18, 16, 128), 128, ((4, 4), 2, 1), [Strided, Winograd]),
        ((4, 4, 128), 128, ((2, 2), 2, 1), [Direct]),
        ((4, 4, 128), 127, ((2, 2), 2, 1), [Strided, Pointwise]),
        ((4, 4, 128), 128, ((2, 2), 2), [Strided, Pointwise]),  # the windows are the blocks
        ((6, 6, 16), 32, ((9, 9), 1, 4), [Direct]),  # 1,156 positions; four tiles of 225 in 3 x 3 blocks
        ((6, 6, 16), 31, ((9, 9), 1, 4), [Large]),  # 16 * 31 < 2^9
        ((8, 8, 16), 32, ((9, 9), 1, 4), [Large]),  # 2,704 positions; four tiles of 324 in 2 x 2 blocks
        ((8, 8, 7), 74, ((9, 9), 1, 4), [Direct]),
        ((8, 8, 7), 73, ((9, 9), 1, 4), [Mec]),  # 7 * 73 = 2^9 - 1
        ((9, 8, 7), 74, ((9, 9), 1, 4), [Mec]),  # 72 outputs
        ((8, 16, 16), 32, ((1, 9), 1), [Mec]),  # 9 positions
        ((14, 14, 16), 32, ((7, 7), 2, 9, 1, 3), [Mec]),  # 49 positions
        ((12, 12, 1), 1, ((6, 6), 3), [Strided, Winograd]),  # blocks of 9 channels
    ],
)
def test_the_choice_of_a_kernel_at_its_bounds(shape, filters, options, kinds, monkeypatch):
    monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[512])
    assert kinds_of(choose_algorithm(shape, filters, *options)) == kinds


def kinds_of(kernel):
    """The classes of a kernel and of those that it uses."""
    return [type(kernel), *kinds_of(kernel.plain)] if hasattr(kernel, "plain") else [type(kernel)]


@pytest.mark.parametrize(
    ("shape", "options", "wide", "narrow"),
    [
        ((16, 16, 4), ((3, 3), 2, 1), [Strided, Winograd], [Mec]),
        ((16, 16, 4), ((2, 2), 2, 0), [Strided, Pointwise], [Strided, Pointwise]),
        ((16, 16, 4), ((5, 5), 2, 2), [Strided, Winograd], [Strided, Winograd]),
        ((32, 32, 3), ((4, 4), 2, 1), [Strided, Winograd], [Mec]),  # fills its 2 x 2 blocks
        ((32, 32, 3), ((5, 5), 2, 2), [Strided, Winograd], [Mec]),  # 25 of 36 pixels: 69 %
        ((32, 32, 3), ((6, 6), 2, 2), [Strided, Winograd], [Strided, Winograd]),
        ((32, 32, 3), ((7, 7), 2, 3), [Strided, Winograd], [Strided, Winograd]),  # 49 of 64: 77 %
        ((32, 32, 3), ((7, 7), 3, 3), [Strided, Winograd], [Mec]),  # 49 of 81
        ((96, 96, 3), ((11, 11), 4, 2), [Strided, Winograd], [Strided, Winograd]),
        ((32, 32, 1), ((7, 7), 2, 3), [Mec], [Mec]),
    ],
)
def test_blocks_of_few_channels_depend_on_the_width_of_vectors(shape, options, wide, narrow, monkeypatch):
    for bits, kinds in ((512, wide), (256, narrow)):
        monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[bits])
        assert kinds_of(choose_algorithm(shape, 8, *options)) == kinds


@pytest.mark.parametrize(
    ("shape", "filters", "padding", "by_images"),
    [
        ((8, 8, 256), 256, 1, {1: Direct, 5: Direct, 6: 4, 29: 4, 30: 8, 128: 8}),
        ((8, 8, 64), 128, 1, {8: 4, 32: 8}),
        ((8, 8, 64), 127, 1, {8: 8, 128: 8}),  # 64 * 127 < 2^13
        ((3, 3, 256), 256, 1, {32: Direct, 52: Direct, 53: 3, 128: 3}),
        ((3, 3, 128), 255, 1, {8: 3}),  # 128 * 255 < 2^15
        ((4, 4, 256), 256, 1, {8: Direct, 28: Direct, 29: 4}),
        ((4, 4, 256), 64, 1, {8: 2, 32: 4}),
        ((9, 8, 256), 256, 1, {1: 2, 128: 5}),  # 72 outputs
    ],
)
def test_the_choice_of_a_kernel_depends_on_the_number_of_images(shape, filters, padding, by_images, monkeypatch):
    """Few images: the transforms of a large kernel take longer than the products."""
    for bits in BY_WIDTH:
        monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[bits])
        found = {n: choose_algorithm(shape, filters, (3, 3), 1, padding, images=n) for n in by_images}
        chosen = {n: kernel.m if isinstance(kernel, Winograd) else type(kernel) for n, kernel in found.items()}
        assert (chosen == by_images) if bits == 256 else (len({*chosen.values()}) == 1)


@pytest.mark.parametrize(
    ("shape", "filters", "options", "few"),
    [
        ((18, 18, 64), 128, ((4, 4), 2, 0), 32),
        ((32, 32, 128), 256, ((3, 3), 1, 4, 1, 4), 1),  # 16 small images for each
        ((8, 8, 256), 512, ((3, 3), 1, 1, 2), 16),
    ],
)
def test_convolutions_of_other_images_know_their_number(shape, filters, options, few, monkeypatch):
    monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[256])
    for images, m in ((few, 4), (128, 8)):
        kernel = choose_algorithm(shape, filters, *options, images=images)
        (plain,) = {part.m for part in getattr(kernel, "kernels", None) or [kernel.plain]}
        assert plain == m


def test_a_layer_chooses_its_kernel_for_each_number_of_images(monkeypatch):
    monkeypatch.setattr(algorithms, "TUNING", BY_WIDTH[256])
    layer, weights = connected(Conv2d(96, 3, padding=1), (3, 3, 384))
    for images, kind in ((64, Winograd), (2, Direct), (64, Winograd)):
        assert isinstance(layer.algorithm(images=images), kind)
        assert layer.algorithm(images=images) is layer.algorithm(images=images)
        x, dy = RNG.standard_normal((3, 3, images, 384)), RNG.standard_normal((3, 3, images, 96))
        (y, backward), grads = layer.forward(x, weights), {"w": np.empty_like(weights["w"])}
        dx = backward(dy, grads)
        for mine, other in zip((y, grads["w"], dx), convolve(Mec((3, 3), 1, 1), x, weights["w"], dy), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("channels", "filters"), [(8, 4), (4, 8)])
def test_a_band_of_products_by_position_is_as_large_as_its_constant(channels, filters, monkeypatch):
    monkeypatch.setattr(convolution, "BAND", 2 * 4 * 6 * 3 * 8)  # bytes: two rows of 6 pixels, 3 images, 8 numbers
    kernel = Direct((3, 3), 1, 1)
    assert kernel._bands((5, 6, 3, channels), (5, 6, 3, filters)) == [(0, 2), (2, 4), (4, 5)]


def test_a_depthwise_gradient_is_summed_over_1024_pixels_at_a_time():
    """2^-24 is lost where it is added to 1, and not where many of them are summed before."""
    x, w, dy = np.ones((64, 32, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32), np.full((64, 32, 1, 2), 2.0**-24)
    dy[0, 0] = 1
    _, dw, _ = convolve(Depthwise((1, 1), 1, 0, 1), x, w, dy.astype(np.float32))
    np.testing.assert_array_equal(dw, np.float32(1 + 1024 * 2.0**-24))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_gradients(bias):
    layer, weights = connected(Linear(7, bias), (11,))
    x = RNG.standard_normal((5, 11))
    np.testing.assert_allclose(layer.forward(x, weights)[0], x @ weights["w"] + weights.get("b", 0), rtol=1e-12)
    check_gradients(layer, weights, x)


@pytest.mark.parametrize(("size", "window", "stride"), [(8, 2, 2), (9, 2, 2), (9, 3, 2), (7, 3, 1), (10, 2, 3)])
@pytest.mark.parametrize("cached", [1, 800, 1 << 20])  # bytes: one row at a time, some, all
def test_max_pool2d(size, window, stride, cached, monkeypatch):
    monkeypatch.setattr(pooling, "CACHED", cached)
    layer, _ = connected(MaxPool2d(window, stride), (size, size, 3))
    x = image_batch(4, (size, size, 3))
    y, _ = layer.forward(x, {})
    np.testing.assert_array_equal(y, reference.max_pool2d(x, window, stride))
    check_gradients(layer, {}, x)


def test_max_pool2d_gives_a_tied_gradient_to_one_place_only():
    x = np.zeros((4, 4, 1, 1))
    y, backward = connected(MaxPool2d(2), (4, 4, 1))[0].forward(x, {})
    dx = backward(np.ones_like(y), {})
    np.testing.assert_array_equal(dx[:, :, 0, 0], [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 2), st.tuples(st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([1, 1000, 1 << 20]), st.integers(0, 2**32),
)  # fmt: skip
def test_the_gradient_of_max_pool2d_goes_to_the_first_of_equal_values(kernel, stride, padding, size, cached, seed):
    rng, padding = np.random.default_rng(seed), min(padding, kernel // 2)
    x = rng.integers(0, 3, (*size, 2, 3)).astype(np.float32)
    layer, _ = connected(MaxPool2d(kernel, stride, padding), (*size, 3))
    with mock.patch.object(pooling, "CACHED", cached):
        y, backward = layer.forward(x, {})
    dy = rng.integers(-9, 10, y.shape).astype(np.float32)
    padded, dx = (np.pad(a, [(padding, padding)] * 2 + [(0, 0)] * 2, constant_values=v)
                  for a, v in ((x, -np.inf), (np.zeros_like(x), 0)))  # fmt: skip
    for i, j, n, c in np.ndindex(y.shape):
        window = padded[i * stride : i * stride + kernel, j * stride : j * stride + kernel, n, c]
        p, q = np.unravel_index(window.argmax(), window.shape)
        assert y[i, j, n, c] == window[p, q]
        dx[i * stride + p, j * stride + q, n, c] += dy[i, j, n, c]
    H, W = size
    np.testing.assert_array_equal(backward(dy, {}), dx[padding : padding + H, padding : padding + W])


def test_relu_gradients():
    x = RNG.standard_normal((6, 5, 5, 2))
    np.testing.assert_array_equal(ReLU().forward(x.copy(), {})[0], np.where(x > 0, x, 0))
    check_gradients(ReLU(), {}, x)


def test_relu_and_max_pooling_commute_with_their_gradients():
    x = RNG.integers(-2, 3, (8, 8, 6, 3)).astype(float)  # with many ties and zeros
    dy = RNG.standard_normal((4, 4, 6, 3))
    results = []
    pool, _ = connected(MaxPool2d(2), (8, 8, 3))
    for first, second in ((ReLU(), pool), (pool, ReLU())):
        middle, back_first = first.forward(x.copy(), {})
        y, back_second = second.forward(middle, {})
        results.append((y.copy(), back_first(back_second(dy.copy(), {}), {}).copy()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
def test_dropout(p):
    layer, x, draw = Dropout(p), RNG.uniform(1, 2, (400, 50)), SampleRng(1, 0, np.arange(400))
    y = layer.forward(x.copy(), {}, draw)[0]
    kept = y != 0
    assert abs(kept.mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / x.size)
    np.testing.assert_allclose(y[kept], x[kept] / (1 - int(p * 65536) / 65536))
    np.testing.assert_array_equal(layer.forward(x[7:9].copy(), {}, SampleRng(1, 0, np.arange(7, 9)))[0], y[7:9])
    check_gradients(layer, {}, x, draw)
    assert layer.forward(x, {})[0] is x, "nothing is dropped in evaluation"
    images = image_batch(30, (3, 2, 5))
    mask = layer.forward(images.copy(), {}, SampleRng(1, 0, np.arange(30)))[0] / images
    rows = layer.forward(np.ones((30, 30)), {}, SampleRng(1, 0, np.arange(30)))[0].reshape(30, 3, 2, 5)
    np.testing.assert_allclose(mask, rows.transpose(1, 2, 0, 3))


def test_dropout_of_almost_everything_stays_finite():
    assert np.isfinite(Dropout(1 - 1e-9).forward(np.ones((9, 99)), {}, SampleRng(0, 0, np.arange(9)))[0]).all()


def test_scale_maps_bytes_to_the_recipe_s_range():
    pixels = np.array([[0, 255]], np.uint8)
    y, _ = Scale(low=0.01, span=0.99).forward(pixels, {})
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [[0.01, 1.0]], rtol=1e-6)
    check_gradients(Scale(0.01, 0.99, np.float64), {}, RNG.uniform(0, 255, (3, 4)))


def test_normalise_maps_each_channel_to_mean_0_and_deviation_1():
    pixels = RNG.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
    mean, deviation = (tuple(each.tolist()) for each in (pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))))
    layer = Normalise(mean, deviation)
    layer.build((6, 5, 3))
    y = layer.forward(pixels, {})[0].copy()
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (pixels - np.array(mean)) / deviation, atol=1e-6)
    np.testing.assert_allclose(layer.forward(pixels.astype(np.float32)[:, :, :2], {})[0], y[:, :, :2], atol=1e-6)
    double = Normalise((2.0, 3.0), (0.5, 4.0), np.float64)
    double.build((3, 4, 2))
    check_gradients(double, {}, image_batch(3, (3, 4, 2)))


@pytest.mark.parametrize(
    ("mean", "deviation", "message"),
    [
        ((), (), "mean and deviation are missing"),
        ((1.0,), (), "mean and deviation are missing"),
        ((1.0, 2.0), (1.0, 2.0), "for each of 3 channels"),
        ((1.0, 2.0, 3.0), (1.0, 0.0, 1.0), "deviation: must be above 0"),
    ],
)
def test_normalise_needs_a_mean_and_a_deviation_of_each_channel(mean, deviation, message):
    with pytest.raises(ConfigError, match=message):
        Normalise(mean, deviation).build((6, 5, 3))


def test_flatten_makes_each_image_a_row():
    x = RNG.standard_normal((3, 4, 2, 5))
    y, backward = Flatten().forward(x, {})
    np.testing.assert_array_equal(y, np.stack([x[:, :, 0].ravel(), x[:, :, 1].ravel()]))
    np.testing.assert_array_equal(backward(y, {}), x)


def test_a_layer_that_needs_no_input_gradient_computes_none():
    images, rows = image_batch(2, (6, 6, 9)), RNG.standard_normal((2, 4))
    for layer, x in ((Conv2d(2, (3, 3)), images), (Conv2d(2, (3, 3), padding=1), images), (Linear(3), rows)):
        layer, weights = connected(layer, (*x.shape[:-2], x.shape[-1]))
        layer.needs_input_grad = False
        y, backward = layer.forward(x, weights)
        assert backward(y, {name: np.empty_like(w) for name, w in weights.items()}) is None


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (2, 3), (3, None)])
def test_avg_pool2d_is_its_definition_and_its_gradient(window, stride):
    layer, _ = connected(AvgPool2d(window, stride), (9, 8, 3))
    x = image_batch(5, (9, 8, 3))
    y, _ = layer.forward(x, {})
    np.testing.assert_allclose(y, reference.avg_pool2d(x, window, stride or window), rtol=1e-12, atol=1e-12)
    check_gradients(layer, {}, x)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (Tanh, np.tanh),
        (Sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (SiLU, lambda x: x / (1 + np.exp(-x))),
        (GELU, lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    ],
    ids=["tanh", "sigmoid", "silu", "gelu"],
)
def test_activations_are_their_functions(kind, function):
    x = 5 * RNG.standard_normal((7, 11))
    y, _ = kind().forward(x.copy(), {})
    np.testing.assert_allclose(y, function(x), rtol=1e-12, atol=1e-14)
    check_gradients(kind(), {}, x)


@pytest.mark.parametrize("kind", [GELU, SiLU, LeakyReLU])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_0_an_activation_is_a_line(kind, dtype):
    """The slope of GELU was NaN where the cube of x is infinite."""
    x = dtype([3e13, 1e15, 2e19, 1e30, np.finfo(dtype).max]).reshape(1, -1)
    below = 0.01 if kind is LeakyReLU else 0
    with np.errstate(over="ignore"):
        for sign, slope in ((1, 1), (-1, below)):
            y, backward = kind().forward(sign * x, {})
            np.testing.assert_allclose(y, slope * sign * x, rtol=1e-6)
            np.testing.assert_allclose(backward(np.ones_like(x), {}), np.full_like(x, slope), rtol=1e-6)


@pytest.mark.parametrize("kind", [LeakyReLU, GELU, SiLU, Tanh, Sigmoid])
def test_the_last_band_of_an_activation_may_be_shorter(kind, monkeypatch):
    x = RNG.standard_normal((7, 3, 10))  # seven rows of 240 bytes in bands of three, three and one
    y, slope = (array.copy() for array in with_slope(kind(), x))
    monkeypatch.setattr(arrays, "LONG", 30)
    monkeypatch.setattr(activations, "CACHED", 3 * 240)
    for found, expected in zip(with_slope(kind(), x), (y, slope), strict=True):
        np.testing.assert_array_equal(found, expected)


def with_slope(layer: Layer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, backward = layer.forward(x.copy(), {})
    return y, backward(np.ones_like(x), {})


@pytest.mark.parametrize("kind", [GELU, SiLU])
def test_the_slope_far_from_zero_is_0_or_1(kind):
    np.testing.assert_array_equal(with_slope(kind(), np.array([[-1e3, 1e3]]))[1], [[0, 1]])


@pytest.mark.parametrize("negative_slope", [0.0, 0.2, 1.0])
def test_leaky_relu_at_zero_and_with_slopes_at_their_bounds(negative_slope):
    y, slope = with_slope(LeakyReLU(negative_slope), np.array([[-2.0, -0.0, 0.0, 3.0]]))
    np.testing.assert_array_equal(y, [[-2 * negative_slope, 0, 0, 3]])
    np.testing.assert_array_equal(slope, [[negative_slope, negative_slope, negative_slope, 1]])


def test_sigmoid_of_large_numbers_is_0_or_1():
    with np.errstate(all="raise"):
        y, _ = Sigmoid().forward(np.array([[-1e4, 1e4]], np.float32), {})
    np.testing.assert_array_equal(y, [[0, 1]])


@pytest.mark.parametrize("behind", [ReLU, Dropout])
def test_an_activation_s_slope_outlives_what_the_next_layer_does_to_its_output(behind):
    tanh, other = Tanh(), behind(0.5) if behind is Dropout else behind()
    x, dy = RNG.standard_normal((4, 6)), np.ones((4, 6))
    y, backward = tanh.forward(x.copy(), {})
    expected = 1 - y**2
    other.forward(y, {}, SampleRng(0, 0, np.arange(4)))
    np.testing.assert_allclose(backward(dy, {}), expected)


@pytest.mark.parametrize(("size", "channels"), [(1, 4), (3, 4), (5, 4), (5, 9), (9, 3), (9, 9)])
def test_local_response_norm_is_its_definition_and_its_gradient(size, channels):
    layer = LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5)
    x = image_batch(4, (5, 3, channels))
    y, _ = layer.forward(x.copy(), {})
    np.testing.assert_allclose(y, reference.local_response_norm(x, size, 0.3, 0.6, 1.5), rtol=1e-12)
    check_gradients(layer, {}, x)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (LocalResponseNorm(), {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}),
        (LocalResponseNorm(255, alpha=0.0), {"size": 255, "alpha": 0.0}),
        (LayerNorm(), {"epsilon": 1e-5}),
        (GroupNorm(2), {"epsilon": 1e-5}),
        (LeakyReLU(), {"negative_slope": 0.01}),
    ],
)
def test_options_that_are_left_out_and_those_at_their_bounds(layer, options):
    assert {name: getattr(layer, name) for name in options} == options
    initial = {parameter.name: parameter.initial_value for parameter in connected(layer, (3, 4, 2))[0].parameters}
    assert initial in ({}, {"w": 1.0, "b": 0.0})


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 1, 2), (7,)])
def test_batch_norm_is_its_definition_and_its_gradient(shape):
    layer, weights = connected(BatchNorm(epsilon=0.01), shape)
    x = 3 + 2 * RNG.standard_normal((*shape[:-1], 6, shape[-1]))
    y, _ = layer.forward(x.copy(), weights, SampleRng(0, 0, np.arange(6)))
    np.testing.assert_allclose(y, reference.batch_norm(x, weights["w"], weights["b"], 0.01), rtol=1e-12, atol=1e-12)
    learned = {name: weights[name] for name in "wb"}
    for draw in (SampleRng(0, 0, np.arange(6)), None):  # by the batch's own statistics, by the running ones
        running = {"mean": weights["mean"], "variance": weights["variance"] ** 2}
        check_gradients(With(layer, running), learned, x, draw)


class With(Layer):
    """A layer, some of whose weights are given."""

    def __init__(self, layer, given):
        self.layer, self.given = layer, given

    def forward(self, x, weights, draw=None):
        y, backward = self.layer.forward(x, {**weights, **self.given}, draw)
        return y, lambda dy, gradients: backward(dy, {**gradients, **{k: v.copy() for k, v in self.given.items()}})


def test_batch_norm_tells_its_statistics_a_sample_and_evaluates_with_the_running_ones():
    layer, weights = connected(BatchNorm(), (4, 4, 3))
    x = image_batch(5, (4, 4, 3))
    gradients = {name: np.full(3, np.nan) for name in weights}
    y, backward = layer.forward(x.copy(), weights, SampleRng(0, 0, np.arange(5)))
    backward(np.ones_like(y), gradients)
    np.testing.assert_allclose(gradients["mean"], 5 * x.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(gradients["variance"], 5 * x.var(axis=(0, 1, 2), ddof=1), rtol=1e-12)
    weights["variance"] = weights["variance"] ** 2
    y, _ = layer.forward(x.copy(), weights)
    expected = (x - weights["mean"]) / np.sqrt(weights["variance"] + 1e-5) * weights["w"] + weights["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 1), (3, 1, 1), (5, 3, 2)])
@pytest.mark.parametrize(
    ("kind", "definition"), [(MaxPool2d, reference.max_pool2d), (AvgPool2d, reference.avg_pool2d)], ids=["max", "avg"]
)
def test_padded_pooling_is_its_definition_and_its_gradient(kind, definition, kernel, stride, padding):
    layer, _ = connected(kind(kernel, stride, padding), (9, 8, 3))
    x = image_batch(5, (9, 8, 3))
    np.testing.assert_allclose(layer.forward(x.copy(), {})[0], definition(x, kernel, stride, padding), rtol=1e-12)
    check_gradients(layer, {}, x)


@pytest.mark.parametrize("long", [60, 2048])  # elements: rows of 5 pixels, which a view may have too, or of 30
@pytest.mark.parametrize(
    "layer",
    [
        ReLU(),
        LeakyReLU(),
        GELU(),
        SiLU(),
        Tanh(),
        Sigmoid(),
        Dropout(0.5),
        BatchNorm(),
        LayerNorm(),
        GroupNorm(2),
        LocalResponseNorm(3),
        MaxPool2d(2),
        AvgPool2d(3, 1, 1),
        GlobalAvgPool(),
        Flatten(),
        *(
            Conv2d(4, kernel, bias=True, **options)
            for kernel, options in [
                (3, {}),
                (1, {}),
                (1, {"stride": 2}),
                (3, {"groups": 4}),
                (3, {"stride": 2}),
                ((1, 3), {}),
            ]
        ),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_takes_arrays_that_are_not_contiguous(layer, long, monkeypatch):
    """A layer may give a view of its input, as a mirrored image is, and a view of a gradient."""
    monkeypatch.setattr(arrays, "LONG", long)
    _, weights = connected(layer, (6, 5, 4))
    x, results = image_batch(3, (6, 5, 4)), []
    y, _ = layer.forward(x.copy(), weights, SampleRng(0, 0, np.arange(3)))
    dy = RNG.standard_normal(y.shape)
    for of in (lambda array: array[::-1].copy()[::-1], np.copy):  # the same values, in another order in memory
        y, backward = layer.forward(of(x), weights, SampleRng(0, 0, np.arange(3)))
        y, grads = y.copy(), {name: np.empty_like(value) for name, value in weights.items()}
        results.append([y, backward(of(dy), grads), *grads.values()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
