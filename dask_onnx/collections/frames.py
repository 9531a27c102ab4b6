"""How the outputs of a model become the columns of a table."""

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
"""numpy's types to those of pandas that have a missing value."""


@dataclass(frozen=True, slots=True)
class OutputColumns:
    """One output of the model, and the columns that it becomes."""

    value: str
    """Of the graph; for a ``ZipMap`` the tensor that it is made of."""
    names: tuple[str, ...]
    dtype: np.dtype[Any]
    """Of the elements."""
    row_shape: tuple[int | None, ...]
    """Of one row; None where the size depends on data."""
    is_nullable: bool = False
    """Rows may be missing, so that integers and booleans take pandas' types that have it."""
    is_ragged: bool = False
    """The first axis of a row is as long as the row's input."""

    @property
    def is_list(self) -> bool:
        """One column with a list for each row."""
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
    """What an output becomes: a column; a column for each number of a row, called by its class or
    its place; or, above `max_columns`, one column of lists.

    Parameters
    ----------
    sizes : of all axes, rows first; NaN where the size depends on data
    """
    if sizes is None:
        raise InputError(
            f"not even the rank of output {name!r} follows from the graph",
            "name other outputs, or declare its shape in the model",
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
    """A table of the values; strings and lists as Arrow has them."""
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
    """The rows of a table at some positions of a longer one, whose other rows are missing."""
    sources = np.full(len(index), -1)
    sources[positions] = np.arange(len(positions))
    columns = {
        name: pd.api.extensions.take(column.array, sources, allow_fill=True)
        for name, column in frame.items()
    }
    return pd.DataFrame(columns, index=index, copy=False)


def empty_frame(outputs: Sequence[OutputColumns], index: pd.Index) -> pd.DataFrame:
    """The same with no rows: what Dask calls meta."""
    values = {
        output.value: np.empty((0, *(size or 0 for size in output.row_shape)), output.dtype)
        for output in outputs
    }
    return to_frame(values, outputs, index[:0])


def _plain(column: np.ndarray, *, is_nullable: bool = False) -> Any:
    if column.dtype.kind in "OUST":
        return pd.array(column.astype(object), dtype=TEXT)
    if column.dtype.isbuiltin != 1:  # bfloat16 and its like, which tables do not have
        return column.astype(np.float32)
    if is_nullable and column.dtype.kind in "iub":
        return pd.array(np.ascontiguousarray(column), dtype=_NULLABLE[column.dtype.name])
    return np.ascontiguousarray(column)


def _lists(array: Any, output: OutputColumns) -> Any:
    """A column of lists, nested where a row has several axes; without a copy of the numbers, unless
    the rows differ in length."""
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
    # All but the first axis of a row are alike: the rows inside become lists of their own.
    element = replace(output, row_shape=output.row_shape[1:], is_ragged=False)
    inner = _lists(flat, element).__arrow_array__() if flat.ndim > 1 else pa.array(_plain(flat))
    if isinstance(inner, pa.ChunkedArray):
        inner = inner.combine_chunks()
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pd.arrays.ArrowExtensionArray(pa.ListArray.from_arrays(pa.array(offsets), inner))


def list_type(element: pa.DataType, row_shape: Sequence[int | None]) -> pa.DataType:
    """Arrow's type of a row: of fixed size where that is known."""
    kind = element
    for size in reversed(row_shape):
        kind = pa.list_(kind, size) if size else pa.list_(kind)
    return kind
