"""Masks of rows: masked arrays come in, and masked arrays of numpy or Dask come out.

A masked place of an input is a missing value (see `core.conversions`). Where whole rows of an input
are masked, the rows of the results that are made of them are masked too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.core.specs import TensorSpec


def has_masks(x: Any) -> bool:
    """Return whether inputs are masked arrays, of numpy or, by their meta, of Dask.

    Parameters
    ----------
    x : array, or mapping of str to array
    """
    values = x.values() if isinstance(x, Mapping) else (x,)
    return any(_is_masked(value) for value in values)


def mask_results(
    found: Mapping[str, Any],
    x: Any,
    inputs: Sequence[TensorSpec],
    needed: Sequence[str],
    batch: BatchFacts,
) -> dict[str, Any]:
    """Return results as masked arrays, in which rows are masked whose inputs are masked wholly.

    Parameters
    ----------
    found : mapping of str to ndarray or dask.array
        Results by value; one without a batch axis is returned as it is.
    x : array, or mapping of str to array
        Inputs as the caller gave them.
    inputs : sequence of TensorSpec
        Inputs of the model.
    needed : sequence of str
        Names of those that the results need.
    batch : BatchFacts
        Axes that carry rows.
    """
    masks = [
        _rows_of(value, axis)
        for name, value in resolve_feeds(x, inputs, needed).items()
        if _is_masked(value) and (axis := batch.input_axes[name]) is not None
    ]
    return {
        name: value
        if (axis := batch.output_axes[name]) is None or not masks
        else _masked(value, masks, axis)
        for name, value in found.items()
    }


def _is_masked(value: Any) -> bool:
    meta = value._meta if isinstance(value, da.Array) else value
    return isinstance(meta, np.ma.MaskedArray)


def _rows_of(value: Any, axis: int) -> Any:
    """Return for each row whether all of it is masked, as an array of numpy or Dask."""
    others = tuple(place for place in range(value.ndim) if place != axis)
    module: Any = da.ma if isinstance(value, da.Array) else np.ma
    return module.getmaskarray(value).all(axis=others)


def _masked(value: Any, masks: Sequence[Any], axis: int) -> Any:
    if not isinstance(value, da.Array):
        for mask in masks:
            value = _mask_block(value, mask, axis)
        return value
    places = tuple(range(value.ndim))
    for mask in masks:
        nothing = np.empty((0,) * value.ndim, value.dtype)
        meta = _mask_block(nothing, np.empty(nothing.shape[axis], bool), axis)
        value = da.blockwise(
            _mask_block,
            places,
            value,
            places,
            mask if isinstance(mask, da.Array) else da.from_array(mask, chunks=value.chunks[axis]),
            (axis,),
            axis=axis,
            align_arrays=False,
            dtype=value.dtype,
            meta=meta,
        )
    return value


def _mask_block(value: Any, mask: Any, axis: int) -> Any:
    """Return an array as a masked one, with some of its rows masked.

    Parameters
    ----------
    value : ndarray
    mask : bool array, shape (rows,)
    axis : int
        Axis of the rows.
    """
    rows = np.reshape(mask, (-1,) + (1,) * (value.ndim - axis - 1))
    hidden = np.broadcast_to(rows, value.shape) | np.ma.getmaskarray(value)
    return np.ma.MaskedArray(np.ma.getdata(value), hidden, fill_value=_fill_value(value.dtype))


def _fill_value(dtype: np.dtype[Any]) -> Any:
    """Return the value of masked places that `filled` gives; None for numpy's own.

    Numpy's, 1e20 and "N/A", do not exist in half precision and in dtypes of other packages.
    """
    return np.zeros((), dtype)[()] if dtype == np.float16 or dtype.isbuiltin != 1 else None
