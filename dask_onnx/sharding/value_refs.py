"""References from one task to the result of another, or to one item of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dask.task_spec import TaskRef

from dask_onnx.core.stage_tasks import Key


@dataclass(frozen=True, slots=True)
class ValueRef:
    """Reference to a value that a task reads."""

    argument: Any
    """TaskRef of the task that returns the value, or the value itself."""
    position: int | None = None
    """Index of the value where the task returns a tuple; None where it returns the value alone."""


def take_result(value: Any, position: int | None) -> Any:
    """Return the result of a task, or the item at `position` where it is a tuple."""
    return value if position is None else value[position]


def unique_arguments(
    refs: Sequence[ValueRef],
) -> tuple[list[Any], tuple[tuple[int, int | None], ...]]:
    """Return the arguments of a task, and for each reference where it is among them.

    A task that several references point to is passed as an argument once.

    Returns
    -------
    arguments
        TaskRefs and values.
    picks
        For each reference the index of its argument and the position in it.
    """
    arguments: list[Any] = []
    numbers: dict[Key, int] = {}
    picks = []
    for ref in refs:
        number = len(arguments)
        if isinstance(ref.argument, TaskRef):
            number = numbers.setdefault(ref.argument.key, number)
        if number == len(arguments):
            arguments.append(ref.argument)
        picks.append((number, ref.position))
    return arguments, tuple(picks)
