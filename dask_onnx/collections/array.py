"""Lazy predictions for dask arrays."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import dask.array as da
import dask.config
import numpy as np
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.cluster.barriers import BarrierTasks
from dask_onnx.collections.blocks import (
    LITERAL_BYTES,
    TakeOutput,
    block_type,
    chunk_seconds,
    feeds_token,
    output_chunks,
    predict_blocks,
)
from dask_onnx.collections.grouped_chunks import are_chunks_kept, group_chunks
from dask_onnx.collections.kinds import most_rows
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import check_arrays
from dask_onnx.collections.row_checks import check_joins
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.stage_tasks import Key, digest
from dask_onnx.lowering.lower import Feeds, Layout, Lowered, lower


def predict_arrays(request: Request, feeds: Mapping[str, Any]) -> dict[str, da.Array]:
    """Return one lazy array for each requested output.

    Parameters
    ----------
    request : Request
        Checked request.
    feeds : mapping of str to dask.array or ndarray
        Inputs by name, converted by `build_request`; dask arrays are chunked along their batch
        axis only.

    Raises
    ------
    InputError
        Chunks, dtypes, ranks or sizes do not fit the model, or a plan of several stages is used
        while array expressions are on.
    """
    _refuse_kinds(feeds, request)
    check_arrays(feeds, request.stages.inputs, request.batch.input_axes)
    arrays, chunks = _align(feeds, request.batch.input_axes)
    check_joins(
        request.batch,
        request.wanted.names,
        model=request.model.token,
        chunks=len(chunks),
        rows_per_run=request.batching.rows_per_run,
    )
    if len(request.stages.stages) == 1 and request.delivery is None:
        return _grouped(request, arrays, chunks, predict_blocks(request, arrays, chunks))
    if dask.config.get("array.query-planning", False):
        what = f"a plan of {len(request.stages.stages)} stages"
        if request.delivery is not None:
            what = "a model that travels with its graph, since workers cannot read its file,"
        raise InputError(
            f"{what} cannot become a dask.array while Dask's option array.query-planning is on",
            "set array.query-planning to false, use the 'whole' strategy, or pass Delayed",
            option="array.query-planning",
            numbers={"stages": len(request.stages.stages)},
            suggestions=[Suggestion("array.query-planning", False)],
        )
    return _grouped(request, arrays, chunks, _predict_stages(request, arrays, chunks))


def _grouped(
    request: Request,
    arrays: Mapping[str, Any],
    chunks: tuple[float, ...],
    found: dict[str, da.Array],
) -> dict[str, da.Array]:
    """Return the outputs with their chunks in groups, if the plan asks for that.

    A model of several outputs would run once for each of them if these were grouped, and stages of
    a cut model are tasks that run on different workers.
    """
    groups = request.chunk_groups
    is_one = len(request.stages.stages) == 1 and len(found) == 1
    if groups is None or not is_one or are_chunks_kept():
        return found
    if dask.config.get("array.query-planning", False):
        return found  # expressions cannot hold layers
    ((name, array),) = found.items()
    axis = request.batch.output_axes[name]
    if axis is None or array.numblocks[axis] != len(chunks):
        return found
    size = groups.size(len(chunks), chunk_seconds(request, arrays))
    return {name: group_chunks(array, axis, size)}


def _refuse_kinds(feeds: Mapping[str, Any], request: Request) -> None:
    """Raise an InputError if an input is a sequence, a map or an optional."""
    for spec in request.stages.inputs:
        if spec.kind is not None and spec.name in feeds:
            raise InputError(
                f"input {spec.name!r} is {spec.kind}, which cannot be an array",
                "pass all inputs as Delayed, or numpy arrays and lists",
                input=spec.name,
            )


def _align(
    arrays: Mapping[str, Any], axes: Mapping[str, int | None]
) -> tuple[dict[str, Any], tuple[float, ...]]:
    """Return the inputs with equal chunks along their batch axes, and these chunks."""
    for name, array in arrays.items():
        if isinstance(array, da.Array):
            _check_chunks(name, array, axes[name])
    leaders = [
        array.chunks[axis]
        for name, array in arrays.items()
        if isinstance(array, da.Array) and (axis := axes[name]) is not None
    ]
    if not leaders:
        rows = [
            array.shape[axis] for name, array in arrays.items() if (axis := axes[name]) is not None
        ]
        leaders = [tuple(rows[:1]) or (1,)]
    chunks = max(leaders, key=len)
    aligned = {
        name: array if axes[name] is None else _rechunk(name, array, axes[name] or 0, chunks)
        for name, array in arrays.items()
    }
    return aligned, chunks


def _check_chunks(name: str, array: da.Array, batch_axis: int | None) -> None:
    for axis, chunks in enumerate(array.chunks):
        if axis != batch_axis and len(chunks) > 1:
            what = "which is not its batch axis" if batch_axis is not None else "and has no batch"
            raise InputError(
                f"input {name!r} is cut into {len(chunks)} chunks on axis {axis}, {what}",
                f"rechunk it: .rechunk({{{axis}: -1}})",
                input=name,
                axis=axis,
                numbers={"chunks": len(chunks)},
            )


def _rechunk(name: str, array: Any, axis: int, chunks: tuple[float, ...]) -> da.Array:
    if not isinstance(array, da.Array):
        if any(map(math.isnan, chunks)):
            raise InputError(
                f"input {name!r} is in memory and another input has chunks of unknown size (NaN)",
                "call compute_chunk_sizes() on the other one first",
                input=name,
                axis=axis,
            )
        own = tuple(chunks if i == axis else -1 for i in range(array.ndim))
        chunked: da.Array = da.from_array(array, chunks=own)
        return chunked
    own_chunks = array.chunks[axis]
    if own_chunks == chunks:
        return array
    if any(map(math.isnan, [*own_chunks, *chunks])):
        if len(own_chunks) == len(chunks):
            return array  # each task compares the rows of its inputs
        raise InputError(
            f"input {name!r} has {len(own_chunks)} chunks and another input {len(chunks)}, and "
            "the sizes of some are unknown (NaN)",
            "call compute_chunk_sizes() on the inputs first",
            input=name,
            axis=axis,
            numbers={"chunks": len(own_chunks), "expected_chunks": len(chunks)},
        )
    rechunked: da.Array = array.rechunk({axis: chunks})
    return rechunked


def _predict_stages(
    request: Request, arrays: Mapping[str, Any], chunks: tuple[float, ...]
) -> dict[str, da.Array]:
    """Return the arrays of a plan of several stages: one layer for each, which Dask never fuses."""
    token = feeds_token(arrays)
    axes = request.batch.input_axes
    extra = request.supply_layers
    references: dict[str, list[Any]] = {}
    for name, array in arrays.items():
        references[name] = _references(name, array, axes[name], len(chunks), extra)
    shapes = {name: output_chunks(request, name, chunks) for name in request.wanted.names}
    lowered = lower(
        request.model,
        request.stages,
        Feeds(references, axes, token, len(chunks), most_rows(arrays, axes)),
        request.options,
        {name: layout for name, (layout, _) in shapes.items() if layout.axis >= 0},
        request.supplies,
    )
    graph = layered_graph(lowered, arrays.values(), extra, request.options.retries)
    return {
        name: _stage_array(request, graph, lowered, name, *shapes[name], len(chunks))
        for name in request.wanted.names
    }


def _references(
    name: str, array: Any, axis: int | None, n_chunks: int, extra: dict[str, dict[Any, Any]]
) -> list[Any]:
    if isinstance(array, da.Array):
        if axis is None:
            return [TaskRef((array.name, *(0,) * array.ndim))]
        return [TaskRef(Layout(array.ndim, axis).key(array.name, i)) for i in range(n_chunks)]
    if array.nbytes <= LITERAL_BYTES and array.dtype != object:
        return [array]
    key = f"input-{digest(name, da.from_array(array).name)}"
    extra[key] = {key: DataNode(key, array)}
    return [TaskRef(key)]


def layered_graph(
    lowered: Lowered, sources: Any, extra: Mapping[str, dict[Any, Any]], retries: int
) -> HighLevelGraph:
    """Return the lowered layers on top of the graphs of the collections that they read.

    Parameters
    ----------
    lowered : Lowered
        Tasks of the stages.
    sources : iterable
        Inputs; those without a Dask graph are ignored.
    extra : mapping of str to dict
        Further layers that the stages depend on, by name.
    retries : int
        Times that Dask repeats a task that raised.
    """
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    roots: set[str] = set(extra)
    for source in sources:
        if hasattr(source, "__dask_graph__"):
            graph = source.__dask_graph__()
            layers.update(graph.layers)
            dependencies.update({k: set(v) for k, v in graph.dependencies.items()})
            roots.update(source.__dask_layers__())
    for name, inputs in extra.items():
        layers[name], dependencies[name] = MaterializedLayer(inputs), set()
    annotations = {"retries": retries}
    if lowered.barrier_tasks is not None:
        layers[lowered.name] = BarrierLayer(lowered.stage_tasks, lowered.barrier_tasks, annotations)
        dependencies[lowered.name] = roots
        return HighLevelGraph(layers, dependencies)
    for name, tasks in lowered.layers.items():
        layers[name] = MaterializedLayer(dict(tasks), annotations=annotations)
        dependencies[name] = set(lowered.dependencies[name]) | roots
    return HighLevelGraph(layers, dependencies)


class BarrierLayer(MaterializedLayer):
    """Layer of all stages of a request whose schedule limits the chunks in flight by barriers.

    Culling removes tasks first and then adds the barriers anew, so that no task waits for one that
    is not needed.
    """

    def __init__(
        self,
        tasks: Mapping[Key, Task],
        barrier_tasks: BarrierTasks,
        annotations: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(barrier_tasks.apply(tasks), annotations=annotations)
        self._tasks, self._barrier_tasks = tasks, barrier_tasks

    @property
    def without_barriers(self) -> Mapping[Key, Task]:
        """Tasks of the stages, which wait for their inputs only."""
        return self._tasks

    def cull(
        self, keys: set[Key], all_hlg_keys: Collection[Key]
    ) -> tuple[BarrierLayer, dict[Key, set[Key]]]:
        """Return the layer with only the tasks that `keys` need, and their dependencies."""
        wanted: set[Key] = set()
        left = [key for key in keys if key in self._tasks]
        while left:
            key = left.pop()
            if key not in wanted:
                wanted.add(key)
                left += [each for each in self._tasks[key].dependencies if each in self._tasks]
        tasks = {key: task for key, task in self._tasks.items() if key in wanted}
        layer = BarrierLayer(tasks, self._barrier_tasks, self.annotations)
        return layer, {key: set(task.dependencies) for key, task in layer.mapping.items()}


def _stage_array(
    request: Request,
    graph: HighLevelGraph,
    lowered: Lowered,
    name: str,
    layout: Layout,
    sizes: tuple[tuple[float, ...], ...],
    n_chunks: int,
) -> da.Array:
    output = lowered.outputs[name]
    layer = output.layer
    axis = request.batch.output_axes[name]
    is_placed = output.layout == layout and lowered.layer_of(output) == layer
    if not (output.is_bare and is_placed and name not in request.unproven_types):
        label = output.layer.partition("-")[0]
        take = TakeOutput(output.position, axis, block_type(request, name, label))
        layer = output.own_layer(name)
        tasks = {
            (key := layout.key(layer, i)): Task(
                key, take, TaskRef(output.layout.key(output.layer, i))
            )
            for i in range(n_chunks)
        }
        graph = HighLevelGraph(
            {**graph.layers, layer: MaterializedLayer(tasks)},
            {**graph.dependencies, layer: {lowered.layer_of(output)}},
        )
    dtype = request.dtype(name)
    return da.Array(graph, layer, sizes, dtype=dtype, meta=np.empty((0,) * len(sizes), dtype))
