"""Dask tasks of a tensor-parallel plan: one for each submodel, and those between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.task_spec import TaskRef

from dask_onnx.core.array_values import without_mask
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.sharding.shard_layout import Array, Layout, join_shards
from dask_onnx.sharding.tensor_models import InputSlice, Source, SubmodelOutput
from dask_onnx.sharding.tensor_submodels import Assembly, TensorPartition
from dask_onnx.sharding.value_refs import ValueRef, take_result
from dask_onnx.sharding.weight_slices import ShardSlice

FAN_IN = 4
"""Partial sums that one task adds."""


@dataclass
class TensorTasks:
    """Tasks of one request, or of one chunk of its rows.

    Partial sums are reduced in a tree, whose tasks add `FAN_IN` values each.
    """

    partition: TensorPartition
    inputs: Mapping[str, Any]
    """Graph input to a reference to the whole array."""
    session: SessionSpec
    retries: int
    token: str
    """Digest of plan, inputs and session."""
    supplies: Sequence[Sequence[Key]] | None = None
    """For each submodel the keys of the tasks that bring its weights; None if workers can read
    them."""
    tasks: dict[Key, Any] = field(default_factory=dict)
    """Tasks by key."""

    def __post_init__(self) -> None:
        self.seconds_left = _seconds_left(self.partition)
        self.outputs: list[dict[str, ValueRef]] = []
        """References to the outputs of each submodel, by name."""
        self._wholes: dict[str, ValueRef] = {}
        for number, submodel in enumerate(self.partition.submodels):
            # Shards of one group share a name, so that the dashboard shows them as one row.
            name = digest(
                self.token, number if submodel.group is None else f"group {submodel.group}"
            )
            key = (f"{submodel.stage.label}-{name}", submodel.shard)
            self._add_submodel(number, key)
            outputs = submodel.stage.outputs
            self.outputs.append(
                {
                    spec.name: ValueRef(TaskRef(key), position if len(outputs) > 1 else None)
                    for position, spec in enumerate(outputs)
                }
            )

    def _add_submodel(self, number: int, key: Key) -> None:
        submodel = self.partition.submodels[number]
        supplies = () if self.supplies is None else self.supplies[number]
        refs = [self._source_ref(source) for source in submodel.sources]
        call = StageCall(
            stage=stage_ref(submodel.model.ref, submodel.stage),
            options=StageOptions(self.session, Batching()),
            picks=tuple((i, ref.position) for i, ref in enumerate(refs)),
            row_axes=(None,) * len(refs),
            join_axes=(None,) * len(submodel.stage.outputs),
            hints=Hints(
                self.retries, self.token, submodel.stage.cost.seconds, self.seconds_left[number]
            ),
            supplies=len(supplies),
        )
        arguments = [ref.argument for ref in refs]
        self.tasks[key] = StageTask(key, run_stage, call, *arguments, *map(TaskRef, supplies))

    def _source_ref(self, source: Source) -> ValueRef:
        if isinstance(source, SubmodelOutput):
            return self.outputs[source.submodel][source.value]
        if not isinstance(source, InputSlice):
            return self.whole(source)
        key = f"slice_{identifier(source.value)}-{digest(self.token, source)}"
        if key not in self.tasks:
            whole = self.whole(source.value)
            self.tasks[key] = StageTask(
                key, take_slices, source.pieces, whole.position, whole.argument
            )
        return ValueRef(TaskRef(key))

    def whole(self, name: str) -> ValueRef:
        """Return a reference to a whole value; adds the tasks that assemble it from shards."""
        if name not in self._wholes:
            self._wholes[name] = (
                ValueRef(self.inputs[name])
                if name in self.inputs
                else self._assembled(name, self.partition.wholes[name], "")
            )
        return self._wholes[name]

    def _assembled(self, name: str, assembly: Assembly, path: str) -> ValueRef:
        if assembly.how == "submodel":
            return self.outputs[assembly.submodel][name]
        refs = [self._assembled(name, a, f"{path}.{i}") for i, a in enumerate(assembly.of)]
        label = f"{identifier(name)}-{digest(self.token, name, path)}"
        if assembly.how == "sum":
            return self._added(f"add_{label}", refs)
        arguments, positions = _split_refs(refs)
        key = f"join_{label}"
        self.tasks[key] = StageTask(key, join_results, assembly.layout, positions, *arguments)
        return ValueRef(TaskRef(key))

    def _added(self, label: str, refs: Sequence[ValueRef]) -> ValueRef:
        """Add the tasks of a tree that sums partial results; return its root."""
        level = 0
        while len(refs) > 1:
            merged = []
            for number, first in enumerate(range(0, len(refs), FAN_IN)):
                key = (label, level, number)
                arguments, positions = _split_refs(refs[first : first + FAN_IN])
                self.tasks[key] = StageTask(key, add_partials, positions, *arguments)
                merged.append(ValueRef(TaskRef(key)))
            refs, level = merged, level + 1
        return refs[0]

    def output(self, name: str) -> Key:
        """Return the key of a task whose result is a whole value alone."""
        ref = self.whole(name)
        if ref.position is None:
            return ref.argument.key
        key = f"output_{identifier(name)}-{digest(self.token, name, 'output')}"
        self.tasks[key] = StageTask(key, take_result, ref.argument, ref.position)
        return key


def _seconds_left(partition: TensorPartition) -> list[float]:
    """Return the predicted seconds from the start of each submodel to the end.

    Shards of one group are assumed to run in parallel.
    """
    left: list[float] = []
    total, group = 0.0, None
    for submodel in reversed(partition.submodels):
        if submodel.group is None or submodel.group != group:
            total += submodel.stage.cost.seconds
        group = submodel.group
        left.append(total)
    return left[::-1]


def _split_refs(refs: Sequence[ValueRef]) -> tuple[list[Any], tuple[int | None, ...]]:
    return [ref.argument for ref in refs], tuple(ref.position for ref in refs)


# Functions that run on workers.


_HALF_BYTES = 2
"""Bytes per element up to which floats are added in float32."""


def add_partials(positions: Sequence[int | None], *results: Any) -> Array:
    """Return the sum of partial results, of their dtype; half precision is added in float32."""
    arrays = [np.asarray(take_result(r, p)) for r, p in zip(results, positions, strict=True)]
    dtype = arrays[0].dtype
    is_half = dtype.itemsize <= _HALF_BYTES and not np.issubdtype(dtype, np.integer)
    total = arrays[0].astype(np.float32) if is_half else arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total.astype(dtype) if is_half else total


def join_results(layout: Layout, positions: Sequence[int | None], *results: Any) -> Array:
    """Return the whole value of consecutive shards."""
    arrays = [np.asarray(take_result(r, p)) for r, p in zip(results, positions, strict=True)]
    inner = arrays[0].shape[layout.axis] // layout.outer
    return join_shards(arrays, replace(layout, inner=inner))


def take_slices(pieces: Sequence[ShardSlice], position: int | None, value: Any) -> Array:
    """Return one shard of a whole value, which may be a masked array that the caller gave."""
    array = without_mask(take_result(value, position), "an input")
    for piece in pieces:
        array = piece.of(array)
    return array
