"""Conversion of the outputs of a model to the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.checked_partitions import TEXT
from dask_onnx.core.errors import InputError

_NULLABLE = {
    "bool": "boolean",
    **{f"int{bits}": f"Int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UInt{bits}" for bits in (8, 16, 32, 64)},
}
"""Names of numpy's dtypes to those of pandas' dtypes that have a missing value."""


@dataclass(frozen=True, slots=True)
class OutputColumns:
    """One output of the model, and the columns that it becomes."""

    value: str
    """Value of the graph; for the output of a ``ZipMap`` the tensor that it converts."""
    names: tuple[str, ...]
    """Labels of the columns."""
    dtype: np.dtype[Any]
    """Dtype of the elements."""
    row_shape: tuple[int | None, ...]
    """Shape of one row; None for a size that depends on data."""
    is_nullable: bool = False
    """True if rows may be missing; integers and booleans then take pandas' nullable dtypes."""
    is_ragged: bool = False
    """True if the first axis of a row is as long as the row's list in the input."""

    @property
    def is_list(self) -> bool:
        """True if the output becomes one column with a list for each row."""
        return len(self.names) == 1 and (self.is_ragged or self.row_shape not in ((), (1,)))


def output_columns(
    name: str,
    value: str,
    dtype: np.dtype[Any],
    sizes: Sequence[int | float] | None,
    labels: Sequence[str | int] | None,
    max_columns: int,
    *,
    is_nullable: bool = False,
    is_ragged: bool = False,
) -> OutputColumns:
    """Return the columns that an output becomes.

    One number a row becomes one column. Up to `max_columns` numbers a row become a column each,
    labelled by class or position. Anything else becomes one column of lists.

    Parameters
    ----------
    name : str
        Name of the output, with which the labels begin.
    value : str
        Value of the graph that holds the output.
    dtype : numpy dtype
        Dtype of the elements.
    sizes : sequence of int or float, or None
        Sizes of all axes, rows first; NaN for a size that depends on data.
    labels : sequence of str or int, optional
        Classes of a classifier, in the order of the numbers of a row.
    max_columns : int
        Largest number of columns for one output.
    is_nullable, is_ragged : bool
        See `OutputColumns`.

    Raises
    ------
    InputError
        The rank of the output is unknown.
    """
    if sizes is None:
        raise InputError(
            f"the rank of output {name!r} does not follow from the graph",
            "name other outputs, or declare its shape in the model",
            option="outputs",
        )
    row = tuple(None if math.isnan(size) else int(size) for size in sizes[1:])
    names: tuple[str, ...] = (name,)
    if is_ragged:
        row = (None, *row[1:])
    elif len(row) == 1 and row[0] is not None and 1 < row[0] <= max_columns:
        known = labels if labels is not None and len(labels) == row[0] else range(row[0])
        names = tuple(f"{name}_{label}" for label in known)
    return OutputColumns(value, names, dtype, row, is_nullable, is_ragged)


def to_frame(
    values: Mapping[str, Any], outputs: Sequence[OutputColumns], index: pd.Index
) -> pd.DataFrame:
    """Return a table of values; strings and lists have Arrow's dtypes.

    Parameters
    ----------
    values : mapping of str to array
        Arrays, or lists of one array for each row, by name of value.
    outputs : sequence of OutputColumns
        Columns to make.
    index : pandas Index
        Index of the rows.
    """
    columns: dict[str, Any] = {}
    for output in outputs:
        array = values[output.value]
        if output.is_list:
            columns[output.names[0]] = _lists(array, output)
            continue
        array = array.reshape(len(index), len(output.names))
        for place, name in enumerate(output.names):
            columns[name] = _plain(array[:, place], is_nullable=output.is_nullable)
    return pd.DataFrame(columns, index=index, copy=False)


def spread(frame: pd.DataFrame, positions: np.ndarray, index: pd.Index) -> pd.DataFrame:
    """Return a longer table that has the rows of `frame` at some positions, and missing rows else.

    Parameters
    ----------
    frame : pandas DataFrame
        Results of the good rows.
    positions : ndarray of int
        Positions of these rows in the result, ascending.
    index : pandas Index
        Index of the result.
    """
    sources = np.full(len(index), -1)
    sources[positions] = np.arange(len(positions))
    columns = {
        name: pd.api.extensions.take(column.array, sources, allow_fill=True)
        for name, column in frame.items()
    }
    return pd.DataFrame(columns, index=index, copy=False)


def empty_frame(outputs: Sequence[OutputColumns], index: pd.Index) -> pd.DataFrame:
    """Return the table of `to_frame` without rows: its meta, in Dask's sense."""
    values = {
        output.value: np.empty((0, *(size or 0 for size in output.row_shape)), output.dtype)
        for output in outputs
    }
    return to_frame(values, outputs, index[:0])


def _plain(column: np.ndarray, *, is_nullable: bool = False) -> Any:
    if column.dtype.kind in "OUST":
        return pd.array(column.astype(object), dtype=TEXT)
    if column.dtype.isbuiltin != 1:  # types of ml_dtypes, such as bfloat16, which pandas lacks
        return column.astype(np.float32)
    if is_nullable and column.dtype.kind in "iub":
        return pd.array(np.ascontiguousarray(column), dtype=_NULLABLE[column.dtype.name])
    return np.ascontiguousarray(column)


def _lists(array: Any, output: OutputColumns) -> Any:
    """Return a column of lists, nested if a row has several axes.

    Numbers are not copied unless the rows differ in length.
    """
    if isinstance(array, list):
        return _unequal_lists(array, output)
    flat = pa.array(_plain(np.ascontiguousarray(array).reshape(-1)))
    kind = list_type(flat.type, output.row_shape)
    sizes = array.shape[1:]
    nested: Any = flat
    levels: list[pa.DataType] = []
    while len(levels) < len(sizes):
        levels.append(kind)
        kind = kind.value_type
    count = array.size
    for size, level in zip(reversed(sizes), reversed(levels), strict=True):
        count = count // size if size else 0
        if pa.types.is_fixed_size_list(level):
            nested = pa.FixedSizeListArray.from_arrays(nested, type=level)
        else:
            offsets = pa.array(np.arange(count + 1, dtype=np.int32) * size)
            nested = pa.ListArray.from_arrays(offsets, nested, type=level)
    return pd.arrays.ArrowExtensionArray(nested)


def _unequal_lists(rows: Sequence[np.ndarray], output: OutputColumns) -> Any:
    flat = np.concatenate([row.reshape(-1, *row.shape[1:]) for row in rows])
    # Rows differ in their first axis only, so the axes inside become nested lists as usual.
    element = replace(output, row_shape=output.row_shape[1:], is_ragged=False)
    inner = _lists(flat, element).__arrow_array__() if flat.ndim > 1 else pa.array(_plain(flat))
    if isinstance(inner, pa.ChunkedArray):
        inner = inner.combine_chunks()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pd.arrays.ArrowExtensionArray(pa.ListArray.from_arrays(pa.array(offsets), inner))


def list_type(element: pa.DataType, row_shape: Sequence[int | None]) -> pa.DataType:
    """Return Arrow's type of a row: nested lists, of fixed size where that is known."""
    kind = element
    for size in reversed(row_shape):
        kind = pa.list_(kind, size) if size else pa.list_(kind)
    return kind
