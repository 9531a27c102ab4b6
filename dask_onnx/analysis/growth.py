"""What nodes take at shapes that were not measured, by those that were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import CostTable, NodeCost

_FAR_ENOUGH = 1.5
"""Two measurements of a node whose work differs by less say nothing of its growth."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Nodes as they were measured at some shapes."""

    seconds: Mapping[int, float]
    """Of each node, by its position."""
    costs: Sequence[NodeCost]
    """Of each node, at these shapes."""


def telling(sizes: Sequence[int], size: int) -> list[int]:
    """Which measurements tell most of what nodes take: the nearest, then one far enough from it
    to show the growth, rather on the other side.

    Parameters
    ----------
    sizes : of the inputs when they were measured, one or more, in elements
    size : of the inputs, in elements

    Returns
    -------
    list of one or two positions in `sizes`
    """
    near, *others = sorted(range(len(sizes)), key=lambda i: _ratio(sizes[i] + 1, size + 1))
    others = [i for i in others if _ratio(sizes[i] + 1, sizes[near] + 1) >= _FAR_ENOUGH]
    others.sort(key=lambda i: (sizes[i] < size) == (sizes[near] < size))
    return [near, *others[:1]]


def seconds_at(
    costs: Sequence[NodeCost],
    seen: Sequence[Seen],
    table: CostTable,
    has_body: Callable[[int], bool],
) -> dict[int, float]:
    """Seconds of each node at shapes that were not measured.

    A node takes what it took at the nearest shapes, in proportion to what is predicted; with two
    measurements, on the straight line through both, whose start is what the node takes for no
    rows at all: its dispatch, weights that are read, the steps of a loop.

    Parameters
    ----------
    costs : of each node, at the shapes
    seen : one measurement or two, the nearest first
    has_body : whether the node at a position runs graphs of its own
    """
    near, far = seen[0], seen[1] if len(seen) > 1 else None

    def at(index: int) -> float:
        growth = _growth(table, near.costs[index], costs[index], has_body(index))
        in_proportion = near.seconds[index] * growth
        if far is None:
            return in_proportion
        span = _growth(table, near.costs[index], far.costs[index], has_body(index))
        if _ratio(span, 1) < _FAR_ENOUGH:
            return in_proportion
        slope = (far.seconds[index] - near.seconds[index]) / (span - 1)
        if slope < 0:
            return in_proportion
        on_line = near.seconds[index] + slope * (growth - 1)
        # Where a node gets slower with its work, the line would come to nothing too early.
        return max(on_line, min(in_proportion, near.seconds[index]))

    return {index: at(index) for index in near.seconds}


def _growth(table: CostTable, before: NodeCost, now: NodeCost, has_body: bool) -> float:
    """By how much more a node is predicted to take."""
    ratio = table.seconds(now) / table.seconds(before)
    if has_body and before.activation_bytes and now.activation_bytes:
        # Values of a body whose shapes are not known seem to stay as they are.
        values = now.activation_bytes / before.activation_bytes
        return max(ratio, values, key=lambda one: _ratio(one, 1))
    return ratio


def _ratio(one: float, other: float) -> float:
    """How many times the larger is the smaller."""
    return max(one / other, other / one)
