"""Attacks the UDP sockets of a job, until it is killed; prints a line once it has sent 20 datagrams.

attacker.py flood PORT...    as user nobody, if it may: nested JSON, noise, datagrams of all sizes, as fast as it can
attacker.py replay PORT...   as root: records what the ranks send each other, and sends it again and altered, with their
                             own addresses as its source
"""

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

NESTED = b"[" * 50_000
ATTACH_FILTER = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
HERE = socket.inet_aton("127.0.0.1")


def flood(ports: list[int]) -> Iterator[None]:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        for port in ports:
            for data in (NESTED, os.urandom(1200), b"", os.urandom(1199), os.urandom(1201), b'{"token": []}'):
                with suppress(OSError):
                    sender.sendto(data, ("127.0.0.1", port))
                yield


def replay(ports: list[int]) -> Iterator[None]:
    seen = set()
    for source, target, data in overheard(ports):
        if target not in ports or data in seen:
            continue
        altered = bytes([*data[:50], data[50] ^ 1, *data[51:]])
        noise = os.urandom(len(data))
        seen |= {data, altered, noise, NESTED}
        for forged in (data, altered, noise, NESTED, data):
            spoof(source, target, forged)
            yield
        spoof(target, source, data)  # as if the other one had sent it
        yield


def overheard(ports: list[int]) -> Iterator[tuple[int, int, bytes]]:
    """Source port, target port and content of each datagram that one of these ports sends on the loopback interface."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(0x0800))
    program = ctypes.create_string_buffer(from_ports(ports))
    tap.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(program)))
    tap.bind(("lo", 0))
    while True:
        packet = tap.recv(1 << 16)[14:]
        start = 4 * (packet[0] & 15)
        if packet[9] == socket.IPPROTO_UDP:
            source, target = struct.unpack("!HH", packet[start : start + 4])
            if source in ports:  # others may have arrived before the filter was there
                yield source, target, packet[start + 8 :]


def from_ports(ports: list[int]) -> bytes:
    """A packet filter for the kernel (classic BPF), so that a flood does not push out what the ports send.

    See Documentation/networking/filter.rst of Linux: load the half word at byte 34, the source port; accept the packet
    if it equals one of the ports.
    """
    load, equal, give = 0x28, 0x15, 0x06
    tests = [(equal, len(ports) - number, 0, port) for number, port in enumerate(ports)]
    rules = [(load, 0, 0, 34), *tests, (give, 0, 0, 0), (give, 0, 0, 1 << 16)]
    return b"".join(struct.pack("@HBBI", *rule) for rule in rules)


def spoof(source: int, target: int, data: bytes) -> None:
    """Send a datagram from 127.0.0.1 and a port that is another socket's."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        content = struct.pack("!HHHH", source, target, 8 + len(data), 0) + data
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(content), 0, 0, 64, socket.IPPROTO_UDP, 0, HERE, HERE)
        raw.sendto(header + content, ("127.0.0.1", 0))


def may_spoof() -> bool:
    """Whether this process may open raw sockets."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True


def main() -> None:
    attack = {"flood": flood, "replay": replay}[sys.argv[1]]
    for sent, _ in enumerate(attack([int(word) for word in sys.argv[2:]]), start=1):
        if sent == 20:
            print("attacking", flush=True)


if __name__ == "__main__":
    main()
