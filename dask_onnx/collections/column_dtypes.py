"""Types of table columns, pandas' and Arrow's alike, as rows of the table of conversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.dataframe.utils import UNKNOWN_CATEGORIES

from dask_onnx.core.conversions import family_of, source_of


def source_of_dtype(dtype: Any) -> str:
    """Return the source type of a column's values, one of `conversions.SOURCES`.

    Categories are those of their values. Categories that Dask does not know yet are "object": each
    value is converted by its own type.
    """
    if isinstance(dtype, np.dtype):
        return source_of(dtype)
    if isinstance(dtype, pd.CategoricalDtype):
        is_open = has_unknown_categories(dtype)
        return "object" if is_open else source_of_dtype(dtype.categories.dtype)
    if isinstance(dtype, pd.SparseDtype):
        return source_of_dtype(dtype.subtype)
    if isinstance(dtype, pd.ArrowDtype):
        return _source_of_arrow(dtype.pyarrow_dtype)
    kinds = (
        (pd.StringDtype, "text"),
        (pd.DatetimeTZDtype, "datetime"),
        (pd.PeriodDtype, "period"),
        (pd.IntervalDtype, "interval"),
    )
    for kind, source in kinds:
        if isinstance(dtype, kind):
            return source
    masked = getattr(dtype, "numpy_dtype", None)  # pandas' nullable booleans and numbers
    return source_of(masked) if isinstance(masked, np.dtype) else "unknown"


_ARROW: Sequence[tuple[Callable[[pa.DataType], bool], str]] = (
    (pa.types.is_decimal, "decimal"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_string_view, "text"),
    (pa.types.is_binary, "bytes"),
    (pa.types.is_large_binary, "bytes"),
    (pa.types.is_fixed_size_binary, "bytes"),
    (pa.types.is_binary_view, "bytes"),
    (pa.types.is_date, "date"),
    (pa.types.is_timestamp, "datetime"),
    (pa.types.is_duration, "duration"),
    (pa.types.is_time, "time"),
    (pa.types.is_null, "missing"),
    (pa.types.is_interval, "interval"),
    (pa.types.is_nested, "list"),
)
"""Arrow's types other than numbers, and their source types."""


def _source_of_arrow(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _source_of_arrow(kind.value_type)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()).name)
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind):
        return "structured"
    return next((source for is_kind, source in _ARROW if is_kind(kind)), "unknown")


def without_views(table: Any) -> Any:
    """Return a table or column whose Arrow views of text and bytes are plain ones.

    Arrow cannot select rows of views.

    Parameters
    ----------
    table : pandas DataFrame or Series
    """
    if table.ndim == 1:
        plain = _plain_view(table.dtype)
        return table if plain is None else _cast_column(table, plain)
    found = {place: _plain_view(dtype) for place, dtype in enumerate(table.dtypes)}
    views = {place: plain for place, plain in found.items() if plain is not None}
    if not views:
        return table
    table = table.copy(deep=False)
    for place, plain in views.items():
        table.isetitem(place, _cast_column(table.iloc[:, place], plain))
    return table


def _cast_column(column: pd.Series, kind: pa.DataType) -> pd.Series:
    """Return a column cast to another type of Arrow; pandas has no such cast of views."""
    chunks = pa.chunked_array(column.array.__arrow_array__()).cast(kind)
    return pd.Series(pd.arrays.ArrowExtensionArray(chunks), column.index, name=column.name)


def _plain_view(dtype: Any) -> pa.DataType | None:
    """Return Arrow's type of the same values without views; None for a dtype that has none."""
    if not isinstance(dtype, pd.ArrowDtype):
        return None
    kind = dtype.pyarrow_dtype
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else None


def has_unknown_categories(dtype: Any) -> bool:
    """Return whether a dtype holds categories that Dask does not know before it computes."""
    return isinstance(dtype, pd.CategoricalDtype) and UNKNOWN_CATEGORIES in dtype.categories


def fixed_list_size(dtype: Any) -> int | None:
    """Return the number of elements of each list if the dtype fixes it."""
    if is_list_dtype(dtype) and pa.types.is_fixed_size_list(dtype.pyarrow_dtype):
        return int(dtype.pyarrow_dtype.list_size)
    return None


def is_list_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds Arrow lists."""
    if not isinstance(dtype, pd.ArrowDtype):
        return False
    kinds = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_kind(dtype.pyarrow_dtype) for is_kind in kinds)


def is_text_dtype(dtype: Any) -> bool:
    """Return whether a dtype can hold text: Arrow's or pandas' strings, objects, categories."""
    return source_of_dtype(dtype) in ("text", "object")


def is_number_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds numbers or booleans. Categories of numbers are no numbers."""
    if isinstance(dtype, pd.CategoricalDtype):
        return False
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return False
    families = ("bool", "integer", "float", "complex", "decimal")
    return family_of(source_of_dtype(dtype)) in families
