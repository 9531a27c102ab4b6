"""Arrays of values in memory, made without changing a value: masks, bytes and long integers stay.

numpy makes one array of anything: it writes numbers as text beside text, cuts zero bytes off the
ends of texts, rounds long integers beside negative ones, and forgets the masks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_onnx.core.conversions import TARGETS, has_nan, source_of
from dask_onnx.core.errors import InputError

_EXACT = 2**53
"""Integers up to which float64 has them all."""


def plain_array(value: Any, wanted: np.dtype[Any] | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a value as an array, and where it is masked.

    Parameters
    ----------
    value : array_like
        An array of any kind, a number, a text, or nested lists of these.
    wanted : dtype, optional
        Dtype that the array will be converted to, if it is known.

    Returns
    -------
    array : ndarray
        The values; objects where no dtype of numpy has them all.
    missing : ndarray of bool or None
        True where a value is masked, in the shape of the array; None if none is.

    Raises
    ------
    ValueError, TypeError, RuntimeError, OverflowError
        The value cannot become one array, such as rows of unequal length, or its type is not known.
        Arrays of other libraries raise errors of their own.
    """
    if isinstance(value, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(value)
        if hidden.dtype.names is not None:  # a mask for each field of a structure
            hidden = np.zeros(value.shape, bool)
        return np.asarray(np.ma.getdata(value)), hidden if hidden.any() else None
    if isinstance(value, list | tuple) and any(isinstance(v, np.ma.MaskedArray) for v in value):
        if any(v is np.ma.masked for v in value):
            return np.array([None if v is np.ma.masked else v for v in value], object), None
        return plain_array(np.ma.stack([np.ma.asarray(row) for row in value]), wanted)
    if isinstance(value, str | bytes):
        return _objects(value), None
    if str(getattr(value, "dtype", "")).startswith("extension<"):
        # numpy would get what Arrow stores, which is not the value: 5 for a true bool8.
        raise TypeError(f"the type {value.dtype} is not known")
    array = np.asarray(value)
    if not hasattr(value, "dtype"):
        if not array.size and wanted is not None:
            array = array.astype(wanted)  # an empty list has no type of its own
        elif _changes_values(array, wanted):
            array = _objects(value)
    return array, None


def without_mask(value: Any, what: str, *, option: str | None = None) -> np.ndarray:
    """Return a value as an array in which NaN stands for what is masked.

    Parameters
    ----------
    value : array_like
        An array of any kind, masked or not.
    what : str
        Noun phrase for the value, which begins an error's message.
    option : str, optional
        Parameter that gave it, for the error.

    Returns
    -------
    ndarray
        Without a copy if nothing is masked.

    Raises
    ------
    InputError
        Values are masked, and the dtype has no NaN.
    """
    if not isinstance(value, np.ma.MaskedArray):
        return np.asarray(value)
    array, missing = plain_array(value, None)
    if missing is None:
        return array
    source = source_of(array.dtype)
    if source not in TARGETS or not has_nan(source):
        count = int(missing.sum())
        raise InputError(
            f"{what} has {count:,} of {array.size:,} values masked, and {array.dtype} has no NaN "
            "to stand for them",
            "fill them: .filled(...)",
            option=option,
            numbers={"bad_values": count, "values": array.size},
        )
    filled = array.copy()
    filled[missing] = np.nan
    return filled


def join_arrays(rows: Sequence[Any], wanted: np.dtype[Any] | None) -> Any:
    """Return the elements of rows one after the other, as a masked array if some are masked.

    Parameters
    ----------
    rows : sequence of array_like
        Lists or arrays of rank 1, of any length.
    wanted : dtype, optional
        Dtype that the array will be converted to.
    """
    dtypes = {row.dtype if isinstance(row, np.ndarray) else None for row in rows}
    if len(dtypes) == 1 and None not in dtypes:
        if any(isinstance(row, np.ma.MaskedArray) for row in rows):
            join: Any = np.ma.concatenate  # published without types
            return join(rows)
        return np.concatenate(rows)
    elements = [element for row in rows for element in row]
    if any(element is np.ma.masked for element in elements):
        elements = [None if element is np.ma.masked else element for element in elements]
    return plain_array(elements, wanted)[0]


def _changes_values(array: np.ndarray, wanted: np.dtype[Any] | None) -> bool:
    """Return whether numpy may have changed Python's values when it made one array of them."""
    if array.dtype.kind in "US":
        return True
    takes_integers = wanted is not None and wanted.kind in "iuOb"
    is_float64 = array.dtype == np.float64  # what integers become that no other type has together
    return is_float64 and takes_integers and bool((np.abs(array) >= _EXACT).any())


def _objects(value: Any) -> np.ndarray:
    """Return Python's values as an array of objects, each as it is."""
    return np.array(value, dtype=object)
