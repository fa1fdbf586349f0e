"""The messages of the watch as datagrams of one size, sealed with a key that only the job's ranks have.

::

    seal  sender  recipient  counter  done ended where die  phase  step  turns  text, padded with zeros
    32 B  4       4          8        1    1     1     1    1      8     8      1,131

The seal is the HMAC-SHA256 of all that follows it. The counter rises with each datagram that a rank sends, and a
recipient accepts no counter twice, so a recorded datagram is useless. The seal covers sender and recipient, so a
datagram is useless between other ranks. Discarding a datagram costs the same for any content.
"""

import hmac
import struct
from collections import defaultdict
from itertools import count
from typing import NamedTuple

from dpcnn.base import timing

START, BETWEEN, END = "start-up", "between phases", "end"
PHASES = (START, BETWEEN, *timing.PHASES, END)
"""The phases of a rank; a datagram contains the index."""

SIZE = 1200
"""Bytes of a datagram: it fits into a packet of every network."""

_SEAL = 32
_FIELDS = struct.Struct("!IIQ????BQq1131s")
_TEXT = 1131


class Message(NamedTuple):
    """A report of a rank, with requests to the recipient.

    Attributes:
        phase: of PHASES.
        turns: a number that changes as long as there is progress.
        done: the rank has finished MPI; from rank 0: rank 0 and the recipient have.
        ended: the sender's watch has ended and sends nothing more.
        where: a request for the recipient's stack.
        die: a request to the recipient to kill itself: it blocks the others, which survive its death.
        text: the sender's stack, if requested; the last 1,131 bytes of a longer text.
    """

    phase: str = START
    step: int = 0
    turns: int = 0
    done: bool = False
    ended: bool = False
    where: bool = False
    die: bool = False
    text: str = ""


class Seal:
    """Turns the messages of one rank into datagrams, and the datagrams for it into messages.

    Args:
        key: of the job, 32 bytes.
        rank: this one.
    """

    def __init__(self, key: bytes, rank: int) -> None:
        self._key, self._rank = key, rank
        self._sent = count(1)
        self._received: defaultdict[int, int] = defaultdict(int)  # the last counter of each peer

    def close(self, message: Message, peer: int) -> bytes:
        """A datagram for a peer."""
        fields = _FIELDS.pack(
            self._rank,
            peer,
            next(self._sent),
            message.done,
            message.ended,
            message.where,
            message.die,
            PHASES.index(message.phase),
            message.step,
            message.turns,
            message.text.encode(errors="replace")[-_TEXT:],
        )
        return hmac.digest(self._key, fields, "sha256") + fields

    def open(self, data: bytes, peer: int) -> Message | None:
        """The message in a datagram, or None unless it is a new one from this peer to this rank."""
        if len(data) != SIZE:
            return None
        seal, fields = data[:_SEAL], data[_SEAL:]
        if not hmac.compare_digest(seal, hmac.digest(self._key, fields, "sha256")):
            return None
        sender, recipient, counter, done, ended, where, die, phase, step, turns, text = _FIELDS.unpack(fields)
        if (sender, recipient) != (peer, self._rank) or counter <= self._received[peer] or phase >= len(PHASES):
            return None
        self._received[peer] = counter
        return Message(PHASES[phase], step, turns, done, ended, where, die, text.rstrip(b"\0").decode(errors="replace"))
