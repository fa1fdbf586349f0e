"""Class activation maps: which networks have them, what they are, and their place in a report."""

from pathlib import Path

import numpy as np
import pytest
from commands import command, training

from dpcnn.nn.metrics import Answers
from dpcnn.nn.models import build
from dpcnn.nn.network import Network
from dpcnn.reporting.activation_maps import activation_map, averaged_layer, best_of_classes
from dpcnn.reporting.mistakes import worst_mistakes
from dpcnn.training.examination import Examination

SHAPE, CLASSES = (8, 6, 3), 4
CONVOLUTION = {"kind": "conv2d", "filters": 5, "kernel_size": 3, "padding": 1, "name": "conv"}
POOL, LAST, DROPOUT = {"kind": "globalavgpool"}, {"kind": "linear", "bias": True}, {"kind": "dropout", "p": 0.5}
SUM = {"kind": "add", "with": ["conv"]}
RECIPE = """
model = "pooled"
data = "mnist"
layers = [
    { kind = "scale" },
    { kind = "conv2d", filters = 4, kernel_size = 3, stride = 2 },
    { kind = "relu" },
    { kind = "globalavgpool" },
    { kind = "linear", bias = true },
]
"""
TITLE = "Where the network finds the predicted class"
RNG = np.random.default_rng(11)


def network(*layers: dict) -> Network:
    return Network(SHAPE, build([{"kind": "scale"}, *layers], CLASSES))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([CONVOLUTION, POOL, LAST], 1),
        ([CONVOLUTION, {"kind": "relu"}, SUM, DROPOUT, POOL, DROPOUT, LAST], 4),
        ([CONVOLUTION, POOL, {"kind": "relu"}, LAST], None),
        ([CONVOLUTION, POOL, {"kind": "linear", "features": 9}, LAST], None),
        ([CONVOLUTION, {"kind": "flatten"}, LAST], None),
        ([CONVOLUTION, POOL, LAST, DROPOUT], None),
        ([{**CONVOLUTION, "kernel_size": 6, "padding": 0, "stride": 4}, POOL, LAST], None),
    ],
)
def test_the_layer_that_is_averaged(layers, expected):
    assert averaged_layer(network(*layers)) == expected


@pytest.mark.parametrize(
    "layers",
    [
        [CONVOLUTION, {"kind": "relu"}, POOL, LAST],
        [CONVOLUTION, {"kind": "relu"}, SUM, {"kind": "tanh"}, POOL, DROPOUT, {"kind": "linear"}],
    ],
)
def test_the_mean_of_a_map_and_the_bias_are_the_output_for_the_class(layers):
    net = network(*layers)
    params = net.initialise(3) + RNG.normal(0, 0.1, net.size).astype(np.float32)
    image = RNG.integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    logits = net.logits(params, image)[0].copy()
    biases = next((view for name, view in net.views(params).items() if name.endswith("linear1.b")), np.zeros(CLASSES))
    for number in range(CLASSES):
        values = activation_map(net, params, image, number)
        assert values.shape == (8, 6)
        assert values.mean() + biases[number] == pytest.approx(logits[number], rel=1e-4, abs=1e-4)


def test_a_map_is_high_where_the_class_is():
    net = network({**CONVOLUTION, "filters": 1, "kernel_size": 1, "padding": 0}, POOL, {"kind": "linear"})
    params = np.zeros(net.size, np.float32)
    views = net.views(params)
    views["conv.w"][..., 0, 0], views["linear1.w"][0] = 1, [1, -2, 0, 0]
    image = np.zeros((1, *SHAPE), np.uint8)
    image[0, 6, 2, 0] = 255
    expected = np.zeros((8, 6))
    expected[6, 2] = 1
    for number, factor in enumerate((1, -2, 0)):
        np.testing.assert_allclose(activation_map(net, params, image, number), factor * expected, rtol=1e-6)


def test_the_chosen_samples_are_the_worst_mistakes_and_the_best_of_each_class():
    labels, predicted = np.array([2, 2, 1, 0, 1, 2, 1]), np.array([2, 2, 0, 0, 1, 0, 0])
    losses = np.array([0.4, 0.3, 5.0, 0.2, 0.1, 9.0, 5.0])
    answers = Answers(labels, predicted, labels == predicted, losses, np.zeros(7, np.int64))
    assert worst_mistakes(answers, 2).tolist() == [5, 2] and worst_mistakes(answers, 9).tolist() == [5, 2, 6]
    found = Examination(None, None, np.arange(7), answers, None, (), "", {})  # type: ignore[arg-type]
    assert best_of_classes(found).tolist() == [3, 4, 1]


def test_a_report_with_maps_is_the_same_on_any_number_of_ranks(small, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "pooled.toml").write_text(RECIPE)
    words = ["--recipe", tmp_path / "pooled.toml", "--data", small, "--validation", "100", "--epochs", "1"]
    assert training(*words, "--out", tmp_path / "run").status == 0
    for ranks in (1, 3):
        result = command("report", tmp_path / "run", "--out", tmp_path / f"{ranks}.html", ranks=ranks)
        assert result.status == 0, result.err
    page = (tmp_path / "1.html").read_text()
    assert TITLE in page and page == (tmp_path / "3.html").read_text()
