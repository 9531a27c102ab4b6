"""Measured times of nodes, applied to other shapes and to other models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from dask_onnx.analysis.cost import CostTable, NodeCost
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.growth import MeasuredTimes, nearest_measurements, seconds_at
from dask_onnx.runtime.profile import NodeTimes

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs by name."""


def seconds_at_shapes(
    graph: GraphFacts,
    saved: Sequence[NodeTimes],
    shapes: Shapes,
    table: CostTable,
    costs: Sequence[NodeCost],
    costs_at: Callable[[Shapes], Sequence[NodeCost]],
) -> dict[int, float]:
    """Return the seconds of each node at given shapes, from measurements at these or other shapes.

    Parameters
    ----------
    graph : GraphFacts
        Graph of the model.
    saved : sequence of NodeTimes
        Measurements on this host; without any the result is empty.
    shapes : mapping of str to tuple of int
        Shapes of all inputs by name.
    table : CostTable
        Speeds by which measurements are scaled.
    costs : sequence of NodeCost
        Cost of each node at `shapes`.
    costs_at : function of shapes
        Cost of each node at the shapes of a measurement.
    """
    if not saved:
        return {}
    for times in saved:
        if all(times.shapes.get(name) == tuple(shape) for name, shape in shapes.items()):
            return dict(times.seconds)
    sizes = [_elements(times.shapes) for times in saved]
    nearest = (saved[i] for i in nearest_measurements(sizes, _elements(shapes)))
    measured = [MeasuredTimes(times.seconds, costs_at(times.shapes)) for times in nearest]
    nodes = graph.proto.graph.node

    def has_body(index: int) -> bool:
        return any(attribute.HasField("g") for attribute in nodes[index].attribute)

    return seconds_at(costs, measured, table, has_body)


def speed_factor(
    seconds: Mapping[int, float], nodes: Iterable[int], costs: Sequence[NodeCost], table: CostTable
) -> float | None:
    """Return the predicted divided by the measured seconds of some nodes; None if there are none.

    Parameters
    ----------
    seconds : mapping of int to float
        Measured seconds of nodes by position.
    nodes : iterable of int
        Positions of the nodes to compare.
    costs : sequence of NodeCost
        Cost of each node at the measured shapes.
    table : CostTable
        Speeds that the prediction is made with.
    """
    # Nodes whose values have unknown shapes have no predicted time to compare.
    known = [node for node in nodes if costs[node].activation_bytes]
    taken = sum(seconds[node] for node in known)
    return sum(table.seconds(costs[node]) for node in known) / taken if taken > 0 else None


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))
