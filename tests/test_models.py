"""Networks as data: what is built, what is refused, and where their training begins."""

import numpy as np
import pytest

from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.nn.layers import Conv2d, Dropout, Linear
from dpcnn.nn.models import KINDS, MODELS, build
from dpcnn.nn.network import Network
from dpcnn.recipe import read_recipe


def test_options_reach_the_layers():
    convolution, linear = build(
        [{"kind": "conv2d", "filters": 7, "kernel_size": [5, 3], "stride": 2, "bias": True}, {"kind": "linear"}], 10
    )
    assert isinstance(convolution, Conv2d) and (convolution.filters, convolution.kernel_size) == (7, (5, 3))
    assert (convolution.stride, convolution.padding, convolution.bias) == (2, 0, True)
    assert isinstance(linear, Linear) and linear.features == 10


def test_a_dropout_layer_without_a_part_takes_the_run_s():
    assert not [layer for layer in build(MODELS["simple-cnn"], 10) if isinstance(layer, Dropout)]
    (layer,) = [layer for layer in build(MODELS["simple-cnn"], 10, 0.25) if isinstance(layer, Dropout)]
    assert layer.threshold == 0.25 * 65536


def test_a_dropout_layer_that_names_its_input_stays_without_dropout():
    """It was left out, and the layer after it took the output of another layer."""
    spec = [{"kind": "scale", "name": "x"}, {"kind": "relu"}, {"kind": "dropout", "input": "x"}, {"kind": "flatten"}]
    assert isinstance(build(spec, 10)[2], Dropout)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "conv3d"}, "layer 1: no kind 'conv3d'; did you mean 'conv2d'?"),
        ({"kind": "softmax"}, "layer 1: no kind 'softmax'; known are scale, normalise, conv2d, "),
        ({}, "layer 1: kind is missing; known are scale, normalise, conv2d, "),
        (
            {"kind": "conv2d", "filter": 3, "kernel_size": 3},
            "layer 1 (conv2d): unknown key 'filter'; did you mean 'filters'?",
        ),
        ({"kind": "relu", "slope": 3}, "layer 1 (relu): unknown key 'slope'; known are none"),
        ({"kind": "conv2d", "filters": "3", "kernel_size": 3}, "layer 1 (conv2d): filters: expected int, not '3'"),
        ({"kind": "conv2d", "filters": True, "kernel_size": 3}, "layer 1 (conv2d): filters: expected int, not True"),
        ({"kind": "conv2d", "filters": 3}, "layer 1 (conv2d): kernel_size is missing"),
        (
            {"kind": "conv2d", "filters": 3, "kernel_size": [3, 3, 3]},
            "kernel_size: expected a height and a width, not [3, 3, 3]",
        ),
        ({"kind": "conv2d", "filters": 0, "kernel_size": 3}, "layer 1 (conv2d): filters: must be at least 1, not 0"),
        ({"kind": "conv2d", "filters": 3, "kernel_size": 3, "padding": -1}, "padding: must be at least 0, not -1"),
        (
            {"kind": "maxpool2d", "kernel_size": 2, "stride": 0},
            "layer 1 (maxpool2d): stride: must be at least 1, not 0",
        ),
        ({"kind": "dropout", "rate": 0.5}, "layer 1 (dropout): unknown key 'rate'; known are p"),
        (
            {"kind": "normalise", "dtype": "float64"},
            "layer 1 (normalise): unknown key 'dtype'; known are mean, deviation",
        ),
        ({"kind": "dropout", "p": 1.0}, "layer 1 (dropout): p: must be at least 0 and below 1, not 1.0"),
        ({"kind": "localresponsenorm", "size": 4}, "layer 1 (localresponsenorm): size: must be odd"),
        ({"kind": "linear", "features": -4}, "layer 1 (linear): features: must be at least 1, not -4"),
    ],
)
def test_a_wrong_layer_is_named(table, message):
    with pytest.raises(ConfigError) as caught:
        build([table], 10)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["linear"], "linear1 can't take (12, 12, 1): pixels need a flatten before a linear layer"),
        (["flatten", "maxpool2d"], "maxpool2d1 can't take (144,)"),
        (["flatten", "globalavgpool"], "globalavgpool1 can't take (144,)"),
        (["scale"], "the model ends in (12, 12, 1), and there is no number for each class; add a linear layer"),
        (["flatten"], "the model ends in (144,), and no layer has parameters; add a linear layer"),
    ],
)
def test_layers_that_do_not_fit(layers, message):
    options = {"maxpool2d": {"kernel_size": 2}}
    with pytest.raises(ConfigError) as caught:
        Config(layers=[{"kind": kind, **options.get(kind, {})} for kind in layers]).network((12, 12, 1), 10)
    assert message in str(caught.value)


def test_a_network_of_other_classes_is_refused():
    layers = [{"kind": "flatten"}, {"kind": "linear", "features": 9}]
    with pytest.raises(ConfigError, match="the model has 9 classes; the data has 10"):
        Config(layers=layers).network((12, 12, 1), 10)


def test_a_recipe_with_layers(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('model = "mine"\n[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\n')
    assert read_recipe(str(path)).network((28, 28, 1), 10).size == 7840
    path.write_text('model = "mine"\n')
    with pytest.raises(ConfigError, match="no 'mine'; choose from simple-cnn, small-cnn, mlp, or write"):
        read_recipe(str(path))
    path.write_text('layers = [{ kind = "flatten" }, { kind = "linear" }]\n')
    assert read_recipe(str(path)).model == "mine"
    path.write_text("layers = []\n")
    assert read_recipe(str(path)).model == "simple-cnn"
    path.write_text('layers = "all"\n')
    with pytest.raises(ConfigError, match="expected a list of tables"):
        read_recipe(str(path))


def test_every_kind_can_be_part_of_a_network():
    needed = {
        "conv2d": {"filters": 8, "kernel_size": 3},
        "maxpool2d": {"kernel_size": 2},
        "avgpool2d": {"kernel_size": 2},
        "groupnorm": {"groups": 2},
        "add": {"with": ["relu1"]},
        "concat": {"with": ["sigmoid1"]},
    }
    last = ["globalavgpool", "flatten", "linear"]  # one of the first two
    kinds = [kind for kind in KINDS if kind not in last]
    spec = [{"kind": kind, **needed.get(kind, {})} for kind in [*kinds, *last]]
    assert len(build(spec, 10, dropout=0.5)) == len(spec) == len(KINDS)


def test_first_values():
    network = Network((28, 28, 1), build(MODELS["simple-cnn"], 10))
    for init, spread in (("glorot", lambda p: (2 / (p.fan_in + p.fan_out)) ** 0.5), ("normal", lambda p: 0.02)):
        vector = network.initialise(3, init, 0.02)
        for parameter, values in zip(network.parameters, network.views(vector).values(), strict=True):
            assert abs(values.std() / spread(parameter) - 1) < 5 / np.sqrt(2 * values.size)
            if init == "glorot":
                assert abs(values).max() <= 3**0.5 * spread(parameter)
    by_name = {p.name: (p.fan_in, p.fan_out) for p in network.parameters}
    assert by_name["conv2d2.w"] == (9 * 16, 9 * 32) and by_name["linear1.w"] == (3136, 512)
