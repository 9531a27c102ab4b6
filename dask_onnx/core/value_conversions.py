"""Conversion of numpy's numbers, times and bytes to the types of a model, by the table.

Values that a type does not take raise `Unfit`, with their positions: arrays make an error of the
request of it, tables and bags errors of their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_onnx.core.conversions import (
    POWERS,
    Conversion,
    conversion,
    family_of,
    family_of_target,
    float_limits,
    has_infinity,
    has_nan,
    integer_limits,
    source_of,
    target_of,
)
from dask_onnx.core.utf8 import NO_TEXT, text_fault

MISSING = "is missing"
"""Fault of a missing value where the input has no NaN."""
MISSING_STEP = "fill them or drop the rows"
"""Next step for missing values where the input has no NaN."""

_NANOSECONDS = {
    "W": 7 * 86_400 * 10**9,
    "D": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
"""Units of numpy's times, in nanoseconds."""
_FINER = {"ps": 10**3, "fs": 10**6, "as": 10**9}
"""Units of numpy's times that are shorter than a nanosecond: so many make one."""
_FAR = 48_000
"""Years or months since 1970 that are beyond the reach of nanoseconds, and within that of days."""
_NO_TIME = np.iinfo(np.int64).min
"""Bits of numpy's NaT."""


class Unfit(Exception):  # noqa: N818 - a fact about values, which callers make an error of
    """Values that an input does not take.

    Parameters
    ----------
    bad : ndarray of bool
        True for each of them, in the shape of the array.
    rule : str
        Values that the input takes, as the end of a sentence about the input.
    fault : str
        Fault of a value, as the end of a sentence about it.
    next_step : str
        Action by which the caller can avoid it.
    places : mapping of int to str, optional
        Further detail about a value, by its position in the flat array.
    """

    def __init__(
        self,
        bad: np.ndarray,
        rule: str,
        fault: str,
        next_step: str,
        places: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(rule, fault)
        self.bad, self.rule, self.fault = bad, rule, fault
        self.next_step, self.places = next_step, dict(places or {})


def convert_typed(
    array: np.ndarray, wanted: np.dtype[Any], missing: np.ndarray | None = None
) -> np.ndarray:
    """Return an array of numbers, times or bytes in the dtype of a model.

    Parameters
    ----------
    array : ndarray
        Values, of any dtype but text and objects, of any byte order and layout.
    wanted : dtype
        Dtype of the model's input; object for strings.
    missing : ndarray of bool, optional
        True where a value is missing, in the shape of `array`; what lies there is ignored.

    Returns
    -------
    ndarray
        `array` itself if it has the dtype and nothing is missing.

    Raises
    ------
    Unfit
        Some values are not taken: beyond the range, not whole, missing, not UTF-8; or all, since
        the table refuses the type.
    """
    if missing is not None and not missing.any():
        missing = None
    if array.dtype == wanted and missing is None:
        return array
    source, target = source_of(array.dtype), target_of(wanted)
    cell = conversion(source, target)
    if cell.is_refused:
        raise refused(array, cell, target)
    if missing is not None:
        return _with_missing(array, wanted, missing)
    if family_of(source) in ("datetime", "duration"):
        return nanoseconds(array)
    kind = family_of_target(target)
    if kind == "string":
        return _decoded(array)
    if kind in ("bool", "integer"):
        return _to_integers(array, wanted, cell)
    return _to_floats(array, wanted, cell)


def refused(array: np.ndarray, cell: Conversion, target: str) -> Unfit:
    """Return the fault of an array whose type the table refuses."""
    bad = np.ones(array.shape, bool)
    return Unfit(bad, f"takes {target} ({cell.rule})", f"is {array.dtype}", cell.next_step)


def unfit_missing(missing: np.ndarray, target: str) -> Unfit:
    """Return the fault of values that are missing where the target has no NaN."""
    return Unfit(missing, f"takes {target}, which has no NaN", MISSING, MISSING_STEP)


def _with_missing(array: np.ndarray, wanted: np.dtype[Any], missing: np.ndarray) -> np.ndarray:
    """Convert an array of which some values are missing: to NaN, if the target has one."""
    target = target_of(wanted)
    if not has_nan(target):
        raise unfit_missing(missing, target)
    filled = array.copy()
    filled[missing] = 1  # a number that every type has
    result = convert_typed(filled, wanted)
    if result is array:
        result = result.copy()
    result[missing] = np.nan
    return result


def _to_integers(array: np.ndarray, wanted: np.dtype[Any], cell: Conversion) -> np.ndarray:
    """Convert numbers or booleans to integers, or to booleans."""
    if cell.way in ("by value", "exact"):
        return _plain_numbers(array).astype(wanted)
    target = target_of(wanted)
    low, high = integer_limits(target)
    rule = f"takes {target}, {low} to {high}"
    family = family_of(source_of(array.dtype))
    values = _plain_numbers(array)
    if family == "float":
        if values.dtype.itemsize < 4:
            values = values.astype(np.float32)  # float16 does not reach the limits of integers
        missing = np.isnan(values)
        if missing.any():
            raise unfit_missing(missing, target)
        broken = (values != np.floor(values)) & np.isfinite(values)
        if broken.any():
            raise Unfit(broken, rule, "is no whole number", cell.next_step)
        # Both limits are exact in every floating-point type that has them.
        beyond = (values < float(low)) | (values >= float(high + 1))
    elif not values.size or (int(values.min()) >= low and int(values.max()) <= high):
        return values.astype(wanted)
    else:
        beyond = _outside(values, low, high)
    if beyond.any():
        raise Unfit(beyond, rule, "does not fit", cell.next_step)
    return values.astype(np.int64 if low < 0 else np.uint64).astype(wanted)


def _outside(values: np.ndarray, low: int, high: int) -> np.ndarray:
    limits = np.iinfo(values.dtype)
    beyond = np.zeros(values.shape, bool)
    if low > limits.min:
        beyond |= values < low
    if high < limits.max:
        beyond |= values > high
    return beyond


def _plain_numbers(array: np.ndarray) -> np.ndarray:
    """Return numbers of ml_dtypes as numpy's; others unchanged.

    The types of ml_dtypes do not convert to each other.
    """
    if array.dtype.isbuiltin == 1 or array.dtype.kind in "biuc":
        return array
    is_float = family_of(source_of(array.dtype)) == "float"
    if array.dtype.kind == "f" and array.dtype.name != "float8_e5m2":
        return array  # the other byte order
    return array.astype(np.float32 if is_float else np.int64)


def _to_floats(array: np.ndarray, wanted: np.dtype[Any], cell: Conversion) -> np.ndarray:
    """Convert numbers to floating-point or complex numbers, rounded to the nearest."""
    if cell.way != "rounded":
        return _plain_numbers(array).astype(wanted)
    is_plain = wanted.isbuiltin == 1 and (array.dtype.kind in "biufc")
    if not is_plain or array.dtype.name == "float8_e5m2":
        return _to_short_floats(array, wanted, cell)
    try:
        # numpy notices an overflow while it converts; nothing is looked at twice.
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            return array.astype(wanted)
    except FloatingPointError:
        with np.errstate(all="ignore"):
            result = array.astype(wanted)
        beyond = np.isfinite(array) & ~np.isfinite(result)
    raise _beyond(beyond, target_of(wanted), cell)


def _to_short_floats(array: np.ndarray, wanted: np.dtype[Any], cell: Conversion) -> np.ndarray:
    """Convert to or from a type of ml_dtypes; some have no infinity, no NaN, no zero or no sign."""
    target = target_of(wanted)
    values = _plain_numbers(array)
    if values.dtype.kind != "c":
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if missing.any() and not has_nan(target):
            raise unfit_missing(missing, target)
    with np.errstate(all="ignore"):
        result = values.astype(wanted)
        if values.dtype.kind == "c" or wanted.kind == "c":
            beyond = np.isfinite(values) & ~np.isfinite(result)
        else:
            found = result.astype(np.float64)
            numbers = values.astype(np.longdouble)
            beyond = np.isfinite(numbers) & ~np.isfinite(found)
            beyond |= np.isinf(numbers) & ~np.isinf(found)
            # Types without infinity end at their greatest number, whatever the value is.
            greatest, least, bits = float_limits(target)
            half_a_step = 2.0 ** (np.floor(np.log2(greatest)) - bits)
            is_far = np.abs(numbers) > greatest + half_a_step
            beyond |= np.isfinite(numbers) & is_far
            beyond |= (numbers < 0) & (found > 0)
            beyond |= (numbers == 0) & (found != 0)
            if target == POWERS:  # versions of ml_dtypes differ in what is nearer to zero
                beyond |= numbers < least / 2
    if beyond.any():
        raise _beyond(beyond, target, cell)
    return result


def _beyond(bad: np.ndarray, target: str, cell: Conversion) -> Unfit:
    if family_of_target(target) == "complex":
        rule = f"takes {target}"
    elif target == POWERS:
        rule = f"takes {target}, powers of two above zero"
    else:
        greatest, _, _ = float_limits(target)
        infinity = "" if has_infinity(target) else ", without infinities"
        rule = f"takes {target}, numbers up to {greatest:.4g}{infinity}"
    return Unfit(bad, rule, "is not in its range", cell.next_step)


def nanoseconds(array: np.ndarray) -> np.ndarray:
    """Return times as int64: nanoseconds since 1970 in UTC; durations in nanoseconds.

    Raises
    ------
    Unfit
        A time is missing, beyond the years 1677 to 2262, finer than a nanosecond, or has no unit
        or one without a fixed length.
    """
    unit, count = np.datetime_data(array.dtype)
    rule = "takes int64, in nanoseconds"
    values = array.astype(array.dtype.newbyteorder("="), copy=False).view(np.int64)
    missing = values == _NO_TIME
    if missing.any():
        raise unfit_missing(missing, "int64")
    if unit in ("Y", "M") and array.dtype.kind == "M":
        # Years beyond those that nanoseconds reach; calendars of them overflow.
        far = np.abs(values) > _FAR
        if far.any():
            raise _too_far(far, rule)
        return nanoseconds(array.astype("datetime64[D]"))
    if unit not in _NANOSECONDS and unit not in _FINER:
        what = "has no unit" if unit == "generic" else "is in a unit without a fixed length"
        bad = np.ones(array.shape, bool)
        name = "datetime64" if array.dtype.kind == "M" else "timedelta64"
        raise Unfit(bad, rule, what, f"convert them to seconds: .astype('{name}[s]')")
    if unit in _FINER:
        far = np.abs(values) > np.iinfo(np.int64).max // count
        if far.any():
            raise _too_far(far, rule)
        total = values * np.int64(count)
        broken = total % _FINER[unit] != 0
        if broken.any():
            raise Unfit(broken, rule, "is finer than a nanosecond", "round it yourself")
        return np.asarray(total // _FINER[unit])
    factor = _NANOSECONDS[unit] * count
    limit = np.iinfo(np.int64).max // factor
    far = (values > limit) | (values < -limit)
    if far.any():
        raise _too_far(far, rule)
    return values * np.int64(factor) if factor != 1 else values


def _too_far(far: np.ndarray, rule: str) -> Unfit:
    return Unfit(
        far,
        rule,
        "is beyond the 292 years that they reach",
        "convert the times to the numbers that the model was trained on",
    )


def _decoded(array: np.ndarray) -> np.ndarray:
    """Return bytes as text in objects."""
    texts = np.empty(array.shape, object)
    flat: list[bytes] = array.ravel().tolist()
    try:
        texts.ravel()[:] = [value.decode() for value in flat]
    except UnicodeDecodeError:
        faults = {place: fault for place, value in enumerate(flat) if (fault := text_fault(value))}
    else:
        return texts
    bad = np.isin(np.arange(array.size), list(faults)).reshape(array.shape)
    raise Unfit(bad, "takes text", NO_TEXT, "decode it yourself", faults)
