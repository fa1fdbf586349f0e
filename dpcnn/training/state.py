"""The state of a run: parameters, the optimizer's vectors, the average of the weights, and where the run is.

Together with its configuration and data this decides the rest of the run. A checkpoint is a copy of it.

The vectors are there twice. A step reads ``now`` and writes ``next``; :meth:`State.commit` exchanges the two. So a
step that a death interrupts has changed nothing, and is done again. The ranks of a node share the memory of the
vectors, so a part outlives the rank that updates it.

A large network has a third set of the vectors. While a checkpoint is written from one set, which is *held*, the steps
use the other two.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import SHARD_BLOCK
from dpcnn.parallel.shared import shared_array
from dpcnn.runs.progress import Progress

PARAMETERS = "parameters"

STAGGER = 17 * 16
"""Elements, 17 cache lines, by which each vector starts later in its page than the one before: elements with the same
number then lie in different sets of the processor's cache (see :mod:`dpcnn.base.arrays`)."""

Vectors = Mapping[str, Vector]


class State:
    """The state of a run on one node.

    Attributes:
        elements: the elements of the vectors that the ranks of this node update.
        now: by name, the vectors after the last committed step, float32: the parameters, of (size,), and all others, of
            the elements ``elements``.
        next: the same, of the step that is being done; between steps, memory for anybody.
        progress: where the run is.
        spare: whether there is a third set, so that steps can go on while one set is held.
        holder: the number of the rank that writes a checkpoint from the held set; None: no set is held.
    """

    def __init__(self, names: Sequence[str], size: int, node: SerialComm, elements: slice, spare: bool = False) -> None:
        """``names``: of the vectors besides the parameters; ``node``: the ranks that share the memory."""
        self.elements, self.progress, self.spare = elements, Progress(), spare
        self._sizes = {PARAMETERS: size, **dict.fromkeys(names, elements.stop - elements.start)}
        self.now: Vectors = self._allocate(node)
        self.next: Vectors = {}
        self._free: list[Vectors] = [self._allocate(node)] if spare else []
        self._held: Vectors | None = None
        self.holder: int | None = None

    def renew(self, node: SerialComm) -> None:
        """Make ``next`` anew for the ranks of ``node``: what a step has begun there is lost."""
        self.next = self._allocate(node)

    def commit(self) -> None:
        """The end of a step: ``next`` becomes ``now``, and ``next`` the set that has been free for longest."""
        if self.now is not self._held:
            self._free.append(self.now)
        self.now, self.next = self.next, self._free.pop(0)

    def hold(self, holder: int) -> None:
        """Let the vectors ``now`` stay as they are until :meth:`release`; ``holder`` is the rank that needs them."""
        self._held, self.holder = self.now, holder

    def release(self) -> None:
        """The held vectors may change again."""
        if self._held is not None and self._held is not self.now:
            self._free.append(self._held)
        self._held = self.holder = None

    def within(self, shard: slice) -> slice:
        """Elements of the parameters, counted from the start of ``elements``, as the other vectors count them."""
        return slice(shard.start - self.elements.start, shard.stop - self.elements.start)

    def _allocate(self, node: SerialComm) -> Vectors:
        starts, room = {}, 0
        for number, (name, size) in enumerate(self._sizes.items()):
            starts[name] = room + number * STAGGER
            room += -(-(size + len(self._sizes) * STAGGER) // SHARD_BLOCK) * SHARD_BLOCK
        memory = shared_array(node, (room,), np.float32)
        return {name: memory[starts[name] : starts[name] + size] for name, size in self._sizes.items()}
