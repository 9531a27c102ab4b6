"""Batches of slices: slices of one task, values of other inputs, and the outputs of each slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_onnx.api.model import Model
from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.images.picture_batches import refuse_several
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.run_options import BatchSize
from dask_onnx.core.specs import Dim
from dask_onnx.runtime.input_values import as_input

_SLICES_OF_A_TASK = 8
"""Slices of a task if the caller names no batch size and the model accepts any."""


def checked_feeds(
    model: Model,
    request: Request,
    feeds: Mapping[str, Any],
    layout: InputLayout,
    input_size: Size,
) -> dict[str, Any]:
    """Return the values of the other inputs that the outputs need, for one slice.

    Parameters
    ----------
    model : Model
    request : Request
    feeds : mapping of str to array
        The caller's values for one slice, without the batch axis.
    layout : InputLayout
        Input that takes the slices.
    input_size : (int, int)
        Height and width of that input in pixels.

    Raises
    ------
    InputError
        A dtype or shape is not that of the input.
    """
    needed = [spec for spec in request.stages.inputs if spec.name in feeds]
    given = {spec.name: as_input(feeds[spec.name], spec) for spec in needed}
    axes = request.batch.input_axes
    rows = {
        name: value if (axis := axes[name]) is None else np.expand_dims(value, axis)
        for name, value in given.items()
    }
    channels = layout.channels or 1
    shape = (channels, *input_size) if layout.is_channels_first else (*input_size, channels)
    pixels = np.broadcast_to(np.zeros((), layout.dtype), (1, *shape) if layout.is_batch else shape)
    model.check({layout.name: pixels, **rows}, outputs=list(request.wanted.names))
    return given


def _declared_rows(model: Model, layout: InputLayout) -> Dim:
    """Return the declared size of the batch axis; None if there is none."""
    spec = next(spec for spec in model.inputs if spec.name == layout.name)
    return spec.shape[0] if layout.is_batch and spec.shape else None


def output_batch_axes(model: Model, request: Request, layout: InputLayout) -> dict[str, int | None]:
    """Return the batch axis of each output; None for an output without.

    Where the graph does not prove one, a first axis of the declared batch size is taken for it.
    That matters only if slices run one at a time: `slices_per_task` refuses several.
    """
    rows = _declared_rows(model, layout)
    axes = {name: request.batch.output_axes[name] for name in request.wanted.names}
    for spec in model.outputs:
        is_declared = rows is not None and spec.shape and spec.shape[0] == rows
        if spec.name in axes and axes[spec.name] is None and is_declared:
            axes[spec.name] = 0
    return axes


def slices_per_task(
    model: Model, request: Request, layout: InputLayout, batch_size: BatchSize
) -> int:
    """Return the number of slices of a task.

    Parameters
    ----------
    model : Model
    request : Request
    layout : InputLayout
        Input that takes the slices.
    batch_size : int, "auto" or None

    Raises
    ------
    InputError
        The caller or the model wants several slices in a run, and the graph does not prove which
        part of the outputs belongs to which slice.
    """
    batch = request.batch
    has_rows = layout.is_batch and batch.input_axes[layout.name] == 0
    has_rows = has_rows and all(
        batch.output_axes[name] is not None for name in request.wanted.names
    )
    if has_rows and batch.fixed_rows is not None:
        return batch.fixed_rows
    if not has_rows:
        declared = _declared_rows(model, layout)
        refuse_several(batch_size, declared, request.wanted.names, layout.name, "slice")
    if isinstance(batch_size, int):
        return batch_size
    return _SLICES_OF_A_TASK if has_rows and not (batch.dependent or batch.opaque) else 1
