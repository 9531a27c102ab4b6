"""Dask tasks of a sequence plan: one for each submodel and shard, and those that move values."""

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
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.sharding.key_blocks import BlockForm
from dask_onnx.sharding.partial_results import Combination, combine_parts
from dask_onnx.sharding.segment_models import PartitionedModel, Submodel
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
from dask_onnx.sharding.value_refs import ValueRef, take_result, unique_arguments


class Inputs(Protocol):
    """Access to the caller's inputs as references."""

    token: str
    """Digest of the inputs: equal requests have equal keys."""

    def whole(self, name: str) -> Any:
        """Return a reference to a whole input."""
        ...

    def shard(self, name: str, layout: Layout, shard: int) -> Any | None:
        """Return a reference to a shard of an input; None if the whole has to be sliced."""
        ...


@dataclass
class SequenceGraph:
    """Tasks of one request.

    Values that several consumers need whole are gathered (all-gather): one task concatenates the
    shards, and its result is sent to each worker that reads it.
    """

    plan: SegmentPlan
    partitioned: PartitionedModel
    inputs: Inputs
    session: SessionSpec
    retries: int
    delivery: Delivery | None = None
    """Tasks that bring weights to workers which cannot read them; None if all can."""
    salt: str = ""
    """Text that makes keys unique where the model draws random numbers."""
    tasks: dict[Key, Any] = field(default_factory=dict)
    """Tasks by key."""

    def __post_init__(self) -> None:
        self.token = digest(
            self.partitioned.model.token,
            self.inputs.token,
            self.plan.bounds,
            self.session,
            self.salt,
        )
        self.names = [
            f"{submodel.stage.label}-{digest(self.token, number)}"
            for number, submodel in enumerate(self.partitioned.submodels)
        ]
        """Name of each submodel's tasks."""
        self.outputs: dict[Form, tuple[int, int | None]] = {
            form: (number, position if len(submodel.output_forms) > 1 else None)
            for number, submodel in enumerate(self.partitioned.submodels)
            if submodel.attention is None
            for position, form in enumerate(submodel.output_forms)
        }
        """Form to the submodel that writes it, and its position among several outputs."""
        self.combined = {
            submodel.output_forms[0]: f"combine_{self.names[number].removeprefix('partial_')}"
            for number, submodel in enumerate(self.partitioned.submodels)
            if submodel.attention is not None
        }
        """Form that blocks of keys are combined to, to the name of the combining tasks."""
        for number, submodel in enumerate(self.partitioned.submodels):
            if submodel.attention is None:
                self._add_submodel(number, submodel)
            else:
                self._add_attention(number, submodel)

    def whole(self, name: str) -> ValueRef:
        """Return a reference to a whole value; adds the task that gathers it if needed."""
        known = self.plan.candidates.known(name)
        if known is not None:
            return ValueRef(known)
        if (name, None) in self.outputs:
            number, position = self.outputs[name, None]
            return ValueRef(TaskRef((self.names[number], 0)), position)
        if name in self.plan.candidates.facts.inputs:
            return ValueRef(self.inputs.whole(name))
        return self._gathered(name)

    def shard(self, form: Form, shard: int) -> ValueRef:
        """Return a reference to a shard of a value; adds the task that slices it if needed."""
        name, layout = form
        if form in self.combined:
            return ValueRef(TaskRef((self.combined[form], shard)))
        if form in self.outputs:
            number, position = self.outputs[form]
            return ValueRef(TaskRef((self.names[number], shard)), position)
        assert layout is not None
        found = self.inputs.shard(name, layout, shard) if self._is_input(name) else None
        return self._sliced(name, layout, shard) if found is None else ValueRef(found)

    def _is_input(self, name: str) -> bool:
        return name in self.plan.candidates.facts.inputs

    def _add_attention(self, number: int, submodel: Submodel) -> None:
        """Add the tasks of an attention in blocks of keys.

        There is one for each shard of queries and block of keys, and one that combines the blocks
        of a shard.
        """
        supplies = () if self.delivery is None else self.delivery.keys[number]
        joined = self.combined[submodel.output_forms[0]]
        replaces_nan = bool(submodel.attention and submodel.attention.after)
        blocks = even_bounds(self.plan.n, self.plan.blocks.count)
        for shard in self.plan.bounds.shards:
            partials = []
            for block in blocks.shards:
                refs = [self._block_ref(s, shard, block, blocks) for s in submodel.sources]
                arguments, picks = unique_arguments(refs)
                key = (self.names[number], shard, block)
                call = self._call(number, submodel, picks, len(supplies))
                supplied = map(TaskRef, supplies)
                self.tasks[key] = StageTask(key, run_stage, call, *arguments, *supplied)
                partials.append(TaskRef(key))
            whole = (joined, shard)
            self.tasks[whole] = StageTask(whole, combine_blocks, replaces_nan, *partials)

    def _block_ref(self, source: Any, shard: int, block: int, blocks: Bounds) -> ValueRef:
        """Return a reference to an input of a block, restricted to its queries and keys."""
        if not isinstance(source, BlockForm):
            return self._source_ref(source, shard)
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
            self.tasks[key] = StageTask(key, slice_value, whole.argument, whole.position, *cut)
        return ValueRef(TaskRef(key))

    def _joined_block(self, name: str, keys: Layout, shards: range) -> ValueRef:
        """Return a block of keys, concatenated from the shards of its value."""
        pieces = [self.output_shard((name, keys), shard) for shard in shards]
        if len(pieces) == 1:
            return ValueRef(pieces[0])
        key = (f"block_{identifier(name)}-{digest(self.token, name, keys)}", shards.start)
        self.tasks[key] = StageTask(key, gather, (keys,), *pieces)
        return ValueRef(TaskRef(key))

    def _add_submodel(self, number: int, submodel: Submodel) -> None:
        """Add the task of a submodel for each shard, or its only task."""
        supplies = () if self.delivery is None else self.delivery.keys[number]
        shards = self.plan.bounds.shards if submodel.segment.is_sharded else range(1)
        for shard in shards:
            arguments, picks = unique_arguments(
                [self._source_ref(s, shard) for s in submodel.sources]
            )
            key = (self.names[number], shard)
            call = self._call(number, submodel, picks, len(supplies))
            self.tasks[key] = StageTask(key, run_stage, call, *arguments, *map(TaskRef, supplies))

    def _call(
        self,
        number: int,
        submodel: Submodel,
        picks: tuple[tuple[int, int | None], ...],
        supplies: int,
    ) -> StageCall:
        seconds_left = sum(each.stage.cost.seconds for each in self.partitioned.submodels[number:])
        return StageCall(
            stage=stage_ref(self.partitioned.model.ref, submodel.stage),
            options=StageOptions(self.session, Batching()),
            picks=picks,
            row_axes=(None,) * len(picks),
            join_axes=(None,) * len(submodel.stage.outputs),
            hints=Hints(self.retries, self.token, seconds_left=seconds_left),
            supplies=supplies,
        )

    def _source_ref(self, source: Any, shard: int) -> ValueRef:
        if isinstance(source, Constant):
            return ValueRef(source.array)
        if isinstance(source, LocalOperand):
            return ValueRef(source.of_shard(self.plan.bounds, shard))
        name, layout = source
        return self.whole(name) if layout is None else self.shard(source, shard)

    def _sliced(self, name: str, layout: Layout, shard: int) -> ValueRef:
        label = f"slice_{identifier(name)}_{layout.label}"
        key = (f"{label}-{digest(self.token, name, layout)}", shard)
        if key not in self.tasks:
            whole = self.whole(name)
            start, stop = self.plan.bounds.offsets[shard : shard + 2]
            positions = self.plan.bounds.positions
            cut = (layout, positions, start, stop)
            self.tasks[key] = StageTask(key, slice_value, whole.argument, whole.position, *cut)
        return ValueRef(TaskRef(key))

    def _gathered(self, name: str) -> ValueRef:
        """Return a reference to a gathered value; one task gathers all values of a segment."""
        form = (name, self.plan.chosen.layouts[name])
        if form in self.combined:
            return ValueRef(self.joined(form))
        number = self.outputs[form][0]
        submodel = self.partitioned.submodels[number]
        forms = [form for form in submodel.output_forms if form[0] in self.plan.gathers]
        label = identifier(forms[0][0]) if len(forms) == 1 else submodel.stage.label
        key = f"gather_{label}-{digest(self.token, number)}"
        if key not in self.tasks:
            pieces = [self._picked(number, forms, shard) for shard in self.plan.bounds.shards]
            joints = tuple(self._joint(layout) for _, layout in forms if layout is not None)
            self.tasks[key] = StageTask(key, gather, joints, *pieces)
        position = forms.index(form)
        return ValueRef(TaskRef(key), position if len(forms) > 1 else None)

    def _joint(self, layout: Layout) -> Layout | Combination:
        """Return how the shards of a value become the whole."""
        return Combination(layout.combine, self.plan.bounds.sizes) if layout.combine else layout

    def _picked(self, number: int, forms: Sequence[Form], shard: int) -> TaskRef:
        """Return the gathered values of a shard, without values that stay on its worker."""
        submodel = self.partitioned.submodels[number]
        source = TaskRef((self.names[number], shard))
        if len(submodel.output_forms) == len(forms):
            return source
        key = (f"pick-{digest(self.token, number)}", shard)
        positions = tuple(submodel.output_forms.index(form) for form in forms)
        self.tasks[key] = StageTask(key, take_several, source, positions)
        return TaskRef(key)

    def joined(self, form: Form) -> TaskRef:
        """Return a task whose result is the whole of an output."""
        name, layout = form
        if layout is None:
            return self._single_value(self.whole(name), f"output_{identifier(name)}", name, 0)
        key = f"join_{identifier(name)}-{digest(self.token, form)}"
        pieces = [self.output_shard(form, i) for i in self.plan.bounds.shards]
        self.tasks[key] = StageTask(key, gather, (layout,), *pieces)
        return TaskRef(key)

    def output_shard(self, form: Form, shard: int) -> TaskRef:
        """Return a task whose result is a shard of an output."""
        label = f"output_{identifier(form[0])}"
        return self._single_value(self.shard(form, shard), label, form[0], shard)

    def _single_value(self, ref: ValueRef, label: str, name: str, shard: int) -> TaskRef:
        """Return a task whose result is a value alone, not one of several."""
        if ref.position is None and isinstance(ref.argument, TaskRef):
            return ref.argument
        key = (f"{label}-{digest(self.token, name, 'output')}", shard)
        self.tasks[key] = StageTask(key, take_result, ref.argument, ref.position)
        return TaskRef(key)


def take_several(values: Sequence[Any], positions: Sequence[int]) -> Any:
    """Return some items of a tuple; a single item is not wrapped."""
    picked = tuple(values[i] for i in positions)
    return picked if len(picked) > 1 else picked[0]


def slice_value(
    value: Any, position: int | None, layout: Layout, positions: int, start: int, stop: int
) -> Array:
    """Return positions ``[start, stop)`` of a whole value."""
    return take_shard(np.asarray(take_result(value, position)), layout, positions, start, stop)


def gather(joints: Sequence[Layout | Combination], *pieces: Any) -> Any:
    """Return whole values from the shards in `pieces`.

    Parameters
    ----------
    joints : sequence of Layout or Combination
        For each value its layout, or how partial results are combined.
    *pieces : ndarray or tuple of ndarray
        Results of each shard, in order: the value, or a tuple with one item for each layout.
    """
    if len(joints) == 1:
        return _joined(pieces, joints[0])
    columns = zip(*pieces, strict=True)
    return tuple(_joined(column, joint) for column, joint in zip(columns, joints, strict=True))


def _joined(pieces: Sequence[Array], joint: Layout | Combination) -> Array:
    if isinstance(joint, Combination):
        return combine_parts(pieces, joint)
    return join_shards(pieces, joint)


def combine_blocks(replaces_nan: bool, *partials: tuple[Array, Array, Array]) -> Array:
    """Return the attention over all blocks of keys.

    Rescales the partial sums of each block to the largest score of all (Milakov and Gimelshein,
    2018).

    Parameters
    ----------
    replaces_nan : bool
        True if queries without any allowed key give 0 rather than NaN.
    *partials : tuple of ndarray
        For each block the largest scores and the sums of exponentials, both shape
        (..., queries, 1), and the values weighted by them, shape (..., queries, features).

    Returns
    -------
    ndarray, shape (..., queries, features)
    """
    most = partials[0][0]
    for highest, _, _ in partials[1:]:
        most = np.maximum(most, highest)
    total, mixed = np.zeros_like(most), np.zeros_like(partials[0][2])
    for highest, exponentials, weighted in partials:
        scale = np.exp(highest - most)
        total += exponentials * scale
        mixed += weighted * scale
    if replaces_nan:
        total[total == 0] = 1
    with np.errstate(invalid="ignore"):
        return mixed / total
