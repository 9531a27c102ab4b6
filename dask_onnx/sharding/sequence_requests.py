"""One request of a plan that is sharded along a sequence: numpy, dask.array or Delayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias

from dask_onnx.cluster.delivery import hold
from dask_onnx.collections.schedulers import chosen_scheduler
from dask_onnx.core.errors import InputError
from dask_onnx.sharding.segment_models import PartedModel
from dask_onnx.sharding.segments import Form, SegmentPlan
from dask_onnx.sharding.sequence import SequenceGraph
from dask_onnx.sharding.sequence_axis import Seeds
from dask_onnx.sharding.sequence_explain import SequenceSummary
from dask_onnx.sharding.sequence_feeds import SequenceFeeds
from dask_onnx.sharding.shard_layout import Bounds, join_shards


@dataclass(frozen=True)
class SequenceParts:
    """The segments of a sharded request at definite sizes, as stages of a model."""

    segments: SegmentPlan
    parted: PartedModel
    summary: SequenceSummary
    axes: Seeds
    """Input to the axis that is sharded."""

    @property
    def bounds(self) -> Bounds:
        """Positions of each shard."""
        return self.segments.bounds


@dataclass(frozen=True)
class SequenceRequest:
    """Inputs and tasks of a request, to which those of its outputs are added."""

    made: SequenceParts
    names: tuple[str, ...]
    """Wanted outputs."""
    graph: SequenceGraph
    feeds: SequenceFeeds


_Results = dict[str, Any]


def _eager(request: SequenceRequest) -> _Results:
    graph, feeds, made = request.graph, request.feeds, request.made
    get, client = chosen_scheduler(graph.retries)
    keys = [_output_keys(graph, form) for form in made.segments.outputs]
    delivery = graph.delivery
    supplies: Mapping[str, Any] = {}
    if delivery is not None:
        supplies = delivery.tasks if client is None else hold(client, delivery)
    results = get({**feeds.tasks, **graph.tasks, **supplies}, keys)
    joined = {}
    for name, form, pieces in zip(request.names, made.segments.outputs, results, strict=True):
        joined[name] = pieces[0] if form[1] is None else join_shards(pieces, form[1])
    return joined


def _output_keys(graph: SequenceGraph, form: Form) -> list[Any]:
    if form[1] is None:
        return [graph.joined(form).key]
    return [graph.output_shard(form, shard).key for shard in graph.plan.bounds.shards]


def _layers(graph: SequenceGraph, feeds: SequenceFeeds) -> tuple[HighLevelGraph, str]:
    """The graph of a lazy result, and the layer that has its tasks."""
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    roots: set[str] = set()
    for collection in feeds.used.values():
        own = collection.__dask_graph__()
        layers.update(own.layers)
        dependencies.update({name: set(needs) for name, needs in own.dependencies.items()})
        roots.update(collection.__dask_layers__())
    supplies = {} if graph.delivery is None else graph.delivery.tasks
    name = f"sharded-{graph.token}"
    tasks = {**feeds.tasks, **graph.tasks, **supplies}
    layers[name] = MaterializedLayer(tasks, annotations={"retries": graph.retries})
    dependencies[name] = roots
    return HighLevelGraph(layers, dependencies), name


def _delayed(request: SequenceRequest) -> _Results:
    graph, feeds, made = request.graph, request.feeds, request.made
    keys = [graph.joined(form).key for form in made.segments.outputs]
    layered, layer = _layers(graph, feeds)
    return {
        name: Delayed(key, layered, layer=layer)
        for name, key in zip(request.names, keys, strict=True)
    }


def _arrays(request: SequenceRequest) -> _Results:
    graph, feeds, made = request.graph, request.feeds, request.made
    outputs = dict(zip(request.names, made.segments.outputs, strict=True))
    keys = {name: _output_keys(graph, form) for name, form in outputs.items()}
    layered, layer = _layers(graph, feeds)
    return {
        name: _array(made, outputs[name], layered, layer, keys[name], graph.token)
        for name in request.names
    }


def _array(
    made: SequenceParts,
    form: Form,
    layered: HighLevelGraph,
    layer: str,
    keys: list[Any],
    token: str,
) -> da.Array:
    """A lazy array, chunked along the sequence where the output has it."""
    name, layout = form
    spec = made.segments.ways.specs.get(name)
    if spec is None or spec.shape is None or spec.dtype is None:
        raise InputError(
            f"the shape of output {name!r} does not follow from the graph",
            "pass Delayed instead of a dask.array",
        )
    chunks: list[tuple[float, ...]] = [
        (size if isinstance(size, int) else np.nan,) for size in spec.shape
    ]
    axis = -1
    if layout is not None:
        axis = layout.axis
        chunks[axis] = tuple(size * layout.blocks for size in made.bounds.sizes)
    own = f"sharded_{name}-{token}"
    tasks: dict[Any, Any] = {}
    for shard, key in enumerate(keys):
        place: Any = (own, *(shard if i == axis else 0 for i in range(len(chunks))))
        tasks[place] = Alias(place, key)
    graph = HighLevelGraph(
        {**layered.layers, own: MaterializedLayer(tasks)},
        {**layered.dependencies, own: {layer}},
    )
    meta = np.empty((0,) * len(chunks), spec.dtype)
    return da.Array(graph, own, tuple(chunks), dtype=spec.dtype, meta=meta)


RUN: Mapping[str, Callable[..., _Results]] = {
    "eager": _eager,
    "array": _arrays,
    "delayed": _delayed,
}
"""What runs a request, by what its inputs are."""
