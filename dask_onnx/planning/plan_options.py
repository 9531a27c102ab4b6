"""What strategies, schedules and placements are asked with, checked before any work starts."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.core.formatting import parse_bytes
from dask_onnx.core.specs import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """An option that counts something.

    Raises
    ------
    PlanError
        It is no whole number, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise PlanError(f"{name} is {value!r}", f"give a whole number: {name}={max(least, 2)}")
    if value < least:
        raise PlanError(f"{name} is {value}", f"give {name}={least} or more")
    return int(value)


def seconds(name: str, value: Any) -> float:
    """
    Raises
    ------
    PlanError
        It is no number above 0.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise PlanError(f"{name} is {value!r}", "give a number of seconds above 0")
    return float(value)


def bytes_(name: str, value: Any) -> int:
    """A number of bytes, or words such as "1.5GiB".

    Raises
    ------
    PlanError
        It is neither, or not above 0.
    """
    found = value
    if isinstance(value, str):
        try:
            found = parse_bytes(value) if value.strip() else None
        except ValueError:
            found = None
    is_number = isinstance(found, numbers.Real) and not isinstance(found, bool)
    if not is_number or not math.isfinite(found) or found < 1:
        raise PlanError(f"{name} is {value!r}", f'give bytes, as {name}="1.5GiB" or 1_500_000_000')
    return int(found)


CHECKS = {
    "n_stages": whole_number,
    "n_workers": whole_number,
    "min_seconds": seconds,
    "memory_limit": bytes_,
}
"""Options of strategies that are numbers, by name."""


def bound_shapes(
    shapes: Any, inputs: Sequence[TensorSpec], batch_axes: Mapping[str, int | None]
) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs as a caller says them, checked.

    Parameters
    ----------
    inputs : of the model
    batch_axes : of each input the axis that carries rows, whose size may be another one than the
        model declares: more rows become several runs

    Raises
    ------
    InputError
        No mapping of input names to sequences of sizes; an unknown input; another rank or another
        fixed size than the model declares; a size below 1.
    """
    if not isinstance(shapes, Mapping):
        raise InputError(
            f"shapes is a {type(shapes).__name__}",
            f"give a dict by input name, as shapes={{{inputs[0].name if inputs else 'x'!r}: ...}}",
        )
    specs = {spec.name: spec for spec in inputs}
    found = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise InputError(
                f"shapes names {name!r}, which is no input of the model",
                f"its inputs are {', '.join(map(str, inputs)) or 'none'}",
            )
        found[name] = _shape_of(specs[name], shape, batch_axes.get(name))
    return found


def _shape_of(spec: TensorSpec, shape: Any, batch_axis: int | None) -> tuple[int, ...]:
    is_list = isinstance(shape, Sequence) and not isinstance(shape, str | bytes)
    sizes = list(shape) if is_list else []
    if not is_list or not all(isinstance(size, numbers.Integral) for size in sizes):
        raise InputError(
            f"the shape of {spec.name!r} is {shape!r}",
            f"give a size for each axis of {spec}, as numbers",
        )
    declared = spec.shape if spec.shape is not None else (None,) * len(sizes)
    fits = len(declared) == len(sizes) and all(
        size >= 1 and (axis == batch_axis or not isinstance(dim, int) or dim == size)
        for axis, (dim, size) in enumerate(zip(declared, sizes, strict=True))
    )
    if not fits:
        given = "x".join(map(str, sizes)) or "a scalar"
        raise InputError(
            f"the shape of {spec.name!r} is {given}; the model takes {spec}",
            "give a size of 1 or more for each axis, those that the model fixes as they are",
        )
    return tuple(map(int, sizes))
