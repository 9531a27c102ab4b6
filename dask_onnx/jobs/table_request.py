"""Options of a job over a table, checked against each other."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dask_onnx.collections.run_options import Columns, OnError
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.jobs.option_checks import (
    check_choice,
    check_mapping,
    check_text,
    names_of,
)

Pooling = Literal["mean", "max", "first"]

Missing = Sequence[str] | Mapping[str, str | Sequence[str]]
"""Texts that mean a missing value: in all columns, or by column."""

DTYPES = {
    "string": "string",
    "str": "string",
    "text": "string",
    "object": "string",
    "bool": "bool",
    "boolean": "bool",
    "int": "int64",
    "float": "float64",
    "double": "float64",
    "datetime": "timestamp[ns]",
    "datetime64": "timestamp[ns]",
    "datetime64[ns]": "timestamp[ns]",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float32": "float32",
    "float64": "float64",
}
"""Arrow's name of the type of a column, by the names that `dtype` takes."""


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
    normalize: bool = False
    append: bool | Sequence[str] = False
    on_error: OnError = "raise"
    quarantine: str | None = None
    require_finite: bool = False
    length_buckets: Sequence[int] | None = None
    encoding: str | None = None
    dtype: Mapping[str, str] | None = None
    na_values: Missing | None = None
    delimiter: str | None = None
    decimal: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.quarantine is not None and self.on_error == "null":
            raise InputError(
                "on_error is 'null' and a quarantine was given",
                "leave one out: bad rows either become missing values or are written apart",
                option="quarantine",
            )
        self._check_cells()
        if self.text is None:
            if self.normalize:
                raise InputError(
                    "normalize is for the vectors of texts, and no column of text was given",
                    "name it: text=, or leave normalize out",
                    option="normalize",
                    suggestions=[Suggestion("text")],
                )
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

    def _check_types(self) -> None:
        """Refuse values of types that the options do not take."""
        check_choice(self.pooling, "pooling", get_args(Pooling))
        for name in ("text", "encoding", "delimiter", "decimal"):
            check_text(getattr(self, name), name)
        check_mapping(self.dtype, "dtype", "{'zip': 'string'}")
        if not isinstance(self.normalize, bool):
            raise InputError(
                f"normalize is {self.normalize!r}", "give True or False", option="normalize"
            )
        if not isinstance(self.append, bool):
            names_of(self.append, "append")
        if not isinstance(self.na_values, Mapping | Collection | None):
            raise InputError(
                f"na_values is {self.na_values!r}",
                "pass a list of texts, or a dict from columns to these",
                option="na_values",
            )

    def _check_cells(self) -> None:
        for column, name in (self.dtype or {}).items():
            if str(name) not in DTYPES:
                near = difflib.get_close_matches(str(name), DTYPES, n=2) or ["string", "float64"]
                raise InputError(
                    f"{name!r} is no type of column {column!r}",
                    f"did you mean {' or '.join(near)}? Types are {', '.join(DTYPES)}",
                    option="dtype",
                    column=str(column),
                    suggestions=[Suggestion("dtype", f"{column}={each}") for each in near],
                )
        if isinstance(self.na_values, str):
            raise InputError(
                f"na_values is the text {self.na_values!r}",
                f"pass a list: na_values=[{self.na_values!r}]",
                option="na_values",
            )
        if self.decimal is not None and self.decimal not in (".", ","):
            raise InputError(
                f"the decimal sign is {self.decimal!r}",
                "it is '.' or ','",
                option="decimal",
                suggestions=[Suggestion("decimal", ",")],
            )

    @property
    def dtypes(self) -> dict[str, Any]:
        """Arrow types of the columns that `dtype` names."""
        import pyarrow  # optional: only tables need it

        return {
            column: pyarrow.type_for_alias(DTYPES[str(name)])
            for column, name in (self.dtype or {}).items()
        }

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
