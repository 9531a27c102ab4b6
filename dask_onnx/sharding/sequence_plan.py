"""The plan that users hold of a request that is sharded along a sequence."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dask.delayed import Delayed

from dask_onnx.analysis.cost import node_costs
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.cluster.delivery import plan_delivery
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, kind_of
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import check_arrays, resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.core.specs import SessionSpec, TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.planning.stages import StageGraph
from dask_onnx.sharding.node_ways import Ways
from dask_onnx.sharding.packed_attention import unpacked
from dask_onnx.sharding.segment_models import make_parts
from dask_onnx.sharding.segments import plan_segments
from dask_onnx.sharding.sequence import SequenceGraph
from dask_onnx.sharding.sequence_axis import Seeds, sequence_axes
from dask_onnx.sharding.sequence_explain import (
    check_blocks,
    check_shards,
    explain_sequence,
    summarise,
)
from dask_onnx.sharding.sequence_feeds import (
    SequenceFeeds,
    Shapes,
    as_arrays,
    in_one_chunk,
    known_shapes,
)
from dask_onnx.sharding.sequence_requests import RUN, SequenceParts, SequenceRequest
from dask_onnx.sharding.shard_layout import even_bounds
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.sharding.way_search import find_ways
from dask_onnx.store.weight_store import Store


@dataclass(frozen=True, eq=False)
class SequencePlan:
    """A model that runs one request on shards of a sequence. Made by `Model.plan`."""

    model: PlannedModel
    strategy: Sharded
    outputs: tuple[str, ...]
    """What `explain` is about; others may be asked for."""
    shapes: Shapes | None
    session: SessionSpec
    _made: dict[object, SequenceParts] = field(default_factory=dict, repr=False)

    @cached_property
    def facts(self) -> ModelFacts:
        """What follows from the model, once packed attentions in it are written out."""
        own = self.model._facts
        written = unpacked(own.onnx, own.declared)
        return own if written is own.onnx else ModelFacts(written, own.custom, own.libraries)

    def at(self, shapes: Shapes | None = None, outputs: tuple[str, ...] = ()) -> SequenceParts:
        """Return the segments for inputs of these shapes; remembered.

        Raises
        ------
        PlanError
            No axis is a sequence, or several are; a node has a kernel in Python.
        InputError
            `shapes` do not fit the model.
        """
        bound = self.model._facts.bound_shapes(shapes or self.shapes)
        complete, _ = assumed_shapes(self.model._facts.onnx, bound)
        outputs = outputs or self.outputs
        key = (tuple(sorted(complete.items())), outputs)
        if key not in self._made:
            if len(self._made) > _PLANS_KEPT:
                self._made.clear()
            self._made[key] = plan_sequence(self, complete, outputs)
        return self._made[key]

    def explain(self) -> str:
        """Return the segments, what is gathered, predicted seconds and memory, beside the whole
        model's, as text."""
        made = self.at()
        return explain_sequence(made.segments, made.parted, made.summary)

    def predict(self, x: Any, *, outputs: Outputs = None, retries: int | None = None) -> Any:
        """Run one request; see `Model.predict`.

        Parameters
        ----------
        x : ndarray, dask.array or Delayed; or a dict of them by input name
            A dask.array may be chunked along the sequence only.

        Returns
        -------
        numpy of numpy; of dask.array a lazy dask.array, chunked along the sequence where the output
        has one; of Delayed a Delayed.

        Raises
        ------
        InputError
            What is given does not fit the model; a table or a bag; a Delayed of unknown shape.
        """
        _refuse_rows(x)
        model = self.model._fed_with(x)
        if model is not self.model:
            again = dataclasses.replace(self, model=model, _made={})
            return again.predict(x, outputs=outputs, retries=retries)
        facts = model._facts
        wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values)
        needed = [spec.name for spec in facts.inputs_of(wanted.names)]
        feeds = resolve_feeds(x, model.inputs, needed)
        specs = {spec.name: spec for spec in model.inputs}
        arrays = as_arrays(feeds, specs)
        eager = {n: a for n, a in arrays.items() if not isinstance(a, Delayed)}
        check_arrays(eager, model.inputs, dict.fromkeys(eager))
        made = self.at(known_shapes(arrays, self.shapes), wanted.names)
        for name, array in arrays.items():
            in_one_chunk(name, array, made.axes.get(name))
        request = self.request(made, arrays, wanted.names, retries)
        return wanted.shape_result(RUN[kind_of(feeds)](request))

    def request(
        self,
        made: SequenceParts,
        arrays: Mapping[str, Any],
        names: tuple[str, ...],
        retries: int | None,
    ) -> SequenceRequest:
        """Return the tasks of a request, without those of its outputs."""
        publish(made.parted.model)
        feeds = SequenceFeeds(arrays, made.segments.ways.specs, made.bounds)
        stages = tuple(part.stage for part in made.parted.parts)
        # Workers that see the file of the weights need no more than the model of the parts.
        source = self.facts.onnx.source if len(stages) > 1 else None
        model = dataclasses.replace(made.parted.model, source=source)
        graph = SequenceGraph(
            made.segments,
            made.parted,
            feeds,
            self.session,
            effective_retries(retries),
            plan_delivery(model, StageGraph(stages, (), (), ())),
            uuid.uuid4().hex if self.facts.draws_anew else "",
        )
        return SequenceRequest(made, names, graph, feeds)


_PLANS_KEPT = 16
"""Shapes whose segments are remembered."""


def publish(model: OnnxModel) -> None:
    """Let processes of this host find a model of parts; weights that lie in files stay there.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    store = Store()
    if all(key in model.places for key in model.blob_keys):
        store.note_places(model)
    else:
        store.put(model)


def plan_sequence(plan: SequencePlan, shapes: Shapes, outputs: tuple[str, ...]) -> SequenceParts:
    """Return the segments of a request of definite shapes."""
    facts = plan.facts
    for index in facts.graph.ancestors(outputs):
        kernel = facts.kernels[index]
        if kernel.kernel != "onnxruntime":
            raise PlanError(
                f"node {facts.graph.nodes[index].name!r} runs on the kernel {kernel.kernel!r}, "
                "which sharded plans do not run",
                "use another strategy, such as 'whole'",
            )
    specs = infer_shapes(facts.graph, dict(shapes), facts.schemas)
    seeds = _seeds(plan, specs, outputs)
    positions = _positions(seeds, specs)
    bounds = even_bounds(positions, plan.strategy.n)
    cut = seeds if len(bounds.shards) > 1 else {}
    ways = Ways(facts.graph, specs, cut, positions, facts.custom_axes)
    each = node_costs(facts.graph, specs)
    chosen = find_ways(ways, outputs, len(bounds.shards), facts.costs, each)
    segments = plan_segments(ways, chosen, bounds, outputs, plan.strategy.key_blocks or 1)
    check_blocks(segments, plan.strategy.key_blocks)
    check_shards(segments, [facts.costs.seconds(cost) for cost in each])
    parted = make_parts(segments, facts.declared, facts.costs, each)
    summary = summarise(segments, parted, facts.costs, each)
    return SequenceParts(segments, parted, summary, seeds)


def _seeds(plan: SequencePlan, specs: Mapping[str, TensorSpec], outputs: tuple[str, ...]) -> Seeds:
    facts, axis = plan.facts, plan.strategy.axis
    if isinstance(axis, str):
        return sequence_axes(facts, specs, outputs)
    inputs = {spec.name: spec for spec in plan.model.inputs}
    for name, place in axis.items():
        if name not in inputs:
            raise PlanError(
                f"the axis to shard along names input {name!r}, which the model does not have",
                f"its inputs are {', '.join(map(repr, inputs))}",
            )
        rank = len(specs[name].shape or ())
        if place >= rank:
            raise PlanError(
                f"input {name!r} has {rank} axes, and axis {place} is to be sharded",
                f"give an axis from 0 to {rank - 1}",
            )
    needed = {spec.name for spec in facts.inputs_of(outputs)}
    return {name: place for name, place in axis.items() if name in needed}


def _positions(seeds: Seeds, specs: Mapping[str, TensorSpec]) -> int:
    sizes = {name: (specs[name].shape or ())[axis] for name, axis in seeds.items()}
    found = {size for size in sizes.values() if isinstance(size, int)}
    if len(found) > 1:
        listed = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise InputError(
            f"the axis to shard along has different sizes: {listed}",
            "inputs that share the axis must agree on its size",
        )
    return found.pop() if found else 1


def _refuse_rows(x: Any) -> None:
    if is_table(x) or is_bag(x) or is_dataarray(x):
        raise InputError(
            f"a sharded plan runs one request of arrays; {type(x).__name__} was given",
            "pass numpy or dask arrays, or Delayed",
        )
