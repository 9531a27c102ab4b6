"""Kinds of collections that a request may bring, and their dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dask_onnx.core.specs import Dim, TensorSpec


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Dtype and shape of an input that a partition of a table or bag will become."""

    dtype: np.dtype[Any]
    """The model's dtype."""
    shape: tuple[float, ...]
    """Sizes; NaN where one is known only in the task, such as the number of rows."""
    has_rows_first: bool = True
    """True if the rows are on axis 0 unless the caller declared another axis, as in tables."""


def with_rows_first(spec: TensorSpec, axis: int | None) -> TensorSpec:
    """Return the spec of an input with its batch axis moved to axis 0, as rows of a table have it.

    Parameters
    ----------
    spec : TensorSpec
    axis : int or None
        Batch axis.
    """
    if not axis or spec.shape is None:
        return spec
    others = (*spec.shape[:axis], *spec.shape[axis + 1 :])
    return TensorSpec(spec.name, spec.dtype, (spec.shape[axis], *others), spec.kind)


def with_rows_in_place(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> dict[str, Any]:
    """Return arrays, placeholders or shapes with axis 0 moved to the batch axis of their input.

    Parameters
    ----------
    feeds : mapping of str to array, Placeholder or tuple
        Inputs by name, with their rows first.
    axes : mapping of str to int or None
        Batch axis of each input of the model.
    """

    def sizes(shape: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
        rows, *others = shape
        return (*others[:axis], rows, *others[axis:])

    def placed(value: Any, axis: int) -> Any:
        if isinstance(value, tuple):
            return sizes(value, axis)
        if isinstance(value, Placeholder):
            return replace(value, shape=sizes(value.shape, axis))
        return np.moveaxis(np.asarray(value), 0, axis)

    return {
        name: placed(value, axis) if (axis := axes.get(name)) else value
        for name, value in feeds.items()
    }


def kind_of(feeds: Mapping[str, Any]) -> str:
    """Return the kind of collection that a request's inputs make together.

    "table" if they are placeholders; "delayed" if one of them is a Delayed; "array" if one is a
    dask.array; otherwise "eager".
    """
    if any(isinstance(value, Placeholder) for value in feeds.values()):
        return "table"
    if any(isinstance(value, Delayed) for value in feeds.values()):
        return "delayed"
    if any(isinstance(value, da.Array) for value in feeds.values()):
        return "array"
    return "eager"


def is_table(x: Any) -> bool:
    """Return whether `x` is a DataFrame or Series of pandas or Dask, without importing these."""
    return any(
        kind.__name__ in ("DataFrame", "Series")
        and (kind.__module__.partition(".")[0] == "pandas" or _is_dask_frame(kind))
        for kind in type(x).__mro__
    )


def _is_dask_frame(kind: type) -> bool:
    return kind.__module__.startswith("dask.dataframe")


def is_dataarray(x: Any) -> bool:
    """Return whether `x` is an xarray.DataArray, without importing xarray."""
    return type(x).__module__.startswith("xarray.") and type(x).__name__ == "DataArray"


def is_bag(x: Any) -> bool:
    """Return whether `x` is a dask.bag, without importing dask.bag."""
    return type(x).__module__.startswith("dask.bag") and type(x).__name__ == "Bag"


def has_rows(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> bool:
    """Return whether some input in memory has more than one row."""
    return max(_counts(feeds, axes), default=0) > 1


def is_empty(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> bool:
    """Return whether inputs with a batch axis have no rows."""
    return max(_counts(feeds, axes), default=1) == 0


def _counts(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> list[int]:
    return [
        shape[axis]
        for name, value in feeds.items()
        if (axis := axes[name]) is not None and len(shape := np.shape(value)) > axis
    ]


def most_rows(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> float | None:
    """Return the rows of the largest chunk, or of an array in memory; None if not known."""
    found: list[float] = []
    for name, value in feeds.items():
        axis = axes.get(name)
        if axis is None or isinstance(value, Delayed):
            continue
        if hasattr(value, "chunks"):
            found += value.chunks[axis] if len(value.chunks) > axis else ()
        elif len(shape := np.shape(value)) > axis:
            found.append(shape[axis])
    return max((rows for rows in found if rows == rows), default=None)


def shapes_of(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, tuple[Dim, ...]]:
    """Return the shapes of the inputs whose rank fits the model.

    Inputs that are Delayed are left out; a size of NaN becomes None.
    """
    shapes: dict[str, tuple[Dim, ...]] = {}
    for spec in inputs:
        value = feeds.get(spec.name)
        if value is None or spec.kind is not None or isinstance(value, Delayed):
            continue
        shape = value.shape if hasattr(value, "shape") else np.shape(value)
        if spec.shape is None or len(shape) == len(spec.shape):
            shapes[spec.name] = tuple(int(d) if d == d else None for d in shape)
    return shapes
