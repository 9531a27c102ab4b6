"""Predicates on the dtypes of table columns, pandas' and Arrow's alike."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa


def values_dtype(column: pd.Series) -> Any:
    """Return the dtype of a column's values; for categories that of the categories."""
    dtype = column.dtype
    return dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype


def fixed_list_size(dtype: Any) -> int | None:
    """Return the number of elements of each list if the dtype fixes it."""
    if is_list_dtype(dtype) and pa.types.is_fixed_size_list(dtype.pyarrow_dtype):
        return int(dtype.pyarrow_dtype.list_size)
    return None


def is_list_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds Arrow lists."""
    if not isinstance(dtype, pd.ArrowDtype):
        return False
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(dtype.pyarrow_dtype) for is_kind in kinds)


def is_text_dtype(dtype: Any) -> bool:
    """Return whether a dtype can hold text: Arrow's or pandas' strings, objects, categories."""
    if isinstance(dtype, pd.ArrowDtype):
        kind = dtype.pyarrow_dtype
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if isinstance(dtype, pd.CategoricalDtype):
        return is_text_dtype(dtype.categories.dtype)
    return bool(getattr(dtype, "kind", "") == "O" or pd.api.types.is_string_dtype(dtype))


def is_number_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds numbers or booleans. Categories of numbers are no numbers."""
    if isinstance(dtype, pd.CategoricalDtype):
        return False
    return bool(pd.api.types.is_numeric_dtype(dtype))


def is_integer_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds integers or booleans."""
    return bool(pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_bool_dtype(dtype))


def is_unsigned_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds unsigned integers."""
    return bool(pd.api.types.is_unsigned_integer_dtype(dtype))


def is_time_dtype(dtype: Any) -> bool:
    """Return whether a dtype holds points in time or durations."""
    return bool(
        pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype)
    )
