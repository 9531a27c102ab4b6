"""Conversion of the columns of a table to the input arrays of a model.

`core.conversions` says which values an input takes; one that it does not take makes a bad row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dask_onnx.collections.bad_rows import RowsError
from dask_onnx.collections.column_arrays import convert_column
from dask_onnx.collections.columns import ColumnInput, holds_lists, is_list
from dask_onnx.collections.ragged import Ragged
from dask_onnx.core.array_values import join_arrays, plain_array
from dask_onnx.core.object_conversions import convert_array
from dask_onnx.core.specs import is_floating
from dask_onnx.core.value_conversions import Unfit


class _ColumnError(RowsError):
    """Values of a column do not fit the input that it feeds."""

    rule = ""
    """Values that the input takes, as the end of a sentence about the input."""
    fault = ""
    """Fault of a value, as the end of a sentence about the column."""

    @classmethod
    def of(
        cls,
        column: pd.Series,
        bad: np.ndarray,
        name: str,
        rule: str,
        fault: str,
        next_step: str,
        places: Mapping[int, str] | None = None,
        *,
        numbers: Mapping[str, float] | None = None,
    ) -> _ColumnError:
        """Return the error of a column.

        Parameters
        ----------
        column : Series
            Column, whose index labels the rows.
        bad : ndarray of bool, shape (rows,)
            True for each bad row.
        name : str
            Name of the input.
        rule, fault, next_step : str
            Parts of the message.
        places : mapping of int to str, optional
            Further detail about a row, by its position: the place of the fault in its text.
        numbers : mapping of str to number, optional
            Quantities in the message.
        """
        first = int(bad.argmax())
        places = places or {}
        row_cause = f"input {name!r} {rule}; column {column.name!r} {fault}"
        error = cls(
            f"{row_cause} in {int(bad.sum()):,} of {len(column):,} rows, the first with index "
            f"{column.index[first]!r}" + (f": {places[first]}" if first in places else ""),
            next_step,
            bad,
            row_cause,
            {row: f"{row_cause}: {place}" for row, place in places.items()},
            input=name,
            column=str(column.name),
            numbers=numbers or {},
        )
        error.rule, error.fault = rule, fault
        return error


def to_arrays(
    part: pd.DataFrame, inputs: Sequence[ColumnInput], *, require_finite: bool = False
) -> dict[str, Any]:
    """Return the model's inputs from a part of a table.

    Parameters
    ----------
    part : pandas DataFrame
        Rows of the table.
    inputs : sequence of ColumnInput
        Inputs, and the columns that feed them.
    require_finite : bool
        True if NaN and infinities make a bad row.

    Returns
    -------
    dict of str to ndarray or Ragged
        Arrays of shape (rows,) or (rows, columns) by input name; `Ragged` where lists may differ
        in length.

    Raises
    ------
    RowsError
        Values are missing where the input has no NaN, do not fit the dtype, or are lists of
        another length; with the column, the count and the first row's label.
    """
    return {target.spec.name: _to_array(part, target, require_finite) for target in inputs}


def _to_array(part: pd.DataFrame, target: ColumnInput, require_finite: bool) -> Any:
    wanted = target.spec.dtype
    assert wanted is not None
    first = part[target.columns[0]]
    # Dask knows of a column of objects only here whether it holds lists.
    if target.is_list and (first.dtype != object or holds_lists(first)):
        sizes, values = _flat_lists(first, target)
        if require_finite:
            _check_finite(values, np.repeat(np.arange(len(first)), sizes), first, target)
        if target.is_ragged:
            return Ragged(values, np.concatenate([[0], np.cumsum(sizes)]))
        return values.reshape(len(first), target.width or (int(sizes[0]) if len(sizes) else 0))
    if target.spec.rank == 1:
        values = _convert(first, wanted, target.spec.name)
        if require_finite:
            _check_finite(values, np.arange(len(first)), first, target)
        return values
    if target.is_list:
        _check_single(first, target)
    if len(target.columns) == 1 and not require_finite:
        return _convert(first, wanted, target.spec.name).reshape(-1, 1)
    rows = np.empty((len(part), len(target.columns)), dtype=wanted)
    for place, name in enumerate(target.columns):
        rows[:, place] = _convert(part[name], wanted, target.spec.name)
        if require_finite:
            _check_finite(rows[:, place], np.arange(len(part)), part[name], target)
    return rows


def _check_single(column: pd.Series, target: ColumnInput) -> None:
    """Check that an input takes one value a row, where a column might have had lists."""
    if target.width in (None, 1) and not target.is_ragged:
        return
    raise _ColumnError.of(
        column,
        np.ones(len(column), bool),
        target.spec.name,
        f"takes {target.width or 'a list of'} values a row",
        "has one",
        "name a column of lists, or as many columns as the input takes: columns=[...]",
        numbers={"list_length": 1, "expected_length": int(target.width or 0)},
    )


def _check_finite(
    values: np.ndarray, owners: np.ndarray, column: pd.Series, target: ColumnInput
) -> None:
    """Check that all values are finite.

    Parameters
    ----------
    values : ndarray, shape (values,)
        Numbers of all rows.
    owners : ndarray of int, shape (values,)
        Position of the row of each value.
    column : Series
        Column that they come from.
    target : ColumnInput
        Input that the column feeds.
    """
    if not is_floating(values.dtype) or np.isfinite(values).all():
        return
    bad = np.zeros(len(column), bool)
    bad[owners[~np.isfinite(values)]] = True
    raise _ColumnError.of(
        column,
        bad,
        target.spec.name,
        "must be finite",
        "has a NaN or an infinity",
        "fill them or drop the rows",
    )


def _convert(column: pd.Series, wanted: np.dtype, name: str) -> np.ndarray:
    """Return the values of a column in the dtype of input `name`."""
    try:
        return convert_column(column, wanted)
    except Unfit as fault:
        raise _ColumnError.of(
            column,
            fault.bad,
            name,
            fault.rule,
            fault.fault,
            fault.next_step,
            fault.places,
        ) from None


def _flat_lists(column: pd.Series, target: ColumnInput) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of each row's list, and the elements of all lists in a row."""
    wanted = target.spec.dtype
    assert wanted is not None
    is_arrow = isinstance(column.dtype, pd.ArrowDtype)
    missing = column.isna()
    if missing.any():
        raise _ColumnError.of(
            column,
            missing.to_numpy(dtype=bool),
            target.spec.name,
            "takes a list a row",
            "is missing",
            "fill them or drop the rows",
        )
    sizes, flat = _arrow_lists(column) if is_arrow else _python_lists(column, target)
    # If neither the model nor the dtype fixes the length, the most frequent one is expected.
    width = np.bincount(sizes).argmax() if target.width is None and len(sizes) else target.width
    bad = sizes != width
    if bad.any() and not target.is_ragged:
        length = int(sizes[bad][0])
        raise _ColumnError.of(
            column,
            bad,
            target.spec.name,
            f"takes {width} numbers a row",
            f"has another length ({length} the first)",
            "pad or cut the lists",
            numbers={"list_length": length, "expected_length": int(width or 0)},
        )
    return sizes, _convert_elements(flat, sizes, column, target)


def _arrow_lists(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Return the length of each row's list, and the elements of all lists, of an Arrow column."""
    chunks = pa.chunked_array(column.array.__arrow_array__())
    sizes = pc.list_value_length(chunks).to_numpy()
    return np.asarray(sizes), pd.Series(pd.arrays.ArrowExtensionArray(pc.list_flatten(chunks)))


def _python_lists(column: pd.Series, target: ColumnInput) -> tuple[np.ndarray, Any]:
    """Return the length of each row's list, and the elements of all lists, of Python's objects."""
    rows = list(column)
    bad = np.asarray([not is_list(row) or np.ndim(row) != 1 for row in rows], bool)
    if bad.any():
        raise _ColumnError.of(
            column,
            bad,
            target.spec.name,
            "takes a list a row",
            "is none",
            "give each row a list or an array of rank 1",
        )
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    return sizes, join_arrays(rows, target.spec.dtype)


def _convert_elements(
    flat: Any, sizes: np.ndarray, column: pd.Series, target: ColumnInput
) -> np.ndarray:
    """Return the elements of all lists in the model's dtype; errors name the lists' rows.

    Parameters
    ----------
    flat : ndarray or Series, shape (elements,)
        Elements of all lists.
    sizes : ndarray of int, shape (rows,)
        Length of each list.
    """
    wanted = target.spec.dtype
    assert wanted is not None
    try:
        if isinstance(flat, pd.Series):
            return convert_column(flat, wanted)
        array, missing = plain_array(flat, wanted)
        return convert_array(array, wanted, missing)
    except Unfit as fault:
        bad = np.zeros(len(column), bool)
        bad[np.repeat(np.arange(len(column)), sizes)[fault.bad]] = True
        raise _ColumnError.of(
            column,
            bad,
            target.spec.name,
            fault.rule,
            f"has an element that {fault.fault}",
            fault.next_step,
        ) from None
