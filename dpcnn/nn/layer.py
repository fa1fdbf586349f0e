"""The interface of a layer: it maps a batch to its output, and returns the function that propagates gradients back.

Shapes, in every file of this package::

    N       images of a batch                   x, y    a layer's input and output
    H, W    height and width of the input       w, b    its weights and bias
    C       channels of the input               dx ..   the gradient of the loss sum by x ..
    F       filters: channels of the output
    KH, KW  height and width of the kernel or pooling window
    OH, OW  height and width of the output

Images are (H, W, N, C): at each pixel the whole batch lies side by side. So everything that is done
to windows, position by position, works on long runs of N * C numbers. Vectors are (N, C).
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError

Backward = Callable[[Array, Mapping[str, Array]], Array | None]
Keep = Callable[[int, Array, Array], None]
"""``keep(number, x, dy)`` is given the input (N, C) of a linear layer and the gradient of its output (N, F), which are
valid during the call."""


class Parameter(NamedTuple):
    """A named array of a layer.

    Attributes:
        name, shape: those of the array.
        fan_in, fan_out: the number of inputs per output, and the reverse; they scale random initial values.
        initial_value: the initial value of every element, if fan_in is 0.
        momentum: 0 for a parameter that is learned. Otherwise the parameter is a running mean of the values that
            ``backward`` returns per sample, and each step moves it by this fraction towards the batch's mean.
    """

    name: str
    shape: Shape
    fan_in: int = 0
    fan_out: int = 0
    initial_value: float = 0.0
    momentum: float = 0.0


class Memory(NamedTuple):
    """The elements per image that a layer needs in training besides its input, its output and their gradients.

    Attributes:
        kept: from ``forward`` to ``backward``.
        forward, backward: in addition, during the call.
        keeps_input: whether ``backward`` refers to the input.
        in_place: whether the output lies in the memory of the input.
        dx_in_place: whether dx lies in the memory of dy.
        weights: the elements that it needs for weights, for any number of images.
    """

    kept: float = 0
    forward: float = 0
    backward: float = 0
    keeps_input: bool = False
    in_place: bool = False
    dx_in_place: bool = False
    weights: int = 0


class Layer:
    """A step of a network. It holds no parameters: they are passed to it by name.

    A later layer may write over an output. So an output is not a view of the input unless ``overwrites_input`` is true,
    and no layer needs its own output in ``backward``. What ``backward`` refers to stays in memory until the gradient is
    done with the layer, so it refers only to what it needs.
    """

    parameters: tuple[Parameter, ...] = ()
    keeps_input = True
    """Whether the function ``backward`` refers to the input."""
    multiplications = 0
    """Multiplications per image in ``forward``, by the layer's definition."""
    needs_input_grad = True
    """Whether a layer before this one needs the gradient of its input; set by the network."""
    takes_integers = False
    """Whether ``forward`` accepts pixels of any number type, not only floats."""
    overwrites_input = False
    """Whether ``forward`` may write its output over ``x``."""
    any_order = False
    """Whether ``forward`` accepts images (H, W, N, C) in any order in memory."""
    by_image = False
    """Whether its output should lie in memory image by image, (N, H, W, C); set by the network, for the first layer."""
    number = 0
    """Its index in the network, which selects its random numbers; set by the network."""
    name = ""
    """Its name in the network; empty: its kind and a number."""
    input = ""
    """The name of the layer whose output it takes; empty: the layer before it."""
    others: tuple[str, ...] = ()
    """The names of its other inputs, for layers that merge."""
    lr = 1.0
    """The factor of the learning rate for its parameters."""
    weight_decay: float | None = None
    """The weight decay of its weights; None: that of the optimizer."""
    keep: Keep | None = None
    """Called in ``backward`` by a layer whose gradient is a product of two factors; set by the network."""
    frozen = False
    """Whether its parameters stay as they are. It then computes as in evaluation."""

    def __init__(self) -> None:
        """A layer without options; Python takes long to find out the signature of a class that has no constructor."""

    @property
    def learned(self) -> int:
        """The number of elements of its parameters that are learned, which is what publications count."""
        return sum(prod(parameter.shape) for parameter in self.parameters if not parameter.momentum)

    def build(self, shape: Shape) -> Shape:
        """Declare ``parameters`` for an input of this shape, without N, and return the output's shape."""
        return shape

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        """About the memory that the layer needs in training, for an input and an output of these shapes, without N.

        The number of images may decide how the layer computes.
        """
        return Memory(keeps_input=self.keeps_input)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        """Return the output for ``x``, and the function ``backward(dy, grads) -> dx``.

        ``rng`` is the source of random numbers in training; None: nothing is random,
        as in evaluation. ``backward`` overwrites the arrays of ``grads`` with the gradients of the parameters,
        and returns None instead of dx if ``needs_input_grad`` is false.
        """
        raise NotImplementedError


MOST_KERNEL_SIZE = 1 << 16
"""The most pixels of a kernel or pooling window: each of them is a pass over the image."""

MOST = 1 << 16
"""The largest whole number in a layer's options: filters, features, sides of kernels and images, padding."""


def at_least(least: int, **options: int) -> None:
    """Check that a layer's options lie between ``least`` and :data:`MOST`.

    Raises:
        ConfigError: one does not.
    """
    for name, value in options.items():
        if not value >= least:
            raise ConfigError(f"{name}: must be at least {least}, not {value}")
    at_most(MOST, **options)


def at_most(most: int, **options: int) -> None:
    """Check that a layer's options are at most ``most``.

    Raises:
        ConfigError: one is larger.
    """
    for name, value in options.items():
        if not value <= most:
            raise ConfigError(f"{name}: must be at most {most}, not {value}")
