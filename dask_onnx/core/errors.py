"""Errors that dask_onnx raises, with their facts as fields.

A message says what happened, where, with the numbers, and on a second line what to do next. The
same facts are attributes, so that programs need not read English. All errors survive pickling,
since most are raised on a worker and caught on a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A value of an option that avoids an error."""

    option: str
    """Name of the option in Python, such as "n_stages"."""
    value: Any = None
    """Value to give; None where the caller has to choose one."""

    def __str__(self) -> str:
        return self.option if self.value is None else f"{self.option}={self.value!r}"


_FIELDS = (
    "option",
    "input",
    "column",
    "stage",
    "node",
    "axis",
    "reason",
    "numbers",
    "suggestions",
)


class DaskOnnxError(Exception):
    """Base class of all errors that dask_onnx raises on purpose.

    Parameters
    ----------
    cause : str
        One line: what happened, where, with the numbers.
    next_step : str
        One line: what the caller can do about it. Empty if nothing sensible can be said.
    option : str, optional
        Name of the option (the Python parameter) that is at fault.
    input : str, optional
        Name of the model's input or value at fault.
    column : str, optional
        Name of the table's column at fault.
    stage : str, optional
        Label of the stage at fault.
    node : str, optional
        Name of the ONNX node at fault.
    axis : int, optional
        Axis of `input` at fault.
    reason : str, optional
        What the library below said, such as ONNX Runtime, word for word.
    numbers : mapping of str to number, optional
        The quantities in the message, by name with their unit: ``{"needed_bytes": 5e9}``.
    suggestions : sequence of Suggestion, optional
        Options that avoid the error, the best first.

    Attributes
    ----------
    cause, next_step, option, input, column, stage, node, axis, reason, numbers, suggestions
        As above; None or empty where not given.
    """

    def __init__(
        self,
        cause: str,
        next_step: str = "",
        *,
        option: str | None = None,
        input: str | None = None,  # noqa: A002 - the field's name on the error
        column: str | None = None,
        stage: str | None = None,
        node: str | None = None,
        axis: int | None = None,
        reason: str | None = None,
        numbers: Mapping[str, float] | None = None,
        suggestions: Sequence[Suggestion] = (),
    ) -> None:
        super().__init__(cause, next_step)
        self.cause = cause
        self.next_step = next_step
        self.option = option
        self.input = input
        self.column = column
        self.stage = stage
        self.node = node
        self.axis = axis
        self.reason = reason
        self.numbers: Mapping[str, float] = dict(numbers or {})
        self.suggestions = tuple(suggestions)

    def __str__(self) -> str:
        return f"{self.cause}\n{self.next_step}" if self.next_step else self.cause

    @property
    def fields(self) -> dict[str, Any]:
        """The fields beside `cause` and `next_step` that were given, by name."""
        found = {name: getattr(self, name) for name in _FIELDS}
        return {name: value for name, value in found.items() if value not in (None, {}, ())}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.cause, self.next_step, self.fields)


def _rebuild(
    kind: type[DaskOnnxError], cause: str, next_step: str, fields: Mapping[str, Any]
) -> DaskOnnxError:
    return kind(cause, next_step, **fields)


class ModelError(DaskOnnxError):
    """A model cannot be read, or cannot be run as it is."""


class PlanError(DaskOnnxError):
    """A plan cannot be made as asked, or does not fit the model or the cluster."""


class InputError(DaskOnnxError, ValueError):
    """An argument does not fit the model: a name, dtype, shape, chunk or option."""


class StageError(DaskOnnxError, RuntimeError):
    """A stage failed on the worker that ran it."""


class RunError(StageError):
    """A kernel rejected the values that it was given, or failed on them."""


class StoreError(DaskOnnxError):
    """Weights cannot be written to, or read from, the host's store."""
