"""The table of conversions: how values of each type become values of each ONNX type.

`conversion` is the only place that decides. Arrays, lists, tables, bags, Delayed and files ask it
for the types; `value_conversions` and `object_conversions` carry its decisions out.
CONVERSIONS.md prints it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

Way = Literal["exact", "by value", "rounded", "checked", "refused"]
"""Way of converting a value to another type.

"exact": it is of that type; arrays are taken without a copy and without a look at the values.
"by value": all values of the source type exist in the target type.
"rounded": to the nearest value of the target; a finite number beyond its range is refused.
"checked": each value either exists in the target or is refused.
"refused": no value is taken.
"""

Family = Literal[
    "bool",
    "integer",
    "float",
    "complex",
    "decimal",
    "text",
    "bytes",
    "datetime",
    "duration",
    "time",
    "missing",
    "object",
    "other",
]
"""Group of source types with the same rules."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One cell of the table: a source type and a target type."""

    way: Way
    """Way in which values are converted."""
    rule: str = ""
    """Check of each value, or reason for refusing all; empty if every value is taken."""
    next_step: str = ""
    """Action by which the caller can avoid a refusal."""

    @property
    def is_refused(self) -> bool:
        """True if no value is taken, whatever it is."""
        return self.way == "refused"


INTEGERS = ("int2", "int4", "int8", "int16", "int32", "int64")
UNSIGNED = ("uint2", "uint4", "uint8", "uint16", "uint32", "uint64")
FLOATS = (
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)
COMPLEX = ("complex64", "complex128")

TARGETS: tuple[str, ...] = ("bool", *INTEGERS, *UNSIGNED, *FLOATS, *COMPLEX, "string")
"""Names of ONNX's element types, as `specs.dtype_name` writes them."""

_FAMILIES: Mapping[str, Family] = {
    "bool": "bool",
    **dict.fromkeys((*INTEGERS, *UNSIGNED), "integer"),
    **dict.fromkeys((*FLOATS, "longdouble"), "float"),
    **dict.fromkeys((*COMPLEX, "clongdouble"), "complex"),
    "decimal": "decimal",
    "text": "text",
    "bytes": "bytes",
    "datetime": "datetime",
    "date": "datetime",
    "duration": "duration",
    "time": "time",
    "missing": "missing",
    "object": "object",
    "list": "other",
    "structured": "other",
    "interval": "other",
    "period": "other",
    "unknown": "other",
}

SOURCES: tuple[str, ...] = tuple(_FAMILIES)
"""Names of the types that values may come in."""

_OTHERS: Mapping[str, tuple[str, str]] = {
    "list": ("a list is not one value", "flatten the lists, or name a column of plain values"),
    "structured": ("a structure has several fields", "make each field an array or a column"),
    "interval": ("an interval has two ends", "make each end a column: .left and .right"),
    "period": ("a period is a span of time", "choose its start or end: .to_timestamp()"),
    "unknown": ("the type is not known", "convert it to one of numpy's, pandas' or Arrow's types"),
}
"""Sources that no input takes, with the reason and the next step."""

_BEYOND = "export the model with a wider type"
_NUMBERS = "convert the text to numbers first, such as by pandas.to_numeric"
_TIMES = "convert the times to the numbers that the model was trained on"


def family_of(source: str) -> Family:
    """Return the family of a source type."""
    return _FAMILIES[source]


def source_of(dtype: np.dtype[Any]) -> str:
    """Return the name of the source type of numpy's arrays of a dtype, in either byte order."""
    if dtype.kind in "biu":
        return str(dtype.name)
    if dtype.name in _FAMILIES:  # those of ml_dtypes among them
        return str(dtype.name)
    if dtype.kind == "V" and dtype.isbuiltin == 2 and "float" in dtype.name:
        return "float32"  # ml_dtypes' types that ONNX lacks; each value exists in float32
    if dtype.kind == "V" and dtype.isbuiltin == 2 and "int" in dtype.name:
        return "int8"
    kinds = {"f": "longdouble", "c": "clongdouble", "S": "bytes", "U": "text", "T": "text"}
    kinds |= {"O": "object", "M": "datetime", "m": "duration", "V": "structured"}
    return kinds.get(dtype.kind, "unknown")


def target_of(dtype: np.dtype[Any]) -> str:
    """Return the name of the target type of a model's dtype; "string" for objects."""
    return "string" if dtype.kind == "O" else str(dtype.name)


@functools.cache
def conversion(source: str, target: str) -> Conversion:
    """Return how values of a source type become values of a target type.

    Parameters
    ----------
    source : str
        One of `SOURCES`.
    target : str
        One of `TARGETS`.
    """
    if source == target:
        return Conversion("exact")
    family = family_of(source)
    if family == "other":
        return Conversion("refused", *_OTHERS[source])
    if family == "object":
        return Conversion("checked", "each value by its own type")
    if target == "string":
        return _to_string(family)
    to_number = {
        "bool": _to_integer,
        "integer": _to_integer,
        "float": _to_float,
        "complex": _to_float,
    }
    return to_number[family_of(target)](source, family, target)


def _to_string(family: Family) -> Conversion:
    if family == "text":
        return Conversion("checked", "must be valid Unicode", "decode it yourself")
    if family == "bytes":
        return Conversion("checked", "is decoded, and must be UTF-8", "decode it yourself")
    if family == "missing":
        return Conversion("checked", "text has no missing value", "fill them or drop the rows")
    return Conversion(
        "refused",
        "only text goes into a string input",
        "write the values as the text that the model was trained on, such as by .astype(str)",
    )


def _to_integer(source: str, family: Family, target: str) -> Conversion:
    low, high = integer_limits(target)
    within = f"{low} to {high}"
    if family == "bool":
        return Conversion("by value")
    if family == "integer":
        own_low, own_high = integer_limits(source)
        if low <= own_low and own_high <= high:
            return Conversion("by value")
        return Conversion("checked", f"must be {within}", _BEYOND)
    if family in ("float", "decimal"):
        return Conversion(
            "checked", f"must be whole, {within}", "round it yourself, or export a float input"
        )
    if family == "missing":
        return Conversion("checked", f"{target} has no NaN", "fill them or drop the rows")
    if family in ("datetime", "duration", "time") and target == "int64":
        since = {"datetime": "since 1970 in UTC", "time": "since midnight"}.get(family, "")
        return Conversion("checked", f"in nanoseconds {since}".strip(), _TIMES)
    return _no_number(family)


def _to_float(source: str, family: Family, target: str) -> Conversion:
    if family == "missing":
        if has_nan(target):
            return Conversion("by value", "becomes NaN")
        return Conversion("checked", f"{target} has no NaN", "fill them or drop the rows")
    if family == "complex" and family_of(target) != "complex":
        return _no_number(family)
    if family == "bool":
        return Conversion("by value") if target != POWERS else _rounded(target)
    if family not in ("integer", "float", "complex", "decimal"):
        return _no_number(family)
    return Conversion("by value") if _exists_in(source, target) else _rounded(target)


POWERS = "float8_e8m0fnu"
"""The type of powers of two, which has neither a zero nor a sign."""


def _rounded(target: str) -> Conversion:
    return Conversion("rounded", f"must be in the range of {target}", _BEYOND)


def _no_number(family: Family) -> Conversion:
    if family == "complex":
        return Conversion(
            "refused", "the imaginary part would be lost", "choose a part: .real, .imag or abs()"
        )
    if family == "text":
        return Conversion("refused", "text is no number", _NUMBERS)
    if family == "bytes":
        return Conversion(
            "refused", "bytes are no number", "read them as an array: numpy.frombuffer"
        )
    return Conversion("refused", "times go into int64 only, in nanoseconds", _TIMES)


def integer_limits(name: str) -> tuple[int, int]:
    """Return the least and greatest value of a type of integers; 0 and 1 for bool."""
    if name == "bool":
        return 0, 1
    find: Any = ml_dtypes.iinfo  # published without types
    limits = find(name if hasattr(np, name) else getattr(ml_dtypes, name))
    return int(limits.min), int(limits.max)


@functools.cache
def float_limits(name: str) -> tuple[float, float, int]:
    """Return the greatest number of a floating-point type, its least, and its bits of precision."""
    found = _finfo(name)
    # float() of a longdouble beyond float64 is infinite, which compares as it should.
    return _as_float(found.max), _as_float(found.smallest_subnormal), int(found.nmant) + 1


def _finfo(name: str) -> Any:
    parts = {"complex64": "float32", "complex128": "float64", "clongdouble": "longdouble"}
    name = parts.get(name, name)
    find: Any = ml_dtypes.finfo  # published without types
    return find(np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name)))


def _as_float(value: Any) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(value)


@functools.cache
def has_nan(name: str) -> bool:
    """Return whether a target type has a NaN, which stands for a missing value."""
    return family_of_target(name) in ("float", "complex") and not name.startswith(
        ("float4_", "float6_")
    )


@functools.cache
def has_infinity(name: str) -> bool:
    """Return whether a floating-point or complex target type has infinities."""
    return name in ("float16", "bfloat16", "float32", "float64", "float8_e5m2", *COMPLEX)


def family_of_target(name: str) -> str:
    """Return the family of a target type: bool, integer, float, complex or string."""
    return "string" if name == "string" else family_of(name)


def _exists_in(source: str, target: str) -> bool:
    """Return whether all numbers of a source type exist in a floating-point or complex target."""
    family = family_of(source)
    if target == POWERS or family == "decimal":
        return False
    greatest, least, bits = float_limits(target)
    if family == "integer":
        low, high = integer_limits(source)
        magnitude = max(-low, high)
        is_exact = magnitude <= 2**bits
        return is_exact and magnitude <= greatest
    own_greatest, own_least, own_bits = float_limits(source)
    if "longdouble" in source or math.isinf(own_greatest):
        return False
    if has_infinity(source) and not has_infinity(target):
        return False
    return own_greatest <= greatest and own_least >= least and own_bits <= bits
