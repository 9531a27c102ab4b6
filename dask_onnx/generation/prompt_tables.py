"""Columns of prompts, of pandas and Dask, to columns of what is written after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from dask_onnx.collections.bad_rows import ERROR
from dask_onnx.collections.columns import check_named_column
from dask_onnx.collections.inline import InlineGraph, InlineTask
from dask_onnx.collections.text.text_columns import texts_of
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.errors import InputError
from dask_onnx.generation.generated import Generation
from dask_onnx.generation.prompt_collections import GenerationRequest, all_written, numbered
from dask_onnx.generation.prompt_writer import PromptWriter

COLUMNS = ("text", "tokens", "finish_reason", "prompt_tokens", "new_tokens")
"""Columns of what is written after a prompt."""
_TEXT, _TOKENS = pd.ArrowDtype(pa.string()), pd.ArrowDtype(pa.list_(pa.int64()))


@dataclass(frozen=True, slots=True)
class PromptPlace:
    """Columns of a table that hold the prompts and what is written after them."""

    column: Any = None
    """Label of the column of prompts; None for a Series."""
    prefix: str = ""
    """Beginning of the names of the new columns."""
    has_errors: bool = False
    """True if a column of errors is added, for bad prompts that are kept."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the new columns."""
        return tuple(self.prefix + each for each in (*COLUMNS, *((ERROR,) * self.has_errors)))

    def check(self, x: Any) -> None:
        """Check that the columns fit a Series or DataFrame.

        Raises
        ------
        InputError
            The column of prompts is missing, or the name of a new one is taken.
        """
        next_step = "name the column of prompts: column='prompt', or pass ddf['prompt']"
        check_named_column(x, self.column, next_step)
        if x.ndim > 1 and list(x.columns).count(self.column) > 1:
            raise InputError(
                f"the table has several columns {self.column!r}",
                "rename all but one of them",
                option="column",
                column=str(self.column),
            )
        taken = [name for name in self.names if x.ndim > 1 and name in list(x.columns)]
        if taken:
            raise InputError(
                f"the table has a column {taken[0]!r} already",
                "put something before the names of the new columns: prefix='new_'",
                option="prefix",
                column=taken[0],
            )

    def prompts(self, part: Any) -> list[Any]:
        """Return the prompts of a partition."""
        return texts_of(part if self.column is None else part[self.column])

    def result(self, part: Any, written: Sequence[Generation]) -> pd.DataFrame:
        """Return the table with the new columns; of a Series these alone, with its index."""
        values = {
            "text": pd.array([each.text for each in written], dtype=_TEXT),
            "tokens": pd.array([list(each.tokens) for each in written], dtype=_TOKENS),
            "finish_reason": pd.array([each.finish_reason for each in written], dtype=_TEXT),
            "prompt_tokens": pd.array([each.prompt_tokens for each in written], dtype="int64"),
            "new_tokens": pd.array([each.new_tokens for each in written], dtype="int64"),
            ERROR: pd.array([each.error for each in written], dtype=_TEXT),
        }
        kept = [*COLUMNS, *((ERROR,) * self.has_errors)]
        columns = {self.prefix + name: values[name] for name in kept}
        if self.column is None:
            return pd.DataFrame(columns, index=part.index)
        return part.assign(**columns)


def generate_table(
    request: GenerationRequest, x: Any, place: PromptPlace, firsts: Sequence[int] | None = None
) -> Any:
    """Return a table of what is written after a column of prompts: pandas at once, Dask lazily.

    Parameters
    ----------
    request : GenerationRequest
    x : Series or DataFrame of pandas or Dask
        Prompts.
    place : PromptPlace
        Columns.
    firsts : sequence of int, optional; for Dask
        Number of the first row of each partition; by default rows are counted where it matters.

    Raises
    ------
    InputError
        A column is missing or its name taken; at once for pandas, a prompt cannot be used.
    """
    place.check(x)
    if not hasattr(x, "map_partitions"):
        prompts = place.prompts(x)
        return place.result(
            x, all_written(request.writer, request.compute(prompts), len(prompts), "")
        )
    function = TablePrompts(request.writer, place)
    meta = place.result(meta_of(x), [])
    if not request.has_numbers:
        return x.map_partitions(function, request.content, 0, *request.supplies, meta=meta)
    from dask.dataframe import from_delayed  # loaded by those who use it

    tasks = numbered(x.to_delayed(), function, request, firsts)
    return from_delayed(tasks, meta=meta, divisions=x.divisions, verify_meta=False)


@dataclass(frozen=True, slots=True, eq=False)
class TablePrompts(InlineTask):
    """Function that writes after the prompts of one partition of a table."""

    writer: PromptWriter
    """Function of the task."""
    place: PromptPlace
    """Columns."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.writer.graph

    def __call__(
        self,
        part: Any,
        content: bytes | None,
        first: int,
        *supplies: Any,
        partition_info: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a partition with its new columns."""
        where = f" of partition {partition_info['number']}" if partition_info else ""
        prompts = self.place.prompts(part)
        found = self.writer(content, prompts, first, *supplies)
        return self.place.result(part, all_written(self.writer, found, len(prompts), where))

    def __dask_tokenize__(self) -> Any:
        return (*self.writer.__dask_tokenize__(), repr(self.place))
