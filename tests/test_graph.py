"""Networks whose layers name their inputs: gradients of random graphs, memory that is shared, and mistakes."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from dpcnn.base import arrays
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.evidence.layers import time_layers
from dpcnn.nn import normalisation
from dpcnn.nn.activations import ReLU
from dpcnn.nn.losses import CrossEntropy
from dpcnn.nn.models import build
from dpcnn.nn.network import Network
from dpcnn.nn.pooling import MaxPool2d

SHAPE, CHANNELS, CLASSES = (6, 5, 2), 4, 3

CONVOLUTION = {"kind": "conv2d", "filters": CHANNELS, "kernel_size": 3, "padding": 1, "bias": True}
KEEPS_SHAPE = [
    CONVOLUTION,
    {"kind": "relu"},
    {"kind": "leakyrelu"},
    {"kind": "tanh"},
    {"kind": "gelu"},
    {"kind": "silu"},
    {"kind": "batchnorm"},
    {"kind": "layernorm"},
    {"kind": "groupnorm", "groups": 2},
    {"kind": "dropout", "p": 0.0},
    {"kind": "maxpool2d", "kernel_size": 1},
    {"kind": "avgpool2d", "kernel_size": 1},
    {"kind": "avgpool2d", "kernel_size": 3, "stride": 1, "padding": 1},
]
HEAD = [{"kind": "globalavgpool"}, {"kind": "linear", "bias": True}]


def as_float64(spec, shape=SHAPE) -> Network:
    layers = build([{"kind": "scale"}, *spec], CLASSES)
    layers[0].dtype = np.dtype(np.float64)
    return Network(shape, layers)


@st.composite
def graphs(draw) -> list[dict]:
    """Layers of one shape, each with any inputs before it; the outputs that no layer takes are concatenated."""
    spec, unused = [{**CONVOLUTION, "name": "n0"}], {"n0"}
    for number in range(1, draw(st.integers(2, 9))):
        names = [f"n{index}" for index in range(number)]
        inputs = draw(st.lists(st.sampled_from(names), min_size=2, max_size=3))
        layer = draw(st.sampled_from([{"kind": "add"}, *KEEPS_SHAPE, *KEEPS_SHAPE]))
        merged = {"with": inputs[1:]} if layer["kind"] == "add" else {}
        spec.append({**layer, "name": f"n{number}", "input": inputs[0], **merged})
        unused = unused - {inputs[0], *merged.get("with", [])} | {f"n{number}"}
    first, *others = sorted(unused)
    return [*spec, *([{"kind": "concat", "input": first, "with": others}] if others else []), *HEAD]


@settings(max_examples=60, deadline=None)
@given(spec=graphs(), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_of_any_graph_by_finite_differences_in_float64(spec, seed):
    rng = np.random.default_rng(seed)
    network = as_float64(spec)
    params = network.initialise(1).astype(np.float64) + 0.1 * rng.standard_normal(network.size)
    for name, view in network.views(params).items():
        if name.endswith("variance"):
            view[...] = 1 + rng.random(view.shape)
    learned = np.ones(network.size)
    for start, stop, _ in network.running_stats:
        learned[start:stop] = 0
    images, labels = rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, 4)
    gradient, spare = np.full((2, network.size), np.nan)
    network.gradient(params, images, labels, CrossEntropy(0.0), gradient)
    direction = rng.standard_normal(network.size) * learned
    losses = [
        network.gradient(params + t * direction, images, labels, CrossEntropy(0.0), spare)[0] for t in (1e-8, -1e-8)
    ]
    assert (gradient * learned) @ direction == pytest.approx((losses[0] - losses[1]) / 2e-8, rel=1e-5, abs=1e-5)


NORMALISED = [{"kind": "batchnorm"}, {"kind": "relu"}]
PIECES = [
    NORMALISED,
    [CONVOLUTION, *NORMALISED],
    [*NORMALISED, {"kind": "add", "with": ["first"]}],
    [{"kind": "batchnorm", "freeze": True}, {"kind": "relu"}],
    [*NORMALISED, {"kind": "maxpool2d", "kernel_size": 1}],
    [CONVOLUTION, {"kind": "relu"}, {"kind": "maxpool2d", "kernel_size": 3, "stride": 1, "padding": 1}],
]
HIDDEN = [{"kind": "flatten"}, {"kind": "linear", "features": 9}, *NORMALISED, {"kind": "linear"}]
HEADS = [HEAD, [{"kind": "flatten"}, {"kind": "linear"}], HIDDEN]


def layer_by_layer(network: Network) -> None:
    """Let a network compute all its layers in training, each for itself, as in evaluation."""
    network._in_training, network._applied = network.layers, {}


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
    head=st.sampled_from(HEADS),
    long=st.sampled_from([1, 60, arrays.LONG]),
    cached=st.sampled_from([1, 400, 1 << 19]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_relu_that_a_normalisation_applies_has_the_bits_of_one_that_it_does_not(pieces, head, long, cached, seed):
    rng = np.random.default_rng(seed)
    spec = [{**CONVOLUTION, "name": "first"}, *(layer for piece in pieces for layer in piece), *head]
    folded, plain = (Network(SHAPE, build([{"kind": "scale"}, *spec], CLASSES)) for _ in range(2))
    event(f"{len(folded._applied)} ReLUs are applied")
    layer_by_layer(plain)
    images, labels = rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, 4)
    gradients = np.full((2, folded.size), np.nan, np.float32)
    with mock.patch.object(arrays, "LONG", long), mock.patch.object(normalisation, "CACHED", cached):
        results = [
            network.gradient(
                network.initialise(1), images, labels, CrossEntropy(0.0), out, SampleRng(0, 0, np.arange(4))
            )
            for network, out in zip((folded, plain), gradients, strict=True)
        ]
    assert results[0] == results[1]
    np.testing.assert_array_equal(gradients[0], gradients[1])


@settings(max_examples=60, deadline=None)
@given(
    pool=st.tuples(*[st.integers(1, 4)] * 2, st.integers(0, 2)),
    normalised=st.booleans(),
    levels=st.sampled_from([1, 2, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_relu_after_the_pooling_has_the_bits_of_one_before_it(pool, normalised, levels, seed):
    """Few levels of the weights, so that many values of a window are equal, or zero."""
    (kernel_size, stride, padding), rng = pool, np.random.default_rng(seed)
    pooling = {"kernel_size": kernel_size, "stride": stride, "padding": min(padding, kernel_size // 2)}
    relu = NORMALISED if normalised else NORMALISED[1:]
    spec = [CONVOLUTION, *relu, {"kind": "maxpool2d", **pooling}, CONVOLUTION, *HEAD]
    swapped, plain = (Network(SHAPE, build([{"kind": "scale"}, *spec], CLASSES)) for _ in range(2))
    layer_by_layer(plain)
    swapped._applied = {}
    params = (np.round(swapped.initialise(1) * levels) / levels).astype(np.float32)
    images, labels = rng.integers(0, 3, (4, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, 4)
    gradients = np.full((2, swapped.size), np.nan, np.float32)
    results = [
        network.gradient(params, images, labels, CrossEntropy(0.0), out, SampleRng(0, 0, np.arange(4)))
        for network, out in zip((swapped, plain), gradients, strict=True)
    ]
    assert results[0] == results[1]
    np.testing.assert_array_equal(gradients[0], gradients[1])
    in_evaluation = [output[..., 0, :].shape for _, _, output in swapped.outputs(params, images)]
    assert in_evaluation == swapped.shapes


@settings(max_examples=60, deadline=None)
@given(
    pool=st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(0, 2)),
    relu=st.booleans(),
    shape=st.sampled_from([SHAPE, (1, 11, 2)]),
    long=st.sampled_from([1, 40, arrays.LONG]),
    cached=st.sampled_from([1, 400, 1 << 19]),
    seed=st.integers(0, 2**32 - 1),
)
@example((1, 2, 0), True, (1, 11, 2), 40, 1, 0)  # more rows behind the pooling than before
def test_a_pooling_that_a_normalisation_applies(pool, relu, shape, long, cached, seed):
    """With weights of both signs, and 0: the same output, bit for bit; and the same gradient, but for rounding."""
    (kernel_size, stride, padding), rng = pool, np.random.default_rng(seed)
    pooling = {
        "kind": "maxpool2d",
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": min(padding, kernel_size // 2),
    }
    assume(shape[0] + 2 * pooling["padding"] >= kernel_size)
    spec = [CONVOLUTION, {"kind": "batchnorm"}, *[{"kind": "relu"}] * relu, pooling, CONVOLUTION, *HEAD]
    applies, plain = as_float64(spec, shape), as_float64(spec, shape)
    assert len(applies._applied) == 1
    layer_by_layer(plain)
    params = applies.initialise(1).astype(np.float64) + 0.1 * rng.standard_normal(applies.size)
    applies.views(params)["batchnorm1.w"][...] *= rng.choice([-1, 1], CHANNELS)
    if not relu:
        applies.views(params)["batchnorm1.b"][0] = -0.0
    images, labels = rng.integers(0, 256, (4, *shape), dtype=np.uint8), rng.integers(0, CLASSES, 4)
    gradients = np.full((2, applies.size), np.nan)
    in_bands = mock.patch.multiple(normalisation, CACHED=cached, SUMMED=cached)
    with mock.patch.object(arrays, "LONG", long), in_bands:
        results = [
            network.gradient(params, images, labels, CrossEntropy(0.0), out, SampleRng(0, 0, np.arange(4)))
            for network, out in zip((applies, plain), gradients, strict=True)
        ]
    assert results[0] == results[1]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("w", [0.0, -0.0])
def test_a_pooling_after_a_weight_of_zero(w):
    network = as_float64([CONVOLUTION, {"kind": "batchnorm"}, {"kind": "maxpool2d", "kernel_size": 2}, *HEAD])
    rng = np.random.default_rng(0)
    params, gradient, spare = network.initialise(1).astype(np.float64), *np.full((2, network.size), np.nan)
    network.views(params)["batchnorm1.w"][1] = -0.5
    images, labels = rng.integers(0, 256, (4, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, 4)

    def loss(value, out):
        network.views(params)["batchnorm1.w"][0] = value
        return network.gradient(params, images, labels, CrossEntropy(0.0), out, SampleRng(0, 0, np.arange(4)))[0]

    before = loss(w, gradient)
    slope = (loss(1e-7, spare) - before) / 1e-7  # the largest value of x is that of y from above
    assert network.views(gradient)["batchnorm1.w"][0] == pytest.approx(slope, rel=1e-5)


def test_which_relus_wait_for_a_pooling():
    relu, pool = {"kind": "relu"}, {"kind": "maxpool2d", "kernel_size": 1, "stride": 2}
    spec = [
        {"kind": "conv2d", "filters": 2, "kernel_size": 1},
        relu,  # 1: waits for both
        pool,
        pool,
        {**relu, "name": "shared"},  # 4: another layer takes its output too
        pool,
        {**pool, "input": "shared"},
        {"kind": "add", "with": ["maxpool2d3"]},
        relu,  # 8: the pooling is another one
        {"kind": "avgpool2d", "kernel_size": 1},
        {"kind": "batchnorm"},
        relu,  # 11: waits, so the normalisation applies the pooling
        pool,
        {"kind": "leakyrelu"},  # 13: other rounded values may be equal
        pool,
        {"kind": "batchnorm"},
        relu,  # 16: the pooling has no stride, so the normalisation applies the ReLU
        {"kind": "maxpool2d", "kernel_size": 1},
        *HEAD,
    ]
    network = Network(SHAPE, build(spec, CLASSES))
    order = [network.names[layer.number] for layer in network._in_training]
    assert order[1:4] == ["maxpool2d1", "maxpool2d2", "relu1"] and order[11:13] == ["maxpool2d5", "relu4"]
    assert order[4:11] == network.names[4:11] and order[13:] == network.names[13:]
    assert network._applied == {11: 10, 16: 15}
    kept = build([pool, {"kind": "flatten"}, {"kind": "linear"}, relu], CLASSES)  # the pooling takes the images
    assert Network(SHAPE, kept)._in_training == kept
    layers = build(spec[:3] + HEAD, CLASSES)
    for place, derived in ((1, type("Other", (ReLU,), {})()), (2, type("Other", (MaxPool2d,), {})(1, 2))):
        other = [*layers[:place], derived, *layers[place + 1 :]]
        assert Network(SHAPE, other)._in_training == other


def test_which_relus_a_normalisation_applies():
    spec = [
        {"kind": "conv2d", "filters": 2, "kernel_size": 1},
        {"kind": "batchnorm"},  # 1: applies the next
        {"kind": "relu"},
        {"kind": "batchnorm", "name": "shared"},  # 3: another layer takes its output too
        {"kind": "relu"},
        {"kind": "add", "with": ["shared"]},
        {"kind": "batchnorm", "freeze": True},  # 6: computes as in evaluation
        {"kind": "relu"},
        {"kind": "batchnorm"},  # 8: there is another layer in between
        {"kind": "tanh"},
        {"kind": "relu"},
        *HEAD,
    ]
    network = Network(SHAPE, build(spec, CLASSES))
    assert network._applied == {2: 1}
    for place, derived in ((1, type("Other", (normalisation.BatchNorm,), {})), (2, type("Other", (ReLU,), {}))):
        layers = build(spec, CLASSES)
        layers[place] = derived()
        assert Network(SHAPE, layers)._applied == {}


def test_networks_of_the_same_layers_do_not_disturb_each_other():
    layers = build([{"kind": "scale"}, CONVOLUTION, *NORMALISED, *HEAD], CLASSES)
    images, labels = np.arange(240, dtype=np.uint8).reshape(4, *SHAPE), np.array([0, 1, 2, 0])

    def gradient(network):
        out = np.full(network.size, np.nan, np.float32)
        network.gradient(network.initialise(1), images, labels, CrossEntropy(0.0), out, SampleRng(0, 0, np.arange(4)))
        return out

    with_relu, without = Network(SHAPE, layers), Network(SHAPE, [*layers[:3], *layers[4:]])
    first, other = gradient(with_relu), gradient(without)
    time_layers(with_relu, with_relu.initialise(1), 4)
    np.testing.assert_array_equal(gradient(with_relu), first)
    np.testing.assert_array_equal(gradient(without), other)
    assert (first != other).any()


RESIDUAL = [
    {**CONVOLUTION, "name": "stem"},
    {"kind": "relu", "name": "a"},
    CONVOLUTION,
    {"kind": "batchnorm"},
    {"kind": "relu"},
    CONVOLUTION,
    {"kind": "add", "with": ["a"]},
    {"kind": "relu"},
    *HEAD,
]


def test_a_block_with_a_shortcut_is_its_definition():
    network = as_float64(RESIDUAL)
    params = network.initialise(3).astype(np.float64)
    images = np.random.default_rng(3).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    outputs = {name: output.copy() for name, _, output in network.outputs(params, images)}
    shortcut, path = outputs["a"], outputs["conv2d3"]
    np.testing.assert_array_equal(outputs["relu3"], np.maximum(shortcut + path, 0))
    np.testing.assert_allclose(outputs["globalavgpool1"], outputs["relu3"].mean(axis=(0, 1)), rtol=1e-12)


def test_an_activation_leaves_an_input_alone_that_others_take():
    network = as_float64(
        [
            {**CONVOLUTION, "name": "a"},
            {"kind": "relu"},
            {"kind": "add", "with": ["a"]},
            *HEAD,
        ]
    )
    params = network.initialise(3).astype(np.float64)
    images = np.random.default_rng(3).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    outputs = {name: output.copy() for name, _, output in network.outputs(params, images)}
    np.testing.assert_array_equal(outputs["add1"], outputs["a"] + np.maximum(outputs["a"], 0))


@pytest.mark.parametrize("between", [layer for layer in KEEPS_SHAPE if layer != CONVOLUTION])
def test_an_activation_behind_a_layer_leaves_that_layer_s_input_alone(between):
    network = as_float64(
        [{**CONVOLUTION, "name": "a"}, between, {"kind": "relu"}, {"kind": "add", "with": ["a"]}, *HEAD]
    )
    params = network.initialise(3).astype(np.float64)
    images = np.random.default_rng(3).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    outputs = {name: output.copy() for name, _, output in network.outputs(params, images)}
    after = outputs[network.names[network.names.index("add1") - 1]]
    np.testing.assert_array_equal(outputs["add1"], after + outputs["a"])


PIXELS = {"kind": "scale", "low": -0.5, "name": "pixels"}


def outputs_of(spec, images):
    """A network of these layers in front of a linear one, and all its outputs."""
    network = Network(images.shape[1:], build([*spec, {"kind": "linear"}], CLASSES))
    return network, {name: output.copy() for name, _, output in network.outputs(network.initialise(3), images)}


MEANS, DEVIATIONS = [100.0 + c for c in range(SHAPE[-1])], [50.0 + c for c in range(SHAPE[-1])]
FACTORS = 1 / np.array(DEVIATIONS, np.float32)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    ("pixels", "factor", "offset"),
    [
        (PIXELS, np.float32(1 / 255), np.float32(-0.5)),
        (
            {"kind": "normalise", "mean": MEANS, "deviation": DEVIATIONS},
            FACTORS,
            -np.array(MEANS, np.float32) * FACTORS,
        ),
    ],
    ids=["scale", "normalise"],
)
def test_images_that_are_only_flattened_keep_their_order_in_memory(count, pixels, factor, offset):
    images = np.random.default_rng(3).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    before = images.copy()
    network, outputs = outputs_of([pixels, {"kind": "flatten"}, {"kind": "relu"}], images)
    rows = (images * factor + offset).reshape(count, -1)
    np.testing.assert_array_equal(outputs["relu1"], np.maximum(rows, 0))
    np.testing.assert_array_equal(images, before)
    scaled = network.layers[0].forward(images.transpose(1, 2, 0, 3), {})[0]
    assert np.shares_memory(network.layers[1].forward(scaled, {})[0], scaled)


@pytest.mark.parametrize("count", [1, 4])
def test_images_that_are_flattened_and_taken_otherwise_are_not_overwritten(count):
    images = np.random.default_rng(3).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    flat, other = {"kind": "flatten", "name": "flat"}, {"kind": "flatten", "name": "other", "input": "pixels"}
    spec = [PIXELS, flat, {"kind": "relu", "name": "positive"}, other, {"kind": "concat", "with": ["positive"]}]
    _, outputs = outputs_of(spec, images)
    rows = images.reshape(count, -1) * np.float32(1 / 255) + np.float32(-0.5)
    np.testing.assert_array_equal(outputs["concat1"], np.concatenate([rows, np.maximum(rows, 0)], axis=1))


def test_a_name_is_that_of_the_layer_s_parameters():
    assert [p.name for p in as_float64(RESIDUAL).parameters][:3] == ["stem.w", "stem.b", "conv2d2.w"]


MISTAKES = [
    ([{"kind": "add", "with": ["b"]}, *HEAD], "add1: there is no layer 'b' before it"),
    ([{"kind": "relu", "input": "relu1"}, *HEAD], "relu1: there is no layer 'relu1' before it"),
    ([{"kind": "add"}, *HEAD], "add1 needs with = [...], its other inputs"),
    ([{"kind": "relu", "with": ["scale1"]}, *HEAD], "relu1 takes one input, and no with"),
    ([{**CONVOLUTION, "name": "a"}, {"kind": "relu", "name": "a"}, *HEAD], "2 layers have the name a"),
    ([CONVOLUTION, {"kind": "relu", "input": "scale1"}, *HEAD], "no layer uses the output of conv2d1"),
    ([CONVOLUTION, {"kind": "add", "with": ["scale1"]}, *HEAD], "add1: its inputs must have one shape, not (6, 5, 4)"),
    (
        [{"kind": "maxpool2d", "kernel_size": 2}, {"kind": "concat", "with": "scale1"}, *HEAD],
        "concat1: its inputs must agree in height and width, not (3, 2, 2), (6, 5, 2)",
    ),
    ([{"kind": "relu", "name": "a.b"}, *HEAD], "layer 2 (relu): name: expected letters, digits, - and _, not 'a.b'"),
    ([{"kind": "add", "with": [1]}, *HEAD], "layer 2 (add): with: expected letters, digits, - and _, not 1"),
    ([{"kind": "add", "with": 1}, *HEAD], "layer 2 (add): with: expected a list of names, not 1"),
    ([{"kind": "groupnorm", "groups": 3}, *HEAD], "groupnorm1: groups: must divide the 2 channels, not 3"),
    ([{"kind": "leakyrelu", "negative_slope": 2.0}, *HEAD], "negative_slope: must be from 0 to 1, not 2.0"),
    ([{"kind": "leakyrelu", "negative_slope": -0.5}, *HEAD], "negative_slope: must be from 0 to 1, not -0.5"),
    ([{"kind": "layernorm", "epsilon": 0.0}, *HEAD], "epsilon: must be above 0, not 0.0"),
    ([{"kind": "groupnorm", "groups": 0}, *HEAD], "groups: must be at least 1, not 0"),
    ([{"kind": "localresponsenorm", "size": 257}, *HEAD], "size: must be at most 255, not 257"),
    ([{"kind": "localresponsenorm", "k": 0.0}, *HEAD], "k, alpha: must be above 0 and at least 0, not 0.0 and 0.0001"),
]


@pytest.mark.parametrize(("spec", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_in_a_graph_is_named(spec, message):
    with pytest.raises(ConfigError) as error:
        as_float64(spec)
    assert message in str(error.value)
