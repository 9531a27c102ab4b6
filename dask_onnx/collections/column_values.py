"""Conversion of the columns of a table to the input arrays of a model.

Numbers go into a floating-point input by value, rounded to its precision; only integers and
booleans in range go into an integer input, and times as nanoseconds since 1970; only booleans go
into a boolean input; text, categories of text and UTF-8 bytes go into a string input. A missing
value becomes NaN in a floating-point input, and makes a bad row of any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.bad_rows import RowsError
from dask_onnx.collections.column_dtypes import is_time_dtype, is_unsigned_dtype
from dask_onnx.collections.columns import ColumnInput
from dask_onnx.collections.ragged import Ragged
from dask_onnx.collections.text.text_columns import column_faults, strings_of
from dask_onnx.collections.text.texts import NO_TEXT
from dask_onnx.core.specs import dtype_name, is_floating


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
        Whether NaN and infinities make a bad row.

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
    if target.is_list:
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
    if len(target.columns) == 1 and not require_finite:
        return _convert(first, wanted, target.spec.name).reshape(-1, 1)
    rows = np.empty((len(part), len(target.columns)), dtype=wanted)
    for place, name in enumerate(target.columns):
        rows[:, place] = _convert(part[name], wanted, target.spec.name)
        if require_finite:
            _check_finite(rows[:, place], np.arange(len(part)), part[name], target)
    return rows


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
    is_plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub"
    if is_plain and is_floating(wanted):
        return np.asarray(column.to_numpy()).astype(wanted, copy=False)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    missing = column.isna()
    if missing.any() and not is_floating(wanted):
        raise _ColumnError.of(
            column,
            missing.to_numpy(),
            name,
            f"takes {dtype_name(wanted)}, which has no NaN",
            "is missing",
            "fill them or drop the rows",
        )
    if wanted.kind == "O":
        return _texts(column, name)
    if wanted.kind in "iu":
        return _integers(column, wanted, name)
    if wanted.kind == "b":
        return np.asarray(column, dtype=bool)
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)).astype(wanted)


def _texts(column: pd.Series, name: str) -> np.ndarray:
    faults = column_faults(column, bytes_too=True)
    if faults:
        raise _ColumnError.of(
            column,
            np.isin(np.arange(len(column)), list(faults)),
            name,
            "takes text",
            NO_TEXT,
            "decode it, or drop the rows",
            faults,
        )
    objects = strings_of(column)
    is_text = isinstance(column.dtype, pd.StringDtype | pd.ArrowDtype)
    if is_text or pd.api.types.infer_dtype(objects) == "string":
        return np.asarray(objects)
    return np.asarray(
        [value.decode() if isinstance(value, bytes) else str(value) for value in objects],
        dtype=object,
    )


def _integers(column: pd.Series, wanted: np.dtype, name: str) -> np.ndarray:
    if is_time_dtype(column.dtype):
        column = _nanoseconds(column)
    source = column.to_numpy(dtype=np.uint64 if is_unsigned_dtype(column.dtype) else np.int64)
    limits = np.iinfo(wanted)
    beyond = (source < limits.min) | (source > limits.max) if len(source) else source.astype(bool)
    if beyond.any():
        raise _ColumnError.of(
            column,
            beyond,
            name,
            f"takes {dtype_name(wanted)}, {limits.min} to {limits.max}",
            "does not fit",
            "export the model with a wider type",
        )
    return np.asarray(source).astype(wanted)


def _nanoseconds(column: pd.Series) -> pd.Series:
    """Return times as nanoseconds since 1970 in UTC, and durations as nanoseconds."""
    if isinstance(column.dtype, pd.ArrowDtype):
        column = column.astype(
            "datetime64[ns]" if pa.types.is_timestamp(column.dtype.pyarrow_dtype) else "m8[ns]"
        )
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    kind = "datetime64[ns]" if column.dtype.kind == "M" else "timedelta64[ns]"
    return column.astype(kind).astype(np.int64)


def _flat_lists(column: pd.Series, target: ColumnInput) -> tuple[np.ndarray, np.ndarray]:
    """Return the length of each row's list, and the elements of all lists in a row."""
    wanted = target.spec.dtype
    assert wanted is not None
    missing = column.isna()
    if missing.any():
        raise _ColumnError.of(
            column,
            missing.to_numpy(),
            target.spec.name,
            "takes a list a row",
            "is missing",
            "fill them or drop the rows",
        )
    if isinstance(column.dtype, pd.ArrowDtype):
        chunks = pa.chunked_array(column.array.__arrow_array__())
        lengths = chunks.combine_chunks().value_lengths() if not _is_fixed(column) else None
        flat = _flat(chunks)
        sizes = (
            np.full(len(column), column.dtype.pyarrow_dtype.list_size)
            if lengths is None
            else lengths.to_numpy(zero_copy_only=False)
        )
    else:
        sizes = np.fromiter((len(row) for row in column), np.int64, len(column))
        flat = np.concatenate([np.asarray(row) for row in column]) if len(column) else np.empty(0)
    sizes = np.asarray(sizes)
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


def _convert_elements(
    flat: np.ndarray, sizes: np.ndarray, column: pd.Series, target: ColumnInput
) -> np.ndarray:
    """Return the elements of all lists in the model's dtype; errors name the lists' rows.

    Parameters
    ----------
    flat : ndarray, shape (elements,)
        Elements of all lists.
    sizes : ndarray of int, shape (rows,)
        Length of each list.
    """
    wanted = target.spec.dtype
    assert wanted is not None
    # The dtype is given, since pandas would infer strings from objects and encode them.
    elements = pd.Series(flat, dtype=flat.dtype)
    try:
        if wanted.kind in "iu" and flat.dtype.kind == "f":
            broken = np.isfinite(flat) & (flat != np.floor(flat))
            if broken.any():
                raise _ColumnError.of(
                    elements,
                    broken,
                    target.spec.name,
                    f"takes {dtype_name(wanted)}",
                    "is no whole number",
                    "round it yourself",
                )
        return _convert(elements, wanted, target.spec.name)
    except _ColumnError as error:
        bad = np.zeros(len(column), bool)
        bad[np.repeat(np.arange(len(column)), sizes)[error.mask]] = True
        raise _ColumnError.of(
            column,
            bad,
            target.spec.name,
            error.rule,
            f"has an element that {error.fault}",
            error.next_step,
        ) from None


def _is_fixed(column: pd.Series) -> bool:
    return bool(pa.types.is_fixed_size_list(column.dtype.pyarrow_dtype))


def _flat(chunks: pa.ChunkedArray) -> np.ndarray:
    array = chunks.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False))
