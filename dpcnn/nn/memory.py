"""An estimate of the memory of a network's gradient: the largest sum of the arrays that are in use at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from dpcnn.base.arrays import Shape
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer, Memory

SPREAD, PARTS = 1.3, 1 << 20
"""The memory that is taken for each byte in use, as an array rarely takes the whole memory of an earlier one; and the
bytes for the parts of arrays on which layers work at a time. With these two, the estimates of 686 random networks that
need 4 MB or more were 0.71 to 1.62 times the measured memory; for those of 8 MB or more, 0.71 to 1.38 times."""


@dataclass(frozen=True)
class Step:
    """A layer as training computes it, with elements for an image.

    Attributes:
        sources: the numbers of its inputs.
        inputs, output: their elements.
        needs: its memory besides.
        learns: for each input, whether it needs a gradient; none, if the layer has no backward step.
        alone: whether its first input has no other user.
    """

    sources: Sequence[int]
    inputs: Sequence[int]
    output: int
    needs: Memory
    learns: Sequence[bool]
    alone: bool

    @property
    def in_place(self) -> bool:
        """Whether its output lies in the memory of its first input."""
        return self.needs.in_place and self.alone


def training_steps(
    layers: Sequence[Layer],
    applied: Mapping[int, int],
    sources: Sequence[Sequence[int]],
    shapes: Mapping[int, Shape],
    learning: Sequence[bool],
    images: int,
) -> list[Step]:
    """The steps of a training, in which a pooling may precede its ReLU, or be a part of a normalisation.

    Args:
        layers: in the order of training: see :func:`dpcnn.nn.graph.pooled_first`.
        applied: see :func:`dpcnn.nn.graph.applied`.
        shapes: of each layer's output, and of the images, without N.
        learning: whether the gradient of each layer's output is needed.
        images: the number of images of a gradient.
    """
    shapes, steps = dict(shapes), []
    for number, inputs in reversed(list(enumerate(sources))):
        if number in applied or layers[number].number == inputs[0]:  # the pooling precedes the layer before it
            shapes[inputs[0]] = shapes[number]
    users = [source for inputs in sources for source in inputs]
    for number, (layer, inputs) in enumerate(zip(layers, sources, strict=True)):
        own = [shapes[source] for source in inputs]
        needs = layer.training_memory(own[0], shapes[number], images)
        learns = [source != IMAGES and learning[source] for source in inputs] if learning[number] else []
        sizes, alone = [prod(shape) for shape in own], users.count(inputs[0]) == 1
        steps.append(Step(inputs, sizes, prod(shapes[number]), needs, learns, alone))
    return with_parts(steps, applied)


def with_parts(steps: list[Step], applied: Mapping[int, int]) -> list[Step]:
    """The steps, with the memory of those that a normalisation applies as a part of it."""
    for number, norm in applied.items():
        part, whole = steps[number], steps[norm]
        pooled = not part.needs.in_place
        more = Memory(
            kept=part.needs.kept + pooled * part.output,  # the largest values, before they are scaled
            forward=part.needs.forward,
            backward=part.needs.backward + whole.needs.backward,
            keeps_input=True,
            dx_in_place=not pooled,
        )
        steps[norm] = replace(whole, needs=more)
        steps[number] = replace(part, needs=Memory(in_place=True, dx_in_place=True))
    return steps


def most_elements(steps: Sequence[Step], image: int) -> float:
    """The most elements per image that are in use at a time; ``image`` are those of an image itself."""
    last = {source: number for number, step in enumerate(steps) for source in step.sources}
    sizes, place = {IMAGES: image}, {IMAGES: IMAGES}  # of each array, and the array of each output
    held: list[set[int]] = []
    kept, most = 0.0, 0.0
    for number, step in enumerate(steps):
        place[number] = place[step.sources[0]] if step.in_place else number
        sizes.setdefault(place[number], step.output)
        held.append({place[source] for source in step.sources} if step.needs.keeps_input else set())
        values = {place[source] for source in place if last.get(source, number) >= number}
        kept += step.needs.kept
        in_use = sum(sizes[array] for array in values.union(*held))
        most = max(most, in_use + kept + step.needs.forward)
    return max(most, most_backward(steps, sizes, held, kept))


def most_backward(steps: Sequence[Step], sizes: Mapping[int, int], held: list[set[int]], kept: float) -> float:
    """The same for the backward steps. Arguments: for each array its elements; for each step the arrays that it refers
    to; and the elements that all steps keep besides."""
    arrived, most = {len(steps) - 1: steps[-1].output}, 0.0
    for number, step in reversed(list(enumerate(steps))):
        if not step.learns:
            continue
        dy = arrived.pop(number)
        inputs = zip(step.sources, step.inputs, step.learns, strict=True)
        targets = {source: size for source, size, learns in inputs if learns}
        made = sum(targets.values()) - (dy if step.needs.dx_in_place and targets else 0)
        work = step.needs.backward if targets else min(step.needs.forward, step.needs.backward)
        arrays = sum(sizes[array] for array in set().union(*held))
        most = max(most, arrays + kept + dy + made + sum(arrived.values()) + work)
        held[number], kept = set(), kept - step.needs.kept
        arrived |= targets
    return most
