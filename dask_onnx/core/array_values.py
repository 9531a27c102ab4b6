"""Arrays of values in memory, made without changing a value: masks, bytes and long integers stay.

numpy makes one array of anything: it writes numbers as text beside text, cuts zero bytes off the
ends of texts, rounds long integers beside negative ones, and forgets the masks of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
        The value cannot become one array, such as rows of unequal length.
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
    array = np.asarray(value)
    if not hasattr(value, "dtype"):
        if not array.size and wanted is not None:
            array = array.astype(wanted)  # an empty list has no type of its own
        elif _changes_values(array, wanted):
            array = _objects(value)
    return array, None


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
