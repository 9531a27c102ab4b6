"""Costs and textual explanation of a sequence plan, and checks that sharding is worthwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import CostTable, NodeCost, value_bytes
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_bytes, format_seconds, printable
from dask_onnx.sharding.segment_costs import working_bytes
from dask_onnx.sharding.segment_models import PartitionedModel, Submodel, forms_read
from dask_onnx.sharding.segments import Form, NodeInstance, Segment, SegmentPlan
from dask_onnx.sharding.sequence_axis import describe
from dask_onnx.sharding.shard_memory import ShardMemory

_MAX_REASONS = 8
"""Nodes that run whole, of which the reason is printed."""
_MIN_SHARDED_SHARE = 0.05
"""Share of the predicted time that must run on shards for a plan to be accepted."""


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """Predicted costs of a sequence plan, next to those of the whole model as one task."""

    seconds: float
    """Seconds on the critical path, with one core for each shard, including gathers."""
    work_seconds: float
    """Seconds of all tasks together."""
    whole_seconds: float
    """Seconds of the whole model as one task."""
    memory: ShardMemory
    """Bytes that a request holds at its peak."""
    whole_bytes: int
    """Bytes of the whole model as one task."""
    gathered_bytes: int
    """Bytes of all gathered values."""
    tasks: int
    """Number of tasks that run the model."""
    steps: int
    """Number of segments that run one after the other, a hop apart."""
    critical_work_seconds: float
    """Seconds of work on the critical path, with one core for each shard."""

    def seconds_on(self, costs: CostTable, slowdown: float) -> float:
        """Return the predicted seconds of a request, charged for what plans of stages are too.

        Parameters
        ----------
        costs : CostTable
            Cost of requests, tasks, hops and bytes on a cluster.
        slowdown : float
            Factor on work while each shard has a worker that is busy.
        """
        # After a task its worker is busy with it for Dask, while its result is on its way.
        each_step = max(costs.seconds_per_hop, costs.seconds_per_task)
        sent = 2 * self.gathered_bytes / costs.link_bytes_per_second
        work = self.critical_work_seconds * slowdown
        return costs.seconds_per_request + work + self.steps * each_step + sent


def summarise(
    plan: SegmentPlan,
    partitioned: PartitionedModel,
    costs: CostTable,
    node_costs: Sequence[NodeCost],
) -> SequenceSummary:
    """Return the predicted costs of a plan."""
    submodels = partitioned.submodels
    gathered = sum(value_bytes(plan.candidates.specs.get(name)) for name in plan.gathers)
    critical_work = sum(
        submodel.stage.cost.seconds
        * _runs(plan, submodel)
        / (plan.n if submodel.segment.is_sharded else 1)
        for submodel in submodels
    )
    hops = len(submodels) * costs.seconds_per_hop
    nodes = sorted(plan.chosen.candidates)
    whole = Segment(0, False, tuple(NodeInstance(node, None) for node in nodes))
    return SequenceSummary(
        seconds=critical_work + hops + 2 * gathered / costs.link_bytes_per_second,
        work_seconds=sum(
            submodel.stage.cost.seconds * _runs(plan, submodel) for submodel in submodels
        ),
        whole_seconds=sum(costs.seconds(node_costs[node]) for node in nodes),
        memory=_memory(plan, partitioned),
        whole_bytes=plan.candidates.facts.model.parameter_bytes + working_bytes(plan, whole),
        gathered_bytes=gathered,
        tasks=sum(_runs(plan, submodel) for submodel in submodels),
        steps=len(submodels),
        critical_work_seconds=critical_work,
    )


def _memory(plan: SegmentPlan, partitioned: PartitionedModel) -> ShardMemory:
    """Return the bytes of the largest task, and of the values that wait for later segments."""
    submodels = partitioned.submodels
    written = {form: i for i, submodel in enumerate(submodels) for form in submodel.output_forms}
    last: dict[Form, int] = {}
    for i, submodel in enumerate(submodels):
        last.update(dict.fromkeys(forms_read(submodel), i))
    last.update(dict.fromkeys(plan.outputs, len(submodels)))
    spread, copied = [0] * len(submodels), [0] * len(submodels)
    for (name, layout), end in last.items():
        size = value_bytes(plan.candidates.specs.get(name))
        source = (name, layout or plan.chosen.layouts.get(name))
        begin = written.get((name, layout), written.get(source, 0))
        # A partial result has the size of the whole on every shard.
        total = size * (plan.n if layout is not None and layout.combine else 1)
        for i in range(begin, min(end + 1, len(submodels))):
            if layout is None:
                copied[i] += total
            else:
                spread[i] += total
    return ShardMemory(
        max((submodel.stage.cost.held_bytes for submodel in submodels), default=0),
        max(spread, default=0),
        max(copied, default=0),
    )


def _runs(plan: SegmentPlan, submodel: Submodel) -> int:
    if submodel.attention is not None:
        return plan.n * plan.blocks.count
    return plan.n if submodel.segment.is_sharded else 1


def check_shards(plan: SegmentPlan, seconds: Sequence[float]) -> None:
    """Check that enough of the model runs on shards.

    Parameters
    ----------
    seconds : sequence of float
        Predicted seconds of each node.

    Raises
    ------
    PlanError
        The share of the predicted time that runs on shards is negligible.
    """
    total = sum(seconds[node] for node in plan.chosen.candidates)
    instances = [instance for segment in plan.segments for instance in segment.instances]
    on_shards = sum(
        seconds[instance.node] for instance in instances if instance.candidate is not None
    )
    on_shards += sum(seconds[node] for each in plan.blocks.attentions for node in each.nodes)
    if plan.n == 1 or on_shards >= _MIN_SHARDED_SHARE * total:
        return
    axis, reasons = describe(plan.candidates.seeds), reasons_whole(plan)
    share = on_shards / total
    raise PlanError(
        f"shards of {axis} run only {share:.0%} of the predicted time: "
        + "; ".join(reasons[:_MAX_REASONS] or ["no node reads it"]),
        "shard along another axis, or run batches in parallel: pass a dask.array with chunks of "
        "rows",
        option="axis",
        reason=reasons[0] if reasons else "no node reads it",
        numbers={"sharded_share": share},
    )


def check_blocks(plan: SegmentPlan, key_blocks: int | None) -> None:
    """Check that the model has attentions for the requested blocks of keys.

    Raises
    ------
    PlanError
        No attention consists of MatMul, Softmax and MatMul on shards; or there are more blocks than
        shards.
    """
    if key_blocks is None or key_blocks == 1 or plan.n == 1:
        return
    if key_blocks > plan.n:
        raise PlanError(
            f"key_blocks={key_blocks} exceeds the {plan.n} shards, of which blocks consist",
            f"give key_blocks up to {plan.n}, or more shards",
            option="key_blocks",
            numbers={"key_blocks": key_blocks, "shards": plan.n},
            suggestions=[Suggestion("key_blocks", plan.n), Suggestion("n", key_blocks)],
        )
    if not plan.blocks.attentions:
        raise PlanError(
            "no attention can read its keys in blocks: no Softmax in float32 or float64 between "
            "two MatMul nodes runs on shards",
            "leave key_blocks out, and give more shards",
            option="key_blocks",
            suggestions=[Suggestion("key_blocks", 1), Suggestion("n")],
        )


def explain_sequence(
    plan: SegmentPlan, partitioned: PartitionedModel, summary: SequenceSummary
) -> str:
    """Return the segments with their costs, what is gathered, and which nodes run whole and why."""
    bounds = plan.bounds
    axis = describe(plan.candidates.seeds) if plan.candidates.seeds else "the sequence"
    size = f"{min(bounds.sizes)} to {max(bounds.sizes)}"
    lines = [
        f"sharded along {axis}: {bounds.positions} positions in {plan.n} shards of {size}",
        f"{len(partitioned.submodels)} segments, {summary.tasks} tasks: "
        f"{format_seconds(summary.seconds)} with a core for each shard, "
        f"{format_seconds(summary.work_seconds)} of work; "
        f"whole {format_seconds(summary.whole_seconds)}",
        f"memory of a task {format_bytes(summary.memory.task_bytes)}, of values between tasks "
        f"{format_bytes(summary.memory.spread_bytes)} over all workers and "
        f"{format_bytes(summary.memory.copied_bytes)} on each; "
        f"whole {format_bytes(summary.whole_bytes)}",
        "",
        *_table(plan, partitioned),
    ]
    if plan.gathers:
        total = format_bytes(summary.gathered_bytes)
        lines += ["", f"gathered whole, and sent to every worker: {total}"]
        lines += [f"  {_value(plan, name)}" for name in plan.gathers]
    if reasons := reasons_whole(plan):
        lines += ["", "not on shards:"]
        lines += [f"  {reason}" for reason in reasons[:_MAX_REASONS]]
        if len(reasons) > _MAX_REASONS:
            lines.append(f"  and {len(reasons) - _MAX_REASONS} more")
    return "\n".join(map(printable, lines))


def _table(plan: SegmentPlan, partitioned: PartitionedModel) -> list[str]:
    rows = [("segment", "runs", "nodes", "seconds", "memory", "weights")]
    for submodel in partitioned.submodels:
        cost = submodel.stage.cost
        rows.append(
            (
                submodel.stage.label,
                str(_runs(plan, submodel)),
                str(len(submodel.segment.instances)),
                format_seconds(cost.seconds),
                format_bytes(cost.working_bytes),
                format_bytes(cost.parameter_bytes),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _value(plan: SegmentPlan, name: str) -> str:
    spec = plan.candidates.specs.get(name)
    return f"{spec or name}: {format_bytes(value_bytes(spec))}"


def reasons_whole(plan: SegmentPlan) -> list[str]:
    """Return why nodes that read values in shards run whole, in graph order."""
    facts, chosen = plan.candidates.facts, plan.chosen
    reasons = []
    for index, candidate in chosen.candidates.items():
        node = facts.nodes[index]
        if candidate is not None or not any(name in chosen.layouts for name in node.reads):
            continue
        reasons.append(reason_whole(plan, index))
    return reasons


def reason_whole(plan: SegmentPlan, index: int) -> str:
    """Return why a node does not run on shards.

    For example ``node 'lstm' (LSTM) reads 'x' whole: scanned, recurrence``.
    """
    node = plan.candidates.facts.nodes[index]
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    read = ", ".join(repr(name) for name in node.reads if name in plan.chosen.layouts)
    found = plan.candidates.refusal(index, plan.chosen.layouts)
    detail = found.kind.label + (f", {found.how}" if found.how else "")
    if found.is_independent and found.coupled:
        detail = "a statistic over all positions"
    return f"node {node.name!r} ({operator}) reads {read} whole: {detail}"
