"""The tasks of a plan that is sharded along a sequence: one for each segment and shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from dask.task_spec import TaskRef

from dask_onnx.cluster.delivery import Delivery
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.cutting import identifier
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import StageCall, run_stage
from dask_onnx.sharding.key_blocks import BlockForm
from dask_onnx.sharding.segment_models import Part, PartedModel
from dask_onnx.sharding.segments import Form, SegmentPlan
from dask_onnx.sharding.shard_layout import (
    Array,
    Bounds,
    Layout,
    even_bounds,
    join_shards,
    take_shard,
)
from dask_onnx.sharding.shard_operands import Constant, LocalOperand


class Inputs(Protocol):
    """Where the caller's arrays are among the tasks."""

    token: str
    """Content of the inputs: the same request has the same keys."""

    def whole(self, name: str) -> Any:
        """A reference to a whole input."""
        ...

    def shard(self, name: str, layout: Layout, shard: int) -> Any | None:
        """A reference to a shard of an input, if it is there; None to slice the whole."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is: an argument, and its position if that is a tuple."""

    argument: Any
    position: int | None = None


@dataclass
class SequenceGraph:
    """The tasks of one request."""

    plan: SegmentPlan
    parted: PartedModel
    inputs: Inputs
    session: SessionSpec
    retries: int
    delivery: Delivery | None = None
    salt: str = ""
    tasks: dict[Key, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.token = digest(
            self.parted.model.token, self.inputs.token, self.plan.bounds, self.session, self.salt
        )
        self.names = [
            f"{part.stage.label}-{digest(self.token, number)}"
            for number, part in enumerate(self.parted.parts)
        ]
        self.made: dict[Form, tuple[int, int | None]] = {
            form: (number, place if len(part.gives) > 1 else None)
            for number, part in enumerate(self.parted.parts)
            if part.attention is None
            for place, form in enumerate(part.gives)
        }
        self.combined = {
            part.gives[0]: f"combine_{self.names[number].removeprefix('partial_')}"
            for number, part in enumerate(self.parted.parts)
            if part.attention is not None
        }
        """Value that blocks of keys are combined to: its layer."""
        for number, part in enumerate(self.parted.parts):
            if part.attention is None:
                self._add_part(number, part)
            else:
                self._add_attention(number, part)

    def whole(self, name: str) -> Place:
        """Where the whole of a value is; adds the task that gathers it, if it must be."""
        known = self.plan.ways.known(name)
        if known is not None:
            return Place(known)
        if (name, None) in self.made:
            number, position = self.made[name, None]
            return Place(TaskRef((self.names[number], 0)), position)
        if name in self.plan.ways.facts.inputs:
            return Place(self.inputs.whole(name))
        return self._gathered(name)

    def shard(self, form: Form, shard: int) -> Place:
        """Where a shard of a value is; adds the task that slices it, if it must be."""
        name, layout = form
        if form in self.combined:
            return Place(TaskRef((self.combined[form], shard)))
        if form in self.made:
            number, position = self.made[form]
            return Place(TaskRef((self.names[number], shard)), position)
        assert layout is not None
        found = self.inputs.shard(name, layout, shard) if self._is_input(name) else None
        return self._sliced(name, layout, shard) if found is None else Place(found)

    def _is_input(self, name: str) -> bool:
        return name in self.plan.ways.facts.inputs

    def _add_attention(self, number: int, part: Part) -> None:
        """Each shard of queries with each block of keys; then the blocks of a shard together."""
        supplies = () if self.delivery is None else self.delivery.keys[number]
        joined = self.combined[part.gives[0]]
        fills = bool(part.attention and part.attention.behind)
        blocks = even_bounds(self.plan.n, self.plan.blocks.count)
        for shard in self.plan.bounds.shards:
            partials = []
            for block in blocks.shards:
                places = [self._block_place(s, shard, block, blocks) for s in part.sources]
                arguments, picks = _arguments(places)
                key = (self.names[number], shard, block)
                call = self._call(number, part, picks, len(supplies))
                supplied = map(TaskRef, supplies)
                self.tasks[key] = StageTask(key, run_stage, call, *arguments, *supplied)
                partials.append(TaskRef(key))
            whole = (joined, shard)
            self.tasks[whole] = StageTask(whole, combine_blocks, fills, *partials)

    def _block_place(self, source: Any, shard: int, block: int, blocks: Bounds) -> Place:
        if not isinstance(source, BlockForm):
            return self._place(source, shard)
        first, after = blocks.offsets[block : block + 2]
        name, rows, keys = source.name, source.rows, source.keys
        if rows is None and self.plan.chosen.layouts.get(name) == keys:
            return self._joined_block(name, keys, range(first, after))
        whole = self.whole(name) if rows is None else self.shard((name, rows), shard)
        owner = 0 if rows is None else shard
        key = (f"block_{identifier(name)}-{digest(self.token, name, rows, keys)}", owner, block)
        if key not in self.tasks:
            start, stop = (self.plan.bounds.offsets[i] for i in (first, after))
            cut = (keys, self.plan.bounds.positions, start, stop)
            self.tasks[key] = StageTask(key, slice_of, whole.argument, whole.position, *cut)
        return Place(TaskRef(key))

    def _joined_block(self, name: str, keys: Layout, shards: range) -> Place:
        """A block of keys that a value has in shards."""
        pieces = [self.output_shard((name, keys), shard) for shard in shards]
        if len(pieces) == 1:
            return Place(pieces[0])
        key = (f"block_{identifier(name)}-{digest(self.token, name, keys)}", shards.start)
        self.tasks[key] = StageTask(key, gather, (keys,), *pieces)
        return Place(TaskRef(key))

    def _add_part(self, number: int, part: Part) -> None:
        supplies = () if self.delivery is None else self.delivery.keys[number]
        shards = self.plan.bounds.shards if part.segment.is_sharded else range(1)
        for shard in shards:
            arguments, picks = _arguments([self._place(s, shard) for s in part.sources])
            key = (self.names[number], shard)
            call = self._call(number, part, picks, len(supplies))
            self.tasks[key] = StageTask(key, run_stage, call, *arguments, *map(TaskRef, supplies))

    def _call(
        self, number: int, part: Part, picks: tuple[tuple[int, int | None], ...], supplies: int
    ) -> StageCall:
        left = sum(each.stage.cost.seconds for each in self.parted.parts[number:])
        return StageCall(
            stage=stage_ref(self.parted.model.ref, part.stage),
            session=self.session,
            picks=picks,
            row_axes=(None,) * len(picks),
            batching=Batching(),
            join_axes=(None,) * len(part.stage.outputs),
            hints=Hints(self.retries, self.token, left=left),
            supplies=supplies,
        )

    def _place(self, source: Any, shard: int) -> Place:
        if isinstance(source, Constant):
            return Place(source.array)
        if isinstance(source, LocalOperand):
            return Place(source.of_shard(self.plan.bounds, shard))
        name, layout = source
        return self.whole(name) if layout is None else self.shard(source, shard)

    def _sliced(self, name: str, layout: Layout, shard: int) -> Place:
        label = f"slice_{identifier(name)}_{layout.label}"
        key = (f"{label}-{digest(self.token, name, layout)}", shard)
        if key not in self.tasks:
            whole = self.whole(name)
            start, stop = self.plan.bounds.offsets[shard : shard + 2]
            positions = self.plan.bounds.positions
            cut = (layout, positions, start, stop)
            self.tasks[key] = StageTask(key, slice_of, whole.argument, whole.position, *cut)
        return Place(TaskRef(key))

    def _gathered(self, name: str) -> Place:
        """The task that joins all gathered values of a segment, and the value's place in it."""
        form = (name, self.plan.chosen.layouts[name])
        if form in self.combined:
            return Place(self.joined(form))
        number = self.made[form][0]
        part = self.parted.parts[number]
        forms = [form for form in part.gives if form[0] in self.plan.gathers]
        label = identifier(forms[0][0]) if len(forms) == 1 else part.stage.label
        key = f"gather_{label}-{digest(self.token, number)}"
        if key not in self.tasks:
            pieces = [self._picked(number, forms, shard) for shard in self.plan.bounds.shards]
            layouts = tuple(layout for _, layout in forms)
            self.tasks[key] = StageTask(key, gather, layouts, *pieces)
        position = forms.index(form)
        return Place(TaskRef(key), position if len(forms) > 1 else None)

    def _picked(self, number: int, forms: Sequence[Form], shard: int) -> TaskRef:
        """The gathered values of a shard, apart from what stays where it is."""
        part = self.parted.parts[number]
        source = TaskRef((self.names[number], shard))
        if len(part.gives) == len(forms):
            return source
        key = (f"pick-{digest(self.token, number)}", shard)
        positions = tuple(part.gives.index(form) for form in forms)
        self.tasks[key] = StageTask(key, pick, source, positions)
        return TaskRef(key)

    def joined(self, form: Form) -> TaskRef:
        """A task whose result is the whole of an output."""
        name, layout = form
        if layout is None:
            return self._bare(self.whole(name), f"output_{identifier(name)}", name, 0)
        key = f"join_{identifier(name)}-{digest(self.token, form)}"
        pieces = [self.output_shard(form, i) for i in self.plan.bounds.shards]
        self.tasks[key] = StageTask(key, gather, (layout,), *pieces)
        return TaskRef(key)

    def output_shard(self, form: Form, shard: int) -> TaskRef:
        """A task whose result is a shard of an output."""
        label = f"output_{identifier(form[0])}"
        return self._bare(self.shard(form, shard), label, form[0], shard)

    def _bare(self, place: Place, label: str, name: str, shard: int) -> TaskRef:
        if place.position is None and isinstance(place.argument, TaskRef):
            return place.argument
        key = (f"{label}-{digest(self.token, name, 'output')}", shard)
        self.tasks[key] = StageTask(key, take, place.argument, place.position)
        return TaskRef(key)


def _arguments(places: Sequence[Place]) -> tuple[list[Any], tuple[tuple[int, int | None], ...]]:
    """The arguments of a task, each once, and where among them each place is."""
    arguments: list[Any] = []
    numbers: dict[Key, int] = {}
    picks = []
    for place in places:
        number = len(arguments)
        if isinstance(place.argument, TaskRef):
            number = numbers.setdefault(place.argument.key, number)
        if number == len(arguments):
            arguments.append(place.argument)
        picks.append((number, place.position))
    return arguments, tuple(picks)


def take(value: Any, position: int | None) -> Any:
    """Return a value, or one of several."""
    return value if position is None else value[position]


def pick(values: Sequence[Any], positions: Sequence[int]) -> Any:
    """Return some of several values; one bare."""
    picked = tuple(values[i] for i in positions)
    return picked if len(picked) > 1 else picked[0]


def slice_of(
    value: Any, position: int | None, layout: Layout, positions: int, start: int, stop: int
) -> Array:
    """Return positions ``[start, stop)`` of a whole value."""
    return take_shard(np.asarray(take(value, position)), layout, positions, start, stop)


def gather(layouts: Sequence[Layout], *pieces: Any) -> Any:
    """Return whole values of the shards in `pieces`, each a value or a tuple of several."""
    if len(layouts) == 1:
        return join_shards(pieces, layouts[0])
    columns = zip(*pieces, strict=True)
    return tuple(join_shards(c, layout) for c, layout in zip(columns, layouts, strict=True))


def combine_blocks(fills_nan: bool, *partials: tuple[Array, Array, Array]) -> Array:
    """Return attention over all blocks of keys.

    Parameters
    ----------
    fills_nan : queries without any key that is allowed give 0, not NaN
    partials : of each block the largest scores and the sums of exponentials, both shape
        (..., queries, 1), and the values weighted by these, shape (..., queries, features)
    """
    most = partials[0][0]
    for highest, _, _ in partials[1:]:
        most = np.maximum(most, highest)
    total, mixed = np.zeros_like(most), np.zeros_like(partials[0][2])
    for highest, own, weighted in partials:
        scale = np.exp(highest - most)
        total += own * scale
        mixed += weighted * scale
    if fills_nan:
        total[total == 0] = 1
    with np.errstate(invalid="ignore"):
        return mixed / total
