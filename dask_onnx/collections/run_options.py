"""What callers may ask for besides the inputs, as records that go down through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dask_onnx.core.errors import InputError

Outputs = str | Sequence[str] | None
BatchSize = int | Literal["auto"] | None
Columns = str | Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""Columns of a table, or input to its columns."""
OnError = Literal["raise", "null"]
MAX_COLUMNS = 32
"""An output of more numbers a row becomes one column of lists."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the model runs, whatever the collection."""

    outputs: Outputs = None
    batch_size: BatchSize = "auto"
    plan: Any = None
    """A Plan, or None for the whole model."""
    retries: int | None = None

    def keywords(self, outputs: Sequence[str]) -> dict[str, Any]:
        """For `Model.predict`, with other outputs."""
        return {
            "outputs": list(outputs),
            "batch_size": self.batch_size,
            "plan": self.plan,
            "retries": self.retries,
        }


@dataclass(frozen=True, slots=True)
class RowOptions:
    """What becomes of rows that are looked at one by one."""

    on_error: OnError | Literal["split"] = "raise"
    """What a bad row becomes: an error, a missing value, or a row of another collection."""
    require_finite: bool = False
    """NaN and infinities in float inputs are bad."""

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "null", "split"):
            raise InputError(
                f"on_error is {self.on_error!r}",
                "choose 'raise' or 'null', or call predict_checked",
            )

    def refuse(self, x: Any) -> None:
        """Options that mean nothing for `x`, which has no rows of its own."""
        if self != RowOptions():
            raise InputError(
                f"on_error and require_finite are for tables and bags; {type(x).__name__} was "
                "given",
                "leave them out, or pass a DataFrame or a bag",
            )


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a table goes in and comes out."""

    columns: Columns = None
    append: bool | Sequence[str] = False
    max_columns: int = MAX_COLUMNS
    length_buckets: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.append, bool):
            names = [self.append] if isinstance(self.append, str) else self.append
            object.__setattr__(self, "append", tuple(dict.fromkeys(names)))
        if self.length_buckets is None:
            return
        sizes = tuple(sorted(self.length_buckets))
        if not sizes or sizes[0] < 1:
            raise InputError(
                f"length_buckets is {self.length_buckets!r}", "give lengths, such as [16, 32, 64]"
            )
        object.__setattr__(self, "length_buckets", sizes)

    def kept(self, columns: Sequence[Any]) -> tuple[Any, ...]:
        """Which of a table's columns stay beside the result."""
        if isinstance(self.append, bool):
            return tuple(columns) if self.append else ()
        lacking = [name for name in self.append if name not in columns]
        if lacking:
            raise InputError(
                f"the table has no column {lacking[0]!r} that append names",
                f"its columns are {', '.join(map(repr, list(columns)[:20]))}",
            )
        return tuple(self.append)

    def refuse(self, x: Any) -> None:
        """Options that mean nothing for `x`, which is no table."""
        if self != TableOptions():
            raise InputError(
                f"columns, append, max_columns and length_buckets are for tables; "
                f"{type(x).__name__} was given",
                "leave them out, or pass a DataFrame",
            )
