"""Values of table columns as numpy's arrays and masks, for the table of conversions.

Each dtype of pandas and Arrow becomes the array of numpy that has the same values: no number is
rounded on the way, no time loses its unit, and what is missing is told apart from what is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.column_dtypes import source_of_dtype
from dask_onnx.collections.text.text_columns import bytes_of, is_arrow_text, strings_of
from dask_onnx.core.conversions import conversion, family_of, has_nan, target_of
from dask_onnx.core.object_conversions import convert_array
from dask_onnx.core.value_conversions import Unfit, unfit_missing


def convert_column(column: pd.Series, wanted: np.dtype[Any]) -> np.ndarray:
    """Return the values of a column in the dtype of a model, as the table of conversions says.

    Parameters
    ----------
    column : Series
        Column of any dtype.
    wanted : dtype
        Dtype of the model's input; object for strings.

    Returns
    -------
    ndarray, shape (rows,)
        Not a copy if the column is a plain array of that dtype.

    Raises
    ------
    Unfit
        Some values are not taken.
    """
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        return convert_array(np.asarray(column.to_numpy()), wanted)
    if isinstance(dtype, pd.CategoricalDtype):
        return _convert_categories(column, wanted)
    if isinstance(dtype, pd.SparseDtype):
        return convert_array(np.asarray(column.array.to_dense()), wanted)
    source, target = source_of_dtype(dtype), target_of(wanted)
    cell = conversion(source, target)
    if cell.is_refused:
        rule = f"takes {target} ({cell.rule})"
        raise Unfit(np.ones(len(column), bool), rule, f"is {dtype}", cell.next_step)
    values, missing = _values(column, source, wanted)
    if missing is None and is_arrow_text(dtype) and len(values) and isinstance(values[0], str):
        return values  # decoded from Arrow's UTF-8, so all of them are text
    return convert_array(values, wanted, missing)


def _convert_categories(column: pd.Series, wanted: np.dtype[Any]) -> np.ndarray:
    """Return the values of a categorical column; each category that occurs is converted once."""
    codes = column.cat.codes.to_numpy()
    missing = codes < 0
    target = target_of(wanted)
    if missing.any() and not has_nan(target):
        raise unfit_missing(missing, target)
    used = np.unique(codes[~missing])
    found = np.empty(len(column.cat.categories) + 1, wanted)
    try:
        found[used] = convert_column(_chosen(column.cat.categories, used), wanted)
    except Unfit as fault:
        bad = np.isin(codes, used[fault.bad])
        by_code = {int(used[place]): text for place, text in fault.places.items()}
        places = {int(row): by_code.get(int(codes[row]), "") for row in np.flatnonzero(bad)}
        raise Unfit(
            bad, fault.rule, fault.fault, fault.next_step, places if by_code else None
        ) from None
    if missing.any():
        found[-1] = np.nan
    values: np.ndarray = found[codes]
    return values


def _chosen(categories: pd.Index, places: np.ndarray) -> pd.Series:
    # The dtype is given, since pandas would infer strings from objects and encode them.
    return pd.Series(categories.array[places], dtype=categories.dtype)


def _values(
    column: pd.Series, source: str, wanted: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values of a column that numpy has no dtype of, and where one is missing."""
    family = family_of(source)
    dtype = column.dtype
    if family in ("bool", "integer", "float"):
        return _numbers(column, source)
    if family in ("text", "bytes"):
        return _texts(column), _missing(column)
    if isinstance(dtype, pd.DatetimeTZDtype):
        return np.asarray(column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()), None
    chunks = pa.chunked_array(column.array.__arrow_array__())
    if pa.types.is_dictionary(chunks.type):
        plain = pd.Series(pd.arrays.ArrowExtensionArray(chunks.cast(chunks.type.value_type)))
        return _values(plain, source, wanted)
    if family == "missing":
        return np.zeros(len(column)), np.ones(len(column), bool)
    if family == "decimal":
        return _decimals(chunks, wanted), _missing(column)
    return _times(chunks), _missing(column)


def _numbers(column: pd.Series, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    kind = np.dtype(source)
    if kind.kind == "f":
        return np.asarray(column.to_numpy(dtype=kind, na_value=np.nan)), None
    missing = _missing(column)
    if missing is None:
        return np.asarray(column.to_numpy(dtype=kind)), None
    return np.asarray(column.to_numpy(dtype=kind, na_value=kind.type(0))), missing


def _texts(column: pd.Series) -> np.ndarray:
    """Return text or bytes as objects; all as bytes if some of an Arrow column are not UTF-8."""
    try:
        return strings_of(column)
    except (UnicodeDecodeError, pa.ArrowException):
        return np.array([*bytes_of(column), None], object)[:-1]


def _missing(column: pd.Series) -> np.ndarray | None:
    missing = column.isna()
    return missing.to_numpy(dtype=bool) if missing.any() else None


def _decimals(chunks: pa.ChunkedArray, wanted: np.dtype[Any]) -> np.ndarray:
    """Return decimals as float64, or as Python's if each digit matters.

    Arrow's own conversion to float64 is off by one unit in the last place for one in ten.
    """
    if wanted.kind in "iub" or "int" in wanted.name:
        return np.array([*chunks.to_pylist(), None], object)[:-1]
    numbers = chunks.cast(pa.string()).cast(pa.float64())
    return np.asarray(numbers.to_numpy())


def _times(chunks: pa.ChunkedArray) -> np.ndarray:
    """Return points in time as datetime64, durations and times of day as timedelta64."""
    kind = chunks.type
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        chunks = chunks.cast(pa.int32())
    whole = chunks.cast(pa.int64()).fill_null(0).to_numpy()
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    is_point = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    return np.asarray(whole).view(f"{'M8' if is_point else 'm8'}[{unit}]")
