"""dask.array in, dask.array out; lazily."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import dask.config
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.cluster.barriers import BarrierTasks
from dask_onnx.collections.kinds import as_array, most_rows
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import check_arrays, check_joins
from dask_onnx.core.errors import InputError
from dask_onnx.core.stage_tasks import Hints, Key, digest
from dask_onnx.lowering.lower import Feeds, Layout, Lowered, lower
from dask_onnx.runtime.kernel import StageCall, run_stage, take_output

_LITERAL_BYTES = 1024
"""An input without rows up to this size is written into each task; a larger one is a key."""

_ROWS = "rows"
"""The index of the batch axis, in `blockwise`'s sense."""


def predict_arrays(request: Request, feeds: Mapping[str, Any]) -> dict[str, da.Array]:
    """One lazy array for each output that is wanted.

    Parameters
    ----------
    feeds : mapping of input name to dask.array or anything that numpy makes an array of
        dask arrays are chunked along their batch axis only.

    Raises
    ------
    InputError
        Chunks, dtypes, ranks or sizes do not fit; several stages under array expressions.
    """
    arrays = _as_arrays(feeds, request)
    check_arrays(arrays, request.stages.inputs, request.batch.input_axes)
    arrays, chunks = _align(arrays, request.batch.input_axes)
    check_joins(
        request.batch,
        request.wanted.names,
        model=request.model.token,
        chunks=len(chunks),
        rows_per_run=request.batching.rows_per_run,
    )
    if len(request.stages.stages) == 1 and request.delivery is None:
        return _predict_blocks(request, arrays, chunks)
    if dask.config.get("array.query-planning", False):
        what = f"a plan of {len(request.stages.stages)} stages"
        if request.delivery is not None:
            what = "a model that must travel with its graph, since workers cannot see its file,"
        raise InputError(
            f"{what} cannot become a dask.array while array.query-planning is on",
            "set array.query-planning to false, use the 'whole' strategy, or pass Delayed",
        )
    return _predict_stages(request, arrays, chunks)


def _as_arrays(feeds: Mapping[str, Any], request: Request) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    specs = {spec.name: spec for spec in request.stages.inputs}
    for name, value in feeds.items():
        if specs[name].kind is not None:
            raise InputError(
                f"input {name!r} is {specs[name].kind}, which no array can be",
                "pass all inputs as Delayed, or numpy arrays and lists",
            )
        arrays[name] = value if isinstance(value, da.Array) else as_array(value, specs[name])
    return arrays


def _align(
    arrays: Mapping[str, Any], axes: Mapping[str, int | None]
) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The inputs with the same chunks of rows, and these chunks."""
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
            )


def _rechunk(name: str, array: Any, axis: int, chunks: tuple[float, ...]) -> da.Array:
    if not isinstance(array, da.Array):
        if any(map(math.isnan, chunks)):
            raise InputError(
                f"input {name!r} is in memory and another input has chunks of unknown size (NaN)",
                "call compute_chunk_sizes() on the other one first",
            )
        own = tuple(chunks if i == axis else -1 for i in range(array.ndim))
        chunked: da.Array = da.from_array(array, chunks=own)
        return chunked
    own_chunks = array.chunks[axis]
    if own_chunks == chunks:
        return array
    if any(map(math.isnan, [*own_chunks, *chunks])):
        if len(own_chunks) == len(chunks):
            return array  # each task compares the rows that it gets
        raise InputError(
            f"input {name!r} has {len(own_chunks)} chunks and another input {len(chunks)}, and "
            "the sizes of some are unknown (NaN)",
            "call compute_chunk_sizes() on the inputs first",
        )
    rechunked: da.Array = array.rechunk({axis: chunks})
    return rechunked


@dataclass(frozen=True, slots=True, eq=False)
class BlockPredictor:
    """A whole-model stage on the blocks of one chunk; what `blockwise` calls."""

    call: StageCall
    token: str

    @property
    def hints(self) -> Hints:
        return self.call.hints

    def __call__(self, *blocks: Any) -> Any:
        return run_stage(self.call, *map(_unwrap, blocks))

    def __dask_tokenize__(self) -> str:
        return self.token


@dataclass(frozen=True, slots=True)
class TakeOutput:
    """One output out of a task's result."""

    position: int | None
    axis: int | None

    def __call__(self, block: Any) -> Any:
        return take_output(_unwrap(block), self.position, self.axis)


def _unwrap(block: Any) -> Any:
    """`blockwise` hands over an axis that the output lacks as a list of blocks: here of one."""
    while isinstance(block, list):
        (block,) = block
    return block


def _predict_blocks(
    request: Request, arrays: Mapping[str, Any], chunks: tuple[float, ...]
) -> dict[str, da.Array]:
    """One stage: an ordinary `blockwise`, which Dask may fuse with what stands around it."""
    (stage,) = request.stages.stages
    token = _feeds_token(arrays)
    feeds = Feeds(
        {n: (TaskRef(n),) for n in arrays},
        request.batch.input_axes,
        token,
        1,
        most_rows(arrays, request.batch.input_axes),
    )
    lowered = lower(request.model, request.stages, feeds, request.options)
    ((name, layer),) = lowered.layers.items()
    (task,) = layer.values()
    predictor = BlockPredictor(task.args[0], name)
    order = [spec.name for spec in stage.inputs]
    pairs = [part for n in order for part in _indexed(n, arrays[n], request.batch.input_axes[n])]
    if len(stage.outputs) == 1:
        return {stage.outputs[0].name: _block_array(request, predictor, pairs, chunks, name)}
    results = da.blockwise(
        predictor,
        (_ROWS,),
        *pairs,
        name=name,
        dtype=object,
        meta=np.empty((0,), dtype=object),
        new_axes={} if _has_rows(request, arrays) else {_ROWS: 1},
        align_arrays=False,
        concatenate=None,
    )
    return {
        output: _block_array(
            request,
            TakeOutput(lowered.outputs[output].position, None),
            [results, (_ROWS,)],
            chunks,
            f"{stage.label}_{position}-{digest(name, output)}",
            output=output,
        )
        for position, output in enumerate(request.wanted.names)
    }


def _has_rows(request: Request, arrays: Mapping[str, Any]) -> bool:
    return any(request.batch.input_axes[name] is not None for name in arrays)


def _indexed(name: str, array: Any, batch_axis: int | None) -> list[Any]:
    """An array and its indices, as `blockwise` takes them; a small one as a literal."""
    if not isinstance(array, da.Array):
        if array.nbytes <= _LITERAL_BYTES and array.dtype != object:
            return [array, None]
        array = da.from_array(array, chunks=-1)
    index = tuple(_ROWS if i == batch_axis else f"{name}.{i}" for i in range(array.ndim))
    return [array, index]


def _block_array(
    request: Request,
    function: Any,
    pairs: Sequence[Any],
    chunks: tuple[float, ...],
    name: str,
    output: str | None = None,
) -> da.Array:
    output = output or request.wanted.names[0]
    layout, sizes = _shape(request, output, chunks)
    out_index = tuple(_ROWS if i == layout.axis else f"out.{i}" for i in range(layout.ndim))
    known = {index for index in pairs[1::2] if index for index in index}
    new_axes = {
        index: axis_chunks
        for index, axis_chunks in zip(out_index, sizes, strict=True)
        if index not in known
    }
    adjust = {_ROWS: sizes[layout.axis]} if layout.ndim and _ROWS in known else None
    result: da.Array = da.blockwise(
        function,
        out_index,
        *pairs,
        name=name,
        dtype=request.dtype(output),
        meta=np.empty((0,) * layout.ndim, dtype=request.dtype(output)),
        new_axes=new_axes,
        adjust_chunks=adjust if adjust and _ROWS in out_index else None,
        align_arrays=False,
        concatenate=None,
    )
    return result


def _shape(
    request: Request, output: str, chunks: tuple[float, ...]
) -> tuple[Layout, tuple[tuple[float, ...], ...]]:
    """Where the chunks stand among the output's axes, and the chunks of each axis."""
    sizes = request.batch.sizes[output]
    if sizes is None:
        raise InputError(
            f"not even the rank of output {output!r} follows from the graph",
            "pass Delayed instead of a dask.array, or declare the output's shape in the model",
        )
    axis = request.batch.output_axes[output]
    rows = tuple(chunk if axis is not None and sizes[axis] == 1 else math.nan for chunk in chunks)
    own = tuple(rows if i == axis else (size,) for i, size in enumerate(sizes))
    return Layout(len(sizes), -1 if axis is None else axis), own


def _predict_stages(
    request: Request, arrays: Mapping[str, Any], chunks: tuple[float, ...]
) -> dict[str, da.Array]:
    """Several stages: layers of our own, whose tasks Dask does not fuse."""
    token = _feeds_token(arrays)
    axes = request.batch.input_axes
    extra = request.supply_layers
    references: dict[str, list[Any]] = {}
    for name, array in arrays.items():
        references[name] = _references(name, array, axes[name], len(chunks), extra)
    shapes = {name: _shape(request, name, chunks) for name in request.wanted.names}
    lowered = lower(
        request.model,
        request.stages,
        Feeds(references, axes, token, len(chunks), most_rows(arrays, axes)),
        request.options,
        {name: layout for name, (layout, _) in shapes.items() if layout.axis >= 0},
        request.supplies,
    )
    graph = layered_graph(lowered, arrays.values(), extra, request.retries)
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
    if array.nbytes <= _LITERAL_BYTES and array.dtype != object:
        return [array]
    key = f"input-{digest(name, da.from_array(array).name)}"
    extra[key] = {key: DataNode(key, array)}
    return [TaskRef(key)]


def layered_graph(
    lowered: Lowered, sources: Any, extra: Mapping[str, dict[Any, Any]], retries: int
) -> HighLevelGraph:
    """The lowered layers on top of the graphs of the collections that they read."""
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
        layers[lowered.name] = GatedLayer(lowered.stage_tasks, lowered.barrier_tasks, annotations)
        dependencies[lowered.name] = roots
        return HighLevelGraph(layers, dependencies)
    for name, tasks in lowered.layers.items():
        layers[name] = MaterializedLayer(dict(tasks), annotations=annotations)
        dependencies[name] = set(lowered.dependencies[name]) | roots
    return HighLevelGraph(layers, dependencies)


class GatedLayer(MaterializedLayer):
    """All stages of a request whose schedule has them wait for each other.

    Culling keeps what is asked for, and has that wait for itself only.
    """

    def __init__(
        self,
        tasks: Mapping[Key, Task],
        barrier_tasks: BarrierTasks,
        annotations: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(barrier_tasks.apply(tasks), annotations=annotations)
        self._tasks, self._barrier_tasks = tasks, barrier_tasks

    def cull(
        self, keys: set[Key], all_hlg_keys: Collection[Key]
    ) -> tuple[GatedLayer, dict[Key, set[Key]]]:
        wanted: set[Key] = set()
        left = [key for key in keys if key in self._tasks]
        while left:
            key = left.pop()
            if key not in wanted:
                wanted.add(key)
                left += [each for each in self._tasks[key].dependencies if each in self._tasks]
        tasks = {key: task for key, task in self._tasks.items() if key in wanted}
        layer = GatedLayer(tasks, self._barrier_tasks, self.annotations)
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
    if not (output.is_bare and output.layout == layout and lowered.layer_of(output) == layer):
        take = TakeOutput(output.position, axis)
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


def _feeds_token(arrays: Mapping[str, Any]) -> str:
    names = {
        name: array.name if isinstance(array, da.Array) else _content(array)
        for name, array in arrays.items()
    }
    return digest(names)


def _content(array: Any) -> str:
    return str(tokenize(array))
