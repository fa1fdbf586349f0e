"""Elementary functions and normal draws: those of NumPy for native numerics, those of this file for portable ones.

NumPy passes float64 and the tails of the normal distribution to the C library, or to loops for AVX-512. Their last
bits depend on the version: glibc 2.36 and 2.41 give different initial weights. The functions of this file use only
additions, multiplications, divisions and square roots, whose rounding IEEE 754 defines. Their errors are below 4 units
in the last place for the arguments in this package. The relative errors of the draws are below 2e-7.
"""

from collections.abc import Callable
from math import factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import startup

Floats = NDArray[np.float64]

LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42fefap-1"), float.fromhex("0x1.cf79abc9e3b39p-40")
"""ln 2 in two parts, the first of 37 bits, so that its multiples by small whole numbers are exact."""

HALF_PI_HIGH, HALF_PI_LOW = float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a626331p-34")
"""pi / 2, split in the same way."""


SQRT_HALF = 0.7071067811865476


def horner(coefficients: Any, x: Floats) -> Floats:
    """The polynomial with these coefficients, the highest first."""
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y *= x
        y += coefficient
    return y


def portable_exp(x: Any) -> Floats:
    """e to the power of ``x``: e^x = 2^k e^r with abs(r) <= ln 2 / 2, by the Taylor series of e^r."""
    x = np.asarray(x, np.float64)
    k = np.rint(x * (1 / (LN2_HIGH + LN2_LOW)))
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    value: Floats = np.ldexp(horner([1 / factorial(n) for n in range(14, -1, -1)], r), k.astype(np.int32))
    return value


def portable_log(x: Any) -> Floats:
    """The natural logarithm of ``x`` > 0: x = 2^k m, by the series of ln m = 2 artanh((m - 1) / (m + 1))."""
    m, k = np.frexp(np.asarray(x, np.float64))
    low = m < SQRT_HALF
    m, k = np.where(low, 2 * m, m), k - low
    s = (m - 1) / (m + 1)
    series = s * horner([2 / n for n in range(23, 0, -2)], s * s)
    value: Floats = k * LN2_HIGH + (series + k * LN2_LOW)
    return value


def _sine_and_cosine(x: Any, turn: int) -> Floats:
    """sin(x + turn pi / 2), for abs(x) < 1e5: by Taylor series within pi / 4 of the multiples of pi / 2."""
    x = np.asarray(x, np.float64)
    k = np.rint(x * (1 / (HALF_PI_HIGH + HALF_PI_LOW)))
    r = (x - k * HALF_PI_HIGH) - k * HALF_PI_LOW
    quadrant, square = (k.astype(np.int64) + turn) % 4, -r * r
    sine = r * horner([1 / factorial(n) for n in range(19, 0, -2)], square)
    cosine = horner([1 / factorial(n) for n in range(18, -1, -2)], square)
    value = np.where(quadrant % 2, cosine, sine)
    return np.where(quadrant >= 2, -value, value)


def portable_sin(x: Any) -> Floats:
    """The sine of ``x``, for abs(x) < 1e5."""
    return _sine_and_cosine(x, 0)


def portable_cos(x: Any) -> Floats:
    """The cosine of ``x``, for abs(x) < 1e5."""
    return _sine_and_cosine(x, 1)


def portable_power(base: Any, exponent: Any, out: Any = None) -> Any:
    """``base`` > 0 to the power of ``exponent``, as float64 or into ``out``; the error grows with the logarithm."""
    value = portable_exp(exponent * portable_log(base))
    if out is None:
        return value
    out[...] = value
    return out


def portable_whole_power(base: float, exponent: int) -> float:
    """``base`` to the power of a whole number of at least 0, by repeated squaring."""
    value = 1.0
    while exponent:
        if exponent & 1:
            value *= base
        base *= base
        exponent >>= 1
    return value


def portable_normal(rng: np.random.Generator, out: NDArray[np.float32]) -> None:
    """Fill ``out`` with draws from the standard normal distribution: its quantiles at uniform numbers.

    Wichura, "The percentage points of the normal distribution" (1988), algorithm AS 241, PPND7.
    """
    raw = np.asarray(rng.bit_generator.random_raw(out.size))
    p = ((raw >> np.uint64(12)) + 0.5) * 2.0**-52  # the middles of 2^52 equal parts, all exact
    q = p - 0.5
    near = np.abs(q) <= 0.425
    value = np.empty_like(q)
    value[near] = q[near] * ratio(CENTRE, 0.180625 - q[near] ** 2)
    tail = q[~near]
    r = np.sqrt(-portable_log(np.minimum(p[~near], 1 - p[~near])))
    value[~near] = np.copysign(np.where(r <= 5, ratio(MIDDLE, r - 1.6), ratio(FAR, r - 5)), tail)
    out[...] = value.reshape(out.shape)


def ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Floats) -> Floats:
    """The ratio of two polynomials."""
    above, below = coefficients
    return horner(above, x) / horner(below, x)


CENTRE = (
    (59.109374720, 159.29113202, 50.434271938, 3.3871327179),
    (67.187563600, 78.757757664, 17.895169469, 1.0),
)
MIDDLE = ((0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777), (0.12021132975, 0.73700164250, 1.0))
FAR = ((0.017337203997, 0.42868294337, 3.0812263860, 6.6579051150), (0.012258202635, 0.24197894225, 1.0))
"""The coefficients of AS 241, highest power first: numerator and denominator for the centre and for two tails."""


def _native_normal(rng: np.random.Generator, out: NDArray[np.float32]) -> None:
    rng.standard_normal(dtype=np.float32, out=out)


exp: Callable[..., Any] = np.exp
sin: Callable[..., Any] = np.sin
cos: Callable[..., Any] = np.cos
power: Callable[..., Any] = np.power
whole_power: Callable[[float, int], float] = float.__pow__
normal = _native_normal
if startup.numerics == "portable":
    exp, sin, cos, power = portable_exp, portable_sin, portable_cos, portable_power
    whole_power, normal = portable_whole_power, portable_normal
