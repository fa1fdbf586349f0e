"""Memory: what is left on this machine, and what this process has used."""

import resource
from contextlib import suppress
from pathlib import Path

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Files of control groups, version 2 and 1: the memory limit of a container or a job, its use, and its use by kind."""


def memory_left() -> int:
    """Bytes of memory that this process can still get from the machine, its container and its own limit."""
    left = [_available()]
    for limit, used, kinds in CGROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            unused = int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii"))
            left.append(unused + _page_cache(Path(kinds)))
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        left.append(own)
    return max(0, min(left))


def peak_memory() -> float:
    """The largest memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _page_cache(kinds: Path) -> int:
    """Bytes of files in a control group's memory, which the system frees for anything else."""
    lines = (line.split() for line in kinds.read_text(encoding="ascii").splitlines())
    return sum(int(size) for kind, size in lines if kind in ("active_file", "inactive_file"))


def _available() -> int:
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.split("MemAvailable:")[1].split()[0]) << 10
    return 1 << 62
