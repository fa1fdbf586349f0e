"""A network: connected layers, over one flat vector of parameters with named views."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np

from dpcnn.base.arrays import UFUNC_BUFFER, Array, Shape, empty, ufunc_buffer
from dpcnn.base.machine import memory_left
from dpcnn.base.rng import SampleRng
from dpcnn.base.timing import Timer
from dpcnn.errors import ConfigError
from dpcnn.nn.flat import FlatParameters
from dpcnn.nn.graph import IMAGES, applied, connections, last_uses, learning, pooled_first, unique_names
from dpcnn.nn.layer import Keep, Layer, Parameter
from dpcnn.nn.losses import Loss
from dpcnn.nn.memory import PARTS, SPREAD, most_elements, training_steps
from dpcnn.nn.merging import Merge
from dpcnn.nn.normalisation import BatchNorm

MOST_ACTIVATIONS = 1 << 26
"""The most elements in the outputs of all layers for one image; see :data:`dpcnn.nn.flat.MOST_PARAMETERS`."""

MOST_AT_ONCE = 128
"""The most images that are evaluated at once."""


class Network(FlatParameters):
    """Layers connected to an input shape, and the layout of their parameters in a flat vector.

    The vector holds every parameter in the order in which the layers declare them. The network
    itself holds none: each call is given a vector, so a gradient is computed into any memory. One thread at a time may
    call it.

    Attributes:
        shapes: of each layer's output, without N.
        activations: elements of all layers' outputs for an image.
        at_once: the images that are evaluated at once. They decide the last bits of an answer, so they depend on the
            network and ``memory`` alone, and not on the machine.
        timer: measures the phases of :meth:`gradient`.

    Args:
        memory: for the images that are evaluated at once, in MB.

    Raises:
        ConfigError: the images are too small for the layers, these do not fit each other, or the network is too large.
    """

    def __init__(self, input_shape: Shape, layers: Sequence[Layer], memory: int = 256) -> None:
        self.input_shape, self.layers, self.names = input_shape, list(layers), unique_names(layers)
        self.sources = connections(self.layers, self.names)
        self.users = Counter(source for sources in self.sources for source in sources)
        self.shapes: list[Shape] = []
        self.activations = 0
        for number, layer in enumerate(self.layers):
            layer.number = number
            self.shapes.append(self._build(number))
            self._check_output(number)
        self.classes = prod(self.shapes[-1])
        if len(self.shapes[-1]) > 1 or not any(layer.parameters for layer in self.layers):
            why = "no layer has parameters" if len(self.shapes[-1]) == 1 else "there is no number for each class"
            raise ConfigError(f"the model ends in {self.shapes[-1]}, and {why}; add a linear layer at the end")
        self.learning = learning(self.layers, self.sources)
        if not self.learning[-1]:
            raise ConfigError("every layer with parameters is frozen, so nothing can learn; delete a freeze = true")
        self._in_training = pooled_first(self.layers, self.sources)
        self._applied = applied(self._in_training, self.sources)
        for layer, sources in zip(self.layers, self.sources, strict=True):
            layer.needs_input_grad = any(self.learning[source] for source in sources if source != IMAGES)
        first, users = self.layers[0], [self.layers[n] for n, sources in enumerate(self.sources) if 0 in sources]
        first.by_image = first.takes_integers and [user.any_order for user in users] == [True]
        self._last_uses = last_uses(self.sources)
        self._steps_back = [
            (
                number,
                isinstance(layer, Merge),
                [source if source != IMAGES and self.learning[source] else None for source in self.sources[number]],
            )
            for number, layer in reversed(list(enumerate(self.layers)))
            if self.learning[number]
        ]
        FlatParameters.__init__(self, self.names, self.layers)
        places = iter(slice(*interval) for interval in self.intervals)
        self._own = [[(p.name, next(places), p.shape) for p in layer.parameters] for layer in self.layers]
        self.timer = Timer()
        self.at_once = self._at_once(memory * 1_000_000)

    def _at_once(self, memory: int) -> int:
        """The largest power of 2, up to :data:`MOST_AT_ONCE`, of images that are evaluated in ``memory`` bytes."""
        largest = max(map(self._at_work, range(len(self.layers))))
        return min(MOST_AT_ONCE, 1 << max(1, memory // (4 * largest)).bit_length() - 1)

    def _at_work(self, number: int) -> int:
        """About the elements per image that a layer needs: its inputs, twice its output, and those of its algorithm."""
        inputs, output = self.input_shapes(number), self.shapes[number]
        needs = self.layers[number].training_memory(inputs[0], output, MOST_AT_ONCE)
        return sum(map(prod, inputs)) + 2 * prod(output) + ceil(needs.kept + needs.forward)

    def input_shapes(self, number: int) -> list[Shape]:
        """The shapes of a layer's inputs, without N."""
        return [self.input_shape if source == IMAGES else self.shapes[source] for source in self.sources[number]]

    def _build(self, number: int) -> Shape:
        layer, name, shapes = self.layers[number], self.names[number], self.input_shapes(number)
        try:
            return layer.merged_shape(shapes) if isinstance(layer, Merge) else layer.build(shapes[0])
        except ValueError:
            why = "it expects images" if len(shapes[0]) == 1 else "pixels need a flatten before a linear layer"
            raise ConfigError(f"{name} can't take {shapes[0]}: {why}") from None
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None

    def _check_output(self, number: int) -> None:
        name, shape, parameters = self.names[number], self.shapes[number], self.layers[number].parameters
        if not all(isinstance(parameter, Parameter) for parameter in parameters):
            raise ConfigError(
                f"{name}: parameters: expected a tuple of dpcnn.nn.layer.Parameter, not {parameters!r:.60}"
            )
        if min(shape) < 1:
            raise ConfigError(f"images of {self.input_shape} are too small for this model: {name} would give {shape}")
        self.activations += prod(shape)
        if self.activations > MOST_ACTIVATIONS:
            raise ConfigError(
                f"the layers up to {name} would give {self.activations:,} numbers for each image; "
                f"at most {MOST_ACTIVATIONS:,} are supported"
            )

    @property
    def flops(self) -> int:
        """Floating-point operations of an image's gradient, convolutions by their definition.

        A multiplication and an addition for each weight at each position: forward, for the weights'
        gradient, and for that of the input, which the first layer does not need.
        """
        return sum(
            2 * (1 + learning + layer.needs_input_grad) * layer.multiplications
            for layer, learning in zip(self.layers, self.learning, strict=True)
        )

    def memory(self, images: int) -> int:
        """An estimate of the bytes for a gradient of ``images`` images: the most that arrays take at a time, and the
        parameters with their gradient; see :mod:`dpcnn.nn.memory`."""
        shapes = {IMAGES: self.input_shape, **dict(enumerate(self.shapes))}
        steps = training_steps(self._in_training, self._applied, self.sources, shapes, self.learning, images)
        weights = max(step.needs.weights for step in steps)
        arrays = images * most_elements(steps, prod(self.input_shape)) + weights
        return ceil(4 * (SPREAD * arrays + 2 * self.size)) + PARTS

    def check_memory(
        self, images: int, processes: int = 1, advice: str = "use fewer images or processes", vectors: int = 0
    ) -> None:
        """Make sure that ``images`` images at once fit into this machine's memory, on each of ``processes`` processes.

        Args:
            advice: the end of the message, before "or more memory".
            vectors: the number of vectors (size,) float32 that all processes together hold in addition to the estimate.

        Raises:
            ConfigError: they do not, by the estimate of :meth:`memory`.
        """
        needed = processes * self.memory(images) + 4 * vectors * self.size
        left = memory_left()
        if needed > left:
            raise ConfigError(
                f"the network needs about {needed / 1e9:.1f} GB for {images} images at once on each of {processes} "
                f"processes, but only {left / 1e9:.1f} GB are free here; {advice}, or more memory"
            )

    def _pixels(self, images: Array, dtype: np.dtype[Any]) -> Array:
        """Images (N, H, W, C) as the first layer takes them: (H, W, N, C), floats unless it takes any number."""
        x = images.transpose(1, 2, 0, 3)
        return x if self.layers[0].takes_integers else np.array(x, dtype, order="C")

    def _named(self, params: Array) -> list[dict[str, Array]]:
        """For each layer, its own parameters by their short names."""
        return [{name: params[place].reshape(shape) for name, place, shape in own} for own in self._own]

    def _forward(
        self, params: Array, images: Array, rng: SampleRng | None = None
    ) -> Iterator[tuple[Array, Callable[..., Any]]]:
        """Each layer's output, valid until the next one, and its function ``backward``, in order.

        An output is kept until the last layer that takes it has been computed.
        """
        values = {IMAGES: self._pixels(images, params.dtype)}
        backward: Callable[..., Any]
        layers = self.layers if rng is None else self._in_training
        applied = {} if rng is None else self._applied
        after = {source: layers[number] for number, source in applied.items()}
        for number, (layer, own) in enumerate(zip(layers, self._named(params), strict=True)):
            sources = self.sources[number]
            xs = [values[source] for source in sources]
            for source in self._last_uses[number]:
                del values[source]
            if self.users[sources[0]] > 1:
                xs[0] = self._own_copy(layer, xs[0])
            if isinstance(layer, Merge):
                values[number], backward = layer.merge(xs)
            elif number in applied:
                values[number], backward = xs[0], lambda dy, grads: dy
            elif isinstance(layer, BatchNorm) and number in after:
                values[number], backward = layer.forward_with(after[number], xs[0], own, rng)
            else:
                values[number], backward = layer.forward(xs[0], own, None if layer.frozen else rng)
            del xs
            yield values[number], backward
            del backward

    def _own_copy(self, layer: Layer, x: Array) -> Array:
        """``x``, or a copy of it for a layer that writes over its input, which other layers take too."""
        if not layer.overwrites_input:
            return x
        copy = empty(x.shape, x.dtype)
        np.copyto(copy, x)
        return copy

    def _backward(
        self, dy: Array, backwards: list[Callable[..., Any] | None], grads: Sequence[Mapping[str, Array]]
    ) -> None:
        """Fill ``grads``, and use up ``backwards``.

        The gradients of a value that several layers take are added up in the order of those layers from the last to the
        first.
        """
        arrived = {len(self.layers) - 1: dy}
        for number, merges, targets in self._steps_back:
            dy, backward, backwards[number] = arrived.pop(number), backwards[number], None  # its memory is free then
            assert backward
            dxs = backward(dy) if merges else (backward(dy, grads[number]),)
            for target, dx in zip(targets, dxs, strict=True):
                if target in arrived:
                    arrived[target] += dx
                elif target is not None:
                    arrived[target] = dx

    def logits(self, params: Array, images: Array) -> Array:
        """The last layer's output, (N, classes), for images (N, *input_shape)."""
        with ufunc_buffer(UFUNC_BUFFER):
            for x, backward in self._forward(params, images):  # noqa: B007
                del backward  # and all that it keeps of the layer's input
            return x

    def gradient(
        self, params: Array, images: Array, labels: Array, loss: Loss, out: Array, rng: SampleRng | None = None,
        keep: Keep | None = None,
    ) -> tuple[float, int]:  # fmt: skip
        """The gradient of the summed loss of a microbatch.

        Args:
            params: (size,) parameters.
            images: (N, *input_shape).
            labels: (N,) integers.
            loss: of a sample.
            out: (size,) written over with the gradient of the sum of the N losses; 0 for frozen parameters.
            rng: the source of random numbers; None: nothing is random.
            keep: is given the factors of the gradients in :attr:`products`.

        Returns:
            The sum of the losses, and the number of images that are classified right.
        """
        for layer in self.layers:
            layer.keep = keep
        with ufunc_buffer(UFUNC_BUFFER):
            with self.timer("forward"):
                backwards: list[Callable[..., Any] | None] = []
                for x, backward in self._forward(params, images, rng):  # noqa: B007
                    backwards.append(backward)
                    del backward  # the list alone refers to it, so that its memory is free after its step back
                losses, dy = loss.loss_and_gradient(x, labels)
                correct = int(loss.correct(x, labels).sum())
            with self.timer("backward"):
                self._backward(dy, backwards, self._named(out))
                for start, stop in self.frozen:
                    out[start:stop] = 0
            return float(losses.sum(dtype=np.float64)), correct

    def outputs(self, params: Array, images: Array) -> Iterator[tuple[str, dict[str, Array], Array]]:
        """Each layer's name, weights and output for images (N, *input_shape), in order; see :mod:`dpcnn.nn.layer`.

        An output is valid until the next one is computed.
        """
        outputs = self._forward(params, images)
        for name, weights, (output, _) in zip(self.names, self._named(params), outputs, strict=True):
            yield name, weights, output

    def first_not_finite(self, params: Array, images: Array) -> str | None:
        """The first layer, in order, whose weights or output for ``images`` are not all finite."""
        for name, weights, output in self.outputs(params, images):
            for kind, values in [*weights.items(), ("output", output)]:
                if not np.isfinite(values).all():
                    return f"{name} ({'its output' if kind == 'output' else f'its parameter {kind}'})"
        return None
