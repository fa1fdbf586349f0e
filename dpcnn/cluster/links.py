"""The ways of the watch: UDP between rank 0 and each other rank, by sockets that are connected to each other.

All addresses and ports go over MPI, and none is learned from a packet. A socket is bound to one address, and connected
to one address and port: the kernel drops what comes from anywhere else, before it takes room in the socket's buffer.
Between ranks of one host, both are of 127.0.0.1.
"""

import fcntl
import resource
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from dpcnn.cluster.datagrams import SIZE, Message, Seal
from dpcnn.parallel.comm import SerialComm

HERE = "127.0.0.1"
REACHING = 2.0  # seconds in which rank 0 must answer the first time
RETRY = 0.1  # seconds
BUFFER = 1 << 20  # bytes, of a socket; the kernel may allow less
WAITING = 1000  # datagrams of a peer that are read before those of the next
DISCARD = 9  # the port that a socket is connected to before the peer's is known
SPARE = 256  # open files that a process needs besides these sockets


class Link:
    """This rank's end of the way to a peer.

    Args:
        number: which of rank 0's addresses the way leads over.
    """

    def __init__(self, seal: Seal, peer: int, number: int, end: socket.socket) -> None:
        self.peer, self.number, self.socket = peer, number, end
        self._seal = seal

    def send(self, message: Message) -> None:
        """Send a message, if the network lets it; it may get lost."""
        with suppress(OSError):  # the network or the peer is away, for now or for good: its silence will tell
            self.socket.send(self._seal.close(message, self.peer))

    def receive(self) -> Iterator[Message]:
        """The messages that have arrived; whatever else has is dropped."""
        for _ in range(WAITING):
            try:
                data = self.socket.recv(SIZE + 1)  # so a larger one is seen to be too large
            except BlockingIOError:
                return
            except OSError:  # such as that a datagram sent before was refused
                continue
            if message := self._seal.open(data, self.peer):
                yield message


class Links:
    """All links of this rank, for one thread to wait on; another may wake it.

    Attributes:
        room: whether this rank may open enough files for its links.
    """

    def __init__(self, links: Sequence[Link], room: bool = True) -> None:
        self._links, self.room = list(links), room
        self._selector = selectors.DefaultSelector()
        for link in links:
            self._selector.register(link.socket, selectors.EVENT_READ, link)
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def receive(self, seconds: float) -> list[tuple[Link, Message]]:
        """The messages that have arrived, as soon as there is any datagram; at the latest after so many seconds."""
        found = []
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.data is None:
                self._woken.recv(1)
            else:
                found += [(key.data, message) for message in key.data.receive()]
        return found

    def wake(self) -> None:
        """Let the thread that waits go on."""
        self._wake.send(b"!")

    def keep(self, numbers: Mapping[int, int]) -> None:
        """Close the links to each peer but the one with the number given for it."""
        for link in self._links:
            if link.number != numbers[link.peer]:
                self._selector.unregister(link.socket)
                link.socket.close()
        self._links = [link for link in self._links if link.number == numbers[link.peer]]

    def close(self) -> None:
        """Close all."""
        self._selector.close()
        for end in (*(link.socket for link in self._links), self._woken, self._wake):
            end.close()


def connect(comm: SerialComm, hosts: Sequence[str]) -> tuple[Links, list[int]]:
    """Make and test the links between rank 0 and all others.

    Each rank tries all addresses of rank 0's host at once, and keeps the first over which rank 0 answers.

    Args:
        hosts: of all ranks, by name.

    Returns:
        The links, and the ranks that have none.
    """
    key, of_first = comm.broadcast_obj([secrets.token_hex(32), addresses()])
    seal = Seal(bytes.fromhex(key), comm.rank)
    if comm.rank == 0:
        return _connect_first(comm, seal)
    near = hosts[comm.rank] == hosts[0]
    candidates = [HERE] if near else [address for address in of_first if not address.startswith("127.")]
    return _connect_other(comm, seal, candidates)


def _connect_first(comm: SerialComm, seal: Seal) -> tuple[Links, list[int]]:
    """Rank 0's side of :func:`connect`."""
    offers = comm.allgather_obj([])  # for each rank: its own address and port for each address of this host
    room = _room_for(sum(len(offer) for offer in offers))
    ports, links = [], []
    for rank, offer in enumerate(offers):
        ends = [_end(own, address, port) if room else None for own, address, port in offer]
        links += [Link(seal, rank, number, end) for number, end in enumerate(ends) if end]
        ports.append([end.getsockname()[1] if end else 0 for end in ends])
    comm.broadcast_obj(ports)
    return _settle(comm, Links(links, room))


def _connect_other(comm: SerialComm, seal: Seal, candidates: Sequence[str]) -> tuple[Links, list[int]]:
    """Any other rank's side of :func:`connect`; ``candidates`` are rank 0's addresses."""
    ends = [(address, end) for address in candidates if (end := _end("", address, DISCARD))]
    comm.allgather_obj([[address, *end.getsockname()] for address, end in ends])
    links = []
    for number, port in enumerate(comm.broadcast_obj(None)[comm.rank]):
        address, end = ends[number]
        if port:
            with suppress(OSError):  # the way has gone since: nothing will come
                end.connect((address, port))
            links.append(Link(seal, 0, number, end))
        else:
            end.close()
    return _settle(comm, Links(links))


def _settle(comm: SerialComm, links: Links) -> tuple[Links, list[int]]:
    """Keep one link of those between two ranks: the first over which rank 0 answers."""
    if comm.rank:
        numbers = comm.allgather_obj(_answered(links))
        links.keep({0: numbers[comm.rank]})
    else:
        with _answering(links):
            numbers = comm.allgather_obj(-1)
        links.keep(dict(enumerate(numbers)))
    return links, [rank for rank, number in enumerate(numbers) if rank and number < 0]


def _answered(links: Links) -> int:
    """The number of the first link on which rank 0 answers; -1: it does not."""
    until = time.monotonic() + REACHING
    while time.monotonic() < until:
        for link in links:
            link.send(Message())
        for link, _ in links.receive(RETRY):
            return link.number
    return -1


@contextmanager
def _answering(links: Links) -> Iterator[None]:
    """A block during which a thread answers whatever arrives."""
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            for link, _ in links.receive(RETRY):
                link.send(Message())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        links.wake()
        thread.join()


def _end(own: str, address: str, port: int) -> socket.socket | None:
    """A socket connected to an address and port; None: the network or the system has none.

    Args:
        own: the address that the socket is bound to; empty: that from which the network leads to the other one.
    """
    with suppress(OSError):
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            end.setblocking(False)
            if own:
                end.bind((own, 0))
            end.connect((address, port))
        except OSError:
            end.close()
            raise
        return end
    return None


def _room_for(sockets: int) -> bool:
    """Whether this process may open so many sockets; the limit is raised where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sockets + SPARE > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sockets + SPARE <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def addresses() -> list[str]:
    """This host's IPv4 addresses, those of its network cards first; Linux only."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:  # SIOCGIFADDR
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
            except OSError:  # a card without an address
                continue
    return sorted(found, key=lambda address: address.startswith("127."))
