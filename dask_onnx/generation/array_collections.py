"""Collections of arrays, as of speech and pictures, for encoders that take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from dask.base import is_dask_collection

from dask_onnx.collections.kinds import is_bag, is_table
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec, format_shape
from dask_onnx.generation.prompt_collections import (
    BagPrompts,
    GenerationRequest,
    generate_bag,
    generate_list,
    listed_prompts,
    numbered,
)
from dask_onnx.runtime.input_values import check_dtype


def generate_arrays(request: GenerationRequest, x: Any, row: TensorSpec) -> Any:
    """Return what is written after arrays: at once for numpy and lists, lazily for Dask.

    Parameters
    ----------
    request : GenerationRequest
    x : ndarray, sequence of ndarray, dask.array or dask.bag
        Rows: along axis 0 of an array; an array of the rank of one row is that row.
    row : TensorSpec
        Array of one row.

    Returns
    -------
    Generation, list of Generation, or Bag

    Raises
    ------
    InputError
        It is another collection, or an array of another rank or dtype.
    """
    if is_bag(x):
        return generate_bag(request, x)
    if is_table(x) or isinstance(x, str | bytes):
        raise InputError(
            f"x is of type {type(x).__name__}, and the encoder takes arrays: {row}",
            "pass an array whose first axis is rows, a list of arrays, a dask.array or a dask.bag",
            option="x",
        )
    if is_dask_collection(x) and hasattr(x, "chunks"):
        return _generate_lazily(request, x, row)
    if isinstance(x, np.ndarray) and x.dtype != object:
        if x.ndim == row.rank:
            return generate_list(request, [x])[0]
        _check_shape(x, row)
    return generate_list(request, listed_prompts(x))


def _generate_lazily(request: GenerationRequest, x: Any, row: TensorSpec) -> Any:
    """Return a bag with a partition for each chunk of the first axis of a dask array."""
    from dask.bag import from_delayed  # loaded by those who use it

    _check_shape(x, row)
    check_dtype(x.dtype, row)
    whole = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    sizes = np.array(whole.chunks[0], float)
    # Rows of chunks of unknown size are counted where it matters.
    firsts = None if np.isnan(sizes).any() else [int(each) for each in np.cumsum(sizes) - sizes]
    if firsts is None and not request.has_numbers:
        firsts = [0] * len(sizes)
    parts = list(whole.to_delayed().ravel())
    return from_delayed(numbered(parts, BagPrompts(request.writer), request, firsts))


def _check_shape(x: Any, row: TensorSpec) -> None:
    """Refuse an array that has another number of axes than rows have together, or of other sizes.

    Raises
    ------
    InputError
        It has.
    """
    wanted = row.shape or ()
    fits = row.rank is None or x.ndim == row.rank + 1
    sizes = zip(wanted, x.shape[1:], strict=True) if fits and wanted else ()
    # Sizes that Dask does not know are NaN.
    if not fits or any(isinstance(a, int) and b == b and a != b for a, b in sizes):
        raise InputError(
            f"x has shape {format_shape(x.shape)}, and a row of the encoder's input {row.name!r} "
            f"{format_shape(row.shape)}",
            "pass an array whose first axis is rows, and whose others are those of a row",
            option="x",
            input=row.name,
            numbers={"axes": x.ndim, "wanted": len(wanted) + 1},
        )
