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

    size: int
    """Elements of the inputs."""
    seconds: Mapping[int, float]
    """Of each node, by its position."""
    costs: Sequence[NodeCost]
    """Of each node, at these shapes."""


def seconds_at(
    costs: Sequence[NodeCost],
    size: int,
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
    size : elements of the inputs, at the shapes
    seen : one measurement or more
    has_body : whether the node at a position runs graphs of its own
    """
    near, *others = sorted(seen, key=lambda one: _ratio(one.size + 1, size + 1))
    others = [one for one in others if _ratio(one.size + 1, near.size + 1) >= _FAR_ENOUGH]
    # The line rather goes through measurements on either side of the shapes.
    others.sort(key=lambda one: (one.size < size) == (near.size < size))
    far = others[0] if others else None

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
