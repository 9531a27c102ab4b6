"""One request of a plan on shards of weights, of the kind of collection that comes in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias, DataNode, TaskRef

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.cluster.delivery import Delivery, deliver, hold, plan_delivery
from dask_onnx.collections.kinds import as_array, shapes_of
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import check_arrays
from dask_onnx.collections.schedulers import chosen_scheduler
from dask_onnx.core.errors import InputError, ModelError
from dask_onnx.core.files import check_unchanged, is_url
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Key, digest
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.stages import StageGraph
from dask_onnx.sharding.tensor_parts import TensorParts
from dask_onnx.sharding.tensor_tasks import TensorTasks
from dask_onnx.store.weight_store import Store


@dataclass(frozen=True, slots=True)
class Supplies:
    """Tasks that bring models along."""

    deliveries: tuple[Delivery, ...]
    keys: tuple[tuple[str, ...], ...]
    """For each part the tasks whose results it is given."""


@dataclass(frozen=True, eq=False)
class TensorRequest:
    """What is asked for, and of what."""

    model: PlannedModel
    parts: TensorParts
    session: SessionSpec
    feeds: Mapping[str, Any]
    outputs: tuple[str, ...]
    retries: int

    @cached_property
    def salt(self) -> str:
        """Tells requests apart whose results differ though they ask for the same."""
        return uuid.uuid4().hex if self.model._facts.draws_anew else ""

    @cached_property
    def supplies(self) -> Supplies | None:
        """What brings the models of the parts to workers that cannot get them themselves."""
        parts = self.parts.parts
        for model in {id(part.model): part.model for part in parts}.values():
            publish(model)
        deliveries: list[Delivery] = []
        keys: list[tuple[str, ...]] = [()] * len(parts)
        whole = [number for number, part in enumerate(parts) if part.group is None]
        if whole:
            stages = StageGraph(tuple(parts[i].stage for i in whole), (), (), ())
            found = plan_delivery(parts[whole[0]].model, stages)
            if found is not None:
                deliveries.append(found)
                for number, own in zip(whole, found.keys, strict=True):
                    keys[number] = own
        shards = [number for number, part in enumerate(parts) if part.group is not None]
        alone = [StageGraph((part.stage,), (), (), ()) for part in parts]
        # The first tells whether workers share this host's store: the models are in no file.
        if shards and plan_delivery(parts[shards[0]].model, alone[shards[0]]) is not None:
            for number in shards:
                found = deliver(parts[number].model, alone[number], with_weights=True)
                deliveries.append(found)
                keys[number] = found.keys[0]
        return Supplies(tuple(deliveries), tuple(keys)) if deliveries else None

    @cached_property
    def token(self) -> str:
        """Content of the plan."""
        return digest([part.model.token for part in self.parts.parts], self.outputs)

    def tasks(self, inputs: Mapping[str, Any], token: str) -> TensorTasks:
        """Return the tasks for inputs that are given as references."""
        own = digest(self.token, token, self.session, self.salt)
        keys = None if self.supplies is None else self.supplies.keys
        return TensorTasks(self.parts, inputs, self.session, self.retries, own, keys)

    def checked(self) -> dict[str, Any]:
        """Return what is given, as arrays or lazy collections, compared with the model."""
        specs = {spec.name: spec for spec in self.model.inputs}
        arrays = {
            name: value if is_dask_collection(value) else as_array(value, specs[name])
            for name, value in self.feeds.items()
        }
        known = {n: value for n, value in arrays.items() if not isinstance(value, Delayed)}
        check_arrays(known, self.model.inputs, dict.fromkeys(known))
        return arrays


def publish(model: OnnxModel) -> None:
    """Let processes of this host find a model: where its weights lie in files, else the weights."""
    if all(key in model.places for key in model.blob_keys) and _are_there(model):
        Store().note_places(model)
    else:
        Store().put(model)


def _are_there(model: OnnxModel) -> bool:
    """Whether the files that weights lie in are still those that were loaded."""
    for source in {place.file for place in model.places.values()}:
        if not is_url(source.path):
            try:
                check_unchanged(source)
            except ModelError:
                return False
    return True


def run_eager(request: TensorRequest) -> dict[str, Any]:
    """Run now, on the scheduler that Dask would use; arrays by output name."""
    arrays = request.checked()
    keys = {name: f"input-{digest(name, tokenize(value))}" for name, value in arrays.items()}
    made = request.tasks({n: TaskRef(key) for n, key in keys.items()}, digest(keys))
    wanted = [made.output(name) for name in request.outputs]
    get, client = chosen_scheduler(request.retries)
    supplies: dict[str, Any] = {}
    for delivery in () if request.supplies is None else request.supplies.deliveries:
        supplies.update(delivery.tasks if client is None else hold(client, delivery))
    data = {key: DataNode(key, arrays[name]) for name, key in keys.items()}
    results = get({**data, **made.tasks, **supplies}, wanted)
    return dict(zip(request.outputs, results, strict=True))


def run_delayed(request: TensorRequest) -> dict[str, Delayed]:
    """Return a Delayed for each output."""
    arrays = request.checked()
    sources: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    tasks: dict[Key, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, Delayed):
            sources[name] = value
            inputs[name] = TaskRef(value.key)
        else:
            key = f"input-{digest(name, tokenize(value))}"
            tasks[key] = DataNode(key, value)
            inputs[name] = TaskRef(key)
    made = request.tasks(inputs, digest({n: repr(ref.key) for n, ref in inputs.items()}))
    wanted = {name: made.output(name) for name in request.outputs}
    graph, layer = _layered(request, {**tasks, **made.tasks}, sources.values(), made.token)
    return {name: Delayed(key, graph, layer=layer) for name, key in wanted.items()}


def _layered(
    request: TensorRequest, tasks: Mapping[Key, Any], sources: Any, token: str
) -> tuple[HighLevelGraph, str]:
    """The graph of a lazy result, and the name of the layer with its tasks."""
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    roots: set[str] = set()
    for source in sources:
        own = source.__dask_graph__()
        layers.update(own.layers)
        dependencies.update({name: set(needs) for name, needs in own.dependencies.items()})
        roots.update(source.__dask_layers__())
    supplies: dict[str, Any] = {}
    for delivery in () if request.supplies is None else request.supplies.deliveries:
        supplies.update(delivery.tasks)
    name = f"sharded-{token}"
    annotations = {"retries": request.retries}
    layers[name] = MaterializedLayer({**tasks, **supplies}, annotations=annotations)
    dependencies[name] = roots
    return HighLevelGraph(layers, dependencies), name


# dask.array: each chunk of rows is a request of its own.


def run_arrays(request: TensorRequest) -> dict[str, da.Array]:
    """Return a lazy array for each output, chunked along its rows as the inputs are."""
    arrays = request.checked()
    facts = request.model._facts
    shapes = shapes_of(arrays, request.model.inputs)
    batch = facts.batch_at(request.outputs, shapes)
    arrays, chunks = _aligned(arrays, batch)
    if not batch.is_proven:
        batch = facts.whole_batch(batch, request.outputs, shapes)
    tasks: dict[Key, Any] = {}
    layers = {name: value for name, value in arrays.items() if isinstance(value, da.Array)}
    token = digest({name: value.name for name, value in layers.items()})
    wanted: dict[str, list[Key]] = {name: [] for name in request.outputs}
    for chunk in range(len(chunks)):
        inputs = {n: _block(value, batch.input_axes[n], chunk) for n, value in layers.items()}
        made = request.tasks(inputs, digest(token, chunk))
        for name in request.outputs:
            wanted[name].append(made.output(name))
        tasks.update(made.tasks)
    graph, layer = _layered(request, tasks, layers.values(), digest(request.token, token))
    return {
        name: _array(request, batch, name, keys, chunks, (graph, layer))
        for name, keys in wanted.items()
    }


def _block(value: da.Array, axis: int | None, chunk: int) -> TaskRef:
    return TaskRef((value.name, *(chunk if i == axis else 0 for i in range(value.ndim))))


def _aligned(
    arrays: Mapping[str, Any], batch: BatchFacts
) -> tuple[dict[str, da.Array], tuple[float, ...]]:
    """Inputs as dask arrays with the same chunks of rows, and these chunks.

    Raises
    ------
    InputError
        Chunks along another axis than the rows; rows that depend on each other.
    """
    lazy = {
        name: value if isinstance(value, da.Array) else da.from_array(value, chunks=-1)
        for name, value in arrays.items()
    }
    chunks: tuple[float, ...] = (1,)
    for name, value in lazy.items():
        axis = batch.input_axes.get(name)
        for place, sizes in enumerate(value.chunks):
            if place != axis and len(sizes) > 1:
                raise InputError(
                    f"input {name!r} is cut into {len(sizes)} chunks on axis {place}, which is "
                    "not its rows",
                    f"rechunk it: .rechunk({{{place}: -1}})",
                )
        if axis is not None and len(value.chunks[axis]) >= len(chunks):
            chunks = value.chunks[axis]
    if len(chunks) > 1 and not batch.is_proven:
        raise InputError(
            f"the inputs have {len(chunks)} chunks of rows, and rows of this model depend on each "
            "other",
            "rechunk them into one chunk: .rechunk(-1)",
        )
    if batch.fixed_rows is not None and set(chunks) != {batch.fixed_rows}:
        raise InputError(
            f"the inputs have chunks of {chunks} rows; the model takes {batch.fixed_rows} in a run",
            f"rechunk them into chunks of {batch.fixed_rows} rows",
        )
    for name, value in lazy.items():
        axis = batch.input_axes.get(name)
        if axis is not None and value.chunks[axis] != chunks:
            lazy[name] = value.rechunk({axis: chunks})
    return lazy, chunks


def _array(
    request: TensorRequest,
    batch: BatchFacts,
    name: str,
    keys: Sequence[Key],
    rows: tuple[float, ...],
    layered: tuple[HighLevelGraph, str],
) -> da.Array:
    """A lazy array of one output."""
    dtype, sizes = request.model._facts.typed(name).dtype, batch.sizes.get(name)
    axis, (graph, layer) = batch.output_axes.get(name), layered
    if sizes is None or dtype is None or (len(keys) > 1 and axis is None):
        raise InputError(
            f"the shape of output {name!r} does not follow from the graph",
            "pass Delayed instead of a dask.array",
        )
    own = f"sharded_{name}-{digest(layer, name)}"
    chunks: list[tuple[float, ...]] = [(size,) for size in sizes]
    if axis is not None:
        chunks[axis] = tuple(count * sizes[axis] for count in rows)
    tasks: dict[Any, Any] = {}
    for number, key in enumerate(keys):
        place: Key = (own, *(number if i == axis else 0 for i in range(len(chunks))))
        tasks[place] = Alias(place, key)
    full = HighLevelGraph(
        {**graph.layers, own: MaterializedLayer(tasks)}, {**graph.dependencies, own: {layer}}
    )
    meta = np.empty((0,) * len(chunks), dtype)
    return da.Array(full, own, tuple(chunks), dtype=dtype, meta=meta)


RUN: Mapping[str, Callable[[TensorRequest], dict[str, Any]]] = {
    "eager": run_eager,
    "array": run_arrays,
    "delayed": run_delayed,
}
