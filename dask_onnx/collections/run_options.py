"""Options of a request besides its inputs, as records that are passed down through the layers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
        if not isinstance(self.append, bool):
            names = [self.append] if isinstance(self.append, str) else self.append
            object.__setattr__(self, "append", tuple(dict.fromkeys(names)))
        if self.length_buckets is None:
            return
        sizes = tuple(sorted(self.length_buckets))
        if not sizes or sizes[0] < 1:
            raise InputError(
                f"length_buckets is {self.length_buckets!r}",
                "give lengths of 1 or more, such as [16, 32, 64]",
                option="length_buckets",
                suggestions=[Suggestion("length_buckets", [16, 32, 64])],
            )
        object.__setattr__(self, "length_buckets", sizes)

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
        """Raise an InputError if options are given for `x`, which is no table."""
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
