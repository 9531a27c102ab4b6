"""Functions that a caller gives for blocks: before the model, and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.jobs.option_checks import check_text


@dataclass(frozen=True, slots=True)
class PickledFunction(NamedFunction):
    """A function that travels by value, such as one of a notebook."""

    function: Callable[..., Any]

    def resolve(self) -> Callable[..., Any]:
        """Return the function itself."""
        return self.function


def block_function(given: Callable[..., Any] | str | None, option: str) -> NamedFunction | None:
    """Return a function in the form in which it travels to the workers.

    Parameters
    ----------
    given : callable, "MODULE:FUNCTION" or None
    option : str
        Name of the option, for errors.

    Raises
    ------
    InputError
        The name is not of that form, or cannot be imported here.
    """
    if given is None:
        return None
    if callable(given):
        return PickledFunction(getattr(given, "__name__", repr(given)), option, given)
    check_text(given, option)
    function = NamedFunction(given, option)
    function.resolve()
    return function
