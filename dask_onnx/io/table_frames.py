"""Conversion of Arrow tables to pandas, with dtypes that do not depend on the values of a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

PYTHON_TEXT = pd.StringDtype("python", na_value=np.nan)
"""Default string dtype of pandas, but stored as Python's str: Arrow cannot hold lone surrogates."""
_TEXT = pd.StringDtype(na_value=np.nan)


def dtype_of(kind: pa.DataType, *, nullable: bool) -> Any:
    """Return the pandas dtype of a column.

    Parameters
    ----------
    kind : pyarrow.DataType
    nullable : bool
        True if values may be missing: integers and booleans are then of pandas' nullable dtypes,
        since float64 does not hold all integers.
    """
    if pa.types.is_dictionary(kind):
        return dtype_of(kind.value_type, nullable=nullable)
    if is_text(kind):
        return _TEXT
    if pa.types.is_boolean(kind):
        return pd.BooleanDtype() if nullable else np.dtype(bool)
    if pa.types.is_integer(kind):
        plain = np.dtype(kind.to_pandas_dtype())
        return pd.array([], dtype=_nullable_name(plain)).dtype if nullable else plain
    if pa.types.is_floating(kind):
        return np.dtype(kind.to_pandas_dtype())
    if pa.types.is_null(kind):
        return np.dtype(float)
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or is_binary(kind):
        return pa.array([], kind).to_pandas().dtype
    return pd.ArrowDtype(kind)


def _nullable_name(dtype: np.dtype[Any]) -> str:
    return dtype.name.replace("int", "Int").replace("uI", "UI")


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether values of a type are bytes."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def empty_frame(dtypes: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table without rows."""
    return pd.DataFrame({name: pd.Series([], dtype=dtype) for name, dtype in dtypes.items()})


def series_of(values: pa.ChunkedArray, dtype: Any) -> pd.Series:
    """Return a column in the dtype that `dtype_of` gives for its type."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_null(values.type):
        return pd.Series(np.full(len(values), np.nan))
    if isinstance(dtype, pd.api.extensions.ExtensionDtype) and hasattr(dtype, "__from_arrow__"):
        return pd.Series(dtype.__from_arrow__(values), dtype=dtype)
    found: pd.Series = values.to_pandas()
    return found if found.dtype == dtype else found.astype(dtype)


def frame_of(columns: Mapping[str, pd.Series], rows: int, first_row: int | None) -> pd.DataFrame:
    """Return a table whose index counts the rows of its file, if their number is known."""
    start = first_row or 0
    frame = pd.DataFrame(dict(columns), index=pd.RangeIndex(rows))
    return frame.set_axis(pd.RangeIndex(start, start + rows), axis=0)


def decoded(cells: pa.ChunkedArray, encoding: str) -> pa.ChunkedArray | pd.Series:
    """Return bytes as texts; as Python's str with lone surrogates where they are not UTF-8.

    Parameters
    ----------
    cells : pyarrow chunked array of binary
    encoding : str
        Encoding of the file: in others than UTF-8, lone surrogates have been encoded already.
    """
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid:
        errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
        texts = [value.decode("utf-8", errors) for value in cells.to_pylist()]
        return pd.Series(np.array(texts, dtype=object), dtype=PYTHON_TEXT)
