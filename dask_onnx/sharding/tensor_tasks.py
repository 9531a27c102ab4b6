"""The Dask tasks of a plan on shards of weights: one for each part, and those that add partial
results, join shards and slice values between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.task_spec import TaskRef

from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.cutting import identifier
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import StageCall, run_stage
from dask_onnx.sharding.shard_layout import Array, Layout, join_shards
from dask_onnx.sharding.tensor_models import Made, Slice, Source
from dask_onnx.sharding.tensor_parts import Assembly, TensorParts
from dask_onnx.sharding.weight_slices import Piece

FAN_IN = 4
"""Partial results that one task adds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is: a task, and its position if that has several results."""

    argument: Any
    position: int | None = None


@dataclass
class TensorTasks:
    """The tasks of one request of a plan, or of one chunk of its rows."""

    parts: TensorParts
    inputs: Mapping[str, Any]
    """Graph input to a reference to the whole array."""
    session: SessionSpec
    retries: int
    token: str
    """Content of the request: plan, inputs, session."""
    supplies: Sequence[Sequence[Key]] | None = None
    """For each part the tasks that bring its model along."""
    tasks: dict[Key, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = _seconds_left(self.parts)
        self.made: list[dict[str, Place]] = []
        """For each part where its outputs are."""
        self._wholes: dict[str, Place] = {}
        for number, part in enumerate(self.parts.parts):
            name = digest(self.token, number if part.group is None else f"group {part.group}")
            key = (f"{part.stage.label}-{name}", part.shard)
            self._add_part(number, key)
            outputs = part.stage.outputs
            self.made.append(
                {
                    spec.name: Place(TaskRef(key), position if len(outputs) > 1 else None)
                    for position, spec in enumerate(outputs)
                }
            )

    def _add_part(self, number: int, key: Key) -> None:
        part = self.parts.parts[number]
        supplies = () if self.supplies is None else self.supplies[number]
        places = [self._place(source) for source in part.sources]
        call = StageCall(
            stage=stage_ref(part.model.ref, part.stage),
            session=self.session,
            picks=tuple((i, place.position) for i, place in enumerate(places)),
            row_axes=(None,) * len(places),
            batching=Batching(),
            join_axes=(None,) * len(part.stage.outputs),
            hints=Hints(self.retries, self.token, part.stage.cost.seconds, self.left[number]),
            supplies=len(supplies),
        )
        arguments = [place.argument for place in places]
        self.tasks[key] = StageTask(key, run_stage, call, *arguments, *map(TaskRef, supplies))

    def _place(self, source: Source) -> Place:
        if isinstance(source, Made):
            return self.made[source.part][source.value]
        if not isinstance(source, Slice):
            return self.whole(source)
        key = f"slice_{identifier(source.value)}-{digest(self.token, source)}"
        if key not in self.tasks:
            whole = self.whole(source.value)
            self.tasks[key] = StageTask(
                key, slice_pieces, source.pieces, whole.position, whole.argument
            )
        return Place(TaskRef(key))

    def whole(self, name: str) -> Place:
        """Return where the whole of a value is; adds the tasks that make it of shards."""
        if name not in self._wholes:
            self._wholes[name] = (
                Place(self.inputs[name])
                if name in self.inputs
                else self._assembled(name, self.parts.wholes[name], "")
            )
        return self._wholes[name]

    def _assembled(self, name: str, assembly: Assembly, path: str) -> Place:
        if assembly.how == "part":
            return self.made[assembly.part][name]
        places = [self._assembled(name, a, f"{path}.{i}") for i, a in enumerate(assembly.of)]
        label = f"{identifier(name)}-{digest(self.token, name, path)}"
        if assembly.how == "sum":
            return self._added(f"add_{label}", places)
        refs, positions = _apart(places)
        key = f"join_{label}"
        self.tasks[key] = StageTask(key, join_parts, assembly.layout, positions, *refs)
        return Place(TaskRef(key))

    def _added(self, label: str, places: Sequence[Place]) -> Place:
        """The task that adds partial results, by way of others if they are many."""
        level = 0
        while len(places) > 1:
            merged = []
            for number, first in enumerate(range(0, len(places), FAN_IN)):
                key = (label, level, number)
                refs, positions = _apart(places[first : first + FAN_IN])
                self.tasks[key] = StageTask(key, add_partials, positions, *refs)
                merged.append(Place(TaskRef(key)))
            places, level = merged, level + 1
        return places[0]

    def output(self, name: str) -> Key:
        """Return the key of a task whose result is a whole value alone."""
        place = self.whole(name)
        if place.position is None:
            return place.argument.key
        key = f"output_{identifier(name)}-{digest(self.token, name, 'output')}"
        self.tasks[key] = StageTask(key, take, place.argument, place.position)
        return key


def _seconds_left(parts: TensorParts) -> list[float]:
    """Predicted seconds from the start of each part to the end, shards of a group side by side."""
    left: list[float] = []
    total, group = 0.0, None
    for part in reversed(parts.parts):
        if part.group is None or part.group != group:
            total += part.stage.cost.seconds
        group = part.group
        left.append(total)
    return left[::-1]


def _apart(places: Sequence[Place]) -> tuple[list[Any], tuple[int | None, ...]]:
    return [place.argument for place in places], tuple(place.position for place in places)


# What runs on a worker.


def take(value: Any, position: int | None) -> Any:
    """Return a task's result, or one of several."""
    return value if position is None else value[position]


_HALF_BYTES = 2
"""Floats up to this size are added in float32."""


def add_partials(positions: Sequence[int | None], *results: Any) -> Array:
    """Return the sum of partial results, of their dtype; half precision is added in float32."""
    arrays = [np.asarray(take(r, p)) for r, p in zip(results, positions, strict=True)]
    dtype = arrays[0].dtype
    is_half = dtype.itemsize <= _HALF_BYTES and not np.issubdtype(dtype, np.integer)
    total = arrays[0].astype(np.float32) if is_half else arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total.astype(dtype) if is_half else total


def join_parts(layout: Layout, positions: Sequence[int | None], *results: Any) -> Array:
    """Return the whole value of its shards, in their order."""
    arrays = [np.asarray(take(r, p)) for r, p in zip(results, positions, strict=True)]
    inner = arrays[0].shape[layout.axis] // layout.outer
    return join_shards(arrays, replace(layout, inner=inner))


def slice_pieces(pieces: Sequence[Piece], position: int | None, value: Any) -> Array:
    """Return one shard of a whole value."""
    array = np.asarray(take(value, position))
    for piece in pieces:
        array = piece.of(array)
    return array
