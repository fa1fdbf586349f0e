"""PyTorch's layout of parameters: features behind a flatten layer have another order there."""

import numpy as np
import pytest

from dpcnn.errors import ConfigError
from dpcnn.interop.torch_layout import torch_names
from dpcnn.nn.activations import LeakyReLU
from dpcnn.nn.layer import Parameter
from dpcnn.nn.models import build
from dpcnn.nn.network import Network

H, W, C, CLASSES = 3, 4, 5, 60  # as many classes as features: the biases of the linear layer have another order
FLATTEN, LINEAR = {"kind": "flatten"}, {"kind": "linear", "bias": True}
OTHER = {"kind": "linear", "features": H * W * C}


def network(*spec, shape=(H, W, C)) -> Network:
    return Network(shape, build([{"kind": "scale"}, *spec], CLASSES))


def normalised() -> Network:
    return network(FLATTEN, {"kind": "batchnorm"}, {"kind": "relu"}, {"kind": "layernorm"}, LINEAR)


def test_features_behind_a_flatten_layer():
    for twin in torch_names(normalised()):
        ours = np.random.default_rng(0).standard_normal(twin.shape).astype(np.float32)
        theirs = twin.to_torch(ours)
        assert theirs.shape == twin.their_shape
        np.testing.assert_array_equal(twin.from_torch(theirs), ours)
        if twin.ours == "linear1.b":
            np.testing.assert_array_equal(theirs, ours)
        else:  # [.., feature]
            features = theirs.reshape(-1, C, H, W)
            expected = ours.reshape(H, W, C, -1).transpose(3, 2, 0, 1)
            np.testing.assert_array_equal(features, expected)


@pytest.mark.parametrize(
    "spec",
    [
        [FLATTEN, {"kind": "groupnorm", "groups": 5}, LINEAR],
        [FLATTEN, {"kind": "localresponsenorm", "size": 3}, LINEAR],
        [{**FLATTEN, "name": "f"}, OTHER, {"kind": "relu"}, {"kind": "add", "with": ["f"]}, LINEAR],
        [{**FLATTEN, "name": "f"}, {"kind": "tanh"}, {"kind": "concat", "with": ["f"]}, LINEAR],
    ],
)
def test_layers_that_depend_on_the_order_are_refused(spec):
    with pytest.raises(ConfigError, match=r"^no PyTorch layout for \w+ behind a flatten layer; use --format npz$"):
        torch_names(network(*spec))
    if spec[0] is FLATTEN:
        torch_names(network(FLATTEN, OTHER, *spec[1:]))  # the order of a linear layer's output is the same


def test_a_parameter_that_is_not_one_of_each_feature_stays_as_it_is():
    class Steep(LeakyReLU):
        parameters = (Parameter("b", (1,)),)

    layers = build([{"kind": "scale"}, FLATTEN, LINEAR], CLASSES)
    (twin, *_) = torch_names(Network((H, W, C), [*layers[:2], Steep(), layers[2]]))
    one = np.ones(1, np.float32)
    assert (twin.ours, twin.their_shape) == ("steep1.b", (1,)) and twin.to_torch(one).tolist() == [1.0]


@pytest.mark.parametrize("shape", [(1, 1, 60), (6, 10, 1)])
def test_one_pixel_or_one_channel_has_one_order(shape):
    spec = [{**FLATTEN, "name": "f"}, {"kind": "batchnorm"}, OTHER, {"kind": "add", "with": ["f"]}, LINEAR]
    for twin in torch_names(network(*spec, shape=shape)):
        ours = np.random.default_rng(0).standard_normal(twin.shape).astype(np.float32)
        np.testing.assert_array_equal(twin.to_torch(ours), ours.T)


def test_pytorch_computes_the_same_behind_a_flatten_layer():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from dpcnn.evidence.peers.torch_net import torch_net

    ours, rng = normalised(), np.random.default_rng(1)
    params = rng.uniform(0.5, 1.5, ours.size).astype(np.float32)
    images = rng.integers(0, 256, (7, H, W, C), dtype=np.uint8)
    with torch.no_grad():
        theirs = torch_net(ours, params).eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(ours.logits(params, images), theirs.numpy(), rtol=1e-4, atol=1e-4)
