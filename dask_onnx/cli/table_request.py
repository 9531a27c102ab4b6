"""What the options of ``dask-onnx predict`` say of a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dask_onnx.collections.run_options import Columns, OnError
from dask_onnx.core.errors import InputError

Pooling = Literal["mean", "max", "first"]

_SUFFIXES = (".parquet", ".parq", ".csv")


@dataclass(frozen=True, slots=True)
class TableRequest:
    """What is asked for, as the options say it."""

    columns: tuple[str, ...] = ()
    """For the model's one input."""
    feeds: tuple[str, ...] = ()
    """INPUT=COLUMN, or INPUT=COLUMN,COLUMN."""
    text: str | None = None
    """The column of text."""
    tokenizer: str | None = None
    pooling: Pooling = "mean"
    keep: tuple[str, ...] = ()
    """Of the caller's columns, to write too."""
    append: bool = False
    """Write all of them."""
    on_error: OnError = "raise"
    quarantine: str | None = None
    """Where bad rows go."""
    require_finite: bool = False
    length_buckets: tuple[int, ...] | None = None
    encoding: str | None = None
    """Of the text of a CSV file; UTF-8 where nothing is said."""

    @property
    def is_given(self) -> bool:
        return self != TableRequest()

    @property
    def keeps_bad_rows(self) -> bool:
        """They are no error: their results are left empty, or they are written elsewhere."""
        return self.on_error != "raise" or self.quarantine is not None

    def row_options(self) -> dict[str, Any]:
        """As `Model.predict` and `Model.predict_checked` take them."""
        if self.quarantine is None:
            return {"on_error": self.on_error}
        if self.on_error == "null":
            raise InputError(
                "--on-error null and --quarantine were both given",
                "bad rows are either left empty or put elsewhere",
            )
        return {}

    def named_columns(self) -> Columns:
        """As `Model.predict` takes it."""
        if self.columns and self.feeds:
            raise InputError("--columns and --feed were both given", "use one of them")
        if not self.feeds:
            return list(self.columns) or None
        named = {}
        for feed in self.feeds:
            name, equals, columns = feed.partition("=")
            if not equals or not columns:
                raise InputError(f"--feed is {feed!r}", "give it as INPUT=COLUMN")
            parts = columns.split(",")
            named[name] = parts if len(parts) > 1 else parts[0]
        return named


def is_table(path: str) -> bool:
    """Whether a data set of that name is read as a table."""
    return Path(path.rstrip("/")).suffix in _SUFFIXES
