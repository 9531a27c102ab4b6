"""What kind of collection a request brings, and what its shapes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dask_onnx.core.specs import Dim, TensorSpec


@dataclass(frozen=True, slots=True)
class Placeholder:
    """An input that a partition of a table will be: dtype and shape, NaN for its rows."""

    dtype: np.dtype[Any]
    shape: tuple[float, ...]


def kind_of(feeds: Mapping[str, Any]) -> str:
    """ "delayed" if anything is, else "array" if any is a dask.array, "table", else "eager"."""
    if any(isinstance(value, Placeholder) for value in feeds.values()):
        return "table"
    if any(isinstance(value, Delayed) for value in feeds.values()):
        return "delayed"
    if any(isinstance(value, da.Array) for value in feeds.values()):
        return "array"
    return "eager"


def as_array(value: Any, spec: TensorSpec) -> Any:
    """A value as numpy has it; a sequence, a map or an optional as it is."""
    if spec.kind is not None:
        return value
    if hasattr(value, "dtype") or spec.dtype is None:
        return np.asarray(value, dtype=spec.dtype if np.isscalar(value) else None)
    # Numbers of Python have no dtype of their own; only those that fit are taken for the model's.
    array = np.asarray(value)
    is_whole = array.dtype.kind in "iub" and spec.dtype.kind != "O"
    is_real = array.dtype.kind == "f" and spec.dtype.kind in "fV"
    return array.astype(spec.dtype) if is_whole or is_real or np.isscalar(value) else array


def is_table(x: Any) -> bool:
    """Whether it is a table of pandas or dask, neither of which this imports."""
    module, _, _ = type(x).__module__.partition(".")
    is_dask = type(x).__module__.startswith("dask.dataframe")
    return (module == "pandas" or is_dask) and type(x).__name__ in ("DataFrame", "Series")


def is_dataarray(x: Any) -> bool:
    """Whether it is an xarray.DataArray, which this does not import."""
    return type(x).__module__.startswith("xarray.") and type(x).__name__ == "DataArray"


def is_bag(x: Any) -> bool:
    """Whether it is a dask.bag, which this does not import."""
    return type(x).__module__.startswith("dask.bag") and type(x).__name__ == "Bag"


def has_rows(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> bool:
    """Whether there is more than one row to tell from another."""
    return max(_counts(feeds, axes), default=0) > 1


def is_empty(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> bool:
    """Whether there is no row, where there could be some."""
    return max(_counts(feeds, axes), default=1) == 0


def _counts(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> list[int]:
    return [
        shape[axis]
        for name, value in feeds.items()
        if (axis := axes[name]) is not None and len(shape := np.shape(value)) > axis
    ]


def most_rows(feeds: Mapping[str, Any], axes: Mapping[str, int | None]) -> float | None:
    """Of a chunk; all rows of arrays in memory. None where that is not known."""
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
    """Shapes of the arrays whose rank fits; NaN and Delayed leave the declared dimension."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    for spec in inputs:
        value = feeds.get(spec.name)
        if value is None or spec.kind is not None or isinstance(value, Delayed):
            continue
        shape = value.shape if hasattr(value, "shape") else np.shape(value)
        if spec.shape is None or len(shape) == len(spec.shape):
            shapes[spec.name] = tuple(int(d) if d == d else None for d in shape)
    return shapes
