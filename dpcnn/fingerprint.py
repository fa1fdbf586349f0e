"""What decides the last bits of floating-point results on a machine."""

import platform
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
