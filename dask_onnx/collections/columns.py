"""Choice of the table columns that feed each input of a model, checked by their dtypes.

`column_values` states which values of a column an input takes, and converts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dask_onnx.collections.column_dtypes import (
    fixed_list_size,
    is_list_dtype,
    is_number_dtype,
    is_text_dtype,
    source_of_dtype,
)
from dask_onnx.collections.run_options import Columns
from dask_onnx.core.conversions import conversion, target_of
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.object_conversions import is_missing
from dask_onnx.core.specs import TensorSpec, dtype_name


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """One input of the model, and the columns that feed it."""

    spec: TensorSpec
    """Input of the model."""
    columns: tuple[Any, ...]
    """Labels of the columns, in the order of the input's elements."""
    is_list: bool
    """True if the single column holds a list of numbers for each row."""
    list_size: int | None = None
    """Length of the lists, if their dtype fixes it."""
    is_ragged: bool = False
    """True if the lists may differ in length; rows of one length run together."""

    @property
    def takes_text(self) -> bool:
        """True if the input takes strings."""
        return _takes_text(self.spec)

    @property
    def width(self) -> int | None:
        """Elements of a row, if the model fixes their number."""
        return _width(self.spec)

    @property
    def row_width(self) -> int | None:
        """Elements of a row, if the model or the columns fix their number."""
        if self.width is not None or self.list_size is not None:
            return self.width if self.width is not None else self.list_size
        return None if self.is_list else len(self.columns)


def resolve_columns(
    meta: pd.DataFrame, inputs: Sequence[TensorSpec], columns: Columns, *, ragged: bool = False
) -> tuple[ColumnInput, ...]:
    """Return the columns that feed each input.

    Parameters
    ----------
    meta : pandas DataFrame
        Table whose columns and dtypes are looked at; it may be empty.
    inputs : sequence of TensorSpec
        Inputs that are needed.
    columns : None, str, sequence of str, or mapping of input to these
        Inputs that a mapping leaves out take the columns of their own names. With None, several
        inputs do; a single input takes the
        column of its name, or else all columns of its kind (numbers or text) in their order.
    ragged : bool
        True if lists may differ in length, where the model leaves their length open.

    Returns
    -------
    tuple of ColumnInput
        One for each input, in the order of `inputs`.

    Raises
    ------
    InputError
        A column is missing or is of a kind that the input does not take, or the number of columns
        is wrong.
    """
    if not inputs:
        raise InputError("the outputs need no input", "pass no data: predict({})", option="x")
    if not isinstance(columns, Mapping):
        columns = _by_default(meta, inputs, columns)
    names = [spec.name for spec in inputs]
    # Inputs that the caller leaves out take the columns of their own names.
    columns = {**{name: name for name in names if name in meta.columns}, **columns}
    unknown = [name for name in columns if name not in names]
    missing = [name for name in names if name not in columns]
    if unknown or missing:
        what = (
            f"names {_names(unknown)}, which is no input of the model"
            if unknown
            else f"names no column for input {_names(missing)}, and the table has none of its name"
        )
        raise InputError(
            f"columns {what}",
            f"name columns for {_names(names)}",
            option="columns",
            input=str((unknown or missing)[0]),
        )
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
                option="columns",
                numbers={"inputs": len(inputs)},
            )
        return {inputs[0].name: columns}
    if len(inputs) > 1:
        missing = [spec.name for spec in inputs if spec.name not in meta.columns]
        if missing:
            raise InputError(
                f"the model's inputs {_names(missing)} have no columns of their names; the table "
                f"has {_names(meta.columns)}",
                f"name its columns: columns={{{missing[0]!r}: ...}}, or rename the columns",
                option="columns",
                input=missing[0],
                suggestions=[Suggestion("columns")],
            )
        return {spec.name: spec.name for spec in inputs}
    (spec,) = inputs
    if spec.name in meta.columns:
        return {spec.name: spec.name}
    return {spec.name: _columns_of_kind(meta, spec)}


def _columns_of_kind(meta: pd.DataFrame, spec: TensorSpec) -> list[Any]:
    """Return the columns that a single input takes by default: all of numbers, or all of text.

    Columns that the input can never take, such as text beside numbers, are left out. One that it
    may take, but that does not say so, is an error: objects, categories of numbers, times.
    """
    wants_text = _takes_text(spec)
    is_own = is_text_dtype if wants_text else is_number_dtype
    dtypes = list(meta.dtypes.items())
    if len(dtypes) == 1:
        return [dtypes[0][0]]  # a Series, or a table that has nothing else to take
    found = [name for name, dtype in dtypes if is_own(dtype)]
    lists = [name for name, dtype in dtypes if is_list_dtype(dtype)]
    if not found and len(lists) == 1:
        return lists
    unclear = [
        (name, dtype)
        for name, dtype in dtypes
        if name not in found and spec.dtype is not None and _may_feed(dtype, spec.dtype)
    ]
    kind = "text" if wants_text else "numbers"
    if unclear:
        column, dtype = unclear[0]
        raise InputError(
            f"column {column!r} is {dtype}, which may or may not be {kind} for input "
            f"{spec.name!r}; the table has {_kinds(meta)}",
            "name the columns: columns=[...], or convert the column to the dtype of its values",
            option="columns",
            input=spec.name,
            column=str(column),
            suggestions=[Suggestion("columns", found or None)],
        )
    if not found:
        raise InputError(
            f"no column has {kind} for input {spec}; the table has {_kinds(meta)}",
            "name the columns: columns=[...]",
            option="columns",
            input=spec.name,
            suggestions=[Suggestion("columns")],
        )
    return found


def _may_feed(dtype: Any, wanted: np.dtype) -> bool:
    """Return whether an input may take values, or lists of values, of a column's dtype."""
    if is_list_dtype(dtype):
        dtype = pd.ArrowDtype(dtype.pyarrow_dtype.value_type)
    return not conversion(source_of_dtype(dtype), target_of(wanted)).is_refused


def _column_input(
    meta: pd.DataFrame, spec: TensorSpec, columns: str | Sequence[str], ragged: bool
) -> ColumnInput:
    if spec.dtype is None:
        raise InputError(
            f"input {spec} cannot be made of columns",
            "extract a part of the model whose inputs are tensors: model.extract(inputs=[...])",
            input=spec.name,
        )
    names = tuple(columns) if isinstance(columns, list | tuple) else (columns,)
    missing = [name for name in names if name not in meta.columns]
    if missing:
        raise InputError(
            f"the table has no column {_names(missing)} for input {spec.name!r}",
            f"its columns are {_names(meta.columns)}",
            option="columns",
            input=spec.name,
            column=str(missing[0]),
        )
    for name in names:
        check_single_label(meta.columns, name, spec.name)
    has_lists = len(names) == 1 and spec.rank != 1 and _may_hold_lists(meta[names[0]], spec)
    found = ColumnInput(spec, names, has_lists, fixed_list_size(meta[names[0]].dtype))
    if ragged and found.row_width is None:
        found = replace(found, is_ragged=True)
    _check_rank(found, meta)
    if not has_lists and found.width is not None and found.width != len(names):
        others = [name for name in meta.columns if name not in names]
        left = f", and {_names(others[:8])} for none" if others else ""
        raise InputError(
            f"input {spec} takes {found.width} {_values_of(spec)} a row; there are {len(names)} "
            f"columns for it: {_names(names[:8])}{' ...' if len(names) > 8 else ''}{left}",
            "name them: columns=[...]",
            option="columns",
            input=spec.name,
            numbers={"columns": len(names), "expected_columns": found.width},
        )
    for name in names:
        _check_kind(meta[name], found)
    return found


def _check_rank(target: ColumnInput, meta: pd.DataFrame) -> None:
    """Check that columns can make an input of the model's rank: (rows,) or (rows, columns)."""
    spec, names, rank = target.spec, target.columns, target.spec.rank
    if rank == 0:
        raise InputError(
            f"input {spec} is one value for all rows; a column has one for each row",
            "use arrays: a dict of them by input name",
            input=spec.name,
            numbers={"expected_rank": rank},
        )
    if rank is not None and rank > 2:
        raise InputError(
            f"input {spec} has rank {rank}; columns make arrays of rank 1 or 2",
            "use an array; columns and lists are for inputs of rank 1 and 2",
            input=spec.name,
            numbers={"expected_rank": rank},
        )
    if rank == 1 and len(names) > 1:
        raise InputError(
            f"input {spec} takes one number a row; {len(names)} columns were named for it",
            "name one column",
            option="columns",
            input=spec.name,
            numbers={"columns": len(names), "expected_columns": 1},
        )
    if rank == 1 and is_list_dtype(meta[names[0]].dtype):
        raise InputError(
            f"input {spec} takes one number a row; column {names[0]!r} has lists, "
            f"{meta[names[0]].dtype}",
            "make a column of one element of the lists, or name another column",
            input=spec.name,
            column=str(names[0]),
        )


def _check_kind(column: pd.Series, target: ColumnInput) -> None:
    """Check that the input takes the column's dtype, whatever the values."""
    dtype, wanted = column.dtype, target.spec.dtype
    assert wanted is not None
    if target.is_list:
        if not is_list_dtype(dtype):
            return  # the dtype of a column of Python lists does not give that of their elements
        dtype = pd.ArrowDtype(dtype.pyarrow_dtype.value_type)
    cell = conversion(source_of_dtype(dtype), target_of(wanted))
    if cell.is_refused:
        raise InputError(
            f"column {column.name!r} is {column.dtype}; input {target.spec.name!r} takes "
            f"{dtype_name(wanted)}: {cell.rule}",
            f"{cell.next_step}; or name other columns: columns=...",
            input=target.spec.name,
            column=str(column.name),
            reason=cell.rule,
        )


def check_named_column(x: Any, column: Any, next_step: str) -> None:
    """Check the label of a column: that of a table must have it, and a Series needs none.

    Parameters
    ----------
    x : Series or DataFrame
        The caller's rows, of pandas or Dask.
    column : hashable or None
        Label that the caller gave.
    next_step : str
        Next step of the error for a table without such a column.

    Raises
    ------
    InputError
        A label was given for a Series, or the table has no column of it.
    """
    if x.ndim == 1:
        if column is not None:
            raise InputError(
                f"column is {column!r}, and a Series was given",
                "leave it out",
                option="column",
                suggestions=[Suggestion("column")],
            )
        return
    names = list(x.columns)
    if column not in names:
        what = "a table was given" if column is None else f"no column {column!r}"
        raise InputError(
            f"{what}; its columns are {_names(names[:20])}",
            next_step,
            option="column",
            column=None if column is None else str(column),
        )


def check_single_label(labels: pd.Index, name: Any, spec: str) -> None:
    """Check that one column only has a label.

    Parameters
    ----------
    labels : Index
        Labels of the table's columns.
    name : hashable
        Label of a column that feeds an input.
    spec : str
        Name of the input.

    Raises
    ------
    InputError
        Several columns have the label.
    """
    count = int((labels == name).sum()) if not labels.is_unique else 1
    if count > 1:
        raise InputError(
            f"{count} columns are called {name!r}, and input {spec!r} takes one",
            "rename them, or drop all but one: table.loc[:, ~table.columns.duplicated()]",
            option="columns",
            input=spec,
            column=str(name),
            numbers={"columns": count, "expected_columns": 1},
        )


def _may_hold_lists(column: pd.Series, spec: TensorSpec) -> bool:
    """Return whether a column may hold lists.

    Objects are judged by their values. If there are none yet, as in Dask's meta, they may be lists
    where the input takes numbers, or more than one text a row.
    """
    if is_list_dtype(column.dtype):
        return True
    if column.dtype != object:
        return False
    if len(column):
        return holds_lists(column)
    return not _takes_text(spec) or _width(spec) not in (None, 1)


def holds_lists(column: pd.Series) -> bool:
    """Return whether the first value of a column that is not missing is a list."""
    return next((is_list(value) for value in column if not is_missing(value)), False)


def is_list(value: Any) -> bool:
    """Return whether a value is a list, a tuple, or an array of any package with axes."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _takes_text(spec: TensorSpec) -> bool:
    return spec.dtype is not None and spec.dtype.kind == "O"


def _width(spec: TensorSpec) -> int | None:
    shape = spec.shape
    return shape[1] if shape and len(shape) > 1 and isinstance(shape[1], int) else None


def _values_of(spec: TensorSpec) -> str:
    return "texts" if _takes_text(spec) else "numbers"


def _kinds(meta: pd.DataFrame) -> str:
    shown = [f"{name!r} ({meta[name].dtype})" for name in list(meta.columns)[:8]]
    return ", ".join(shown) + (" ..." if len(meta.columns) > 8 else "")


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
