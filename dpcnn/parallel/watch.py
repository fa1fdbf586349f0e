"""A watch over the ranks, beside MPI: who makes no progress is named, and the job ends.

Each rank has a thread that sends a heartbeat to rank 0 by UDP twice a second: step, phase, and whether anything has
moved since the last one. Rank 0 answers each. So neither MPI nor any rank's main thread has to be well for a verdict.
Who is *silent* has stopped, or its host has; who is *stuck* still beats, but its phase does not change. While others
wait for it they don't move either, but they say that they wait.

Rank 0 judges all others; of those whose beats rank 0 no longer answers, the first judges it. A child process
of each rank takes over when all are through MPI's end, and watches it to the end of Python.
"""

import json
import os
import platform
import secrets
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpcnn.parallel.comm import Alone
from dpcnn.spans import Spans

BEAT = 0.5  # seconds
REACHING = 2.0  # seconds in which rank 0 must answer the first time
STACKS = 1.0  # seconds in which ranks must answer when they are asked where they are
FAREWELLS = 3  # that a rank sends, if no answer comes: messages get lost
MAY_WAIT = ("waiting", "start-up", "between phases", "end")
TOLD = {"silent": "has sent no heartbeat for", "stuck": "has made no progress for", "ending": "has not ended for"}
LARGEST = 60_000  # bytes of a datagram
FAULT = 1  # exit status

Address = tuple[str, int]


@dataclass
class Seen:
    """What rank 0 knows of a rank."""

    host: str
    phase: str = "start-up"
    step: int = 0
    turns: int = -1
    beat: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    stack: str = ""
    ready: bool = False  # to leave
    left: bool = False
    warned: bool = False


class Watch:
    """Watches all ranks of a job until :meth:`close`; every rank makes one.

    Args:
        timeout: seconds without progress after which the job is ended; 0: there is no watch.
        say: takes a line for people, on rank 0.

    Attributes:
        warning: where heartbeats don't reach rank 0 from everywhere, a line that says so: then nobody watches.
    """

    def __init__(self, comm: Alone, timeout: float, say: Callable[[str], None]) -> None:
        self.comm, self.timeout, self.say = comm, timeout, say
        self.warning = ""
        self._spans: Spans | None = None
        self._step: Callable[[], int] = lambda: 0
        self._main = threading.get_ident()
        self._read_here = 0
        self._at_the_end = False
        self._peers: dict[int, Address] = {}
        self._closing = threading.Event()
        self._awake = time.monotonic()
        self._left_behind = -1
        self._thread: threading.Thread | None = None
        if timeout and comm.size > 1:
            self._begin()

    def follow(self, spans: Spans, step: Callable[[], int]) -> None:
        """From here on, tell the phase and the step of a training."""
        self._spans, self._step = spans, step

    def close(self, last: Callable[[], None] = lambda: None) -> None:
        """The end of the watch, on every rank: none returns before ``last``, still watched, is done on all.

        From here on a process left behind watches this one, until it has ended.
        """
        if self._thread is None:
            last()
            return
        self.comm.barrier()
        self._at_the_end = True
        last()
        self._left_behind = self._leave_behind()
        self._send(("127.0.0.1", self._socket.getsockname()[1]), {})  # the thread need not wait for another one
        self._thread.join()
        self._socket.close()

    @property
    def _ready(self) -> bool:
        """Whether this rank is done with MPI, and has left behind who takes over."""
        return self._left_behind >= 0

    def _leave_behind(self) -> int:
        """Start a process that takes over once it is told to: it ends this one, should it not end by itself.

        Returns:
            Where to write a byte to tell it; this process's end closes it.
        """
        heard, tell = os.pipe()
        watched = os.getpid()
        try:
            if os.fork():
                return tell
        except OSError:  # no memory for it: then nobody takes over
            return tell
        os.dup2(heard, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # whose end launchers may be waiting for
        if os.read(3, 1) and not select.select([3], [], [], self.timeout + STACKS)[0]:
            self._note(self._seen[self.comm.rank], self._own())
            os.write(2, f"dpcnn: hang: {self._told(self.comm.rank, 'ending', self.timeout)}\n".encode())
            os.kill(watched, signal.SIGKILL)
        os._exit(0)

    def _begin(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._socket.settimeout(BEAT / 5)
        mine = [secrets.token_hex(8), addresses(), self._socket.getsockname()[1]]
        self._token, of_first, port = self.comm.broadcast_obj(mine)
        hosts = self.comm.allgather_obj(platform.node())
        self._seen = [Seen(host) for host in hosts]
        near = hosts[self.comm.rank] == hosts[0]
        self._first: Address | None = None
        run = self._judge if self.comm.rank == 0 else self._beat
        thread = threading.Thread(target=run, name="dpcnn-watch", daemon=True)
        if self.comm.rank == 0:
            thread.start()
        else:
            self._first = self._reach([("127.0.0.1", port)] if near else [(a, port) for a in of_first])
        lost = [
            hosts[rank] for rank, found in enumerate(self.comm.allgather_obj(bool(self._first))) if rank and not found
        ]
        if lost:
            self._closing.set()
            self.warning = f"warning: heartbeats from {lost[0]} don't reach {hosts[0]} by UDP: nobody watches for hangs"
        elif self.comm.rank:
            thread.start()
        self._thread = None if lost else thread

    def _reach(self, candidates: list[Address]) -> Address | None:
        """The address at which rank 0 answers."""
        until = time.monotonic() + REACHING
        while time.monotonic() < until:
            for address in candidates:
                self._send(address, {"rank": self.comm.rank})
            if (got := self._receive()) and got[1][1] == candidates[0][1]:
                return got[1]
        return None

    def _send(self, address: Address, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the network is away for now, or for good: the other side will notice
            self._socket.sendto(json.dumps({"token": self._token, **message}).encode()[:LARGEST], address)

    def _receive(self) -> tuple[dict[str, Any], Address] | None:
        """The next message of this job, if one comes soon; whatever else comes is passed over."""
        try:
            data, address = self._socket.recvfrom(LARGEST)
            message = json.loads(data)
            return (message, address) if message["token"] == self._token else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _own(self) -> dict[str, Any]:
        """What this rank's heartbeat says."""
        own = {"rank": self.comm.rank, "ready": self._ready}
        if self._spans is None:
            return {**own, "step": 0, "phase": "start-up", "turns": self._read_by_others()}
        phase = "end" if self._at_the_end else self._spans.phase or "between phases"
        return {**own, "step": self._step(), "phase": phase, "turns": self._spans.turns}

    def _read_by_others(self) -> int:
        """Bytes that this process has read, but for those read here: what moves while a run starts up. Linux only."""
        with suppress(OSError):
            text = Path("/proc/self/io").read_text(encoding="ascii")
            found = int(text.split()[1]) - self._read_here
            self._read_here += len(text)
            return found
        return 0

    def _stack(self) -> str:
        """Where this rank's main thread is."""
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)[-10:]) if frame else ""

    def _beat(self) -> None:
        """The thread of every rank but 0."""
        assert self._first is not None
        answered, beaten, last, told = time.monotonic(), 0.0, self._seen[0], False
        while not self._closing.is_set():
            if time.monotonic() - beaten >= BEAT or (self._ready and not told):
                beaten, told = time.monotonic(), self._ready
                self._send(self._first, self._own())
            got = self._receive()
            if self._was_asleep():
                answered = time.monotonic()
            if got:
                answered = time.monotonic()
                self._note(last, got[0])
                if got[0].get("where"):
                    self._send(self._first, {**self._own(), "stack": self._stack()})
                if got[0].get("leave"):
                    self._leave()
                    return
            # rank 1 first, the others only if it is silent too
            if time.monotonic() - answered > self.timeout + (self.comm.rank - 1) * STACKS:
                self._end([(0, "silent", time.monotonic() - answered)])

    def _leave(self) -> None:
        """Hand over to the process left behind, and make sure that rank 0 knows."""
        assert self._first is not None
        os.write(self._left_behind, b"!")
        for _ in range(FAREWELLS):
            self._send(self._first, {**self._own(), "left": True})
            if self._receive():
                return

    def _judge(self) -> None:
        """The thread of rank 0."""
        beaten, leaving = 0.0, False
        while not self._closing.is_set():
            got = self._receive()
            if self._was_asleep():
                for seen in self._seen:
                    seen.beat = seen.moved = time.monotonic()
            if got and self._note_of_rank(*got):
                self._send(got[1], {**self._own(), "leave": leaving})
            self._seen[0].ready = self._ready
            if not leaving and all(seen.ready for seen in self._seen):
                leaving = True
                os.write(self._left_behind, b"!")
                for address in self._peers.values():
                    self._send(address, {"leave": True})
            if leaving and all(seen.left for seen in self._seen[1:]):
                return
            if time.monotonic() - beaten < BEAT:
                continue
            beaten = time.monotonic()
            self._note(self._seen[0], self._own())
            found = self._culprits(self.timeout)
            if found:
                for address in self._peers.values():
                    self._send(address, {**self._own(), "where": True})
                until = time.monotonic() + (0 if leaving else STACKS)
                while time.monotonic() < until:
                    if got := self._receive():
                        self._note_of_rank(*got)
                self._seen[0].stack = self._stack()
                self._end(found)
            for rank, how, since in self._culprits(self.timeout / 2):
                if not self._seen[rank].warned:
                    self._seen[rank].warned = True
                    line = f"warning: {self._told(rank, how, since)}; all wait for it"
                    threading.Thread(target=self.say, args=(line,), daemon=True).start()  # the log may hang, too

    def _note_of_rank(self, message: dict[str, Any], address: Address) -> bool:
        """Whether the message is another rank's."""
        rank = message.get("rank")
        if isinstance(rank, int) and 0 < rank < self.comm.size:
            self._peers[rank] = address
            self._note(self._seen[rank], message)
            return True
        return False

    def _was_asleep(self) -> bool:
        """Whether this process itself has stood still, as in a suspended job: then others' silence means nothing."""
        now = time.monotonic()
        before, self._awake = self._awake, now
        return now - before > 3 * BEAT

    def _note(self, seen: Seen, message: dict[str, Any]) -> None:
        seen.beat = time.monotonic()
        if message.get("turns", seen.turns) != seen.turns:
            seen.moved, seen.warned = seen.beat, False
        for key in ("phase", "step", "turns", "stack", "ready", "left"):
            setattr(seen, key, message.get(key, getattr(seen, key)))

    def _culprits(self, timeout: float) -> list[tuple[int, str, float]]:
        """Who keeps all from moving for longer than this: rank, how, since how many seconds.

        As long as anybody moves, those who may be waiting for it are not to blame; where nobody does and all may be
        waiting, all are that are not ready to leave.
        """
        now = time.monotonic()
        silent = [
            (rank, "silent", now - seen.beat)
            for rank, seen in enumerate(self._seen)
            if now - seen.beat > timeout and not seen.left
        ]
        if silent:
            return silent
        stuck = [
            (rank, "stuck", now - seen.moved) for rank, seen in enumerate(self._seen) if now - seen.moved > timeout
        ]
        to_blame = [one for one in stuck if self._seen[one[0]].phase not in MAY_WAIT]
        waiting = [one for one in stuck if not self._seen[one[0]].ready]
        return to_blame or (waiting if len(stuck) == len(self._seen) else [])

    def _told(self, rank: int, how: str, since: float) -> str:
        seen = self._seen[rank]
        return f"rank {rank} on {seen.host} {TOLD[how]} {since:.1f} s: {seen.phase}, after step {seen.step}"

    def _end(self, culprits: list[tuple[int, str, float]]) -> None:
        """Say who is where, and end the job, also where neither output nor MPI answer any more."""
        threading.Timer(3 * STACKS, os.kill, (os.getpid(), signal.SIGKILL)).start()
        told = "; ".join(self._told(*culprit) for culprit in culprits)
        lines = [f"dpcnn: hang: {told}; the job is ended, go on with --resume; --stall-timeout is {self.timeout:g} s"]
        for rank, seen in enumerate(self._seen):
            if seen.stack:
                lines.append(f"rank {rank} on {seen.host}: {seen.phase}, after step {seen.step}\n{seen.stack.rstrip()}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        if self._at_the_end:  # MPI may be past an abort; the launchers end a job of which a signal has killed a rank
            time.sleep(STACKS / 5)  # they pass on what was printed before
            os.kill(os.getpid(), signal.SIGKILL)
        self.comm.abort(FAULT)


def addresses() -> list[str]:
    """This host's IPv4 addresses, those of its network cards first; Linux only."""
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:  # SIOCGIFADDR
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
            except OSError:  # a card without an address
                continue
    return sorted(found, key=lambda address: address.startswith("127."))
