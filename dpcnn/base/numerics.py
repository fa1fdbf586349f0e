"""The software and hardware that decide the last bits of floating-point results."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info


def fingerprint() -> dict[str, Any]:
    """NumPy, its BLAS with kernel and threads, the CPU features that NumPy uses, the processor type."""
    blas = [
        f"{library['internal_api']} {library['version']} {library.get('architecture', '?')}, "
        f"{library['num_threads']} thread{'s' if library['num_threads'] > 1 else ''}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    features: dict[str, bool] = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    return {
        "numpy": np.__version__,
        "blas": "; ".join(sorted(set(blas))) or "unknown",
        "cpu_features": sorted(name for name, present in features.items() if present),
        "machine": platform.machine(),
    }


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
    for rank, (name, found) in enumerate(by_rank):
        odd = [describe(key, first[key], found[key]) for key in first if found[key] != first[key]]
        if odd:
            kinds.setdefault("; ".join(odd), f"rank {rank} on {name}")
    lines = [f"the numerics of {who} differ from those of rank 0 on {host}: {odd}" for odd, who in kinds.items()]
    if lines:
        lines.append(
            "so the bits may depend on the ranks: give all nodes one NumPy, one OPENBLAS_CORETYPE (such as Haswell) "
            "and one number of BLAS threads"
        )
    return lines


def describe(key: str, first: Any, found: Any) -> str:
    """One difference in words."""
    if isinstance(first, list):
        return f"{key} {', '.join(sorted(set(first) ^ set(found)))} on one of them only"
    return f"{key} {found}, not {first}"
