"""Functions of the caller by module and name; their errors say which block they failed on."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask_onnx.core.errors import DaskOnnxError, InputError, StageError, Suggestion


@dataclass(frozen=True, slots=True)
class NamedFunction:
    """A caller's function by module and name, imported where it runs."""

    text: str
    """Module and function, as MODULE:FUNCTION."""
    option: str
    """Name of the option that gives the function, for errors."""

    def resolve(self) -> Callable[..., Any]:
        """Return the function itself.

        Raises
        ------
        InputError
            The text is malformed, or the function cannot be imported in this process.
        """
        module, separator, name = self.text.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not separator or not all(part.isidentifier() for part in parts):
            raise InputError(
                f"{self.option} is {self.text!r}",
                "give it as MODULE:FUNCTION, such as prepare:crop; a module of another folder is "
                "found if that folder is on PYTHONPATH",
                option=self.option,
            )
        try:
            function: Any = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module does when it is imported
            raise InputError(
                f"{self.option} names module {module!r}, which cannot be imported: "
                f"{_described(error)}",
                "run from the module's folder, or install it, on the workers too",
                option=self.option,
                reason=str(error),
            ) from error
        for part in name.split("."):
            if not hasattr(function, part):
                near = difflib.get_close_matches(part, dir(function), n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling"
                raise InputError(
                    f"{self.option} names {name!r}, which module {module!r} does not have",
                    hint,
                    option=self.option,
                    suggestions=[Suggestion(self.option, f"{module}:{each}") for each in near],
                )
            function = getattr(function, part)
        if not callable(function):
            raise InputError(
                f"{self.option} names {self.text!r}, which is {type(function).__name__} and no "
                "function",
                "name a function of one block",
                option=self.option,
            )
        result: Callable[..., Any] = function
        return result

    def call(self, given: Any, where: str, numbers: dict[str, float] | None = None) -> Any:
        """Return the result of the function for a block.

        Parameters
        ----------
        given : array, or dict of arrays
        where : str
            Rows and file of the block, for errors.
        numbers : dict of str to float, optional
            Field of the error.

        Raises
        ------
        InputError
            The function cannot be imported, or returned nothing.
        StageError
            It raised; with its name, the block, and the line that raised.
        """
        function = self.resolve()
        try:
            result = function(given)
        except DaskOnnxError:
            raise
        except Exception as error:  # whatever the caller's function raises
            raise StageError(
                f"{self.option} function {self.text} raised {_described(error)} for {where}"
                f"{_line_of(error)}",
                "mend the function, or leave these rows out",
                option=self.option,
                reason=_described(error),
                numbers=numbers,
            ) from error
        if result is None:
            raise InputError(
                f"{self.option} function {self.text} returned nothing for {where}",
                "return an array, or a dict of arrays",
                option=self.option,
                numbers=numbers,
            )
        return result


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line_of(error: Exception) -> str:
    """Return the place in the function's own file that raised, as the end of a sentence."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
