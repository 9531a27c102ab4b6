"""Plan of a request that is sharded along a sequence."""

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
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.delivery import plan_delivery
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, kind_of
from dask_onnx.collections.request_checks import check_arrays, resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.core.specs import SessionSpec, TensorSpec
from dask_onnx.facts.host_checks import check_hosts
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.planning.stages import StageGraph
from dask_onnx.sharding.grouped_attention import (
    PAST_KEY,
    grouped_inputs,
    only_attends,
    unpack_grouped,
)
from dask_onnx.sharding.layout_candidates import LayoutCandidates
from dask_onnx.sharding.layout_search import assign_layouts
from dask_onnx.sharding.packed_attention import unpack_attention
from dask_onnx.sharding.segment_models import build_submodels
from dask_onnx.sharding.segments import plan_segments
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
    check_chunks,
    known_shapes,
)
from dask_onnx.sharding.sequence_requests import RUN, SequencePartition, SequenceRequest
from dask_onnx.sharding.sequence_tasks import SequenceGraph
from dask_onnx.sharding.shard_layout import even_bounds
from dask_onnx.sharding.shard_memory import ShardMemory, check_shards_fit
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.store.publishing import publish


@dataclass(frozen=True, eq=False)
class SequencePlan:
    """Plan that runs one request on shards of a sequence. Made by `Model.plan`.

    Examples
    --------
    >>> model = dx.load("encoder.onnx")
    >>> strategy = dx.Sharded("sequence", n=4)
    >>> plan = model.plan(strategy, shapes={"x": (1, 64, 32)})
    >>> print(plan.explain())
    >>> y = plan.predict(x)
    """

    facts: ModelFacts
    strategy: Sharded
    outputs: tuple[str, ...]
    """Outputs that `explain` describes; `predict` may return others."""
    shapes: Shapes | None
    """Input shapes that costs are predicted for, and that Delayed inputs must have."""
    session: SessionSpec
    _partitions: dict[object, SequencePartition] = field(default_factory=dict, repr=False)

    @cached_property
    def unpacked_facts(self) -> ModelFacts:
        """Facts of the model after packed attentions were split into separate projections."""
        facts = self.facts
        unpacked = unpack_attention(facts.onnx, facts.declared)
        unpacked = unpack_grouped(unpacked, facts.declared)
        return (
            facts if unpacked is facts.onnx else ModelFacts(unpacked, facts.custom, facts.libraries)
        )

    def at(self, shapes: Shapes | None = None, outputs: tuple[str, ...] = ()) -> SequencePartition:
        """Return the segments for inputs of these shapes, as submodels. Cached.

        Parameters
        ----------
        shapes : mapping of input name to tuple of int, optional
            Shapes of the inputs; those of the plan by default, and one row where there are none.
        outputs : tuple of str, optional
            Wanted values; those of the plan by default.

        Raises
        ------
        PlanError
            No axis is a sequence, or several are; a node has a Python kernel.
        InputError
            `shapes` do not fit the model.
        """
        bound = self.facts.bound_shapes(shapes or self.shapes)
        complete, _ = assumed_shapes(self.facts.onnx, bound)
        outputs = outputs or self.outputs
        key = (tuple(sorted(complete.items())), outputs)
        if key not in self._partitions:
            if len(self._partitions) > _PLANS_KEPT:
                self._partitions.clear()
            self._partitions[key] = plan_sequence(self, complete, outputs)
        return self._partitions[key]

    def explain(self) -> str:
        """Return the plan as text: segments, gathered values, and nodes that run whole.

        Runs nothing and reads no weights.

        Returns
        -------
        str
            A table of segments with seconds and memory, predicted for the shapes of the plan, next
            to the costs of the whole model as one task; bytes of the gathered values; and for each
            node that does not run on shards the reason.

        Examples
        --------
        >>> print(model.plan(dx.Sharded("sequence", n=4)).explain())
        """
        partition = self.at()
        return explain_sequence(partition.segments, partition.partitioned, partition.summary)

    def predict(self, x: Any, *, outputs: Outputs = None, retries: int | None = None) -> Any:
        """Run one request; see `Model.predict`.

        Parameters
        ----------
        x : ndarray, dask.array or Delayed; or a dict of them by input name
            A dask.array may have several chunks along the sequence only.
        outputs : str or sequence of str, optional
            Wanted values, as in `Model.predict`.
        retries : int, optional
            Attempts of a task after a failure.

        Returns
        -------
        ndarray, dask.array or Delayed; or a dict of them by output name
            The kind of `x`. A lazy dask.array is chunked along the sequence where the output has
            one.

        Raises
        ------
        InputError
            `x` does not fit the model, is a table or a bag, or is a Delayed of unknown shape.

        Examples
        --------
        >>> plan = model.plan(dx.Sharded("sequence", n=4))
        >>> y = plan.predict({"x": x})
        """
        _refuse_rows(x)
        facts = with_fed_defaults(self.facts, x)
        if facts is not self.facts:
            again = dataclasses.replace(self, facts=facts, _partitions={})
            return again.predict(x, outputs=outputs, retries=retries)
        wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values)
        needed = [spec.name for spec in facts.inputs_of(wanted.names)]
        feeds = resolve_feeds(x, facts.inputs, needed)
        specs = {spec.name: spec for spec in facts.inputs}
        arrays = as_arrays(feeds, specs)
        eager = {n: a for n, a in arrays.items() if not isinstance(a, Delayed)}
        check_arrays(eager, facts.inputs, dict.fromkeys(eager))
        partition = self.at(known_shapes(arrays, self.shapes), wanted.names)
        for name, array in arrays.items():
            check_chunks(name, array, partition.axes.get(name))
        self._check_memory(partition, arrays, wanted.names)
        request = self.request(partition, arrays, wanted.names, retries)
        return wanted.shape_result(RUN[kind_of(feeds)](request))

    def _check_memory(
        self, partition: SequencePartition, arrays: Mapping[str, Any], names: tuple[str, ...]
    ) -> None:
        """Raise a PlanError if a worker has no room for the request, with what would fit."""

        def with_shards(count: int) -> ShardMemory:
            if count > partition.bounds.positions:
                raise PlanError(
                    f"{count} shards of {partition.bounds.positions} positions",
                    "give at most one shard for each position",
                    option="n",
                )
            strategy = dataclasses.replace(self.strategy, n=count)
            other = dataclasses.replace(self, strategy=strategy, _partitions={})
            return other.at(known_shapes(arrays, self.shapes), names).summary.memory

        shards = len(partition.bounds.shards)
        check_shards_fit(current_client(), shards, partition.summary.memory, with_shards)

    def request(
        self,
        partition: SequencePartition,
        arrays: Mapping[str, Any],
        names: tuple[str, ...],
        retries: int | None,
    ) -> SequenceRequest:
        """Return the tasks of a request, without those of its outputs."""
        check_hosts(current_client(), self.facts, self.session)
        publish(partition.partitioned.model)
        feeds = SequenceFeeds(arrays, partition.segments.candidates.specs, partition.bounds)
        stages = tuple(submodel.stage for submodel in partition.partitioned.submodels)
        # Workers that can read the weights' file need nothing but the rewritten model.
        source = self.unpacked_facts.onnx.source if len(stages) > 1 else None
        model = dataclasses.replace(partition.partitioned.model, source=source)
        graph = SequenceGraph(
            partition.segments,
            partition.partitioned,
            feeds,
            self.session,
            effective_retries(retries),
            plan_delivery(model, StageGraph(stages, (), (), ())),
            uuid.uuid4().hex if self.unpacked_facts.has_unseeded_nodes else "",
        )
        return SequenceRequest(partition, names, graph, feeds)


_PLANS_KEPT = 16
"""Combinations of shapes and outputs whose segments are cached by a plan."""


def plan_sequence(
    plan: SequencePlan, shapes: Shapes, outputs: tuple[str, ...]
) -> SequencePartition:
    """Return the segments of a request at fixed shapes, as submodels."""
    facts = plan.unpacked_facts
    for index in facts.graph.ancestors(outputs):
        kernel = facts.kernels[index]
        if kernel.kernel != "onnxruntime":
            raise PlanError(
                f"node {facts.graph.nodes[index].name!r} runs on the kernel {kernel.kernel!r}, "
                "which sharded plans do not support",
                "use another strategy, such as 'whole'",
                node=facts.graph.nodes[index].name,
                option="strategy",
                suggestions=[Suggestion("strategy", "whole")],
            )
    specs = infer_shapes(facts.graph, dict(shapes), facts.schemas)
    _check_caches(facts, specs)
    seeds = _seeds(plan, specs, outputs)
    positions = _positions(seeds, specs)
    bounds = even_bounds(positions, plan.strategy.n)
    cut = seeds if len(bounds.shards) > 1 else {}
    candidates = LayoutCandidates(facts.graph, specs, cut, positions, facts.custom_axes)
    each = node_costs(facts.graph, specs)
    chosen = assign_layouts(candidates, outputs, len(bounds.shards), facts.costs, each)
    segments = plan_segments(candidates, chosen, bounds, outputs, plan.strategy.key_blocks or 1)
    check_blocks(segments, plan.strategy.key_blocks)
    check_shards(segments, [facts.costs.seconds(cost) for cost in each])
    partitioned = build_submodels(segments, facts.declared, facts.costs, each)
    summary = summarise(segments, partitioned, facts.costs, each)
    return SequencePartition(segments, partitioned, summary, seeds)


def _check_caches(facts: ModelFacts, specs: Mapping[str, TensorSpec]) -> None:
    """Raise PlanError for a grouped attention on one token of several rows with caches.

    There is nothing to shard, and the caches of the rows may differ in length.
    """
    for node, proto in zip(facts.graph.nodes, facts.graph.proto.graph.node, strict=True):
        if not only_attends(proto) or not grouped_inputs(proto)[PAST_KEY]:
            continue
        rows, tokens, *_ = specs[proto.input[0]].shape or (None, None)
        if rows != 1 and tokens == 1:
            raise PlanError(
                f"node {node.name!r} attends with one token of {rows} rows, each to its cache: "
                "there is no sequence to shard",
                "use another strategy, such as 'whole'",
                node=node.name,
                option="strategy",
                numbers={"rows": rows} if isinstance(rows, int) else {},
                suggestions=[Suggestion("strategy", "whole")],
            )


def _seeds(plan: SequencePlan, specs: Mapping[str, TensorSpec], outputs: tuple[str, ...]) -> Seeds:
    """Return the sharded axis of each input that the outputs need."""
    facts, axis = plan.unpacked_facts, plan.strategy.axis
    if isinstance(axis, str):
        return sequence_axes(facts, specs, outputs)
    inputs = {spec.name: spec for spec in plan.facts.inputs}
    for name, place in axis.items():
        if name not in inputs:
            raise PlanError(
                f"axis names input {name!r}, which the model does not have",
                f"its inputs are {', '.join(map(repr, inputs))}",
                option="axis",
                input=name,
            )
        rank = len(specs[name].shape or ())
        if place >= rank:
            raise PlanError(
                f"axis {place} of input {name!r} is out of range: the input has {rank} axes",
                f"give an axis from 0 to {rank - 1}",
                option="axis",
                input=name,
                axis=place,
                numbers={"rank": rank},
            )
    needed = {spec.name for spec in facts.inputs_of(outputs)}
    return {name: place for name, place in axis.items() if name in needed}


def _positions(seeds: Seeds, specs: Mapping[str, TensorSpec]) -> int:
    """Return the size of the sharded axis, on which the inputs must agree."""
    sizes = {name: (specs[name].shape or ())[axis] for name, axis in seeds.items()}
    found = {size for size in sizes.values() if isinstance(size, int)}
    if len(found) > 1:
        listed = ", ".join(f"{size} in {name}" for name, size in sizes.items())
        raise InputError(
            f"the sharded axis has different sizes: {listed}",
            "give inputs whose sizes agree along the axis",
            option="axis",
            numbers={
                f"size_of_{name}": size for name, size in sizes.items() if isinstance(size, int)
            },
        )
    return found.pop() if found else 1


def _refuse_rows(x: Any) -> None:
    """Raise for a table, bag or DataArray: rows of these are many requests."""
    if is_table(x) or is_bag(x) or is_dataarray(x):
        raise InputError(
            f"a sharded plan runs one request of arrays, not a {type(x).__name__}",
            "pass numpy or dask arrays, or Delayed",
        )
