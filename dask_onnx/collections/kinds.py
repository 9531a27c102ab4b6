"""Kinds of collections that a request may bring, and their dtypes and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed

from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec, converts, dtype_name


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Dtype and shape of an input that a partition of a table or bag will become."""

    dtype: np.dtype[Any]
    """The model's dtype."""
    shape: tuple[float, ...]
    """Sizes; NaN where one is known only in the task, such as the number of rows."""


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


def as_array(value: Any, spec: TensorSpec) -> Any:
    """Return a value in memory as a numpy array.

    Floating-point arrays and Python's numbers take the model's dtype where `specs.converts` and
    their values allow it. Other arrays keep their dtype, for `check_dtype` to compare.

    Parameters
    ----------
    value : array_like
        For an input that is a sequence, a map or an optional, anything; it is returned unchanged.
    spec : TensorSpec
        Input of the model.

    Raises
    ------
    InputError
        An integer does not fit the model's integer dtype.
    """
    if spec.kind is not None:
        return value
    if spec.dtype is None:
        return np.asarray(value)
    if hasattr(value, "dtype"):
        array = np.asarray(value, dtype=spec.dtype if np.isscalar(value) else None)
        return array.astype(spec.dtype, copy=False) if converts(array.dtype, spec.dtype) else array
    # Python's numbers have no dtype of their own: they take the model's if their kind fits.
    array = np.asarray(value)
    is_integer = array.dtype.kind in "iub" and spec.dtype.kind != "O"
    if not (is_integer or converts(array.dtype, spec.dtype) or np.isscalar(value)):
        return array
    converted = array.astype(spec.dtype)
    if is_integer and spec.dtype.kind in "iu" and not np.array_equal(converted, array):
        limits = np.iinfo(spec.dtype)
        raise InputError(
            f"input {spec.name!r} takes {dtype_name(spec.dtype)}, {limits.min} to {limits.max}; "
            f"the values range from {array.min()} to {array.max()}",
            "give values in that range, or export the model with a wider type",
            input=spec.name,
            numbers={"lowest": int(array.min()), "highest": int(array.max())},
        )
    return converted


def is_table(x: Any) -> bool:
    """Return whether `x` is a DataFrame or Series of pandas or Dask, without importing these."""
    module, _, _ = type(x).__module__.partition(".")
    is_dask = type(x).__module__.startswith("dask.dataframe")
    return (module == "pandas" or is_dask) and type(x).__name__ in ("DataFrame", "Series")


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
