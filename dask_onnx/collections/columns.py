"""How the columns of a table become the inputs of a model.

The rules for a value: numbers go into a float input by value, rounded to its precision; into an
integer input only integers and booleans that fit it, and times as nanoseconds since 1970; into a
boolean input booleans; text and categories of text into a string input, bytes as UTF-8. A missing
value goes into a float input as NaN, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_onnx.collections.bad_rows import RowsError
from dask_onnx.collections.ragged import Ragged
from dask_onnx.collections.run_options import Columns
from dask_onnx.collections.text.text_columns import column_faults, strings_of
from dask_onnx.collections.text.texts import NO_TEXT
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec, dtype_name


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """One input of the model, and the columns that feed it."""

    spec: TensorSpec
    columns: tuple[Any, ...]
    is_list: bool
    """The one column holds a list of numbers for each row."""
    list_size: int | None = None
    """Of the lists, where their dtype says it."""
    is_ragged: bool = False
    """The lists may differ in length: rows of one length run together."""

    @property
    def takes_text(self) -> bool:
        return self.spec.dtype is not None and self.spec.dtype.kind == "O"

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
    meta: pd.DataFrame, inputs: Sequence[TensorSpec], columns: Columns, *, ragged: bool = False
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
    ragged : lists may differ in length, where the model leaves their length open

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
    return tuple(_column_input(meta, spec, columns[spec.name], ragged) for spec in inputs)


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
    meta: pd.DataFrame, spec: TensorSpec, columns: str | Sequence[str], ragged: bool
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
    takes_text = spec.dtype.kind == "O"
    is_list = len(names) == 1 and _holds_lists(meta[names[0]], takes_text=takes_text)
    found = ColumnInput(spec, names, is_list, _list_size(meta[names[0]].dtype))
    if ragged and found.row_width is None:
        found = replace(found, is_ragged=True)
    _check_rank(found, meta)
    if not is_list and found.width is not None and found.width != len(names):
        raise InputError(
            f"input {spec} takes {found.width} numbers a row; there are {len(names)} columns for "
            f"it: {_names(names[:8])}{' ...' if len(names) > 8 else ''}",
            "name them: columns=[...]",
        )
    for name in names:
        _check_kind(meta[name], found)
    return found


def _check_rank(target: ColumnInput, meta: pd.DataFrame) -> None:
    """Whether columns can make an input of that rank at all."""
    spec, names, rank = target.spec, target.columns, target.spec.rank
    if rank == 0:
        raise InputError(
            f"input {spec} is one value for all rows; a column has one for each",
            "use arrays: a dict of them by input name",
        )
    if rank is not None and rank > 2:
        raise InputError(
            f"input {spec} has rank {rank}; columns make rows of numbers",
            "use an array; columns and lists are for inputs of rank 1 and 2",
        )
    if rank == 1 and len(names) > 1:
        raise InputError(
            f"input {spec} takes one number a row; {len(names)} columns were named for it",
            "name one column",
        )
    if rank == 1 and _is_list(meta[names[0]].dtype):
        raise InputError(
            f"input {spec} takes one number a row; column {names[0]!r} has lists, "
            f"{meta[names[0]].dtype}",
            "take the lists apart, or name another column",
        )


def _check_kind(column: pd.Series, target: ColumnInput) -> None:
    """Whether the column's dtype, whatever its values, goes into the input."""
    dtype, wanted = _values_dtype(column), target.spec.dtype
    assert wanted is not None
    if target.is_list:
        if not _is_list(dtype):
            return  # Python's lists say nothing of what is in them
        dtype = pd.ArrowDtype(dtype.pyarrow_dtype.value_type)
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


def to_arrays(
    part: pd.DataFrame, inputs: Sequence[ColumnInput], *, require_finite: bool = False
) -> dict[str, Any]:
    """The model's inputs from a table: (rows,) or (rows, columns) each, by input name; `Ragged`
    where lists may differ in length.

    Raises
    ------
    RowsError
        Missing values where no NaN can be, values that do not fit the dtype, lists of unequal
        length; with their count, the column and the first row's label.
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
    """Parameters: the numbers, and for each of them the position of its row."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    wrong = np.zeros(len(column), bool)
    wrong[owners[~np.isfinite(values)]] = True
    raise _at_fault(
        column,
        wrong,
        f"input {target.spec.name!r} must be finite",
        "has a NaN or an infinity",
        "fill them or drop the rows",
    )


def _convert(column: pd.Series, wanted: np.dtype, name: str) -> np.ndarray:
    is_plain = isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub"
    if is_plain and wanted.kind in "fV":
        return np.asarray(column.to_numpy()).astype(wanted, copy=False)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    missing = column.isna()
    if missing.any() and wanted.kind != "f" and wanted.kind != "V":
        raise _at_fault(
            column,
            missing.to_numpy(),
            f"input {name!r} takes {dtype_name(wanted)}, which has no NaN",
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
        raise _at_fault(
            column,
            np.isin(np.arange(len(column)), list(faults)),
            f"input {name!r} takes text",
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
    if _is_time(column.dtype):
        column = _nanoseconds(column)
    source = column.to_numpy(dtype=np.uint64 if _is_unsigned(column.dtype) else np.int64)
    limits = np.iinfo(wanted)
    beyond = (source < limits.min) | (source > limits.max) if len(source) else source.astype(bool)
    if beyond.any():
        raise _at_fault(
            column,
            beyond,
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


def _flat_lists(column: pd.Series, target: ColumnInput) -> tuple[np.ndarray, np.ndarray]:
    """Elements of each row, and all of them one after the other."""
    wanted = target.spec.dtype
    assert wanted is not None
    missing = column.isna()
    if missing.any():
        raise _at_fault(
            column,
            missing.to_numpy(),
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
    sizes = np.asarray(sizes)
    # Where nothing else says it, the length that most rows have is the right one.
    width = np.bincount(sizes).argmax() if target.width is None and len(sizes) else target.width
    wrong = sizes != width
    if wrong.any() and not target.is_ragged:
        raise _at_fault(
            column,
            wrong,
            f"input {target.spec.name!r} takes {width} numbers a row",
            f"has another length ({int(sizes[wrong][0])} the first)",
            "pad or cut the lists",
        )
    return sizes, _convert_elements(flat, sizes, column, target)


def _convert_elements(
    flat: np.ndarray, sizes: np.ndarray, column: pd.Series, target: ColumnInput
) -> np.ndarray:
    """The numbers of all lists in the model's dtype; a fault is of the row that has them."""
    wanted = target.spec.dtype
    assert wanted is not None
    # As it is: what pandas takes for text it would encode.
    elements = pd.Series(flat, dtype=flat.dtype)
    try:
        if wanted.kind in "iu" and flat.dtype.kind == "f":
            broken = np.isfinite(flat) & (flat != np.floor(flat))
            if broken.any():
                rule = f"input {target.spec.name!r} takes {dtype_name(wanted)}"
                raise _at_fault(elements, broken, rule, "is no whole number", "round it yourself")
        return _convert(elements, wanted, target.spec.name)
    except RowsError as fault:
        wrong = np.zeros(len(column), bool)
        wrong[np.repeat(np.arange(len(column)), sizes)[fault.mask]] = True
        rule, _, what = fault.of_row.partition("; column None ")
        raise _at_fault(
            column, wrong, rule, f"has an element that {what}", fault.next_step
        ) from None


def _is_fixed(column: pd.Series) -> bool:
    return bool(pa.types.is_fixed_size_list(column.dtype.pyarrow_dtype))


def _flat(chunks: pa.ChunkedArray) -> np.ndarray:
    array = chunks.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False))


def _at_fault(
    column: pd.Series,
    wrong: np.ndarray,
    rule: str,
    what: str,
    next_step: str,
    places: Mapping[int, str] | None = None,
) -> RowsError:
    """Parameters: `places` say of rows, by position, where in them it is."""
    first = int(wrong.argmax())
    count = int(wrong.sum())
    of_row = f"{rule}; column {column.name!r} {what}"
    places = places or {}
    return RowsError(
        f"{of_row} in {count:,} of {len(column):,} rows, the first with index "
        f"{column.index[first]!r}" + (f": {places[first]}" if first in places else ""),
        next_step,
        wrong,
        of_row,
        {row: f"{of_row}: {place}" for row, place in places.items()},
    )


def _values_dtype(column: pd.Series) -> Any:
    dtype = column.dtype
    return dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype


def _holds_lists(column: pd.Series, *, takes_text: bool) -> bool:
    """Lists by dtype, or Python objects whose first is a list or an array. Of objects that are not
    there yet nothing else could go into an input of numbers."""
    if _is_list(column.dtype):
        return True
    if column.dtype != object:
        return False
    if not len(column):
        return not takes_text
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
