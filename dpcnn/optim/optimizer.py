"""The base of all optimizers: they update flat vectors a block at a time.

Every optimizer is elementwise: each element's update depends on that element alone. So any rank
may update any slice of the parameters, with the bits that one rank would get.

An optimizer is a dataclass: its fields are its options.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dpcnn.base.arrays import Vector, empty, zeros
from dpcnn.base.options import check_options

UPDATE_BLOCK = 32_768
"""Elements updated at a time, so that an optimizer's passes run in the cache."""

DECAY, MOST_DECAY = "weight decay; biases and normalisation do not decay", 1e6
"""The help of the option ``weight_decay``, and its upper bound."""


@dataclass
class Optimizer:
    """Updates parameters in place from their gradient, a block at a time.

    Attributes:
        state_names: the names of the arrays that the optimizer remembers from step to step.

    Raises:
        ConfigError: an option out of its bounds.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self)

    def zeros(self, size: int, dtype: Any = np.float32) -> dict[str, Vector]:
        """The state before the first step: arrays (size,) of zeros, by name."""
        return {name: zeros((size,), dtype) for name in self.state_names}

    def update(
        self,
        params: Vector,
        grads: Vector,
        state: Mapping[str, Vector],
        step: int,
        lr: float,
        scale: float = 1.0,
        before: Sequence[Vector] = (),
    ) -> None:
        """Take step number ``step`` (counted from 1) with the learning rate ``lr``.

        Args:
            params: (size,), changed in place.
            grads: (size,), left as it is; to be multiplied by ``scale``: 1 / count for a sum over samples.
            state: (size,) arrays by the names of ``state_names``, changed in place.
            before: the parameters and the arrays of the state before the step, (size,) each, if they are not yet in
                ``params`` and ``state``: they are copied there first, block by block.
        """
        for p, g, arrays in self._blocks(params, grads, state, before):
            self.update_block(p, g, scale, step, lr, *arrays)

    def _blocks(
        self, params: Vector, grads: Vector, state: Mapping[str, Vector], before: Sequence[Vector]
    ) -> Iterator[tuple[Vector, Vector, list[Vector]]]:
        """The arguments of :meth:`update_block` that are arrays, block by block."""
        scratch = empty((2, min(len(params), UPDATE_BLOCK)), params.dtype)
        for start in range(0, len(params), UPDATE_BLOCK):
            block = slice(start, start + UPDATE_BLOCK)
            p = params[block]
            states = [state[name][block] for name in self.state_names]
            for after, array in zip([p, *states], before, strict=False):
                after[...] = array[block]
            yield p, grads[block], [*states, *scratch[:, : len(p)]]

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        """Update some elements ``p`` in place.

        Args:
            g: their gradient, left as it is; to be multiplied by ``scale``.
            arrays: the elements of each state array, changed in place; then two arrays of scratch space.
        """
        raise NotImplementedError
