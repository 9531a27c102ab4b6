"""Steps of a chain as the caller gives them: their names, and the values that functions ask for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.composites.chain_steps import FRAME
from dask_onnx.composites.composite import Composite
from dask_onnx.core.errors import InputError, Suggestion

MODELS = (Model, Composite, ImageModel)
"""Types of steps that are models; any other step is a function."""


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step of a chain."""

    name: str
    """Name of the step, unique in the chain."""
    work: Any
    """Model, composite, model of pictures, or function."""
    asked: tuple[str, ...] = ()
    """Values that a function takes beside the result of the step before."""


def define_steps(steps: Sequence[Any], named: Mapping[str, Any]) -> tuple[StepDefinition, ...]:
    """Return the steps of a chain with unique names.

    Parameters
    ----------
    steps : sequence of Model, Composite, ImageModel or callable
        Steps that are named by function or model.
    named : mapping of str to Model, Composite, ImageModel or callable
        Further steps by their names.

    Raises
    ------
    InputError
        There are no steps; one is neither a model nor a function; a function takes no argument, or
        asks for a value that no earlier step has.
    """
    every = [(_own_name(step), step) for step in steps] + list(named.items())
    if not every:
        raise InputError("the chain has no steps", "give models and functions", option="steps")
    found: list[StepDefinition] = []
    for own, work in every:
        known = {FRAME, *(step.name for step in found)}
        unique = _unique(own, known)
        asked = () if isinstance(work, MODELS) else _asked(unique, work, known)
        found.append(StepDefinition(unique, work, asked))
    return tuple(found)


def kept_values(steps: Sequence[StepDefinition]) -> list[frozenset[str]]:
    """Return for each step the earlier values that functions after it ask for."""
    kept: list[frozenset[str]] = []
    later: frozenset[str] = frozenset()
    for step in reversed(steps):
        kept.append(later)
        later |= set(step.asked)
    return kept[::-1]


def _own_name(step: Any) -> str:
    for attribute in ("name", "__name__"):
        found = getattr(step, attribute, None)
        if isinstance(found, str) and found:
            return found
    return type(step).__name__


def _unique(name: str, known: set[str]) -> str:
    """Return a name that no step has: ``det``, ``det_2``, ``det_3``."""
    numbers = iter(range(2, len(known) + 3))
    found = name
    while found in known:
        found = f"{name}_{next(numbers)}"
    return found


def _asked(name: str, function: Any, known: set[str]) -> tuple[str, ...]:
    """Return the names of the values that a function takes beside the result before.

    Raises
    ------
    InputError
        It cannot be called so.
    """
    if not callable(function):
        raise InputError(
            f"step {name!r} is a {type(function).__name__}",
            "pass a Model, Composite, ImageModel or function",
            option="steps",
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built-in functions without a signature
        return ()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not parameters or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise InputError(
            f"function {name!r} takes no positional argument",
            "let it take the result of the step before",
            option="steps",
            stage=name,
        )
    asked = []
    for parameter in parameters[1:]:
        if parameter.kind in many:
            continue
        if parameter.name in known and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
            asked.append(parameter.name)
        elif parameter.default is inspect.Parameter.empty:
            raise InputError(
                f"function {name!r} asks for {parameter.name!r}, which is no earlier step",
                f"parameters after the first are named as {', '.join(map(repr, sorted(known)))}",
                option="steps",
                stage=name,
                suggestions=[Suggestion(each) for each in sorted(known)],
            )
    return tuple(asked)
