"""Settings that must precede the import of NumPy: BLAS threads, and the kernels of OpenBLAS and NumPy.

A process keeps one kind of numerics, ``native`` or ``portable``, until it ends: see :data:`NUMERICS`.
"""

import os
import re
import sys
from collections.abc import Collection, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from dpcnn.base.cpuid import instructions
from dpcnn.errors import LaunchError

NUMERICS = ("native", "portable")
"""``native``: the fastest kernels of this processor. ``portable``: those for AVX2, which give the same bits on every
x86-64 processor that has it."""

VARIABLE = "DPCNN_NUMERICS"
"""The environment variable for the numerics of programs and notebooks. Commands use their options instead."""

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

late = "numpy" in sys.modules
"""Whether NumPy was loaded before dpcnn: then the settings below have no effect on it."""

NEEDED = {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"}
"""Instructions of the portable kernels, x86-64-v3, as :func:`dpcnn.base.cpuid.instructions` names them."""

AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def choose_blas(environment: MutableMapping[str, str], available: Collection[str]) -> None:
    """Set one BLAS thread per rank, and OpenBLAS's AVX-512 kernels where its detection misses them.

    The user's own settings stay. OpenBLAS mistakes recent AMD processors for a Haswell and does not use
    their AVX-512 units. It recognises the processors of Intel.

    Args:
        environment: the process's environment, changed in place.
        available: from :func:`dpcnn.base.cpuid.instructions`.
    """
    if not any(name in environment for name in THREAD_VARIABLES):
        environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if {"AuthenticAMD", *AVX512} <= set(available):
        environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def hold_kernels(environment: MutableMapping[str, str], available: Collection[str], numpy: tuple[int, ...]) -> None:
    """Restrict OpenBLAS and NumPy to their kernels for AVX2. This overrides other settings.

    On a processor without AVX2, these kernels would end the process, so nothing is set.

    Args:
        environment, available: as for :func:`choose_blas`.
        numpy: NumPy's version.
    """
    if not set(available) >= NEEDED:
        return
    environment["OPENBLAS_CORETYPE"] = "Haswell"
    environment.pop("NPY_DISABLE_CPU_FEATURES", None)  # NumPy accepts only one of the two
    names = "X86_V3" if numpy >= (2, 4) else "SSSE3 SSE41 POPCNT SSE42 AVX F16C FMA3 AVX2"
    environment["NPY_ENABLE_CPU_FEATURES"] = names


def numpy_version() -> tuple[int, ...]:
    """NumPy's version without loading it, such as (2, 4, 6); empty if NumPy is missing."""
    spec = find_spec("numpy")
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    except OSError:
        text = ""
    match = re.search(r'version = "(\d+)\.(\d+)\.(\d+)', text)
    return tuple(int(number) for number in match.groups()) if match else ()


def typed_numerics(program: str, words: Sequence[str]) -> str | None:
    """The value of ``--numerics`` on the command line of a dpcnn command; None if there is none.

    Args:
        program: the module or script that Python runs.
        words: its arguments.
    """
    if not Path(program.removeprefix("-m")).name.startswith("dpcnn"):
        return None
    text = "\0".join(words)
    values = re.findall(r"(?:^|\0)--numerics[=\0](native|portable)(?=\0|$)", text)
    return str(values[-1]) if values else None


def _settle(available: Collection[str]) -> str:
    """Choose this process's numerics, and set its environment accordingly."""
    typed = typed_numerics("".join(sys.orig_argv[-len(sys.argv) :][:1]), sys.argv[1:])
    chosen = typed or os.environ.get(VARIABLE, "")
    if chosen == "portable":
        hold_kernels(os.environ, available, numpy_version())
    choose_blas(os.environ, available)
    return chosen if chosen in NUMERICS else NUMERICS[0]


_STARTED_WITH = dict(os.environ)

numerics = _settle(instructions())
"""The numerics of this process."""

_SETTLED = {name: _STARTED_WITH.get(name) for name in {*_STARTED_WITH, *os.environ}}
_SETTLED = {name: value for name, value in _SETTLED.items() if value != os.environ.get(name)}


def environment() -> dict[str, str]:
    """The environment for another process, without the settings for this one: they may not suit another node."""
    kept = {name: value for name, value in os.environ.items() if name not in _SETTLED}
    return kept | {name: value for name, value in _SETTLED.items() if value is not None}


def requested() -> str | None:
    """The numerics that the environment requests; None: any.

    Raises:
        LaunchError: they are unknown.
    """
    value = os.environ.get(VARIABLE) or None
    if value not in (None, *NUMERICS):
        raise LaunchError(f"{VARIABLE}={value[:40]}: expected {' or '.join(NUMERICS)}; change or unset it")
    return value


def restart(wanted: str | None) -> None:
    """Restart this process unless its numerics are ``wanted``; None: any. Call this before MPI_Init.

    Raises:
        LaunchError: it has been restarted already, or the environment requests unknown numerics.
    """
    asked = requested()
    if wanted in (None, numerics):
        return
    if asked == wanted:
        raise LaunchError(f"the run needs {wanted} numerics, but this process has {numerics}: give --numerics {wanted}")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment(), VARIABLE: str(wanted)})
