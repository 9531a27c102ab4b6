"""Checks of the options of strategies, schedules and placements, before any work starts.

The causes of these errors name no spelling of an option: it is in the field `option`, so that the
command line can print its own. Only `next_step` spells it as a Python keyword argument.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.formatting import parse_bytes
from dask_onnx.core.specs import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each input, by its name."""

_MEANINGS = {
    "n_stages": "the number of stages",
    "n_workers": "the number of workers",
    "batches": "the number of batches",
    "in_flight": "the number of micro-batches in flight",
    "min_seconds": "the least time of a stage",
    "memory_limit": "the memory limit of a stage",
}
"""Meaning of an option, as errors name it."""


def meaning_of(option: str) -> str:
    """Return a phrase for an option that is the same in Python and on the command line."""
    return _MEANINGS.get(option, option.replace("_", " "))


def parse_whole_number(option: str, value: Any, *, least: int = 1) -> int:
    """Return an option that counts something, as an int.

    Parameters
    ----------
    option : str
        Name of the option, for errors.
    value : object
        What the caller gave; numpy's integers are accepted, booleans and floats are not.
    least : int
        Smallest value that is accepted.

    Raises
    ------
    PlanError
        `value` is not a whole number, or is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        suggested = max(least, 2)
        raise PlanError(
            f"{meaning_of(option)} is {value!r}, which is no whole number",
            f"give a whole number: {option}={suggested}",
            option=option,
            suggestions=[Suggestion(option, suggested)],
        )
    if value < least:
        raise PlanError(
            f"{meaning_of(option)} is {value}; the least is {least}",
            f"give {option}={least} or more",
            option=option,
            numbers={option: int(value), "least": least},
            suggestions=[Suggestion(option, least)],
        )
    return int(value)


def parse_seconds(option: str, value: Any) -> float:
    """Return an option that is a time in seconds, as a float.

    Raises
    ------
    PlanError
        `value` is not a finite number above 0.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise PlanError(
            f"{meaning_of(option)} is {value!r}, which is no number of seconds above 0",
            f"give a number of seconds above 0: {option}=0.05",
            option=option,
            suggestions=[Suggestion(option, 0.05)],
        )
    return float(value)


def parse_memory(option: str, value: Any) -> int:
    """Return an option that is an amount of memory, in bytes.

    Parameters
    ----------
    option : str
        Name of the option, for errors.
    value : int, float or str
        A number of bytes, or text such as "1.5GiB".

    Raises
    ------
    PlanError
        `value` is neither, or below 1 byte.
    """
    found = value
    if isinstance(value, str):
        try:
            found = parse_bytes(value) if value.strip() else None
        except ValueError:
            found = None
    is_number = isinstance(found, numbers.Real) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or found < 1:
        raise PlanError(
            f"{meaning_of(option)} is {value!r}, which is no number of bytes",
            f'give bytes, as {option}="1.5GiB" or 1_500_000_000',
            option=option,
            suggestions=[Suggestion(option, "1.5GiB")],
        )
    return int(found)


PARSERS = {
    "n_stages": parse_whole_number,
    "n_workers": parse_whole_number,
    "min_seconds": parse_seconds,
    "memory_limit": parse_memory,
}
"""Parser of each option of a strategy that is a number, by the option's name."""


def bound_shapes(
    shapes: Any, inputs: Sequence[TensorSpec], batch_axes: Mapping[str, int | None]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs that a caller gave, checked against the model.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        Shapes as the caller gave them, by input name.
    inputs : sequence of TensorSpec
        Inputs of the model.
    batch_axes : mapping of str to int or None
        Axis of each input that carries rows. Its size may differ from the one that the model
        declares, since more rows become several runs.

    Raises
    ------
    InputError
        `shapes` is no mapping of input names to sequences of sizes, names an unknown input, or has
        another rank or fixed size than the model declares, a negative size, or no rows.
    """
    if not isinstance(shapes, Mapping):
        raise InputError(
            f"the shapes are a {type(shapes).__name__}, not a mapping",
            f"give a dict by input name, as shapes={{{inputs[0].name if inputs else 'x'!r}: ...}}",
            option="shapes",
        )
    specs = {spec.name: spec for spec in inputs}
    found = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise InputError(
                f"the shapes name {name!r}, which is no input of the model",
                f"its inputs are {', '.join(map(str, inputs)) or 'none'}",
                option="shapes",
                input=name,
            )
        found[name] = _checked_shape(specs[name], shape, batch_axes.get(name))
    return found


def _checked_shape(spec: TensorSpec, shape: Any, batch_axis: int | None) -> tuple[int, ...]:
    is_list = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
    sizes = list(shape) if is_list else []
    if not is_list or not all(isinstance(size, numbers.Integral) for size in sizes):
        raise InputError(
            f"the shape of {spec.name!r} is {shape!r}",
            f"give a size for each axis of {spec}, as numbers",
            option="shapes",
            input=spec.name,
        )
    declared = spec.shape if spec.shape is not None else (None,) * len(sizes)
    wrong_axis = next(
        (
            axis
            for axis, (dim, size) in enumerate(zip(declared, sizes, strict=False))
            # An axis that has no rows may be empty: a cache before the first token.
            if size < (1 if axis == batch_axis else 0)
            or (axis != batch_axis and isinstance(dim, int) and dim != size)
        ),
        None,
    )
    if len(declared) != len(sizes) or wrong_axis is not None:
        given = "x".join(map(str, sizes)) or "a scalar"
        raise InputError(
            f"the shape of {spec.name!r} is {given}; the model takes {spec}",
            "give a size for each axis: 1 or more rows, those that the model fixes as they are",
            option="shapes",
            input=spec.name,
            axis=wrong_axis if len(declared) == len(sizes) else None,
        )
    return tuple(map(int, sizes))
