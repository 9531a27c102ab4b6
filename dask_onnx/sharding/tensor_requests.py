"""Requests of a tensor-parallel plan, for numpy, dask.array and Delayed inputs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
from dask.base import is_dask_collection, tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, TaskRef

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.cluster.current_scheduler import chosen_scheduler, current_client
from dask_onnx.cluster.delivery import Delivery, deliver, hold, plan_delivery
from dask_onnx.collections.kinds import shapes_of
from dask_onnx.collections.request_checks import check_arrays
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Key, digest
from dask_onnx.facts.host_checks import check_hosts
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.input_values import as_input
from dask_onnx.sharding.lazy_results import layered_graph, lazy_array, unknown_shape
from dask_onnx.sharding.tensor_submodels import TensorPartition
from dask_onnx.sharding.tensor_tasks import TensorTasks
from dask_onnx.store.publishing import publish


@dataclass(frozen=True, slots=True)
class Supplies:
    """Tasks that bring models to workers."""

    deliveries: tuple[Delivery, ...]
    """Deliveries of weights."""
    keys: tuple[tuple[str, ...], ...]
    """For each submodel the keys of the tasks whose results it needs."""


@dataclass(frozen=True, eq=False)
class TensorRequest:
    """One request: plan, inputs and wanted outputs."""

    facts: ModelFacts
    partition: TensorPartition
    session: SessionSpec
    feeds: Mapping[str, Any]
    """Inputs by name, as the caller gave them."""
    outputs: tuple[str, ...]
    """Wanted values."""
    retries: int

    @cached_property
    def salt(self) -> str:
        """Text that makes keys unique where the model draws random numbers."""
        return uuid.uuid4().hex if self.facts.has_unseeded_nodes else ""

    @cached_property
    def supplies(self) -> Supplies | None:
        """Tasks that bring models to workers which cannot read them; None if all can.

        Publishes the models in the store of this host.
        """
        check_hosts(current_client(), self.facts, self.session)
        submodels = self.partition.submodels
        for model in {id(submodel.model): submodel.model for submodel in submodels}.values():
            publish(model)
        deliveries: list[Delivery] = []
        keys: list[tuple[str, ...]] = [()] * len(submodels)
        whole = [number for number, submodel in enumerate(submodels) if submodel.group is None]
        if whole:
            stages = StageGraph(tuple(submodels[i].stage for i in whole), (), (), ())
            found = plan_delivery(submodels[whole[0]].model, stages)
            if found is not None:
                deliveries.append(found)
                for number, supply in zip(whole, found.keys, strict=True):
                    keys[number] = supply
        shards = [number for number, submodel in enumerate(submodels) if submodel.group is not None]
        alone = [StageGraph((submodel.stage,), (), (), ()) for submodel in submodels]
        # Models of shards are in no file, so workers can read either all of them or none: asking
        # for the first is enough to find out whether they share this host's store.
        if shards and plan_delivery(submodels[shards[0]].model, alone[shards[0]]) is not None:
            for number in shards:
                found = deliver(submodels[number].model, alone[number], with_weights=True)
                deliveries.append(found)
                keys[number] = found.keys[0]
        return Supplies(tuple(deliveries), tuple(keys)) if deliveries else None

    @cached_property
    def token(self) -> str:
        """Digest of the plan."""
        return digest([submodel.model.token for submodel in self.partition.submodels], self.outputs)

    def tasks(self, inputs: Mapping[str, Any], token: str) -> TensorTasks:
        """Return the tasks for inputs that are given as references."""
        request_token = digest(self.token, token, self.session, self.salt)
        keys = None if self.supplies is None else self.supplies.keys
        return TensorTasks(self.partition, inputs, self.session, self.retries, request_token, keys)

    def checked(self) -> dict[str, Any]:
        """Return the inputs as arrays or lazy collections, checked against the model."""
        specs = {spec.name: spec for spec in self.facts.inputs}
        arrays = {
            name: value if is_dask_collection(value) else as_input(value, specs[name])
            for name, value in self.feeds.items()
        }
        known = {n: value for n, value in arrays.items() if not isinstance(value, Delayed)}
        check_arrays(known, self.facts.inputs, dict.fromkeys(known))
        return arrays


def run_eager(request: TensorRequest) -> dict[str, Any]:
    """Run a request now, on the scheduler that Dask would use; return arrays by output name."""
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
    """Return the graph of a lazy result, and the name of the layer with its tasks."""
    supplies: dict[str, Any] = {}
    for delivery in () if request.supplies is None else request.supplies.deliveries:
        supplies.update(delivery.tasks)
    name = f"sharded-{token}"
    return layered_graph(name, {**tasks, **supplies}, sources, request.retries), name


# dask.array: each chunk of rows is a separate request.


def run_arrays(request: TensorRequest) -> dict[str, da.Array]:
    """Return a lazy array for each output, chunked along its rows as the inputs are."""
    arrays = request.checked()
    facts = request.facts
    shapes = shapes_of(arrays, request.facts.inputs)
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
    """Return inputs as dask arrays with equal chunks of rows, and these chunks.

    Raises
    ------
    InputError
        There are chunks along another axis than the rows, or rows depend on each other.
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
                    f"input {name!r} has {len(sizes)} chunks along axis {place}, which is "
                    "not its rows",
                    f"rechunk it: .rechunk({{{place}: -1}})",
                    input=name,
                    axis=place,
                    numbers={"chunks": len(sizes)},
                )
        if axis is not None and len(value.chunks[axis]) >= len(chunks):
            chunks = value.chunks[axis]
    if len(chunks) > 1 and not batch.is_proven:
        raise InputError(
            f"the inputs have {len(chunks)} chunks of rows, and rows of this model depend on each "
            "other",
            "rechunk them into one chunk: .rechunk(-1)",
            numbers={"chunks": len(chunks)},
        )
    if batch.fixed_rows is not None and set(chunks) != {batch.fixed_rows}:
        raise InputError(
            f"the inputs have chunks of {chunks} rows; the model takes {batch.fixed_rows} in a run",
            f"rechunk them into chunks of {batch.fixed_rows} rows",
            numbers={"fixed_rows": batch.fixed_rows},
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
    """Return a lazy array of one output."""
    dtype, sizes = request.facts.typed_spec(name).dtype, batch.sizes.get(name)
    axis, (graph, layer) = batch.output_axes.get(name), layered
    if sizes is None or dtype is None or (len(keys) > 1 and axis is None):
        raise unknown_shape(name)
    chunks: list[tuple[float, ...]] = [(size,) for size in sizes]
    if axis is not None:
        chunks[axis] = tuple(count * sizes[axis] for count in rows)
    label = f"sharded_{name}-{digest(layer, name)}"
    return lazy_array(label, graph, layer, keys, chunks, axis, dtype)


RUN: Mapping[str, Callable[[TensorRequest], dict[str, Any]]] = {
    "eager": run_eager,
    "array": run_arrays,
    "delayed": run_delayed,
}
"""Function that runs a request, by the kind of its inputs."""
