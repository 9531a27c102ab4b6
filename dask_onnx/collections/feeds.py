"""Inputs of a request as they come in: values in memory are converted, lazy ones left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection
from dask.delayed import Delayed

from dask_onnx.collections.kinds import Placeholder, is_dataarray
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.input_values import as_input


def convert_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return inputs with those in memory in the model's types.

    Parameters
    ----------
    feeds : mapping of str to array_like, dask.array, Delayed or Placeholder
        Inputs by name. Of a DataArray the data are taken.
    inputs : sequence of TensorSpec
        Inputs of the model.

    Raises
    ------
    InputError
        Values do not fit the model, or a collection is none that an input can be.
    """
    specs = {spec.name: spec for spec in inputs}
    return {name: _converted(value, specs[name]) for name, value in feeds.items()}


def describe_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return inputs with a dtype and a shape, without looking at the values of numpy's arrays.

    Parameters and errors are those of `convert_feeds`. Delayed and placeholders are returned as
    they are.
    """
    specs = {spec.name: spec for spec in inputs}
    return {
        name: value
        if type(value) is np.ndarray and specs[name].kind is None
        else _converted(value, specs[name])
        for name, value in feeds.items()
    }


def _converted(value: Any, spec: TensorSpec) -> Any:
    if type(value) is np.ndarray:
        return as_input(value, spec)
    if is_dataarray(value):
        value = value.data
    if isinstance(value, Delayed | da.Array | Placeholder):
        return value
    if not is_dask_collection(value):
        return as_input(value, spec)
    raise InputError(
        f"input {spec.name!r} is a {type(value).__name__} of Dask, which is computed only as a "
        "collection of its own",
        "pass a dask.array, such as .to_dask_array(lengths=True), or a Delayed",
        input=spec.name,
    )
