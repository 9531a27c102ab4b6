"""Prediction of node times at shapes that were not measured, from shapes that were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import CostTable, NodeCost

_FAR_ENOUGH = 1.5
"""Smallest ratio of work at which two measurements show how a node's time grows."""


@dataclass(frozen=True, slots=True)
class MeasuredTimes:
    """Times of nodes as they were measured at some shapes."""

    seconds: Mapping[int, float]
    """Seconds of each node, by its position."""
    costs: Sequence[NodeCost]
    """Cost of each node at these shapes, by its position."""


def nearest_measurements(sizes: Sequence[int], size: int) -> list[int]:
    """Return the measurements from which to predict: the nearest, and one that shows the growth.

    The second is far enough from the first, and on the other side of `size` if possible.

    Parameters
    ----------
    sizes : sequence of int
        Elements of the inputs in each measurement, one or more.
    size : int
        Elements of the inputs to predict for.

    Returns
    -------
    list of int
        One or two positions in `sizes`.
    """
    near, *others = sorted(range(len(sizes)), key=lambda i: _ratio(sizes[i] + 1, size + 1))
    others = [i for i in others if _ratio(sizes[i] + 1, sizes[near] + 1) >= _FAR_ENOUGH]
    others.sort(key=lambda i: (sizes[i] < size) == (sizes[near] < size))
    return [near, *others[:1]]


def seconds_at(
    costs: Sequence[NodeCost],
    measured: Sequence[MeasuredTimes],
    table: CostTable,
    has_body: Callable[[int], bool],
) -> dict[int, float]:
    """Return the seconds of each measured node at shapes that were not measured.

    With one measurement, its time in proportion to the predicted times. With two, on the straight
    line through both, whose intercept is the time without any rows: overhead, reading of weights,
    steps of a loop.

    Parameters
    ----------
    costs : sequence of NodeCost
        Cost of each node at the shapes to predict for.
    measured : sequence of MeasuredTimes
        One measurement or two, the nearest first.
    table : CostTable
        Speeds for the predicted times.
    has_body : function of int to bool
        True if the node at a position has bodies (If, Loop, Scan).
    """
    near, far = measured[0], measured[1] if len(measured) > 1 else None

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
        # Times that grow faster than the work would put the line below zero for little work.
        return max(on_line, min(in_proportion, near.seconds[index]))

    return {index: at(index) for index in near.seconds}


def _growth(table: CostTable, before: NodeCost, now: NodeCost, has_body: bool) -> float:
    """Return the ratio of a node's predicted times."""
    ratio = table.seconds(now) / table.seconds(before)
    if has_body and before.activation_bytes and now.activation_bytes:
        # Values of a body whose shapes are unknown do not grow in the prediction.
        values = now.activation_bytes / before.activation_bytes
        return max(ratio, values, key=lambda one: _ratio(one, 1))
    return ratio


def _ratio(one: float, other: float) -> float:
    """Return the larger of two numbers divided by the smaller."""
    return max(one / other, other / one)
