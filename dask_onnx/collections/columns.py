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
    is_integer_dtype,
    is_list_dtype,
    is_number_dtype,
    is_text_dtype,
    is_time_dtype,
    values_dtype,
)
from dask_onnx.collections.run_options import Columns
from dask_onnx.core.errors import InputError, Suggestion
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
        return self.spec.dtype is not None and self.spec.dtype.kind == "O"

    @property
    def width(self) -> int | None:
        """Elements of a row, if the model fixes their number."""
        shape = self.spec.shape
        return shape[1] if shape and len(shape) > 1 and isinstance(shape[1], int) else None

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
        With None, several inputs take the columns of their own names; a single input takes the
        column of its name, or else all columns of its kind (numbers or text) in their order.
    ragged : bool
        Whether lists may differ in length, where the model leaves their length open.

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
    if not isinstance(columns, Mapping):
        columns = _by_default(meta, inputs, columns)
    names = [spec.name for spec in inputs]
    unknown = [name for name in columns if name not in names]
    missing = [name for name in names if name not in columns]
    if unknown or missing:
        what = (
            f"names {_names(unknown)}, which is no input of the model"
            if unknown
            else f"names no column for input {_names(missing)}"
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
    wants_text = spec.dtype is not None and spec.dtype.kind == "O"
    found = [
        name
        for name in meta.columns
        if (is_text_dtype(meta[name].dtype) if wants_text else is_number_dtype(meta[name].dtype))
    ]
    lists = [name for name in meta.columns if is_list_dtype(meta[name].dtype)]
    if not found and len(lists) == 1:
        return {spec.name: lists[0]}
    if not found:
        kind = "text" if wants_text else "numbers"
        raise InputError(
            f"no column has {kind} for input {spec}; the table has {_kinds(meta)}",
            "name the columns: columns=[...]",
            option="columns",
            input=spec.name,
            suggestions=[Suggestion("columns")],
        )
    return {spec.name: found}


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
    takes_text = spec.dtype.kind == "O"
    is_list = len(names) == 1 and _holds_lists(meta[names[0]], takes_text=takes_text)
    found = ColumnInput(spec, names, is_list, fixed_list_size(meta[names[0]].dtype))
    if ragged and found.row_width is None:
        found = replace(found, is_ragged=True)
    _check_rank(found, meta)
    if not is_list and found.width is not None and found.width != len(names):
        raise InputError(
            f"input {spec} takes {found.width} numbers a row; there are {len(names)} columns for "
            f"it: {_names(names[:8])}{' ...' if len(names) > 8 else ''}",
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
    dtype, wanted = values_dtype(column), target.spec.dtype
    assert wanted is not None
    if target.is_list:
        if not is_list_dtype(dtype):
            return  # the dtype of a column of Python lists does not give that of their elements
        dtype = pd.ArrowDtype(dtype.pyarrow_dtype.value_type)
    kinds = {"O": is_text_dtype, "b": pd.api.types.is_bool_dtype}
    if wanted.kind in kinds:
        fits = kinds[wanted.kind](dtype)
    elif wanted.kind in "iu":
        fits = is_integer_dtype(dtype) or is_time_dtype(dtype)
    else:
        fits = is_number_dtype(dtype)
    if not fits:
        raise InputError(
            f"column {column.name!r} is {column.dtype}; input {target.spec.name!r} takes "
            f"{dtype_name(wanted)}",
            _next_step(dtype, wanted),
            input=target.spec.name,
            column=str(column.name),
        )


def _next_step(dtype: Any, wanted: np.dtype) -> str:
    if is_time_dtype(dtype):
        return "convert the times to the numbers that the model was trained on"
    if wanted.kind in "iu" and is_number_dtype(dtype):
        return "round it yourself: .round().astype('int64'), missing values filled"
    return "convert the column, or name others: columns=..."


def _holds_lists(column: pd.Series, *, takes_text: bool) -> bool:
    """Return whether a column holds lists.

    Objects are judged by the first of them. If there is none yet, as in Dask's meta, objects can
    only be lists where the input takes numbers.
    """
    if is_list_dtype(column.dtype):
        return True
    if column.dtype != object:
        return False
    if not len(column):
        return not takes_text
    return isinstance(column.iloc[0], list | tuple | np.ndarray)


def _kinds(meta: pd.DataFrame) -> str:
    shown = [f"{name!r} ({meta[name].dtype})" for name in list(meta.columns)[:8]]
    return ", ".join(shown) + (" ..." if len(meta.columns) > 8 else "")


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
