"""Options of a request besides its inputs, as records that are passed down through the layers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_onnx.core.errors import InputError, Suggestion

Outputs = str | Sequence[str] | None
"""Names of outputs: one for a bare result, several for a dict; None for all outputs."""
BatchSize = int | Literal["auto"] | None
"""Rows of a run: a number, "auto" for the best number, None for all rows of a chunk."""
Columns = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""Columns of a table for the one input, or a mapping of input to its columns."""
OnError = Literal["raise", "null"]
"""Treatment of bad rows: an error, or a missing value in their place."""
MAX_COLUMNS = 32
"""Default number of elements a row up to which an output becomes a column for each of them."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that hold for every kind of collection."""

    outputs: Outputs = None
    """Requested outputs."""
    batch_size: BatchSize = "auto"
    """Rows of a run of a session."""
    plan: Any = None
    """Plan, or None for the whole model; checked when the request is built."""
    retries: int | None = None
    """Times that Dask repeats a task that raised; None for ``onnx.retries``."""

    def __post_init__(self) -> None:
        if isinstance(self.batch_size, np.integer):
            object.__setattr__(self, "batch_size", int(self.batch_size))
        if self.retries is not None and not _is_count(self.retries, least=0):
            raise InputError(
                f"retries is {self.retries!r}",
                "give a number of repetitions, 0 or more; None for onnx.retries",
                option="retries",
                suggestions=[Suggestion("retries")],
            )


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Treatment of bad rows, where rows are checked one by one."""

    on_error: OnError | Literal["split"] = "raise"
    """Result of a bad row: an error, a missing value, or a row of another collection."""
    require_finite: bool = False
    """True if NaN and infinities in floating-point inputs make a bad row."""

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "null", "split"):
            raise InputError(
                f"on_error is {self.on_error!r}",
                "choose 'raise' or 'null', or call predict_checked",
                option="on_error",
                suggestions=[Suggestion("on_error", "raise"), Suggestion("on_error", "null")],
            )

    def refuse(self, x: Any) -> None:
        """Raise an InputError if options are given; rows of `x` are not checked one by one."""
        if self != RowOptions():
            raise InputError(
                f"on_error and require_finite are for tables and bags; {type(x).__name__} was "
                "given",
                "leave them out, or pass a DataFrame or a bag",
                option="on_error" if self.on_error != "raise" else "require_finite",
            )


@dataclass(frozen=True, slots=True)
class TableOptions:
    """Options of a run on a table."""

    columns: Columns = None
    """Columns that feed the inputs."""
    append: bool | Sequence[str] = False
    """True to keep the table's columns in the result, or the labels of those to keep."""
    max_columns: int = MAX_COLUMNS
    """Largest number of columns that one output becomes."""
    length_buckets: Sequence[int] | None = None
    """Lengths that lists are padded to; None if the lists of a partition have one length."""

    def __post_init__(self) -> None:
        columns: Any = self.columns
        if isinstance(columns, Mapping):
            columns = {name: _labels(each) for name, each in columns.items()}
        object.__setattr__(self, "columns", _labels(columns))
        if not isinstance(self.append, bool):
            object.__setattr__(self, "append", _kept_labels(self.append))
        if not _is_count(self.max_columns, least=0):
            raise InputError(
                f"max_columns is {self.max_columns!r}",
                f"give a number of columns, such as {MAX_COLUMNS}; 0 makes lists of all outputs",
                option="max_columns",
                suggestions=[Suggestion("max_columns", MAX_COLUMNS)],
            )
        if self.length_buckets is not None:
            object.__setattr__(self, "length_buckets", _buckets(self.length_buckets))

    def kept(self, columns: Sequence[Any]) -> tuple[Any, ...]:
        """Return the columns of a table that the result keeps.

        Raises
        ------
        InputError
            There is no column of a name, or there are several.
        """
        names = self.append if not isinstance(self.append, bool) else columns if self.append else ()
        counts = Counter(columns)
        twice = [name for name in names if counts[name] > 1]
        if twice:
            raise InputError(
                f"{counts[twice[0]]} columns are called {twice[0]!r}, and append keeps them",
                "rename them, or drop all but one: table.loc[:, ~table.columns.duplicated()]",
                option="append",
                column=str(twice[0]),
                numbers={"columns": counts[twice[0]], "expected_columns": 1},
            )
        if isinstance(self.append, bool):
            return tuple(names)
        missing = [name for name in self.append if name not in columns]
        if missing:
            raise InputError(
                f"the table has no column {missing[0]!r} that append names",
                f"its columns are {', '.join(map(repr, list(columns)[:20]))}",
                option="append",
                column=str(missing[0]),
            )
        return tuple(self.append)

    def refuse(self, x: Any) -> None:
        """Raise an InputError if options are given for `x`, which is no table.

        Raises
        ------
        InputError
            Its ``option`` is the first that was given.
        """
        if self != TableOptions():
            defaults = TableOptions()
            given = next(
                field.name
                for field in dataclasses.fields(self)
                if getattr(self, field.name) != getattr(defaults, field.name)
            )
            raise InputError(
                f"columns, append, max_columns and length_buckets are for tables; "
                f"{type(x).__name__} was given",
                "leave them out, or pass a DataFrame",
                option=given,
            )


def _labels(given: Any) -> Any:
    """Return labels of columns as a list or tuple, and a single label as it is.

    Raises
    ------
    InputError
        They come in a set, which has no order.
    """
    if isinstance(given, Set) and not isinstance(given, Mapping):
        raise InputError(
            f"columns is a {type(given).__name__}, which has no order",
            "give a list: the order of the columns is that of the input's elements",
            option="columns",
        )
    is_single = isinstance(given, str | bytes | list | tuple | Mapping)
    return given if is_single or not isinstance(given, Iterable) else list(given)


def _kept_labels(given: Any) -> tuple[Any, ...]:
    """Return the labels of columns to keep, each once."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Iterable):
        raise InputError(
            f"append is {given!r}",
            "give True, False, or a list of the columns to keep",
            option="append",
            suggestions=[Suggestion("append", True), Suggestion("append", [given])],
        )
    return tuple(dict.fromkeys(given))


def _buckets(given: Any) -> tuple[int, ...]:
    """Return lengths to pad to, ascending."""
    sizes = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not sizes or not all(_is_count(size, least=1) for size in sizes):
        raise InputError(
            f"length_buckets is {given!r}",
            "give lengths of 1 or more, such as [16, 32, 64]",
            option="length_buckets",
            suggestions=[Suggestion("length_buckets", [16, 32, 64])],
        )
    return tuple(sorted(map(int, sizes)))


def _is_count(given: Any, *, least: int) -> bool:
    """Return whether a value is a whole number, and not below the least one."""
    is_whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    return is_whole and int(given) >= least
