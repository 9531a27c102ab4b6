"""Choice of the columns of a table that are read, and of their types.

The inputs that a column feeds decide its type: text for a string input, float64 for one of floats.
Columns that are only kept are written as they were read.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from dask_onnx.collections.columns import resolve_columns
from dask_onnx.collections.run_options import Columns
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, is_floating
from dask_onnx.io.table_frames import dtype_of, empty_frame, is_text
from dask_onnx.jobs.table_request import TableRequest

_SHOWN = 20
"""Names of columns that an error lists."""

InferType = Callable[[str, bool], pa.DataType]
"""Function of a column's name, and whether its texts must follow from its values."""


@dataclass(frozen=True, slots=True)
class ReadColumn:
    """A column that is read."""

    name: str
    type: pa.DataType
    exact: bool = False
    """True if a text that is not the written form of a number is an error."""
    stored_as: pa.DataType | None = None
    """Type in the file, from which values are cast; None if it is `type`."""


@dataclass(frozen=True, slots=True)
class ReadColumns:
    """Columns that are read, and those of them that feed the model."""

    columns: tuple[ReadColumn, ...]
    fed: Columns
    """Columns by input, as `Model.predict` takes them."""

    @property
    def names(self) -> list[str]:
        """Names of the columns, in the order of the file."""
        return [column.name for column in self.columns]


@dataclass(frozen=True, slots=True)
class Choice:
    """Facts of a table that are known before the types of its columns are chosen."""

    names: tuple[str, ...]
    """Names of all columns, in their order."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model that the outputs need; none for a text encoder."""
    request: TableRequest
    infer: InferType
    nullable: Callable[[str], bool]
    """Tells by name whether a column may have missing values."""
    is_verbatim: bool = False
    """True if columns that are only kept are read as text, since they are written as text."""
    is_typed: bool = False
    """True if the file states the types of its columns."""
    keys: tuple[str, ...] = ()
    """Those of `names` that are Hive partitions, whose values are texts."""


def choose_columns(choice: Choice) -> ReadColumns:
    """Return the columns to read, with their types.

    Raises
    ------
    InputError
        A named column does not exist, or occurs several times; one that feeds the model as numbers
        is kept too, and its texts cannot be written from the numbers.
    """
    request = choice.request
    check_names(choice.names, named_columns(request))
    texts = frozenset(_text_columns(choice))
    first = {name: _first_type(choice, name, texts) for name in choice.names}
    if request.text is not None:
        fed: Mapping[str, list[Any]] = {request.text: []}
        columns = request.columns
    else:
        meta = _meta(choice, first)
        try:
            found = resolve_columns(meta, choice.inputs, request.columns, ragged=True)
        except InputError:
            # `Model.predict` raises it again, and knows all options.
            return ReadColumns(
                tuple(ReadColumn(name, kind) for name, kind in first.items()), request.columns
            )
        fed = {}
        for target in found:
            for name in target.columns:
                fed.setdefault(name, []).append(target.spec.dtype)
        columns = {target.spec.name: list(target.columns) for target in found}
    wanted = [name for name in choice.names if name in fed or _is_kept(request, name)]
    if all(name in choice.keys for name in wanted):
        # Only a column in the files themselves says how many rows there are.
        wanted += [name for name in choice.names if name not in choice.keys][:1]
    return ReadColumns(
        tuple(_read_column(choice, name, first[name], fed.get(name)) for name in wanted), columns
    )


def named_columns(request: TableRequest) -> dict[str, str]:
    """Return the columns that the options name, each with the first of these options."""
    columns = request.columns
    missing = request.na_values if isinstance(request.na_values, Mapping) else {}
    groups = {
        "append": request.kept,
        "text": filter(None, [request.text]),
        "columns": columns.values() if isinstance(columns, Mapping) else [columns],
        "dtype": request.dtypes,
        "na_values": missing,
    }
    named: dict[str, str] = {}
    for option, group in groups.items():
        for names in group:
            for name in [names] if isinstance(names, str) else names if names is not None else ():
                named.setdefault(name, option)
    return named


def check_names(names: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Raise an error for a column that a table does not have.

    Parameters
    ----------
    names : sequence of str
        Columns of the table.
    wanted : mapping of str to str
        Columns that options name, and these options.

    Raises
    ------
    InputError
        It does not exist; with the names that are most like it.
    """
    for name, option in wanted.items():
        if name in names:
            continue
        near = difflib.get_close_matches(str(name), [str(each) for each in names], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        if len(names) == 1 and (found := next((c for c in ";\t|," if c in names[0]), None)):
            hint = f"is {found!r} between its columns? Give it as delimiter. "
        shown = ", ".join(map(str, names[:_SHOWN]))
        raise InputError(
            f"the table has no column {name!r}",
            f"{hint}its columns are {shown}{', ...' if len(names) > _SHOWN else ''}",
            option=option,
            column=str(name),
        )


def _is_kept(request: TableRequest, name: str) -> bool:
    return request.append is True or request.quarantine is not None or name in request.kept


def _is_written(request: TableRequest, name: str) -> bool:
    """Return whether the values of a column are written with the results."""
    return request.append is True or name in request.kept


def _first_type(choice: Choice, name: str, texts: Collection[str]) -> pa.DataType:
    """Return the type of a column before it is known whether it feeds the model."""
    if name in choice.request.dtypes:
        return choice.request.dtypes[name]
    if (not choice.is_typed or name in choice.keys) and name in texts:
        return pa.string()
    return choice.infer(name, False)


def _text_columns(choice: Choice) -> list[str]:
    """Return the columns that are named for string inputs, by option or by their own names."""
    request, inputs = choice.request, choice.inputs
    if request.text is not None:
        return [request.text]
    takers = [spec for spec in inputs if spec.dtype is not None and spec.dtype.kind == "O"]
    columns = request.columns
    if isinstance(columns, Mapping):
        own = {name: name for name in choice.names}
        groups = [columns.get(spec.name, own.get(spec.name, ())) for spec in takers]
    elif columns is not None:
        groups = [columns for _ in takers] if len(inputs) == 1 else []
    else:
        groups = [spec.name for spec in takers if spec.name in choice.names]
        if takers and len(inputs) == 1 and not groups:
            shape = takers[0].shape or ()
            # As many columns as the input takes: they are meant.
            groups = [choice.names] if shape[1:] == (len(choice.names),) else []
    given = [group for group in groups if group is not None]
    return [name for group in given for name in ([group] if isinstance(group, str) else group)]


def _meta(choice: Choice, kinds: Mapping[str, pa.DataType]) -> pd.DataFrame:
    return empty_frame(
        {name: dtype_of(kind, nullable=choice.nullable(name)) for name, kind in kinds.items()}
    )


def _read_column(
    choice: Choice, name: str, first: pa.DataType, fed: list[Any] | None
) -> ReadColumn:
    request = choice.request
    if choice.is_typed and name in request.dtypes and name not in choice.keys:
        return ReadColumn(name, first, stored_as=choice.infer(name, False))
    if choice.is_typed or name in request.dtypes or (fed is not None and is_text(first)):
        return ReadColumn(name, first)
    if fed is None:
        if choice.is_verbatim or not _is_written(request, name):
            return ReadColumn(name, pa.string())
        return ReadColumn(name, choice.infer(name, True), exact=True)
    if not _is_written(request, name):
        is_number = pa.types.is_integer(first) or pa.types.is_floating(first)
        as_float = is_number and all(dtype is not None and is_floating(dtype) for dtype in fed)
        return ReadColumn(name, pa.float64() if as_float else first)
    exact = choice.infer(name, True)
    if is_text(exact):
        raise InputError(
            f"column {name!r} feeds the model as numbers and is kept, and its texts cannot be "
            "written from the numbers, such as those with leading zeros",
            f"state what it is: dtype {name}={first} writes the numbers, or do not keep it",
            option="dtype",
            column=name,
            suggestions=[Suggestion("dtype", f"{name}={first}")],
        )
    return ReadColumn(name, exact, exact=True)
