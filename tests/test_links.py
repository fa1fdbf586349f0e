"""The links of the watch, between threads in place of ranks: what is bound, what gets through, what is kept out."""

import gc
import os
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import attacker
import pytest

from dpcnn.cluster import links
from dpcnn.cluster.datagrams import Message, Seal
from dpcnn.cluster.links import HERE, Link, addresses, connect
from dpcnn.parallel.comm import SerialComm


class Thread(SerialComm):
    """A rank that is a thread; ``shared`` is a list and a barrier of all of them."""

    def __init__(self, rank, size, shared):
        super().__init__()
        self.rank, self.size, (self._values, self._barrier) = rank, size, shared

    def allgather_obj(self, value):
        self._values[self.rank] = value
        self._barrier.wait(20)
        values = list(self._values)
        self._barrier.wait(20)
        return values

    def broadcast_obj(self, value):
        return self.allgather_obj(value)[0]


def connected(hosts):
    """The links of ranks on these hosts, and the ranks that each takes for lost."""
    shared = [None] * len(hosts), threading.Barrier(len(hosts))
    ranks = [Thread(rank, len(hosts), shared) for rank in range(len(hosts))]
    with ThreadPoolExecutor(len(hosts)) as pool:
        made = list(pool.map(lambda comm: connect(comm, hosts), ranks))
    return [each for each, _ in made], [lost for _, lost in made]


@pytest.fixture
def pair():
    """The links of two ranks, one each."""
    made, lost = connected(["here", "here"])
    assert lost == [[], []]
    for each in made:
        received(each, 0.0)  # what is left of the start
    yield made
    for each in made:
        each.close()


class Interrupted(SerialComm):
    """Rank 0 of two, in the moment in which the other dies."""

    size = 2

    def allgather_obj(self, value):
        if value == -1:  # the links are made, and being tested
            raise ConnectionResetError
        return [value, [["127.0.0.1", "127.0.0.1", 9]]]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_links_that_a_death_interrupts_leave_no_file_open():
    def connect_in_vain():
        with pytest.raises(ConnectionResetError):
            connect(Interrupted(), ["here", "here"])
        gc.collect()
        opened = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # that of listdir itself
                opened.append(os.readlink(f"/proc/self/fd/{number}"))
        return sum(name.startswith(("socket:", "pipe:", "anon_inode:")) for name in opened)  # no file of other threads

    assert connect_in_vain() == connect_in_vain()


def received(ends, seconds=5.0):
    """What arrives soon."""
    return [message for _, message in ends.receive(seconds)]


def test_the_ranks_of_one_host_are_connected_by_its_loopback_address_alone():
    made, lost = connected(["here"] * 3)
    assert lost == [[]] * 3
    first, *others = made
    assert [link.peer for link in first] == [1, 2]
    for link, (other,) in zip(first, others, strict=True):
        ends = link.socket.getsockname(), link.socket.getpeername()
        assert ends == (other.socket.getpeername(), other.socket.getsockname())
        assert {host for host, _ in ends} == {HERE}
    for each in made:
        each.close()


def test_a_rank_on_another_host_takes_an_address_that_works(monkeypatch):
    mine = addresses()[0]
    if mine.startswith("127."):
        pytest.skip("this host has no address but its loopback one")
    monkeypatch.setattr(links, "addresses", lambda: ["192.0.2.1", mine, HERE])
    made, lost = connected(["here", "here", "there"])
    assert lost == [[]] * 3
    assert [link.socket.getsockname()[0] for link in made[0]] == [HERE, mine]
    for each in made:
        each.close()


def test_ranks_that_can_t_be_reached_are_told(monkeypatch):
    monkeypatch.setattr(links, "REACHING", 0.2)
    monkeypatch.setattr(links, "addresses", lambda: ["192.0.2.1", HERE])
    made, lost = connected(["here", "there", "here"])
    assert lost == [[1]] * 3
    for each in made:
        each.close()


def test_ranks_for_which_there_are_too_few_open_files_are_told(monkeypatch):
    monkeypatch.setattr(links, "REACHING", 0.2)
    monkeypatch.setattr(links, "_room_for", lambda sockets: sockets < 2)
    made, lost = connected(["here"] * 3)
    assert lost == [[1, 2]] * 3
    for each in made:
        each.close()


def test_the_limit_of_open_files_is_raised_where_it_may_be(monkeypatch):
    limits = [1024, 5000]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: limits.__setitem__(0, new[0]))
    assert links._room_for(100) and limits == [1024, 5000]
    assert links._room_for(2000) and limits == [5000, 5000]
    assert not links._room_for(5000)


def test_messages_go_both_ways(pair):
    (to_other,), (to_first,) = pair
    to_first.send(Message("forward", 3))
    assert received(pair[0]) == [Message("forward", 3)]
    to_other.send(Message(where=True))
    assert received(pair[1]) == [Message(where=True)]


def test_datagrams_from_elsewhere_take_no_room(pair):
    (to_other,), (to_first,) = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(5000):  # more than the buffer holds
            stranger.sendto(bytes(1200), to_other.socket.getsockname())
    to_first.send(Message("forward", 3))
    assert to_other._seal.open(to_other.socket.recv(1200), 1) == Message("forward", 3), "the first that is there"
    with pytest.raises(BlockingIOError):
        to_other.socket.recv(1200)


def test_a_spoofed_source_is_of_no_use(pair):
    if not attacker.may_spoof():
        pytest.skip("raw sockets are not allowed here")
    (to_other,), (to_first,) = pair
    genuine = to_first._seal.close(Message("forward", 3), 0)
    source, target = to_first.socket.getsockname()[1], to_other.socket.getsockname()[1]
    forged = Seal(bytes(32), 1).close(Message("forward", 3), 0)
    for data in (forged, attacker.NESTED, genuine[:-1], genuine, genuine, b""):
        attacker.spoof(source, target, data)
    assert received(pair[0]) == [Message("forward", 3)], "the kernel lets them all through, the seal one"
    to_first.send(Message("forward", 4))
    assert received(pair[0]) == [Message("forward", 4)]


def test_a_peer_that_has_gone_raises_nothing(pair):
    (to_other,), (to_first,) = pair
    to_first.socket.close()
    for _ in range(3):
        to_other.send(Message())
        assert received(pair[0], 0.1) == []
    to_first.send(Message())
    assert list(to_first.receive()) == []


def test_a_link_that_never_runs_dry_lets_others_have_their_turn():
    class Endless:
        def recv(self, size):
            return bytes(size)

    assert list(Link(Seal(bytes(32), 0), 1, 0, Endless()).receive()) == []


def test_a_thread_that_waits_is_woken(pair):
    pair[0].wake()
    assert received(pair[0], 60.0) == []


def test_own_addresses():
    found = addresses()
    assert HERE in found and found[-1].startswith("127.")
