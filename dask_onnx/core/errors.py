"""Errors that dask_onnx raises, with their facts as fields.

A message says what happened, where, with the numbers, and on a second line what to do next. The
same facts are attributes, so that programs need not read English. All errors survive pickling,
since most are raised on a worker and caught on a client.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.core.formatting import printable


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A value of an option that avoids an error."""

    option: str
    """Name of the option in Python, such as "n_stages"."""
    value: Any = None
    """Value to give; None where the caller has to choose one."""

    def __str__(self) -> str:
        return self.option if self.value is None else f"{self.option}={self.value!r}"


_MAX_CHARACTERS = 4000
"""Length of a cause and of a next step; together less than ``distributed.admin.max-error-length``.
"""
_LINE_BREAK = re.compile(r"\s*[\n\r]\s*")
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
        One line: what happened, where, with the numbers. Names in it come from models and files:
        line breaks become spaces, and characters without a glyph are escaped. The fields below keep
        names as they are.
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
        Message of the library below, such as ONNX Runtime, word for word.
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
        cause, next_step = _one_line(cause), _one_line(next_step)
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
        # Dask sends the errors behind this one too, as attributes; where one of them cannot be
        # pickled, it would send nothing but the text.
        is_context_hidden = self.__suppress_context__
        self.__cause__ = _portable(self.__cause__)
        self.__context__ = _portable(self.__context__)
        self.__suppress_context__ = is_context_hidden
        state = {
            **self.__dict__,
            "__cause__": self.__cause__,
            "__context__": self.__context__,
            "__suppress_context__": is_context_hidden,
        }
        return _rebuild, (type(self), self.args), state


def _rebuild(kind: type[DaskOnnxError], args: tuple[Any, ...]) -> DaskOnnxError:
    """Return an error without its attributes, whatever parameters the class takes."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _portable(error: BaseException | None) -> BaseException | None:
    """Return an error itself if it survives pickling, else one with the same text."""
    if error is None or isinstance(error, DaskOnnxError):
        return error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the reduction or the reconstruction of a class raises
        return RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    return error


def _one_line(text: str) -> str:
    """Return a text on one line, its middle left out if it is very long: Dask drops such fields."""
    text = printable(_LINE_BREAK.sub(" ", text))
    if len(text) <= _MAX_CHARACTERS:
        return text
    half = _MAX_CHARACTERS // 2
    return f"{text[:half]} ... {text[-half:]}"


class ModelError(DaskOnnxError):
    """A model cannot be read, or cannot be run as it is."""


class UnexpectedModelError(ModelError):
    """Code failed on a model in a way that no check of models foresees.

    ``reason`` and ``__cause__`` are what it raised; ``node`` is the node that it worked on.
    """


class PlanError(DaskOnnxError):
    """A plan cannot be made as asked, or does not fit the model or the cluster."""


class ClusterError(DaskOnnxError, RuntimeError):
    """A cluster is gone, cannot be reached, or cannot be used from here."""


class InputError(DaskOnnxError, ValueError):
    """An argument does not fit the model: a name, dtype, shape, chunk or option."""


class StageError(DaskOnnxError, RuntimeError):
    """A stage failed on the worker that ran it."""


class RunError(StageError):
    """A kernel rejected the values that it was given, or failed on them."""


class CrashError(RunError):
    """A run ended the process that it was in: native code crashed, or was ended.

    Parameters
    ----------
    cause, next_step
        As for `DaskOnnxError`.
    rows : sequence of int
        Positions, in the run's input, of the rows that do so by themselves; empty where that could
        not be found.
    fields
        Fields of `DaskOnnxError`. ``reason`` tells how the process ended, and
        ``numbers["signal"]`` the signal, if one ended it.
    """

    def __init__(
        self, cause: str, next_step: str = "", rows: Sequence[int] = (), **fields: Any
    ) -> None:
        super().__init__(cause, next_step, **fields)
        self.rows = tuple(rows)

    def at_rows(self, rows: Sequence[int]) -> CrashError:
        """Return the error with other positions of the same rows."""
        return CrashError(self.cause, self.next_step, rows, **self.fields)


class TimeLimitError(StageError):
    """A run took longer than it may, and was ended."""


class OutputError(DaskOnnxError):
    """An output cannot be written, as on a full disk, after the job has started."""


class StoreError(DaskOnnxError):
    """Weights cannot be written to, or read from, the host's store."""
