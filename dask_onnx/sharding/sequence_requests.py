"""Requests of a sequence plan, for numpy, dask.array and Delayed inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph

from dask_onnx.cluster.current_scheduler import chosen_scheduler
from dask_onnx.cluster.delivery import hold
from dask_onnx.sharding.lazy_results import layered_graph, lazy_array, unknown_shape
from dask_onnx.sharding.segment_models import PartitionedModel
from dask_onnx.sharding.segments import Form, SegmentPlan
from dask_onnx.sharding.sequence_axis import Seeds
from dask_onnx.sharding.sequence_explain import SequenceSummary
from dask_onnx.sharding.sequence_feeds import SequenceFeeds
from dask_onnx.sharding.sequence_tasks import SequenceGraph
from dask_onnx.sharding.shard_layout import Bounds, join_shards


@dataclass(frozen=True)
class SequencePartition:
    """Submodels of a sequence plan at fixed sizes, with predicted costs."""

    segments: SegmentPlan
    partitioned: PartitionedModel
    summary: SequenceSummary
    axes: Seeds
    """Graph input to its sharded axis."""

    @property
    def bounds(self) -> Bounds:
        """Positions of each shard."""
        return self.segments.bounds


@dataclass(frozen=True)
class SequenceRequest:
    """Inputs and tasks of a request, to which the tasks of its outputs are added."""

    partition: SequencePartition
    names: tuple[str, ...]
    """Wanted outputs."""
    graph: SequenceGraph
    feeds: SequenceFeeds


_Results = dict[str, Any]


def _eager(request: SequenceRequest) -> _Results:
    """Run a request now and return arrays by output name."""
    graph, feeds, partition = request.graph, request.feeds, request.partition
    get, client = chosen_scheduler(graph.retries)
    keys = [_output_keys(graph, form) for form in partition.segments.outputs]
    delivery = graph.delivery
    supplies: Mapping[str, Any] = {}
    if delivery is not None:
        supplies = delivery.tasks if client is None else hold(client, delivery)
    results = get({**feeds.tasks, **graph.tasks, **supplies}, keys)
    joined = {}
    for name, form, pieces in zip(request.names, partition.segments.outputs, results, strict=True):
        joined[name] = pieces[0] if form[1] is None else join_shards(pieces, form[1])
    return joined


def _output_keys(graph: SequenceGraph, form: Form) -> list[Any]:
    """Return the keys of the tasks that return the shards of an output, or its whole."""
    if form[1] is None:
        return [graph.joined(form).key]
    return [graph.output_shard(form, shard).key for shard in graph.plan.bounds.shards]


def _layers(graph: SequenceGraph, feeds: SequenceFeeds) -> tuple[HighLevelGraph, str]:
    """Return the graph of a lazy result, and the name of the layer with its tasks."""
    supplies = {} if graph.delivery is None else graph.delivery.tasks
    name = f"sharded-{graph.token}"
    tasks = {**feeds.tasks, **graph.tasks, **supplies}
    return layered_graph(name, tasks, feeds.used.values(), graph.retries), name


def _delayed(request: SequenceRequest) -> _Results:
    """Return a Delayed for each output."""
    graph, feeds, partition = request.graph, request.feeds, request.partition
    keys = [graph.joined(form).key for form in partition.segments.outputs]
    layered, layer = _layers(graph, feeds)
    return {
        name: Delayed(key, layered, layer=layer)
        for name, key in zip(request.names, keys, strict=True)
    }


def _arrays(request: SequenceRequest) -> _Results:
    """Return a lazy array for each output."""
    graph, feeds, partition = request.graph, request.feeds, request.partition
    outputs = dict(zip(request.names, partition.segments.outputs, strict=True))
    keys = {name: _output_keys(graph, form) for name, form in outputs.items()}
    layered, layer = _layers(graph, feeds)
    return {
        name: _array(partition, outputs[name], layered, layer, keys[name], graph.token)
        for name in request.names
    }


def _array(
    partition: SequencePartition,
    form: Form,
    layered: HighLevelGraph,
    layer: str,
    keys: list[Any],
    token: str,
) -> da.Array:
    """Return a lazy array, chunked along the sequence where the output has it.

    Raises
    ------
    InputError
        Shape or dtype of the output are unknown.
    """
    name, layout = form
    spec = partition.segments.candidates.specs.get(name)
    if spec is None or spec.shape is None or spec.dtype is None:
        raise unknown_shape(name)
    chunks: list[tuple[float, ...]] = [
        (size if isinstance(size, int) else np.nan,) for size in spec.shape
    ]
    axis = None if layout is None else layout.axis
    if layout is not None:
        chunks[layout.axis] = tuple(size * layout.blocks for size in partition.bounds.sizes)
    label = f"sharded_{name}-{token}"
    return lazy_array(label, layered, layer, keys, chunks, axis, spec.dtype)


RUN: Mapping[str, Callable[..., _Results]] = {
    "eager": _eager,
    "array": _arrays,
    "delayed": _delayed,
}
"""Function that runs a request, by the kind of its inputs."""
