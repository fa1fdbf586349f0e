"""The instruction sets of this processor, from its instruction CPUID: Intel, "Software developer's manual", volume 2.

Under user-mode emulation, ``/proc/cpuinfo`` describes another processor than the emulated one.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CPUID = bytes.fromhex("534989d089f889f10fa241890041895804418948084189500c5bc3")
"""``void cpuid(uint32 leaf, uint32 subleaf, uint32 registers[4])``: eax, ebx, ecx and edx."""

XGETBV = bytes.fromhex("31c90f01d0c3")
"""``uint32 xgetbv()``: the registers that the operating system saves."""

EXTENDED = 0x80000000
"""The first leaf of the extended range."""

BITS = {  # leaf, register (0: eax), bit
    "fma": (1, 2, 12),
    "movbe": (1, 2, 22),
    "osxsave": (1, 2, 27),
    "f16c": (1, 2, 29),
    "bmi1": (7, 1, 3),
    "avx2": (7, 1, 5),
    "bmi2": (7, 1, 8),
    "avx512f": (7, 1, 16),
    "avx512dq": (7, 1, 17),
    "avx512cd": (7, 1, 28),
    "avx512bw": (7, 1, 30),
    "avx512vl": (7, 1, 31),
    "abm": (EXTENDED + 1, 2, 5),  # with lzcnt
}
"""Names as in ``/proc/cpuinfo``."""

AVX_STATE, AVX512_STATE = 0x06, 0xE6
AVX = {"fma", "f16c", "avx2"}


def instructions() -> frozenset[str]:
    """The names of :data:`BITS` that this processor has and the operating system allows, and its vendor.

    Empty if the processor is not x86-64. If memory can't be made executable, as under a strict SELinux, the names come
    from ``/proc/cpuinfo``.
    """
    if os.name != "posix" or os.uname().machine not in ("x86_64", "amd64"):
        return frozenset()
    try:
        with machine_code(CPUID, None, *[ctypes.c_void_p] * 3) as cpuid, machine_code(XGETBV, ctypes.c_uint32) as saved:
            return _ask(cpuid, saved)
    except OSError:
        return _parse(_cpuinfo())


@contextmanager
def machine_code(code: bytes, result: Any, *arguments: Any) -> Iterator[Any]:
    """Make a function of these x86-64 instructions, with the System V calling convention."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory.write(code)
        start = ctypes.c_char.from_buffer(memory)
        yield ctypes.CFUNCTYPE(result, *arguments)(ctypes.addressof(start))
        del start


def _ask(cpuid: Any, saved: Any) -> frozenset[str]:
    """The instruction sets and the vendor, from the functions of :data:`CPUID` and :data:`XGETBV`."""

    def registers(leaf: int) -> list[int]:
        output = (ctypes.c_uint32 * 4)()
        cpuid(leaf, 0, ctypes.addressof(output))
        return list(output)

    last, ebx, ecx, edx = registers(0)
    vendor = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx)).decode("ascii", "replace")
    last_extended = registers(EXTENDED)[0]
    leaves = {leaf: registers(leaf) for leaf, _, _ in BITS.values() if leaf <= last or EXTENDED < leaf <= last_extended}
    names = {name for name, (leaf, at, bit) in BITS.items() if leaf in leaves and leaves[leaf][at] >> bit & 1}
    state = saved() if "osxsave" in names else 0
    if state & AVX_STATE != AVX_STATE:
        names -= AVX
    if state & AVX512_STATE != AVX512_STATE:
        names = {name for name in names if not name.startswith("avx512")}
    return frozenset({*names, vendor})


def _cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return file.read(8192)  # the first processor is enough
    except OSError:
        return ""


def _parse(cpuinfo: str) -> frozenset[str]:
    """The instruction sets and the vendor in a text in the format of ``/proc/cpuinfo``."""
    return frozenset(cpuinfo.split()) & {*BITS, "AuthenticAMD", "GenuineIntel"}
