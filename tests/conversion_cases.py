"""Values of each source type, and what each target type should make of them.

The expectations follow from Python's exact numbers and from the list of all values of a short
type; they share no code with the conversions that they test.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

REFUSED = "refused"
"""Expectation for a value that a target does not take."""

_TYPES = [value for name, value in TensorProto.DataType.items() if name != "UNDEFINED"]
ELEMENTS = {
    "string" if dtype.kind == "O" else dtype.name: (element, dtype)
    for element, dtype in (
        (value, np.dtype(helper.tensor_dtype_to_np_dtype(value))) for value in _TYPES
    )
}
"""Name of each target to ONNX's element type and numpy's dtype."""

INTEGER_NAMES = [name for name in ELEMENTS if name.strip("u0123456789") == "int"]
FLOAT_NAMES = [name for name in ELEMENTS if "float" in name]
COMPLEX_NAMES = ["complex64", "complex128"]

VALUES = [
    *(0, 1, 2, 3, 5, 6, 7, 8, 15, 16, 100, 127, 128, 255, 256, 300, 448, 465, 500, 32768, 65504),
    *(65520, 70000, 2**24 + 1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 10**30),
    *(-1, -2, -3, -8, -9, -128, -129, -(2**63)),
    *(0.5, 1.5, -0.25, 2.75, 7.5, 30.0, 57344.0, 62000.0, 3.5e38, 1e39, 1e300, 1e-3, 1e-50),
    *(2.0**-126, 2.0**-127, 1.25 * 2.0**-128, 2.0**-128, 0.75 * 2.0**-128, 2.0**-149, 2.0**-151),
    *(math.nan, math.inf, -math.inf),
]
"""Numbers at and beside the limits of types."""


def limits(name: str) -> tuple[int, int]:
    """Return the range of integers of a target."""
    if name == "bool":
        return 0, 1
    bits = int(name.lstrip("uint"))
    return (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _short_values(name: str) -> np.ndarray:
    """Return the value of each pattern of bits of a floating-point type of 8 bits or less."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    bits = {"float4": 4, "float6": 6}.get(name.split("_")[0], 8)
    return np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float64)


@functools.cache
def all_values(name: str) -> tuple[float, ...]:
    """Return all finite values of a floating-point type of 8 bits or less."""
    return tuple(sorted({float(v) for v in _short_values(name) if np.isfinite(v)}))


@functools.cache
def specials(name: str) -> tuple[bool, bool]:
    """Return whether a floating-point type has NaN, and whether it has infinities."""
    if name in ("float16", "bfloat16", "float32", "float64"):
        return True, True
    values = _short_values(name)
    return bool(np.isnan(values).any()), bool(np.isinf(values).any())


def expected_number(value, name: str):
    """Return what a target makes of a number; `REFUSED` if it does not take it."""
    if name == "string":
        return REFUSED
    if name in COMPLEX_NAMES:
        part = expected_number(value, "float32" if name == "complex64" else "float64")
        return part if part is REFUSED else complex(part)
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if name == "bool" or name in INTEGER_NAMES:
        if not is_finite or Fraction(value).denominator != 1:
            return REFUSED
        low, high = limits(name)
        return int(value) if low <= value <= high else REFUSED
    has_nan, has_infinity = specials(name)
    if not is_finite:
        return value if (has_nan if math.isnan(value) else has_infinity) else REFUSED
    return _nearest(value, name)


def _nearest(value, name: str):
    if name == "float64":
        try:
            return float(value)
        except OverflowError:
            return REFUSED
    if name in ("float32", "float16", "bfloat16"):
        dtype = ELEMENTS[name][1]
        number = np.float64(value)
        if abs(value) < 2**64 and Fraction(float(number)) != Fraction(value):
            # An integer that float64 lacks: round it once.
            number = np.uint64(value) if value > 0 else np.int64(value)
        with np.errstate(all="ignore"):
            found = np.asarray(number).astype(dtype).astype(np.float64)
        return float(found) if np.isfinite(found) else REFUSED
    return _nearest_short(Fraction(value), name)


@functools.cache
def _nearest_short(exact: Fraction, name: str):
    values = all_values(name)
    least, greatest = values[0], values[-1]
    if least > 0:  # powers of two, the smallest of which is all but zero
        if exact < Fraction(least) / 2 or exact > Fraction(greatest) * Fraction(3, 2):
            return REFUSED
    elif not _in_reach(exact, values):
        return REFUSED
    distances = {v: abs(Fraction(v) - exact) for v in values}
    least_distance = min(distances.values())
    found = [v for v, distance in distances.items() if distance == least_distance]
    return tuple(found) if len(found) > 1 else found[0]


def _in_reach(exact: Fraction, values) -> bool:
    step = Fraction(values[-1]) - Fraction(values[-2])
    return abs(exact) <= Fraction(values[-1]) + step / 2


def same(found, wanted) -> bool:
    """Return whether a converted value is the expected one; a tuple has both of a tie."""
    if isinstance(wanted, tuple):
        return any(same(found, each) for each in wanted)
    if isinstance(wanted, str):
        return found == wanted
    if isinstance(wanted, complex):
        found = complex(found)
        return same(found.real, wanted.real) and same(found.imag, wanted.imag)
    if isinstance(wanted, int):
        return int(found) == wanted
    found = float(found)
    return found == wanted or (math.isnan(found) and math.isnan(wanted))


def samples(dtype: np.dtype):
    """Return the numbers of `VALUES` that a dtype holds, as pairs of an element and its number."""
    pairs = []
    for value in VALUES:
        element = _element(value, dtype)
        if element is not None:
            pairs.append((element, value))
    return pairs


def _element(value, dtype: np.dtype):
    if "int" in dtype.name or dtype.kind == "b":
        name = "bool" if dtype.kind == "b" else dtype.name
        low, high = limits(name)
        fits = isinstance(value, int) and low <= value <= high
        return np.array([value]).astype(dtype) if fits else None
    with np.errstate(all="ignore"):
        element = np.array([value]).astype(object).astype(np.longdouble).astype(dtype)
        back = element.astype(np.longdouble)[0]
    if isinstance(value, float) and not math.isfinite(value):
        return element if repr(float(back)) == repr(value) else None
    if not np.isfinite(back) or Fraction(value) != Fraction(*back.as_integer_ratio()):
        return None
    return element
