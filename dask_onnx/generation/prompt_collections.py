"""Prompts in lists and bags: tasks that write after those of each partition."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import is_dask_collection
from dask.delayed import Delayed, delayed

from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.collections.bad_rows import (
    Found,
    RowsError,
    in_place,
    join_found,
    located,
    message,
)
from dask_onnx.collections.inline import InlineGraph, InlineTask
from dask_onnx.core.errors import InputError
from dask_onnx.generation.generated import Generation
from dask_onnx.generation.prompt_writer import PromptWriter, written_of

PROMPTS_OF_A_TASK = 64
"""Prompts of each task, where a list of prompts is written after."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A generation that is checked, without its prompts."""

    writer: PromptWriter
    """Function of the tasks."""
    content: Delayed
    """Content of the tokenizer's JSON file; None without one."""
    supplies: Sequence[Delayed]
    """Results of the tasks that bring the model to workers."""

    @property
    def has_numbers(self) -> bool:
        """True if rows must be counted, since their numbers decide what is drawn."""
        return not self.writer.options.sampling.is_greedy

    def compute(self, prompts: Sequence[Any], first: int = 0) -> Found:
        """Write after prompts at once, on the scheduler that Dask chooses."""
        starts = range(0, max(len(prompts), 1), PROMPTS_OF_A_TASK)
        run = delayed(self.writer, pure=True, traverse=False)
        lazy = [
            run(self.content, prompts[s : s + PROMPTS_OF_A_TASK], first + s, *self.supplies)
            for s in starts
        ]
        return join_found(list(zip(starts, compute_now(lazy), strict=True)))


def all_written(writer: PromptWriter, found: Found, count: int, where: str) -> list[Any]:
    """Return a `Generation` for each prompt, in their order.

    Parameters
    ----------
    writer : PromptWriter
    found : Found
        Results and errors.
    count : int
        Number of prompts.
    where : str
        Location of the prompts in words, such as " of its partition".

    Raises
    ------
    InputError, RunError
        That of the first bad prompt, if these are errors.
    """
    if writer.rows.on_error == "raise" and found.errors:
        place = min(found.errors)
        text = f"prompt {place:,} of {count:,}{where}: "
        raise located(_of_row(found.errors[place]), text, place, count) from None
    written = in_place(found, written_of(found), None)
    for place, error in found.errors.items():
        written[place] = Generation(None, (), None, 0, message(error))
    return written


def _of_row(error: Exception) -> Exception:
    """Return the error of the first bad row, where one is about all bad rows."""
    if not isinstance(error, RowsError) or not error.row_causes:
        return error
    cause = error.row_causes[min(error.row_causes)]
    return InputError(cause, error.next_step, numbers=error.numbers)


def generate_list(request: GenerationRequest, prompts: Sequence[Any]) -> list[Generation]:
    """Return what is written after each prompt of a list; computed now."""
    return all_written(request.writer, request.compute(prompts), len(prompts), "")


def generate_bag(request: GenerationRequest, bag: Any) -> Any:
    """Return a bag of `Generation` for a bag of prompts."""
    function = BagPrompts(request.writer)
    if not request.has_numbers:
        return bag.map_partitions(function, request.content, 0, *request.supplies)
    from dask.bag import from_delayed  # loaded by those who use it

    return from_delayed(numbered(bag.to_delayed(), function, request))


def numbered(
    parts: Sequence[Delayed],
    function: Any,
    request: GenerationRequest,
    firsts: Sequence[int] | None = None,
) -> list[Delayed]:
    """Return the tasks of partitions whose rows are numbered over all of them.

    Parameters
    ----------
    parts : sequence of Delayed
        Partitions.
    function : callable
        Takes a partition, the tokenizer's content, the number of its first row, and the supplies.
    request : GenerationRequest
    firsts : sequence of int, optional
        Number of the first row of each partition; by default the rows before it are counted.
    """
    # A name would be the token of its calls too, whatever the options are.
    run = delayed(function, pure=True, traverse=False)
    count = delayed(_count, pure=True)
    add = delayed(operator.add, pure=True)
    first: Any = 0
    tasks = []
    for place, part in enumerate(parts):
        if firsts is not None:
            first = firsts[place]
        tasks.append(run(part, request.content, first, *request.supplies))
        if firsts is None:
            first = add(first, count(part))
    return tasks


def _count(part: Any) -> int:
    """Return the rows of a partition, which may be an iterator."""
    return len(part) if hasattr(part, "__len__") else sum(1 for _ in part)


def is_one_prompt(x: Any) -> bool:
    """Return whether a value is one prompt: a text, or a flat sequence of tokens."""
    if isinstance(x, np.ndarray):
        return x.ndim == 1 and x.dtype.kind in "iu"
    is_sequence = isinstance(x, list | tuple) and len(x) > 0
    return isinstance(x, str | bytes) or (is_sequence and isinstance(x[0], numbers.Integral))


def listed_prompts(x: Any) -> list[Any]:
    """Return a sequence of prompts as a list.

    Raises
    ------
    InputError
        It is none: another collection, a mapping, or a single value.
    """
    if hasattr(x, "to_pylist") and not hasattr(x, "column_names"):
        x = x.to_pylist()  # an array of Arrow
    is_table = hasattr(x, "columns") or hasattr(x, "column_names")
    is_other = isinstance(x, Mapping) or is_table or is_dask_collection(x)
    if is_other or not isinstance(x, Iterable):
        raise InputError(
            f"x is of type {type(x).__name__}",
            "pass a prompt, a sequence of prompts, a Series or DataFrame of pandas or Dask, or a "
            "dask.bag",
            option="x",
        )
    return list(x)


@dataclass(frozen=True, slots=True, eq=False)
class BagPrompts(InlineTask):
    """Function that writes after the prompts of one partition of a bag."""

    writer: PromptWriter
    """Function of the task."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.writer.graph

    def __call__(
        self, prompts: Iterable[Any], content: bytes | None, first: int, *supplies: Any
    ) -> list[Generation]:
        """Return what is written after each prompt."""
        given = list(prompts)
        found = self.writer(content, given, first, *supplies)
        return all_written(self.writer, found, len(given), " of its partition")

    def __dask_tokenize__(self) -> Any:
        return self.writer.__dask_tokenize__()
