"""How the columns of a table become the inputs of a model.

The rules for a value: numbers go into a float input by value, rounded to its precision; into an
integer input only integers and booleans that fit it, and times as nanoseconds since 1970; into a
boolean input booleans; text and categories of text into a string input. A missing value goes into a
float input as NaN, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.request import Columns
from dask_onnx.errors import InputError
from dask_onnx.specs import TensorSpec, dtype_name


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """One input of the model, and the columns that feed it."""

    spec: TensorSpec
    columns: tuple[Any, ...]
    is_list: bool
    """The one column holds a list of numbers for each row."""
    list_size: int | None = None
    """Of the lists, where their dtype says it."""

    @property
    def width(self) -> int | None:
        """Elements of a row, where the model says it."""
        shape = self.spec.shape
        return shape[1] if shape and len(shape) > 1 and isinstance(shape[1], int) else None

    @property
    def row_width(self) -> int | None:
        """Elements of a row, where the model or the columns say it."""
        if self.width is not None or self.list_size is not None:
            return self.width if self.width is not None else self.list_size
        return None if self.is_list else len(self.columns)


def resolve_columns(
    meta: pd.DataFrame, inputs: Sequence[TensorSpec], columns: Columns
) -> tuple[ColumnInput, ...]:
    """Say which columns feed each input.

    Parameters
    ----------
    meta : DataFrame
        Its columns and dtypes count; it may be empty.
    inputs : the inputs that are needed
    columns : None, str, sequence of str, or mapping of input to these
        None: several inputs take the columns of their own names; one input the column of its name,
        or else all columns of its kind (numbers, or text) in their order.

    Raises
    ------
    InputError
        A column is missing, of a kind that the input does not take, or their number is wrong.
    """
    if not isinstance(columns, Mapping):
        columns = _by_default(meta, inputs, columns)
    names = [spec.name for spec in inputs]
    unknown = [name for name in columns if name not in names]
    missing = [name for name in names if name not in columns]
    if unknown or missing:
        what = (
            f"input {_names(unknown)} is not one of the model's"
            if unknown
            else (f"nothing is said of input {_names(missing)}")
        )
        raise InputError(f"columns: {what}", f"name columns for {_names(names)}")
    return tuple(_column_input(meta, spec, columns[spec.name]) for spec in inputs)


def _by_default(
    meta: pd.DataFrame, inputs: Sequence[TensorSpec], columns: str | Sequence[str] | None
) -> dict[str, str | Sequence[str]]:
    if columns is not None:
        if len(inputs) != 1:
            raise InputError(
                f"columns names columns for one input; the model takes {len(inputs)}: "
                f"{_names(spec.name for spec in inputs)}",
                "pass a mapping: columns={'input': ['a', 'b'], ...}",
            )
        return {inputs[0].name: columns}
    if len(inputs) > 1:
        lacking = [spec.name for spec in inputs if spec.name not in meta.columns]
        if lacking:
            raise InputError(
                f"the model's inputs {_names(lacking)} have no columns of their names; the table "
                f"has {_names(meta.columns)}",
                f"say which: columns={{{lacking[0]!r}: ...}}, or rename the columns",
            )
        return {spec.name: spec.name for spec in inputs}
    (spec,) = inputs
    if spec.name in meta.columns:
        return {spec.name: spec.name}
    wants_text = spec.dtype is not None and spec.dtype.kind == "O"
    found = [
        name
        for name in meta.columns
        if (_is_text(meta[name].dtype) if wants_text else _is_number(meta[name].dtype))
    ]
    lists = [name for name in meta.columns if _is_list(meta[name].dtype)]
    if not found and len(lists) == 1:
        return {spec.name: lists[0]}
    if not found:
        kind = "text" if wants_text else "numbers"
        raise InputError(
            f"no column has {kind} for input {spec}; the table has {_kinds(meta)}",
            "name the columns: columns=[...]",
        )
    return {spec.name: found}


def _column_input(
    meta: pd.DataFrame, spec: TensorSpec, columns: str | Sequence[str]
) -> ColumnInput:
    if spec.dtype is None:
        raise InputError(
            f"input {spec} cannot be made of columns", "extract a part whose inputs are tensors"
        )
    names = tuple(columns) if isinstance(columns, list | tuple) else (columns,)
    lacking = [name for name in names if name not in meta.columns]
    if lacking:
        raise InputError(
            f"the table has no column {_names(lacking)} for input {spec.name!r}",
            f"its columns are {_names(meta.columns)}",
        )
    is_list = len(names) == 1 and _holds_lists(meta[names[0]])
    found = ColumnInput(spec, names, is_list, _list_size(meta[names[0]].dtype))
    rank = spec.rank
    if rank is not None and (rank > 2 or rank < 1) and not is_list:
        raise InputError(
            f"input {spec} has rank {rank}; columns make rows of numbers",
            "use an array, or a column of lists for inputs of rank 2",
        )
    if rank == 1 and len(names) > 1:
        raise InputError(
            f"input {spec} takes one number a row; {len(names)} columns were named for it",
            "name one column",
        )
    if not is_list and found.width is not None and found.width != len(names):
        raise InputError(
            f"input {spec} takes {found.width} numbers a row; there are {len(names)} columns for "
            f"it: {_names(names[:8])}{' ...' if len(names) > 8 else ''}",
            "name them: columns=[...]",
        )
    for name in names:
        if not is_list:
            _check_kind(meta[name], found)
    return found


def _check_kind(column: pd.Series, target: ColumnInput) -> None:
    """Whether the column's dtype, whatever its values, goes into the input."""
    dtype, wanted = _values_dtype(column), target.spec.dtype
    assert wanted is not None
    kinds = {"O": _is_text, "b": pd.api.types.is_bool_dtype}
    if wanted.kind in kinds:
        fits = kinds[wanted.kind](dtype)
    elif wanted.kind in "iu":
        fits = _is_integer(dtype) or _is_time(dtype)
    else:
        fits = _is_number(dtype)
    if not fits:
        raise InputError(
            f"column {column.name!r} is {column.dtype}; input {target.spec.name!r} takes "
            f"{dtype_name(wanted)}",
            _advice(dtype, wanted),
        )


def _advice(dtype: Any, wanted: np.dtype) -> str:
    if _is_time(dtype):
        return "turn the times into the numbers that the model was trained on"
    if wanted.kind in "iu" and _is_number(dtype):
        return "round it yourself: .round().astype('int64'), missing values filled"
    return "convert the column, or name others: columns=..."


def to_arrays(part: pd.DataFrame, inputs: Sequence[ColumnInput]) -> dict[str, np.ndarray]:
    """The model's inputs from a table: (rows,) or (rows, columns) each, by input name.

    Raises
    ------
    InputError
        Missing values where no NaN can be, values that do not fit the dtype, lists of unequal
        length; with their count, the column and the first row's label.
    """
    return {target.spec.name: _to_array(part, target) for target in inputs}


def _to_array(part: pd.DataFrame, target: ColumnInput) -> np.ndarray:
    wanted = target.spec.dtype
    assert wanted is not None
    if target.is_list:
        return _from_lists(part[target.columns[0]], target)
    if target.spec.rank == 1:
        return _convert(part[target.columns[0]], wanted, target.spec.name)
    rows = np.empty((len(part), len(target.columns)), dtype=wanted)
    for place, name in enumerate(target.columns):
        rows[:, place] = _convert(part[name], wanted, target.spec.name)
    return rows


def _convert(column: pd.Series, wanted: np.dtype, name: str) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    missing = column.isna()
    if missing.any() and wanted.kind != "f" and wanted.kind != "V":
        raise _at_fault(
            column,
            missing,
            f"input {name!r} takes {dtype_name(wanted)}, which has no NaN",
            "is missing",
            "fill them or drop the rows",
        )
    if wanted.kind == "O":
        return np.asarray(column.astype(object).map(str), dtype=object)
    if wanted.kind in "iu":
        return _integers(column, wanted, name)
    if wanted.kind == "b":
        return np.asarray(column, dtype=bool)
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)).astype(wanted)


def _integers(column: pd.Series, wanted: np.dtype, name: str) -> np.ndarray:
    if _is_time(column.dtype):
        column = _nanoseconds(column)
    source = column.to_numpy(dtype=np.uint64 if _is_unsigned(column.dtype) else np.int64)
    limits = np.iinfo(wanted)
    beyond = (source < limits.min) | (source > limits.max) if len(source) else source.astype(bool)
    if beyond.any():
        raise _at_fault(
            column,
            pd.Series(beyond, index=column.index),
            f"input {name!r} takes {dtype_name(wanted)}, {limits.min} to {limits.max}",
            "does not fit",
            "export the model with a wider type",
        )
    return np.asarray(source).astype(wanted)


def _nanoseconds(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.ArrowDtype):
        column = column.astype(
            "datetime64[ns]" if pa.types.is_timestamp(column.dtype.pyarrow_dtype) else "m8[ns]"
        )
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    kind = "datetime64[ns]" if column.dtype.kind == "M" else "timedelta64[ns]"
    return column.astype(kind).astype(np.int64)


def _from_lists(column: pd.Series, target: ColumnInput) -> np.ndarray:
    wanted = target.spec.dtype
    assert wanted is not None
    missing = column.isna()
    if missing.any():
        raise _at_fault(
            column,
            missing,
            f"input {target.spec.name!r} takes a list a row",
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
    width = target.width if target.width is not None else (int(sizes[0]) if len(sizes) else 0)
    wrong = sizes != width
    if wrong.any():
        raise _at_fault(
            column,
            pd.Series(wrong, index=column.index),
            f"input {target.spec.name!r} takes {width} numbers a row",
            f"has another length ({int(sizes[wrong][0])} the first)",
            "pad or cut the lists",
        )
    values = _convert(pd.Series(flat), wanted, target.spec.name)
    return values.reshape(len(column), width)


def _is_fixed(column: pd.Series) -> bool:
    return bool(pa.types.is_fixed_size_list(column.dtype.pyarrow_dtype))


def _flat(chunks: pa.ChunkedArray) -> np.ndarray:
    array = chunks.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False))


def _at_fault(
    column: pd.Series, wrong: pd.Series, rule: str, what: str, next_step: str
) -> InputError:
    first = column.index[wrong.to_numpy().argmax()]
    count = int(wrong.sum())
    return InputError(
        f"{rule}; column {column.name!r} {what} in {count:,} of {len(column):,} rows, the first "
        f"with index {first!r}",
        next_step,
    )


def _values_dtype(column: pd.Series) -> Any:
    dtype = column.dtype
    return dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype


def _holds_lists(column: pd.Series) -> bool:
    """Lists by dtype, or Python objects whose first is a list or an array."""
    if _is_list(column.dtype):
        return True
    if column.dtype != object or not len(column):
        return False
    return isinstance(column.iloc[0], list | tuple | np.ndarray)


def _list_size(dtype: Any) -> int | None:
    if _is_list(dtype) and pa.types.is_fixed_size_list(dtype.pyarrow_dtype):
        return int(dtype.pyarrow_dtype.list_size)
    return None


def _is_list(dtype: Any) -> bool:
    if not isinstance(dtype, pd.ArrowDtype):
        return False
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(dtype.pyarrow_dtype) for is_kind in kinds)


def _is_text(dtype: Any) -> bool:
    if isinstance(dtype, pd.ArrowDtype):
        kind = dtype.pyarrow_dtype
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if isinstance(dtype, pd.CategoricalDtype):
        return _is_text(dtype.categories.dtype)
    return bool(getattr(dtype, "kind", "") == "O" or pd.api.types.is_string_dtype(dtype))


def _is_number(dtype: Any) -> bool:
    if isinstance(dtype, pd.CategoricalDtype):
        return False
    return bool(pd.api.types.is_numeric_dtype(dtype))


def _is_integer(dtype: Any) -> bool:
    return bool(pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_bool_dtype(dtype))


def _is_unsigned(dtype: Any) -> bool:
    return bool(pd.api.types.is_unsigned_integer_dtype(dtype))


def _is_time(dtype: Any) -> bool:
    return bool(
        pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype)
    )


def _kinds(meta: pd.DataFrame) -> str:
    shown = [f"{name!r} ({meta[name].dtype})" for name in list(meta.columns)[:8]]
    return ", ".join(shown) + (" ..." if len(meta.columns) > 8 else "")


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
