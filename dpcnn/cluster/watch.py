"""A watch over the ranks, beside MPI: a rank that makes no progress is named, and the job ends.

Each rank has a thread that sends a heartbeat to rank 0 twice a second, and rank 0's thread answers each. So neither
MPI nor any rank's main thread has to be well for a verdict. Rank 0 judges all others; the others judge whether rank 0
is silent.

Which process notices, to the end of a run, that rank R has stopped:

- Until R is *done*, rank 0's thread does, or for rank 0 the threads of the others. R is done when MPI has ended on it
  and it has left a child process behind. Rank 0's thread ends when all ranks are done; the thread of any other rank
  ends when rank 0 tells it that both are done.
- From then on R's child does: it ends R if R does not end by itself. It allows more time than any verdict of the
  threads takes, so it never comes before one.

If the ranks survive the death of one, the one that keeps them from going on is killed, and the job goes on. A rank
that is stuck kills itself, when rank 0 tells it to. A rank that is silent is killed by its child, which hears from its
thread and needs no network. After a death, the threads start anew. Only where that does not help, as for a host that
is out of reach, does the job end.
"""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dpcnn.base.timing import Timer
from dpcnn.cluster.child import BEAT, STACKS, end_after
from dpcnn.cluster.datagrams import Message
from dpcnn.cluster.links import Link, connect
from dpcnn.cluster.pulse import Pulse
from dpcnn.cluster.verdict import ENDING, Report, Verdict, judge, silent, stuck
from dpcnn.errors import printable
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import OPEN_FILES

COPIES = 5  # of the last message of a rank: messages get lost
BETWEEN_COPIES = 0.01  # seconds
FAULT = 1  # exit status


class Watch:
    """Watches all ranks of a job until :meth:`close`; every rank makes one.

    Args:
        timeout: seconds without progress after which the job is ended; 0: there is no watch.
        say: takes a line for people, on rank 0.

    Attributes:
        pulse: what this rank tells of itself.
        warning: where heartbeats don't reach rank 0 from everywhere, a line that says so: then nobody watches.
    """

    def __init__(self, comm: SerialComm, timeout: float, say: Callable[[str], None]) -> None:
        self.comm, self.timeout, self.say = comm, timeout, say
        self.pulse, self._over_now = Pulse(), False
        self._stacks: dict[int, str] = {}
        self._warned: set[int] = set()
        self._thread: threading.Thread | None = None
        self._child: int | None = None
        if timeout and comm.size > 1 and comm.survives:
            number, host = comm.members[comm.rank], platform.node()
            line = f"dpcnn: hang: rank {number} on {host} has sent no heartbeat for {timeout:.1f} s, and is killed\n"
            self._child = end_after(timeout, line)
        try:
            self._begin()
        except BaseException:  # such as a death: the ranks that are left make another watch
            self._dismiss_child()
            raise

    def follow(self, timer: Timer, step: Callable[[], int]) -> None:
        """From here on, tell the phase and the step of a training."""
        self.pulse.follow(timer, step)

    def renew(self) -> None:
        """Watch the ranks that are left after a death; every one of them calls this, and a new warning is told."""
        before = self.warning
        self._leave()
        self._begin()
        if self.warning not in ("", before):
            self.say(self.warning)

    def _leave(self) -> None:
        """End this rank's thread, if there is one: at once where ranks survive, otherwise when all ranks are done."""
        if self._thread is None:
            return
        self._over_now, self._due = self.comm.survives, 0.0
        self._links.wake()
        self._thread.join()
        self._links.close()
        self._thread, self._over_now = None, False

    def close(self, last: Callable[[], None] | None = None) -> None:
        """The end of the watch, on every rank.

        Args:
            last: the end of MPI; none returns before it is done on all ranks. From then on a child process watches
                each rank until its end. None: nobody does.
        """
        if self.comm.survives:  # its child sees to it that this process ends
            self._leave()
        if self._thread is None:
            (last or self._dismiss_child)()
            return
        self.comm.barrier()
        if last:
            self.pulse.at_the_end = True
            last()
            self._leave_child()
        self.pulse.done = True
        self._leave()

    def _leave_child(self) -> None:
        limit = 2 * self.timeout + STACKS
        self._reports[self.comm.rank].take(self.pulse.message(), time.monotonic())
        end_after(limit, f"dpcnn: hang: {self._told([Verdict(self.comm.rank, ENDING, limit)])}\n")

    def _dismiss_child(self) -> None:
        """End the child of ranks that survive: without the thread, it would take this process for a silent one."""
        if self._child is not None:
            os.close(self._child)
            self._child = None

    def _begin(self) -> None:
        """Start the thread, if there are other ranks and all can be reached."""
        self.warning = ""
        if not self.timeout or self.comm.size == 1:
            self._dismiss_child()
            return
        hosts = self.comm.allgather_obj(platform.node())
        self._links, lost = connect(self.comm, hosts)
        if lost:
            self._links.close()
            self._dismiss_child()
            silent, first = hosts[lost[0]], hosts[0]
            why = f"heartbeats from {silent} don't reach {first} by UDP"
            if not self._links.room:
                why = f"rank 0 may open too few files for heartbeats (raise the limit: ulimit -n {OPEN_FILES})"
            self.warning = f"warning: {why}: nobody watches for hangs"
            return
        now = time.monotonic()
        self._reports = [Report(host, now, now) for host in hosts]
        self._due = now  # when the next heartbeat is
        self._thread = threading.Thread(target=self._run, name="dpcnn-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """The thread: it does not end without a word."""
        try:
            self._watch()
        except BaseException as error:
            with suppress(BaseException):
                self._send_last(Message(ended=True))
            why = printable(f"rank {self.comm.rank} on {platform.node()}: {type(error).__name__}: {error}")
            line = f"warning: the watch over the ranks has ended ({why}): nobody watches for hangs any more"
            print(line, file=sys.stderr, flush=True)
        if not self._over_now:
            self._dismiss_child()

    def _watch(self) -> None:
        awake = time.monotonic()
        while not self._over():
            received = self._links.receive(self._due - awake)
            now = time.monotonic()
            if now - awake > 3 * BEAT:  # this process has stood still, as in a suspended job: silence means nothing
                for report in self._reports:
                    report.beat = report.moved = now
            awake = now
            for link, message in received:
                self._take(link, message)
            if now >= self._due:
                self._due = now + BEAT
                self._beat(now)
        if self.comm.rank == 0 and not self.comm.survives:
            self._send_last(self.pulse.message())

    def _over(self) -> bool:
        """Whether no rank needs this thread any more."""
        if self._over_now:
            return True
        if self.comm.rank:
            return self._reports[0].done or self._reports[0].ended
        return self.pulse.done and all(report.done or report.ended for report in self._reports[1:])

    def _take(self, link: Link, message: Message) -> None:
        """Take up a peer's message, and answer it."""
        self._reports[link.peer].take(message, time.monotonic())
        if message.die:
            self._kill_itself()
        if message.text:
            self._stacks[link.peer] = printable(message.text, keep="\n")
        if self.comm.rank == 0:
            link.send(self.pulse.message()._replace(done=self.pulse.done and message.done))
        elif message.where:
            link.send(self.pulse.message()._replace(text=self.pulse.stack()))

    def _beat(self, now: float) -> None:
        """Send a heartbeat, or on rank 0 judge; other ranks judge rank 0, rank 1 first."""
        if self._child is not None:
            os.write(self._child, b".")
        own = self.pulse.message()
        self._reports[self.comm.rank].take(own, now)
        limit = 3 * self.timeout if self.comm.survives else self.timeout  # of silence: a child is faster
        if self.comm.rank:
            self._send(own)
            found = silent(self._reports[:1], now, limit + (self.comm.rank - 1) * STACKS)
        elif self.comm.survives:
            self._evict(stuck(self._reports, now, self.timeout))
            found = silent(self._reports, now, limit)
        else:
            found = judge(self._reports, now, self.timeout)
            self._warn(judge(self._reports, now, self.timeout / 2))
        if found:
            self._end(found)

    def _warn(self, late: list[Verdict]) -> None:
        """Say once of each of these ranks that all wait for it."""
        if new := [verdict for verdict in late if verdict.rank not in self._warned]:
            line = f"warning: {self._told(new)}; all wait for it"
            threading.Thread(target=self.say, args=(line,), daemon=True).start()  # the log may hang, too
        self._warned = {verdict.rank for verdict in late}

    def _evict(self, found: list[Verdict]) -> None:
        """Let ranks that are stuck kill themselves; if all are, nobody knows which one it is, and the job ends."""
        if len(found) == len(self._reports):
            self._end(found)
        for link in self._links:
            if any(verdict.rank == link.peer for verdict in found):
                link.send(self.pulse.message()._replace(die=True))
        if any(verdict.rank == 0 for verdict in found):
            self._kill_itself()

    def _kill_itself(self) -> None:
        where = f"{self.pulse.message().phase}, after step {self.pulse.message().step}"
        line = f"rank {self.comm.members[self.comm.rank]} on {platform.node()} has made no progress: {where}"
        print(
            f"dpcnn: hang: {line}; it is killed, and the others go on\n{self.pulse.stack()}",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(STACKS / 5)  # the launcher passes on what was printed
        os.kill(os.getpid(), signal.SIGKILL)

    def _end(self, found: list[Verdict]) -> None:
        """Say which rank is where, and end the job, also where neither output nor MPI answer any more."""
        self._ask_for_stacks()
        threading.Timer(3 * STACKS, os.kill, (os.getpid(), signal.SIGKILL)).start()
        timeout = f"--stall-timeout is {self.timeout:g} s"
        lines = [f"dpcnn: hang: {self._told(found)}; the job is ended, continue with --resume; {timeout}"]
        for rank, stack in sorted(self._stacks.items()):
            report = self._reports[rank]
            lines.append(f"rank {rank} on {report.host}: {report.phase}, after step {report.step}\n{stack}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        # MPI may be past an abort; the launchers end a job of which a signal has killed a rank
        if self.pulse.at_the_end:
            time.sleep(STACKS / 5)  # they pass on what was printed before
            os.kill(os.getpid(), signal.SIGKILL)
        self.comm.abort(FAULT)

    def _ask_for_stacks(self) -> None:
        """Collect the stacks of this rank and, on rank 0, of those that answer."""
        self._reports[self.comm.rank].take(self.pulse.message(), time.monotonic())
        self._stacks[self.comm.rank] = self.pulse.stack()
        if self.comm.rank == 0:
            self._send(self.pulse.message()._replace(where=True))
            until = time.monotonic() + STACKS
            while (left := until - time.monotonic()) > 0:
                for link, message in self._links.receive(left):
                    self._take(link, message)

    def _told(self, verdicts: list[Verdict]) -> str:
        return "; ".join(verdict.told(self._reports[verdict.rank]) for verdict in verdicts)

    def _send(self, message: Message) -> None:
        for link in self._links:
            link.send(message)

    def _send_last(self, message: Message) -> None:
        for _ in range(COPIES):
            self._send(message)
            time.sleep(BETWEEN_COPIES)
