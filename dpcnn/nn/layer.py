"""What a layer is: it turns a batch into the next one, and hands back the way for its gradient.

Shapes, in every file of this package::

    N       images of a batch                   x, y    a layer's input and output
    H, W    height and width of the input       w, b    its weights and bias
    C       channels of the input               dx ..   the gradient of the loss sum by x ..
    F       filters: channels of the output
    KH, KW  height and width of the kernel or pooling window
    OH, OW  height and width of the output

Images are (H, W, N, C): at each pixel the whole batch lies side by side. So everything that is done
to windows, place by place, is done to long runs of N * C numbers. Vectors are (N, C).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpcnn.base.arrays import Array, Shape, Workspace
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError

Backward = Callable[[Array, Mapping[str, Array]], Array | None]


@dataclass(frozen=True)
class Parameter:
    """A named array of a layer.

    Attributes:
        name, shape: of the array.
        fan_in, fan_out: how many inputs an output has, and the reverse: they scale random first values.
        first: where fan_in is 0, the first value of every element.
        running: 0 for what is learned. Else this is a running mean of what ``backward`` gives for a
            sample, and each step moves it by this part of the way to the batch's mean.
    """

    name: str
    shape: Shape
    fan_in: int = 0
    fan_out: int = 0
    initial_value: float = 0.0
    momentum: float = 0.0


class Layer:
    """A step of a network, without weights of its own: they are passed to it by name.

    An output lives in the layer's workspace until the layer's next call, or until a layer behind it
    writes over it; no layer needs its own output to go back.
    """

    parameters: tuple[Parameter, ...] = ()
    scratch = 0
    """Elements that the layer needs for an image besides its output and its gradient."""
    multiplications = 0
    """Of an image's way forward, by the layer's definition."""
    needs_input_grad = True
    """Whether anything in front of this layer wants its input's gradient; the network decides."""
    takes_integers = False
    """Whether ``forward`` takes pixels of any number type, and not floats alone."""
    overwrites_input = False
    """Whether ``forward`` may write its output over ``x``."""
    number = 0
    """Its place in the network, which names its random stream; the network decides."""
    name = ""
    """Its name in the network; empty: its kind and a number."""
    input = ""
    """The name of the layer whose output it takes; empty: the layer before it."""
    others: tuple[str, ...] = ()
    """The names of its other inputs, for layers that merge."""

    def __init__(self) -> None:
        self.workspace = Workspace()

    def build(self, shape: Shape) -> Shape:
        """Take the input's shape without N, declare ``parameters``, return the output's shape."""
        return shape

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        """The output for ``x``, and the function ``backward(dy, gradients) -> dx``.

        ``rng`` is where the layer takes what is random in training; None: there is nothing random,
        as in evaluation. ``backward`` writes the weights' gradients into the arrays of ``grads``, over what was
        in them, and returns None in place of dx where ``needs_input_grad`` is false.
        """
        raise NotImplementedError


MOST_KERNEL_SIZE = 1 << 16
"""Pixels of a kernel or pooling window: each of them is a pass over the image."""

MOST = 1 << 16
"""What a layer's whole numbers may be at most: filters, features, sides of kernels and images, padding."""


def at_least(least: int, **options: int) -> None:
    """Hold a layer's options against their bounds, ``least`` and :data:`MOST`.

    Raises:
        ConfigError: one is beyond.
    """
    for name, value in options.items():
        if not value >= least:
            raise ConfigError(f"{name}: must be at least {least}, not {value}")
    at_most(MOST, **options)


def at_most(most: int, **options: int) -> None:
    """Hold a layer's options against their upper bound.

    Raises:
        ConfigError: one is above.
    """
    for name, value in options.items():
        if not value <= most:
            raise ConfigError(f"{name}: must be at most {most}, not {value}")
