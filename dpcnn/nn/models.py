"""The models that ``--model`` names: each a list of layers for so many classes and a part dropped."""

from collections.abc import Callable

from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Layer, Linear, MaxPool2d, ReLU, Scale


def simple_cnn(classes: int, dropout: float = 0.0) -> list[Layer]:
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
        *dropped(dropout),
        Linear(classes),
    ]


def small_cnn(classes: int, dropout: float = 0.0) -> list[Layer]:
    """Three 3x3 convolutions of 8, 24 and 64 filters and one linear layer: 46,994 parameters on 28x28x1."""
    return [
        Scale(low=0.0, span=1.0),
        Conv2d(8, (3, 3), padding=1),
        MaxPool2d(2),
        ReLU(),
        Conv2d(24, (3, 3), padding=1),
        MaxPool2d(2),
        ReLU(),
        Conv2d(64, (3, 3), padding=1),
        ReLU(),
        Flatten(),
        *dropped(dropout),
        Linear(classes, bias=True),
    ]


def mlp(classes: int, dropout: float = 0.0) -> list[Layer]:
    """One hidden layer of 128 units with biases: small enough to study a run by hand."""
    hidden = [Linear(128, bias=True), ReLU(), *dropped(dropout)]
    return [Scale(low=0.0, span=1.0), Flatten(), *hidden, Linear(classes, bias=True)]


def dropped(part: float) -> list[Layer]:
    """A dropout layer, or none where nothing is dropped."""
    return [Dropout(part)] if part else []


MODELS: dict[str, Callable[..., list[Layer]]] = {"simple-cnn": simple_cnn, "small-cnn": small_cnn, "mlp": mlp}
