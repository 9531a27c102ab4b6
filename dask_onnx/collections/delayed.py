"""Delayed in, Delayed out: one task for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef

from dask_onnx.collections.array import layered_graph, name_part
from dask_onnx.collections.context import Request
from dask_onnx.collections.request import check_arrays, check_joins
from dask_onnx.lower import Feeds, digest, lower
from dask_onnx.runtime.kernel import take_output


def predict_delayed(request: Request, feeds: Mapping[str, Any]) -> dict[str, Delayed]:
    """A Delayed for each output. Shapes are checked in the task, where they are first known."""
    per_run = request.batching.rows_per_run
    check_joins(request.batch, request.wanted.names, chunks=1, rows_per_run=per_run)
    arrays = {n: np.asarray(v) for n, v in feeds.items() if not hasattr(v, "__dask_graph__")}
    check_arrays(arrays, request.stages.inputs, request.batch.input_axes)
    sources: dict[str, Any] = {}
    references: dict[str, list[Any]] = {}
    for name, value in feeds.items():
        if isinstance(value, da.Array):
            value = delayed(np.asarray)(value)
        sources[name] = (
            value if isinstance(value, Delayed) else delayed(arrays[name], traverse=False)
        )
        references[name] = [TaskRef(sources[name].key)]
    token = digest({name: tokenize(source.key) for name, source in sources.items()})
    axes = request.batch.input_axes if per_run else dict.fromkeys(feeds)
    lowered = lower(
        request.model, request.stages, Feeds(references, axes, token, 1), request.options
    )
    graph = layered_graph(lowered, sources.values(), {}, request.retries)
    results = {}
    for name in request.wanted.names:
        output = lowered.outputs[name]
        key, layer, own = output.layout.key(output.layer, 0), output.layer, graph
        if not output.is_bare:
            take = (
                f"{output.layer.partition('-')[0]}_{name_part(name)}-{digest(output.layer, name)}"
            )
            axis = request.batch.output_axes[name]
            task = Task(take, take_output, TaskRef(key), output.position, axis)
            own = HighLevelGraph(
                {**graph.layers, take: MaterializedLayer({take: task})},
                {**graph.dependencies, take: {layer}},
            )
            key = layer = take
        results[name] = Delayed(key, own, layer=layer)
    return results
