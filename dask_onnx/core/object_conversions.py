"""Conversion of arrays of any dtype, Python's objects among them, to the types of a model.

Each object is converted by its own type, as the table says for that type.
"""

from __future__ import annotations

import datetime
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from dask_onnx.core.conversions import (
    Conversion,
    Family,
    conversion,
    family_of,
    family_of_target,
    has_nan,
    integer_limits,
    source_of,
    target_of,
)
from dask_onnx.core.utf8 import NO_TEXT, text_fault
from dask_onnx.core.value_conversions import (
    Unfit,
    convert_typed,
    nanoseconds,
    refused,
    unfit_missing,
)

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_SAMPLES: Mapping[Family, str] = {
    "bool": "bool",
    "integer": "int64",
    "float": "float64",
    "complex": "complex128",
    "decimal": "decimal",
    "text": "text",
    "bytes": "bytes",
    "datetime": "datetime",
    "duration": "duration",
    "time": "time",
    "other": "unknown",
}
"""Families of Python's values to the source type whose cell of the table holds for them."""


def convert_array(
    array: np.ndarray, wanted: np.dtype[Any], missing: np.ndarray | None = None
) -> np.ndarray:
    """Return an array in the dtype of a model, as the table of conversions says.

    Parameters
    ----------
    array : ndarray
        Values of any dtype.
    wanted : dtype
        Dtype of the model's input; object for strings.
    missing : ndarray of bool, optional
        True where a value is missing, in the shape of `array`; what lies there is ignored.

    Returns
    -------
    ndarray
        `array` itself if it has the dtype and nothing is missing; for objects, if all are text.

    Raises
    ------
    Unfit
        Some values are not taken.
    """
    kind = array.dtype.kind
    if kind == "O":
        return _convert_objects(array, wanted, missing)
    if kind in "UT":
        cell = conversion("text", target_of(wanted))
        if cell.is_refused:
            raise refused(array, cell, target_of(wanted))
        return _convert_objects(array.astype(object), wanted, missing)
    return convert_typed(array, wanted, missing)


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, NaT, pandas' NA or numpy's masked constant."""
    kind: Any = type(value)
    return _family_of_type(kind) == "missing" or _is_nan(value)


def _convert_objects(
    array: np.ndarray, wanted: np.dtype[Any], missing: np.ndarray | None
) -> np.ndarray:
    flat: list[Any] = array.ravel().tolist()
    target = target_of(wanted)
    if missing is not None and missing.any():
        flat = [None if is_hidden else v for v, is_hidden in zip(flat, missing.flat, strict=True)]
    elif wanted.kind == "O" and _are_texts(flat):
        return array
    families = [_family_of_type(each) for each in map(type, flat)]
    if any(issubclass(each, _NAN_TYPES) for each in set(map(type, flat))):
        families = [
            "missing" if _is_nan(value) else family
            for value, family in zip(flat, families, strict=True)
        ]
    result = np.empty(len(flat), wanted)
    distinct = dict.fromkeys(families)
    for family in sorted(distinct, key=lambda each: each != "missing"):
        places = np.asarray([i for i, each in enumerate(families) if each == family])
        chosen = [flat[place] for place in places]
        try:
            result[places] = _convert_alike(chosen, family, wanted, target)
        except Unfit as fault:
            bad = np.zeros(len(flat), bool)
            bad[places[fault.bad]] = True
            by_place = {int(places[place]): text for place, text in fault.places.items()}
            raise Unfit(
                bad.reshape(array.shape), fault.rule, fault.fault, fault.next_step, by_place
            ) from None
    return result.reshape(array.shape)


def _are_texts(values: Sequence[Any]) -> bool:
    """Return whether all values are str that can be encoded, in a few nanoseconds each.

    Members of enumerations are not, though they are of a subclass: ``str()`` gives their names.
    """
    try:
        joined = "".join(values)  # refuses everything else
        is_text = joined.isascii() or bool(joined.encode())
        return is_text and set(map(type, values)) <= {str}
    except (TypeError, UnicodeEncodeError):
        return False


@functools.lru_cache(maxsize=1024)
def _family_of_type(kind: Any) -> Family:
    """Return the family of Python's values of a type; "missing" for types that say so."""
    if kind is type(None) or kind is np.ma.core.MaskedConstant:
        return "missing"
    if kind.__module__.startswith("pandas.") and kind.__name__ in ("NAType", "NaTType"):
        return "missing"
    if issubclass(kind, np.generic) and not issubclass(kind, _PYTHON_TYPES):
        return _family_of_generic(kind)
    for types, family in _FAMILIES_OF_TYPES:
        if issubclass(kind, types):
            return family
    return "other"


_PYTHON_TYPES = (str, bytes, float, complex)
"""Python's types that some of numpy's scalars are subclasses of."""
_FAMILIES_OF_TYPES: Sequence[tuple[tuple[type, ...], Family]] = (
    ((bool,), "bool"),
    ((str,), "text"),
    ((bytes, bytearray), "bytes"),
    ((numbers.Integral,), "integer"),
    ((float,), "float"),
    ((Decimal, numbers.Rational), "decimal"),
    ((complex,), "complex"),
    ((datetime.date,), "datetime"),
    ((datetime.timedelta,), "duration"),
    ((datetime.time,), "time"),
)
"""Types of Python's values and their families; the first that fits holds."""
_NAN_TYPES = (float, np.floating, Decimal, np.datetime64, np.timedelta64)
"""Types of which some values are missing ones."""


def _family_of_generic(kind: type) -> Family:
    """Return the family of numpy's and ml_dtypes' scalars of a type."""
    source = source_of(np.dtype(kind))
    return "other" if source in ("structured", "unknown", "object") else family_of(source)


def _is_nan(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return bool(value != value)
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return False


def _convert_alike(
    values: Sequence[Any], family: Family, wanted: np.dtype[Any], target: str
) -> np.ndarray:
    """Return values of one family in the dtype of a model."""
    everything = np.ones(len(values), bool)
    if family == "missing":
        if not has_nan(target):
            raise unfit_missing(everything, target)
        return np.full(len(values), np.nan, np.float64).astype(wanted)
    cell = conversion(_SAMPLES[family], target)
    if cell.is_refused:
        rule = f"takes {target}" + ("" if family == "other" else f" ({cell.rule})")
        what = f"is {_type_name(values[0])}"
        raise Unfit(everything, rule, what, _next_step(values[0], cell))
    return _CONVERTERS[family](values, wanted, target)


def _type_name(value: Any) -> str:
    name = type(value).__qualname__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}"


def _next_step(value: Any, cell: Conversion) -> str:
    if hasattr(value, "toarray"):
        return "make it dense: .toarray()"
    if isinstance(value, list | tuple | np.ndarray):
        return "make one array of all rows: numpy.stack(...)"
    if hasattr(value, "__array__"):
        return "convert it to an array first: numpy.asarray(...)"
    return cell.next_step


def _booleans(values: Sequence[Any], wanted: np.dtype[Any], _: str) -> np.ndarray:
    return convert_typed(np.array(values, bool), wanted)


def _integers(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    whole = [int(value) for value in values]
    for dtype in (np.int64, np.uint64):
        try:
            array = np.array(whole, dtype)
        except OverflowError:
            continue
        return convert_typed(array, wanted)
    if family_of_target(target) in ("float", "complex"):
        return _reals(whole, wanted, target)
    low, high = integer_limits(target)
    beyond = np.asarray([not low <= value <= high for value in whole])
    if beyond.any():
        cell = conversion("int64" if target != "int64" else "uint64", target)
        raise Unfit(beyond, f"takes {target}, {low} to {high}", "does not fit", cell.next_step)
    return np.array(whole, np.int64 if low < 0 else np.uint64).astype(wanted)


def _reals(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    """Convert integers, decimals and fractions, of any size, to floating-point numbers."""
    found = np.asarray([_as_float(value) for value in values])
    beyond = np.isinf(found) & np.asarray([not _is_infinite(value) for value in values])
    if beyond.any():
        cell = conversion("decimal", target)
        raise Unfit(beyond, f"takes {target}", "is beyond its range", cell.next_step)
    return convert_typed(found, wanted)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_infinite(value: Any) -> bool:
    return isinstance(value, Decimal) and value.is_infinite()


def _floats(values: Sequence[Any], wanted: np.dtype[Any], _: str) -> np.ndarray:
    has_long = any(isinstance(value, np.longdouble) for value in values)
    array = np.array(values, np.longdouble if has_long else np.float64)
    return convert_typed(array, wanted)


def _complexes(values: Sequence[Any], wanted: np.dtype[Any], _: str) -> np.ndarray:
    has_long = any(isinstance(value, np.clongdouble) for value in values)
    return convert_typed(np.array(values, np.clongdouble if has_long else np.complex128), wanted)


def _decimals(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    if family_of_target(target) in ("float", "complex"):
        return _reals(values, wanted, target)
    low, high = integer_limits(target)
    cell = conversion("decimal", target)
    rule = f"takes {target}, {low} to {high}"
    infinite = np.asarray([_is_infinite(value) for value in values])
    if infinite.any():
        raise Unfit(infinite, rule, "does not fit", cell.next_step)
    # Large exponents are compared before the value is written out as an integer.
    beyond = np.asarray([not low <= value <= high for value in values])
    if beyond.any():
        raise Unfit(beyond, rule, "does not fit", cell.next_step)
    broken = np.asarray([value != int(value) for value in values])
    if broken.any():
        raise Unfit(broken, rule, "is no whole number", cell.next_step)
    return _integers(values, wanted, target)


def _texts(values: Sequence[Any], wanted: np.dtype[Any], _: str) -> np.ndarray:
    faults = {place: fault for place, value in enumerate(values) if (fault := text_fault(value))}
    if faults:
        bad = np.isin(np.arange(len(values)), list(faults))
        raise Unfit(bad, "takes text", NO_TEXT, "decode it yourself", faults)
    texts = np.empty(len(values), wanted)
    texts[:] = [
        value.decode() if isinstance(value, bytes | bytearray) else str.__str__(value)
        for value in values
    ]
    return texts


def _datetimes(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    return _times([_as_instant(value) for value in values], wanted, target)


def _durations(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    return _times([_as_length(value) for value in values], wanted, target)


def _times_of_day(values: Sequence[Any], wanted: np.dtype[Any], target: str) -> np.ndarray:
    zoned = np.asarray([value.tzinfo is not None for value in values])
    if zoned.any():
        what = "is a time of day in a zone, which no number tells"
        raise Unfit(zoned, f"takes {target}, in nanoseconds", what, "give times without a zone")
    seconds = [value.hour * 3600 + value.minute * 60 + value.second for value in values]
    pairs = zip(seconds, values, strict=True)
    return np.array([s * 10**9 + value.microsecond * 1000 for s, value in pairs], np.int64).astype(
        wanted
    )


def _times(found: Sequence[int | None], wanted: np.dtype[Any], target: str) -> np.ndarray:
    """Return nanoseconds as int64; None stands for those that do not fit."""
    limits = np.iinfo(np.int64)
    far = np.asarray([value is None or not limits.min < value <= limits.max for value in found])
    if far.any():
        cell = conversion("datetime", target)
        what = "is beyond the 292 years that they reach"
        raise Unfit(far, f"takes {target}, in nanoseconds", what, cell.next_step)
    return np.array(found, np.int64).astype(wanted)


def _as_instant(value: Any) -> int | None:
    """Return a point in time as nanoseconds since 1970 in UTC; without a zone it is in UTC."""
    if hasattr(value, "to_datetime64"):  # pandas' Timestamp, which has nanoseconds
        value = value.to_datetime64()
    if isinstance(value, np.datetime64):
        return _of_numpy(value)
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    since: datetime.timedelta = value - _EPOCH
    return since // _MICROSECOND * 1000


def _as_length(value: Any) -> int | None:
    if hasattr(value, "to_timedelta64"):
        value = value.to_timedelta64()
    if isinstance(value, np.timedelta64):
        return _of_numpy(value)
    length: datetime.timedelta = value
    return length // _MICROSECOND * 1000


def _of_numpy(value: np.datetime64 | np.timedelta64) -> int | None:
    try:
        return int(nanoseconds(np.asarray(value).reshape(1))[0])
    except Unfit:
        return None


_Converter = Callable[[Sequence[Any], np.dtype[Any], str], np.ndarray]
_CONVERTERS: Mapping[Family, _Converter] = {
    "bool": _booleans,
    "integer": _integers,
    "float": _floats,
    "complex": _complexes,
    "decimal": _decimals,
    "text": _texts,
    "bytes": _texts,
    "datetime": _datetimes,
    "duration": _durations,
    "time": _times_of_day,
}
"""Functions that convert values of a family, those of one family at a time."""
