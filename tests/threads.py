"""Ranks as threads of one process: the real trainer on any number of ranks and nodes, without MPI's start-up.

Ranks may die: see :func:`run_ranks`. The others then meet what MPI's ranks meet with ULFM: an operation with a dead
rank fails on some ranks, and may succeed on others, or leave them with what was in their memory before.
"""

import gc
import json
import math
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn
from unittest import mock

import numpy as np

from dpcnn.parallel import exact
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.products import Counts
from dpcnn.parallel.survival import Surviving

LIMIT = 60.0  # seconds in which all ranks must meet: else they hang


@contextmanager
def factors_sent(chosen: bool, copied: bool = False) -> Iterator[None]:
    """A block in which nodes send the factors of every linear layer, if ``chosen``, and each updates the whole vector,
    if ``copied``: see dpcnn/parallel/products.py."""

    def always(product: Any, counts: Counts) -> bool:
        return counts.nodes > 1 and min(counts.sizes) > 1

    with (
        mock.patch.object(exact, "pays", always) if chosen else nullcontext(),
        mock.patch.object(exact, "copies_pay", lambda *_: copied),
    ):
        yield


class Aborted(Exception):
    """A rank has ended the whole job with an exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class Died(BaseException):
    """This rank dies."""


class Abandoned(BaseException):
    """Another rank has failed, and the job ends."""


class PeerFailed(Exception):
    """An operation with a rank that has died, or one that was revoked."""


class Job:
    """All threads of a job.

    Attributes:
        dying: for each rank that is to die, in which of its operations.
        changed: held to look at anything that ranks share, and notified when it changes.
        dead: the ranks that have died.
        ended: whether a rank has failed.
    """

    def __init__(self, dying: Mapping[int, int]) -> None:
        self.dying, self.dead, self.ended = dying, set[int](), False
        self.changed = threading.Condition()
        self.operations: defaultdict[int, int] = defaultdict(int)
        self.garbage = random.Random(str(dict(dying)))

    def wait_for(self, condition: Callable[[], Any]) -> None:
        if not self.changed.wait_for(lambda: self.ended or condition(), LIMIT):
            self.ended = True
            self.changed.notify_all()
            raise TimeoutError(f"the ranks have not met for {LIMIT} s")
        if self.ended:
            raise Abandoned

    def count(self, number: int) -> None:
        """Count an operation of a rank, which dies if it is its last one."""
        self.operations[number] += 1
        if self.operations[number] >= self.dying.get(number, math.inf):
            raise Died

    def bury(self, number: int) -> None:
        """Let the others notice the death of a rank, once all that it held is released, as the system does it."""
        gc.collect()
        with self.changed:
            self.dead.add(number)
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class Board:
    """Where the ranks of a communicator post what they have for each other; ``numbers`` are those in the job."""

    def __init__(self, job: Job, numbers: Sequence[int]) -> None:
        self.job, self.numbers, self.revoked = job, list(numbers), False
        self._posts: defaultdict[Any, dict[int, Any]] = defaultdict(dict)
        self._decisions: dict[Any, Any] = {}

    def meet(self, key: Any, number: int, value: Any) -> list[Any]:
        """What all have posted under a key.

        Raises:
            PeerFailed: one has died before it did, or the board was revoked.
        """
        job = self.job
        with job.changed:
            posts = self._post(key, number, value)
            missing = set(self.numbers) - set(posts)
            job.wait_for(lambda: self.revoked or not missing - set(posts) or (missing - set(posts)) & job.dead)
            if self.revoked or missing - set(posts):
                raise PeerFailed
            return [posts[other] for other in self.numbers]

    def decide(self, key: Any, number: int, value: Any, decision: Callable[[dict[int, Any]], Any]) -> Any:
        """A decision about what all that live have posted: one of them takes it, the others learn it."""
        job = self.job
        with job.changed:
            posts = self._post(key, number, value)
            job.wait_for(lambda: key in self._decisions or set(self.numbers) - job.dead <= set(posts))
            if key not in self._decisions:
                self._decisions[key] = decision(posts)
            return self._decisions[key]

    def _post(self, key: Any, number: int, value: Any) -> dict[int, Any]:
        """Post a value, and return all that have been posted under the key; the rank may die instead."""
        self.job.count(number)
        posts = self._posts[key]
        posts[number] = value
        self.job.changed.notify_all()
        return posts

    def alive(self) -> list[int]:
        return [number for number in self.numbers if number not in self.job.dead]


class ThreadComm(Surviving):
    """A rank among threads, with the operations of :class:`dpcnn.parallel.mpi.Communicator`."""

    def __init__(self, number: int, board: Board, hosts: Mapping[int, Board] | None = None) -> None:
        """``hosts``: for each rank the board of its host; None: this is a host's communicator."""
        Surviving.__init__(self)
        SerialComm.__init__(self, "threads")
        self.survives, self.number, self._hosts = False, number, hosts
        self._become(board)

    def _become(self, board: Board) -> None:
        self._board, self.members, self._calls, self._commits = board, board.numbers, 0, 0
        self.rank, self.size = board.numbers.index(self.number), len(board.numbers)
        self._node = ThreadComm(self.number, self._hosts[self.number]) if self._hosts else self

    @contextmanager
    def _all(self, value: Any) -> Iterator[list[Any]]:
        """What every rank has posted; nobody goes on before all have read it."""
        self._calls += 1
        yield self._board.meet((self._calls, "post"), self.number, value)
        self._board.meet((self._calls, "read"), self.number, None)

    def barrier(self) -> None:
        with self._all(None):
            pass

    def bitwise_or(self, flags: int) -> int:
        with self._all(flags) as all_flags:
            return int(np.bitwise_or.reduce(all_flags))

    def broadcast_obj(self, value: Any) -> Any:
        with self._all(json.dumps(value) if self.rank == 0 else "") as values:
            return json.loads(values[0])  # as MPI's objects: see dpcnn.parallel.start

    def allgather_obj(self, value: Any) -> list[Any]:
        with self._all(json.dumps(value)) as values:
            return [*map(json.loads, values)]

    def gather_obj(self, value: Any) -> list[Any] | None:
        with self._all(json.dumps(value)) as values:
            return [*map(json.loads, values)] if self.rank == 0 else None

    def broadcast(self, array: Any) -> None:
        with self._all(array) as arrays:
            array[...] = arrays[0]

    def allgather(self, row: Any) -> Any:
        try:
            with self._all(row) as rows:
                return np.stack(rows)
        except PeerFailed:
            if self._board.job.garbage.random() < 0.5:
                raise
            return np.stack([row] * self.size)  # "success", as MPI has it now and then

    def allreduce(self, array: Any) -> None:
        with self._all(array) as arrays:
            total = np.sum(arrays, axis=0, dtype=array.dtype)
        array[...] = total

    def alltoall(self, send: Any, sent: Any, receive: Any, received: Any) -> None:
        try:
            with self._all((send.ravel(), sent)) as posts:
                for (array, (counts, starts)), place in zip(posts, received[1], strict=True):
                    count, start = counts[self.rank], starts[self.rank]
                    receive.ravel()[place : place + count] = array[start : start + count]
        except PeerFailed:
            if self._board.job.garbage.random() < 0.5:
                raise

    def irecv(self, receive: Any, received: Any) -> None:
        super().irecv(receive, received)
        for count, place in zip(*received, strict=True):
            receive.ravel()[place : place + count] = np.nan  # nobody may read it yet

    def isend(self, send: Any, sent: Any) -> None:
        super().isend(send.copy(), sent)  # what is written into it from here on comes too late

    def gather_shards(self, part: Any, bounds: Sequence[int]) -> Any:
        with self._all(part) as parts:
            return np.concatenate(parts) if self.rank == 0 else None

    def scatter_shards(self, vector: Any, part: Any, bounds: Sequence[int]) -> None:
        with self._all(vector) as vectors:
            part[...] = vectors[0][bounds[self.rank] : bounds[self.rank + 1]]

    def node(self) -> "ThreadComm":
        return self._node

    def sendrecv(self, send: Any, receive: Any, partner: int) -> None:
        raise NotImplementedError("threads have no links of their own")

    def commit(self, well: bool) -> bool:
        board = self._board
        self._commits += 1  # the same on all ranks, unlike the number of calls once one has failed
        agreed: bool = board.decide(
            ("commit", self._commits),
            self.number,
            well,
            lambda posts: board.alive() == board.numbers and all(posts.values()),
        )
        return agreed

    def revoke(self) -> None:
        job = self._board.job
        with job.changed:
            self._board.revoked = self._node._board.revoked = True
            job.changed.notify_all()

    def shrink(self) -> list[int]:
        before, board = self.members, self._board
        board, self._hosts = board.decide("shrink", self.number, None, lambda _: self._survivors())
        self._become(board)
        return [number for number in before if number not in self.members]

    def _survivors(self) -> tuple[Board, dict[int, Board]]:
        job, left = self._board.job, self._board.alive()
        of_hosts = {id(self._hosts[number]): [] for number in left}
        for number in left:
            of_hosts[id(self._hosts[number])].append(number)
        boards = {key: Board(job, numbers) for key, numbers in of_hosts.items()}
        return Board(job, left), {number: boards[id(self._hosts[number])] for number in left}

    def abort(self, status: int) -> NoReturn:
        job = self._board.job
        if job.operations[self.number] >= job.dying.get(self.number, math.inf):
            raise Died
        self._board.job.end()
        raise Aborted(status)


def run_ranks(
    nodes: Sequence[int], function: Callable[[ThreadComm], Any], dying: Mapping[int, int] | None = None
) -> list[Any]:
    """What ``function`` returns on each rank; None for one that has died.

    Args:
        nodes: the number of ranks of each node.
        dying: the ranks that are to die, and in which of its operations each does: then the others survive.

    Raises:
        The first exception of any rank.
    """
    job = Job(dying or {})
    ends = np.cumsum(nodes).tolist()
    hosts: dict[int, Board] = {}
    for end, size in zip(ends, nodes, strict=True):
        numbers = list(range(end - size, end))
        hosts |= dict.fromkeys(numbers, Board(job, numbers))
    world = Board(job, list(hosts))
    results: list[Any] = [None] * len(hosts)
    errors: list[BaseException] = []

    def rank(comm: ThreadComm) -> None:
        comm.survives, alive = dying is not None, False
        try:
            results[comm.number], alive = function(comm), True
        except (Died, Abandoned):
            pass
        except BaseException as error:
            errors.append(error)
            job.end()
        if not alive:
            comm._rebuild.clear()
            job.bury(comm.number)

    threads = [threading.Thread(target=rank, args=(ThreadComm(number, world, hosts),)) for number in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
