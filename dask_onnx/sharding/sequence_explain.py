"""A plan that is sharded along a sequence as text, and the reasons for what runs whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import CostTable, NodeCost, value_bytes
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes, format_seconds
from dask_onnx.sharding.segment_costs import working_bytes
from dask_onnx.sharding.segment_models import Part, PartedModel
from dask_onnx.sharding.segments import Copy, Segment, SegmentPlan
from dask_onnx.sharding.sequence_axis import describe

_MOST_REASONS = 8
"""Nodes that run whole, of which the reason is printed."""
_LEAST_SHARE = 0.05
"""Of the predicted time, what must run on shards for a plan to be one."""


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """What a sharded plan is predicted to take, beside the whole model as one task."""

    seconds: float
    """On the longest way: every shard on a core of its own, with gathers."""
    work_seconds: float
    """Of all tasks together."""
    whole_seconds: float
    """Of the model as one task."""
    task_bytes: int
    """Inputs, results and weights of the task that needs most."""
    whole_bytes: int
    """Of the model as one task."""
    gathered_bytes: int
    """Of all values that are gathered."""
    tasks: int
    """Segments and shards."""


def summarise(
    plan: SegmentPlan, parted: PartedModel, costs: CostTable, node_costs: Sequence[NodeCost]
) -> SequenceSummary:
    """Return what a plan is predicted to take at its sizes."""
    parts = parted.parts
    gathered = sum(value_bytes(plan.ways.specs.get(name)) for name in plan.gathers)
    way = sum(
        part.stage.cost.seconds * _runs(plan, part) / (plan.n if part.segment.is_sharded else 1)
        + costs.seconds_per_hop
        for part in parts
    )
    nodes = sorted(plan.chosen.ways)
    whole = Segment(0, False, tuple(Copy(node, None) for node in nodes))
    return SequenceSummary(
        seconds=way + 2 * gathered / costs.link_bytes_per_second,
        work_seconds=sum(part.stage.cost.seconds * _runs(plan, part) for part in parts),
        whole_seconds=sum(costs.seconds(node_costs[node]) for node in nodes),
        task_bytes=max((part.stage.cost.held_bytes for part in parts), default=0),
        whole_bytes=plan.ways.facts.model.parameter_bytes + working_bytes(plan, whole),
        gathered_bytes=gathered,
        tasks=sum(_runs(plan, part) for part in parts),
    )


def _runs(plan: SegmentPlan, part: Part) -> int:
    if part.attention is not None:
        return plan.n * plan.blocks.count
    return plan.n if part.segment.is_sharded else 1


def check_shards(plan: SegmentPlan, seconds: Sequence[float]) -> None:
    """Compare what runs on shards with the whole.

    Parameters
    ----------
    seconds : predicted, of each node

    Raises
    ------
    PlanError
        Next to nothing runs on shards.
    """
    total = sum(seconds[node] for node in plan.chosen.ways)
    copies = [copy for segment in plan.segments for copy in segment.copies]
    on_shards = sum(seconds[copy.node] for copy in copies if copy.way is not None)
    on_shards += sum(seconds[node] for each in plan.blocks.attentions for node in each.nodes)
    if plan.n == 1 or on_shards >= _LEAST_SHARE * total:
        return
    axis, reasons = describe(plan.ways.seeds), whole_nodes(plan)
    raise PlanError(
        f"next to nothing runs on shards of {axis}: "
        + "; ".join(reasons[:_MOST_REASONS] or ["no node reads it"]),
        "shard along another axis, or run batches side by side: pass a dask.array with chunks of "
        "rows",
    )


def check_blocks(plan: SegmentPlan, key_blocks: int | None) -> None:
    """Compare the blocks of keys that are asked for with the attentions that there are.

    Raises
    ------
    PlanError
        No attention is made of MatMul, Softmax and MatMul on shards; there are more blocks than
        shards.
    """
    if key_blocks is None or key_blocks == 1 or plan.n == 1:
        return
    if key_blocks > plan.n:
        raise PlanError(
            f"{key_blocks} blocks of keys for {plan.n} shards; a block is made of whole shards",
            f"give key_blocks up to {plan.n}, or more shards",
        )
    if not plan.blocks.attentions:
        raise PlanError(
            "no attention of the model can take its keys in blocks: there is no Softmax in float32 "
            "or float64 between two MatMul that runs on shards",
            "leave key_blocks out, and give more shards",
        )


def explain_sequence(plan: SegmentPlan, parted: PartedModel, summary: SequenceSummary) -> str:
    """Return segments with their predicted cost, what is gathered, and what runs whole and why."""
    bounds = plan.bounds
    axis = describe(plan.ways.seeds) if plan.ways.seeds else "the sequence"
    size = f"{min(bounds.sizes)} to {max(bounds.sizes)}"
    lines = [
        f"sharded along {axis}: {bounds.positions} positions in {plan.n} shards of {size}",
        f"{len(parted.parts)} segments, {summary.tasks} tasks: "
        f"{format_seconds(summary.seconds)} with a core for each shard, "
        f"{format_seconds(summary.work_seconds)} of work; "
        f"whole {format_seconds(summary.whole_seconds)}",
        f"memory of a task {format_bytes(summary.task_bytes)}; "
        f"whole {format_bytes(summary.whole_bytes)}",
        "",
        *_table(plan, parted),
    ]
    if plan.gathers:
        total = format_bytes(summary.gathered_bytes)
        lines += ["", f"gathered whole, and sent to every worker: {total}"]
        lines += [f"  {_value(plan, name)}" for name in plan.gathers]
    if reasons := whole_nodes(plan):
        lines += ["", "not on shards:"]
        lines += [f"  {reason}" for reason in reasons[:_MOST_REASONS]]
        if len(reasons) > _MOST_REASONS:
            lines.append(f"  and {len(reasons) - _MOST_REASONS} more")
    return "\n".join(lines)


def _table(plan: SegmentPlan, parted: PartedModel) -> list[str]:
    rows = [("segment", "runs", "nodes", "seconds", "memory", "weights")]
    for part in parted.parts:
        cost = part.stage.cost
        rows.append(
            (
                part.stage.label,
                str(_runs(plan, part)),
                str(len(part.segment.copies)),
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
    spec = plan.ways.specs.get(name)
    return f"{spec or name}: {format_bytes(value_bytes(spec))}"


def whole_nodes(plan: SegmentPlan) -> list[str]:
    """Return why nodes run whole that read values in shards, in the order of the graph."""
    facts, chosen = plan.ways.facts, plan.chosen
    reasons = []
    for index, way in chosen.ways.items():
        node = facts.nodes[index]
        if way is not None or not any(name in chosen.layouts for name in node.reads):
            continue
        reasons.append(reason_of(plan, index))
    return reasons


def reason_of(plan: SegmentPlan, index: int) -> str:
    """Return why a node does not run on shards: ``node 'lstm' (LSTM) reads 'x' whole: scanned,
    recurrence``."""
    node = plan.ways.facts.nodes[index]
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    read = ", ".join(repr(name) for name in node.reads if name in plan.chosen.layouts)
    found = plan.ways.refusal(index, plan.chosen.layouts)
    detail = found.kind.label + (f", {found.how}" if found.how else "")
    if found.is_own and found.coupled:
        detail = "a statistic over all positions"
    return f"node {node.name!r} ({operator}) reads {read} whole: {detail}"
