"""The boundary at which errors of other code on a model become a `ModelError`.

`structure` refuses damaged models with a reason. What it does not foresee reaches code that relies
on a sound model: onnx's checker and inference, protobuf, and this package. Their errors say nothing
of the model; here they get its name, the node at work, and keep the error itself as their cause.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from dask_onnx.core.errors import DaskOnnxError, UnexpectedModelError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_PASSED_ON = (DaskOnnxError, OSError, Warning)
"""Errors that are not about the model: of files and connections, and warnings made errors."""


@contextlib.contextmanager
def model_faults(act: str, name: str) -> Iterator[None]:
    """Turn unexpected errors inside a ``with`` block into an `UnexpectedModelError`.

    Parameters
    ----------
    act : str
        Action on the model as a participle, such as "loaded": the error says "cannot be <act>".
    name : str
        The model's name; empty if it has none yet.

    Raises
    ------
    UnexpectedModelError
        In place of any error but `DaskOnnxError`, OSError and warnings.
    """
    try:
        yield
    except _PASSED_ON:
        raise
    except Exception as error:  # of any type: that is what the boundary is for
        node = _node_at_work(error.__traceback__)
        said = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        model = f"model {name!r}" if name else "the model"
        at = f" at node {node!r}" if node else ""
        raise UnexpectedModelError(
            f"{model} cannot be {act}{at}: {reason}",
            "if ONNX Runtime runs this model, please report it with the error above; otherwise "
            "export it again",
            node=node,
            reason=reason,
        ) from error


def raises_model_errors(
    act: str,
) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Return a decorator that puts `model_faults` around a method of an object with a ``name``."""

    def decorate(method: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @functools.wraps(method)
        def guarded(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            with model_faults(act, str(getattr(args[0], "name", ""))):
                return method(*args, **kwargs)

        return guarded

    return decorate


def _node_at_work(traceback: TracebackType | None) -> str | None:
    """Return the name of the node that the innermost function with one was working on."""
    found: str | None = None
    while traceback is not None:
        value: Any = traceback.tb_frame.f_locals.get("node")
        name = getattr(value, "name", None)
        if isinstance(name, str) and (name or getattr(value, "op_type", "")):
            found = name or value.op_type
        traceback = traceback.tb_next
    return found
