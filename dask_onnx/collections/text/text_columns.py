"""Columns of text: their values, and their rows that are not valid UTF-8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dask_onnx.collections.bad_rows import RowsError
from dask_onnx.core.utf8 import NO_TEXT, escaped, text_fault


def texts_of(column: pd.Series) -> list[Any]:
    """Return the values of a column; as bytes if an Arrow column holds invalid UTF-8."""
    try:
        return list(column)
    except UnicodeDecodeError:
        return bytes_of(column)


_SAMPLE = 1000
"""Rows from which the share of distinct values is estimated."""


def strings_of(column: pd.Series) -> np.ndarray:
    """Return the values of a column as objects.

    If few values of an Arrow column are distinct, each becomes one object, in half the time.
    """
    if is_arrow_text(column.dtype):
        array = pa.chunked_array(column.array.__arrow_array__())
        sample = array.slice(0, _SAMPLE)
        if not array.null_count and pc.count_distinct(sample).as_py() * 2 < len(sample):
            pieces = [
                chunk.dictionary.to_numpy(zero_copy_only=False)[chunk.indices.to_numpy()]
                for chunk in array.dictionary_encode().chunks
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return np.asarray(column.to_numpy(dtype=object))


def column_faults(column: Any, *, bytes_too: bool = False) -> dict[int, str]:
    """Return the values that are not UTF-8, as a dict of position to the fault in words.

    Parameters
    ----------
    column : Series or Index
        Column of any dtype; most dtypes hold no text.
    bytes_too : bool
        True if bytes among Python's objects are meant as text; otherwise they are ignored.
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        by_code = column_faults(dtype.categories, bytes_too=bytes_too)
        codes = column.cat.codes.to_numpy()
        places = np.flatnonzero(np.isin(codes, list(by_code)))
        return {int(place): by_code[int(codes[place])] for place in places}
    if is_arrow_text(dtype):
        try:
            pa.chunked_array(column.array.__arrow_array__()).validate(full=True)
        except pa.ArrowInvalid:
            return _faults(bytes_of(column))
        return {}
    if not pd.api.types.is_object_dtype(dtype) and not isinstance(dtype, pd.StringDtype):
        return {}
    kinds = (str, bytes) if bytes_too else str
    return _faults(value if isinstance(value, kinds) else None for value in column)


def _faults(values: Iterable[Any]) -> dict[int, str]:
    found = ((place, text_fault(value)) for place, value in enumerate(values))
    return {place: fault for place, fault in found if fault is not None}


def kept_faults(table: pd.DataFrame, fed: Iterable[Any]) -> dict[int, str]:
    """Return the rows with text that is not UTF-8, as a dict of position to message.

    Parameters
    ----------
    table : pandas DataFrame
        Columns that the result keeps.
    fed : iterable
        Labels of the columns that feed the model, which are checked as inputs.
    """
    found: dict[int, str] = {}
    checked = set(fed)
    for place, name in enumerate(table.columns):
        if name not in checked:
            for row, fault in column_faults(table.iloc[:, place]).items():
                found.setdefault(row, f"column {name!r}, which is kept, {NO_TEXT}: {fault}")
    return found


def check_kept(table: pd.DataFrame, fed: Iterable[Any]) -> None:
    """Check that files can hold the columns that the result keeps.

    Parameters
    ----------
    table : pandas DataFrame
        Columns that the result keeps.
    fed : iterable
        Labels of the columns that feed the model, which are checked as inputs.

    Raises
    ------
    RowsError
        Some rows hold text that is not UTF-8.
    """
    faults = kept_faults(table, fed)
    if faults:
        raise RowsError(
            f"{len(faults):,} of {len(table):,} rows hold text that cannot be written, the first "
            f"in {faults[min(faults)]}",
            "decode it, or leave the column out",
            np.isin(np.arange(len(table)), list(faults)),
            row_causes=faults,
            option="append",
        )


def storable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its text escaped where files cannot hold it; see `utf8.escaped`."""
    columns: dict[Any, Any] = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.StringDtype) and column.dtype.storage == "python":
            is_faulty = bool(column_faults(column))
            fit = column.map(escaped, na_action="ignore") if is_faulty else column
            columns[name] = fit.astype("str")
        elif column.dtype == object and column_faults(column):
            columns[name] = pd.Series(
                [escaped(value) for value in column], column.index, dtype=object
            )
    return table.assign(**columns) if columns else table


def is_arrow_text(dtype: Any) -> bool:
    """Return whether a dtype holds text that Arrow stores, as UTF-8."""
    if isinstance(dtype, pd.ArrowDtype):
        kind = dtype.pyarrow_dtype
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return isinstance(dtype, pd.StringDtype) and dtype.storage == "pyarrow"


def bytes_of(column: Any) -> list[Any]:
    """Return the texts of an Arrow column as bytes, whether they are UTF-8 or not."""
    chunks = pa.chunked_array(column.array.__arrow_array__())
    is_large = pa.types.is_large_string(chunks.type)
    found: list[Any] = chunks.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
    return found
