"""dpcnn: data-parallel training of convolutional networks on NumPy, MPI and HDF5.

Importing the package settles how BLAS behaves, which only works before NumPy is loaded: see
:func:`choose_blas`.
"""

import os
from collections.abc import MutableMapping

__version__ = "0.1.0"

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def choose_blas(environment: MutableMapping[str, str], cpuinfo: str) -> None:
    """Set one BLAS thread per rank, and OpenBLAS's AVX-512 kernels where its detection misses them.

    Whatever the user has set stays. OpenBLAS takes recent AMD processors for a Haswell, and so
    leaves their AVX-512 units idle; Intel's it recognises.

    Args:
        environment: the process's environment, changed in place.
        cpuinfo: text in the format of Linux's ``/proc/cpuinfo``.
    """
    if not any(name in environment for name in THREAD_VARIABLES):
        environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if "AuthenticAMD" in cpuinfo and " avx512vl" in cpuinfo:
        environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return file.read(8192)  # the first processor is enough
    except OSError:
        return ""


choose_blas(os.environ, _cpuinfo())
