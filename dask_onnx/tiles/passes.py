"""Additional passes, which save recomputation where the receptive field of small maps is large.

What a tile borrows from its neighbours is computed again for each tile. A stack of convolutions on
small maps has a large receptive field, so that the large maps in front of it are computed far
around each tile too, which costs more than the stack itself. If small and large maps are computed
in separate passes, each borrows values that the pass before has kept.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs, value_bytes
from dask_onnx.tiles.flow import Flow, Step, TracedValue
from dask_onnx.tiles.groups import Component, Group
from dask_onnx.tiles.tile_plan import TilePlan

_SECONDS_PER_TASK = 6e-3
"""Overhead of a task: Dask's own, and cutting out what its neighbours need."""
_BYTES_PER_SECOND = 5e8
"""Rate at which tiles are kept and reassembled: copies to fresh memory, some across processes."""
_REQUIRED_RATIO = 0.95
"""Passes are added only if the predicted time falls below this share of that without them."""
_ALL_TILES_BELOW = 6
"""Tiles along an axis up to which each is measured; see `recomputation`."""


def with_passes(plan: TilePlan, costs: CostTable | None = None) -> TilePlan:
    """Return the plan with the least predicted time: as it is, or with separate passes.

    Parameters
    ----------
    plan : TilePlan
    costs : CostTable, optional
        Measured costs of nodes; by default those of a typical machine.
    """
    table = costs or CostTable()
    each = node_costs(plan.flow.facts, plan.flow.specs)
    best, least = plan, predicted_seconds(plan, each, table) * _REQUIRED_RATIO
    for stride in _strides(plan.flow):
        candidate = split(plan, stride)
        seconds = predicted_seconds(candidate, each, table)
        if seconds < least:
            best, least = candidate, seconds
    return best


def split(plan: TilePlan, stride: Fraction) -> TilePlan:
    """Return the plan with maps of at least a stride in passes of their own.

    Parameters
    ----------
    plan : TilePlan
    stride : Fraction
        Pixels from one position of a map to the next.
    """
    return replace(plan, flow=split_at(plan.flow, stride), spans={})


def _strides(flow: Flow) -> list[Fraction]:
    """Return the strides at which small maps can be separated from large ones."""
    found = {_stride(traced) for traced in flow.values.values() if traced.places}
    return sorted(stride for stride in found if stride > 1)


def _stride(traced: TracedValue) -> Fraction:
    return max(place.stride for place in traced.places.values())


def predicted_seconds(plan: TilePlan, each: Sequence[NodeCost], table: CostTable) -> float:
    """Return the seconds that one thread is predicted to take for all tiles.

    Parameters
    ----------
    plan : TilePlan
    each : sequence of NodeCost
        Cost of each node for the whole image.
    table : CostTable
    """
    seconds = 0.0
    for group in plan.groups:
        tiles = math.prod(len(plan.grids[k].tiles) for k in group.axes)
        seconds += tiles * _SECONDS_PER_TASK
        for part in group.components:
            untiled = sum(table.seconds(each[index]) for index in part.nodes)
            seconds += untiled * recomputation(plan, group, part)
            kept = sum(value_bytes(plan.flow.specs.get(value)) for value in part.wanted)
            seconds += kept / _BYTES_PER_SECOND
    return seconds


def recomputation(plan: TilePlan, group: Group, part: Component) -> float:
    """Return how many times a pixel is computed on average, 1 without any halo.

    Along an axis with many tiles, one inner crop stands for all inner ones.
    """
    factor = 1.0
    for k in group.axes:
        grid = plan.grids[k]
        count = len(grid.tiles)
        is_sampled = count >= _ALL_TILES_BELOW
        sample = [0, 1, count // 2, count - 1] if is_sampled else list(grid.tiles)
        crops = {i: plan.span(part, k, i) for i in sample}
        sizes = {i: crop.stop - crop.start for i, crop in crops.items()}
        total = sum(sizes.values())
        if is_sampled:
            total += sizes[count // 2] * (count - len(sample))
        factor *= total / grid.size
    return factor


def split_at(flow: Flow, stride: Fraction) -> Flow:
    """Return the flow with maps of at least a stride in passes of their own.

    A new pass starts wherever tiles go from maps of a smaller stride to maps of at least `stride`,
    or back.
    """
    small = {index: _is_small(flow, step, stride) for index, step in flow.steps.items()}
    starts = {
        index
        for index, step in flow.steps.items()
        if not (step.is_untiled or step.reduced)
        and any(_is_border(flow, small, index, edge.value) for edge in step.edges)
    }
    return _with_levels(flow, starts)


def _is_small(flow: Flow, step: Step, stride: Fraction) -> bool:
    """Return whether a node reads and computes maps of at least a stride only."""
    names = [edge.value for edge in step.edges if edge.places] + list(step.node.outputs)
    traced = [flow.values[name] for name in names if name in flow.values]
    return all(_stride(value) >= stride for value in traced if value.places)


def _is_border(flow: Flow, small: Mapping[int, bool], index: int, value: str) -> bool:
    """Return whether a node and the producer of its input lie on different sides of the stride."""
    producer = flow.facts.producer.get(value)
    before = flow.steps.get(-1 if producer is None else producer)
    if before is None or before.is_untiled or before.reduced:
        return False
    return small[before.node.index] != small[index]


def _with_levels(flow: Flow, starts: Collection[int]) -> Flow:
    """Return the flow with passes numbered anew.

    Parameters
    ----------
    flow : Flow
    starts : collection of int
        Indices of nodes that start a new pass.
    """
    values = {name: flow.values[name] for name in flow.sources}
    steps: dict[int, Step] = {}
    for index, step in flow.steps.items():
        level = 0
        for edge in step.edges:
            traced = values.get(edge.value)
            if traced is None:
                continue
            needs_all = step.is_untiled or edge.is_gathered or bool(step.reduced)
            level = max(level, traced.level + (needs_all and not traced.is_untiled))
            if index in starts and not traced.is_untiled and edge.value not in flow.sources:
                level = max(level, traced.level + 1)
        steps[index] = replace(step, level=level)
        for name in step.node.outputs:
            values[name] = replace(flow.values[name], level=level)
    return replace(flow, values=values, steps=steps)
