"""The models that ``--model`` names: each a list of layers, made anew at every call."""

from collections.abc import Callable

from dpcnn.nn.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU, Scale


def simple_cnn(classes: int) -> list[Layer]:
    """Three 3x3 convolutions and two linear layers, no biases: 1.63 M parameters on 28x28x1.

    ReLU stands behind max-pooling, where it has a quarter of the work: the two commute, values
    and gradients alike.
    """
    return [
        Scale(low=0.01, span=0.99),
        Conv2d(16, (3, 3), padding=1),
        MaxPool2d(2),
        ReLU(),
        Conv2d(32, (3, 3), padding=1),
        ReLU(),
        Conv2d(64, (3, 3), padding=1),
        MaxPool2d(2),
        ReLU(),
        Flatten(),
        Linear(512),
        ReLU(),
        Linear(classes),
    ]


def mlp(classes: int) -> list[Layer]:
    """One hidden layer of 128 units with biases: small enough to study a run by hand."""
    return [Scale(low=0.0, span=1.0), Flatten(), Linear(128, bias=True), ReLU(), Linear(classes, bias=True)]


MODELS: dict[str, Callable[[int], list[Layer]]] = {"simple-cnn": simple_cnn, "mlp": mlp}
