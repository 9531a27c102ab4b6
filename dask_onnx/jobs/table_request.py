"""Options of a job over a table, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dask_onnx.collections.run_options import Columns, OnError
from dask_onnx.core.errors import InputError

Pooling = Literal["mean", "max", "first"]

_SUFFIXES = (".parquet", ".parq", ".csv")


@dataclass(frozen=True, slots=True)
class TableRequest:
    """Options of `predict_files` that are for tables; see there.

    Raises
    ------
    InputError
        Options that exclude each other, or that mean nothing together.
    """

    columns: Columns = None
    text: str | None = None
    tokenizer: Any = None
    pooling: Pooling = "mean"
    append: bool | Sequence[str] = False
    on_error: OnError = "raise"
    quarantine: str | None = None
    require_finite: bool = False
    length_buckets: Sequence[int] | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.quarantine is not None and self.on_error == "null":
            raise InputError(
                "on_error is 'null' and a quarantine was given",
                "leave one out: bad rows either become missing values or are written apart",
                option="quarantine",
            )
        if self.text is None:
            return
        if self.tokenizer is None:
            raise InputError(
                f"column {self.text!r} is text, and no tokenizer was given",
                "give the model's tokenizer.json",
                option="tokenizer",
                column=self.text,
            )
        for name in ("columns", "require_finite", "length_buckets"):
            if getattr(self, name):
                raise InputError(
                    f"{name} is not for a text encoder, whose input is column {self.text!r}",
                    "leave it out",
                    option=name,
                )

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        found = {each.name: (getattr(self, each.name), each.default) for each in fields(self)}
        return [
            name
            for name, (value, default) in found.items()
            # The columns may be an Index, which compares element by element.
            if (value is not None if default is None else value != default)
        ]

    @property
    def keeps_bad_rows(self) -> bool:
        """True if bad rows are no error: they become missing values or are written apart."""
        return self.on_error != "raise" or self.quarantine is not None

    @property
    def row_options(self) -> dict[str, Any]:
        """Keywords about bad rows, for `Model.predict` or `Model.predict_checked`."""
        return {"on_error": self.on_error} if self.quarantine is None else {}

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns of the input that are named to be written too."""
        if isinstance(self.append, bool):
            return ()
        return (self.append,) if isinstance(self.append, str) else tuple(self.append)


def is_table(path: str) -> bool:
    """Return whether a data set of this name is read as a table."""
    return Path(path.rstrip("/")).suffix in _SUFFIXES
