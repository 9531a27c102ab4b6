"""Lazy predictions for Delayed values: one task for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection, tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef

from dask_onnx.collections.array import layered_graph
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import check_arrays
from dask_onnx.collections.row_checks import check_joins
from dask_onnx.core.stage_tasks import digest
from dask_onnx.lowering.lower import Feeds, Lowered, lower
from dask_onnx.runtime.kernel import take_output


def predict_delayed(request: Request, feeds: Mapping[str, Any]) -> dict[str, Delayed]:
    """Return a Delayed for each requested output.

    Parameters
    ----------
    request : Request
        Checked request.
    feeds : mapping of str to Delayed, dask.array or array
        Inputs by name, converted by `build_request`. Dtypes and shapes of Delayed are checked in
        the task, where they are first known.

    Raises
    ------
    InputError
        An input in memory does not fit the model, or rows are not proven to be independent.
    """
    per_run = request.batching.rows_per_run
    check_joins(
        request.batch,
        request.wanted.names,
        model=request.model.token,
        chunks=1,
        rows_per_run=per_run,
    )
    arrays = {name: value for name, value in feeds.items() if not is_dask_collection(value)}
    check_arrays(arrays, request.stages.inputs, request.batch.input_axes)
    sources = {name: as_delayed(name, value) for name, value in feeds.items()}
    references = {name: [TaskRef(source.key)] for name, source in sources.items()}
    token = digest({name: tokenize(source.key) for name, source in sources.items()})
    cuts_rows = per_run or request.batching.is_auto
    axes = request.batch.input_axes if cuts_rows else dict.fromkeys(feeds)
    inputs = Feeds(references, axes, token, 1)
    lowered = lower(
        request.model, request.stages, inputs, request.options, supplies=request.supplies
    )
    graph = layered_graph(lowered, sources.values(), request.supply_layers, request.options.retries)
    return {name: _output(request, graph, lowered, name) for name in request.wanted.names}


def as_delayed(name: str, value: Any) -> Delayed:
    """Return an input as a Delayed of one key, named by its content."""
    if isinstance(value, Delayed):
        return value
    source: Delayed
    if isinstance(value, da.Array):
        source = delayed(np.asanyarray)(value)  # whose masked places are missing values
    else:
        key = f"input-{digest(name, tokenize(value))}"
        source = delayed(value, name=key, traverse=False)
    return source


def _output(request: Request, graph: HighLevelGraph, lowered: Lowered, name: str) -> Delayed:
    output = lowered.outputs[name]
    key = output.layout.key(output.layer, 0)
    if output.is_bare:
        return Delayed(key, graph, layer=output.layer)
    take = output.own_layer(name)
    axis = request.batch.output_axes[name]
    task = Task(take, take_output, TaskRef(key), output.position, axis)
    own = HighLevelGraph(
        {**graph.layers, take: MaterializedLayer({take: task})},
        {**graph.dependencies, take: {output.layer}},
    )
    return Delayed(take, own, layer=take)
