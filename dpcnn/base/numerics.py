"""The software and hardware that decide the last bits of floating-point results."""

import os
import platform
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from dpcnn.base import startup
from dpcnn.base.cpuid import instructions
from dpcnn.errors import ConfigError

PORTABLE = {
    "numpy": "2.4.6",
    "blas": "openblas 0.3.31.188.0 Haswell, 1 thread",
    "cpu_features": ["X86_V2", "X86_V3"],
    "machine": "x86_64",
}
"""The fingerprint of portable numerics with the same bits everywhere: that of NumPy's wheel from PyPI."""

WIDE_KERNELS = {"SkylakeX", "Cooperlake", "SapphireRapids"}
"""OpenBLAS's kernels for AVX-512."""


def vectors() -> int:
    """The width in bits of the vectors of this process's BLAS."""
    kernels = [library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"]
    return vector_bits(startup.numerics, instructions(), kernels)


def vector_bits(numerics: str, available: Collection[str], kernels: Collection[str]) -> int:
    """512 for native numerics on a processor with AVX-512, unless OpenBLAS has loaded other kernels; otherwise 256.

    So one kind of numerics with one :func:`fingerprint` has one width, on any processor.

    Args:
        available: from :func:`dpcnn.base.cpuid.instructions`.
        kernels: those of OpenBLAS, one for each of its libraries; another BLAS is taken to use what is available.
    """
    wide = numerics == "native" and set(available) >= startup.AVX512 and set(kernels) <= WIDE_KERNELS
    return 512 if wide else 256


def fingerprint() -> dict[str, Any]:
    """NumPy, its BLAS with kernel and threads, the CPU features that NumPy uses, the processor type.

    Features that NumPy has no loops for, or that it is set not to use, are left out.
    """
    blas = [
        f"{library['internal_api']} {library['version']} {library.get('architecture', '?')}, "
        f"{library['num_threads']} thread{'s' if library['num_threads'] > 1 else ''}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    umath: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
    groups = [*umath.__cpu_baseline__, *umath.__cpu_dispatch__]
    return {
        "numpy": np.__version__,
        "blas": "; ".join(sorted(set(blas))) or "unknown",
        "cpu_features": sorted(name for name in groups if umath.__cpu_features__[name]),
        "machine": platform.machine(),
    }


def check(wanted: str) -> None:
    """Make sure that this process has the numerics of a run.

    Raises:
        ConfigError: the numerics differ.
        LaunchError: the environment requests unknown numerics.
    """
    startup.requested()
    if wanted != startup.numerics:
        raise ConfigError(
            f"--numerics: the run has {wanted}, and this process has loaded {startup.numerics}; "
            f"set {startup.VARIABLE}={wanted} before Python starts"
        )
    if startup.late and (reasons := deviations()):
        raise ConfigError(
            f"--numerics: NumPy was loaded before dpcnn, so this process lacks portable numerics ({reasons}); "
            "import dpcnn first"
        )


@contextmanager
def arithmetic() -> Iterator[None]:
    """A block without warnings of NumPy: the code checks for infinities and NaN where they matter.

    Where NumPy was loaded before dpcnn, the choice of BLAS threads came too late: it has effect here.
    """
    threads = 1 if startup.late and os.environ.get(startup.THREAD_VARIABLES[0]) == "1" else None
    with threadpool_limits(threads, user_api="blas"), np.errstate(all="ignore"):
        yield


def deviations() -> str:
    """The reasons why portable numerics may give other bits here than on other machines; empty if there are none."""
    if startup.numerics != "portable":
        return ""
    current = fingerprint()
    reasons = [describe(key, PORTABLE[key], current[key]) for key in PORTABLE if current[key] != PORTABLE[key]]
    if missing := startup.NEEDED - instructions():
        reasons.append(f"this processor lacks {', '.join(sorted(missing))}")
    return "; ".join(reasons)


def processor() -> str:
    """The name of the processor, and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def differences(by_rank: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Lines about differing numerics: one for each kind that is not that of rank 0.

    Args:
        by_rank: each rank's host and fingerprint.
    """
    host, first = by_rank[0]
    kinds: dict[str, str] = {}
    for rank, (name, numerics) in enumerate(by_rank):
        changes = [describe(key, first[key], numerics[key]) for key in first if numerics[key] != first[key]]
        if changes:
            kinds.setdefault("; ".join(changes), f"rank {rank} on {name}")
    lines = [f"the numerics of {where} differ from those of rank 0 on {host}: {text}" for text, where in kinds.items()]
    if lines:
        lines.append(
            "so the bits may depend on the ranks: use --numerics portable, with one version of NumPy and one number "
            "of BLAS threads on all nodes"
        )
    return lines


def describe(key: str, first: Any, current: Any) -> str:
    """One difference in words."""
    if isinstance(first, list):
        return f"{key} {', '.join(sorted(set(first) ^ set(current)))} on one of them only"
    return f"{key} {current}, not {first}"
