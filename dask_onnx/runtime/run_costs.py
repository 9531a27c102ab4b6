"""Operations of the nodes of a stage, at the shapes of the inputs of its runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.runtime.calibration import saved_calibration
from dask_onnx.runtime.kernel_timing import InputShapes, TimedSession
from dask_onnx.runtime.onnxruntime_internals import KernelCall, contrib_schemas
from dask_onnx.runtime.stage_refs import StageRef

_MAX_SHAPES = 8
"""Shapes of runs whose operations are counted; those of others are scaled by their elements."""


class RunCosts:
    """The cost of the nodes of a stage at the shapes of its runs.

    Parameters
    ----------
    stage : StageRef
    proto : ModelProto or None
        Its nodes; None if they are not in memory any more, so that no cost is known.
    """

    def __init__(self, stage: StageRef, proto: onnx.ModelProto | None) -> None:
        self.stage, self.proto = stage, proto
        self.known: dict[InputShapes, Mapping[int, NodeCost]] = {}
        """Shapes of the inputs of a run to the cost of each node; those without any are left out.
        """

    def count(self, runs: Iterable[InputShapes]) -> None:
        """Count the operations of runs, given by the shapes of their inputs."""
        if self.proto is None:
            return
        for shapes, _ in Counter(runs).most_common(_MAX_SHAPES):
            costs = _costs(self.stage, self.proto, shapes)
            if costs:
                self.known[shapes] = costs

    def _of_run(self, shapes: InputShapes) -> tuple[Mapping[int, NodeCost], float]:
        """Return the costs of nodes in a run, and the factor to multiply them by."""
        if shapes in self.known or not self.known:
            return self.known.get(shapes, {}), 1.0
        size = _elements(shapes)
        nearest = min(self.known, key=lambda each: abs(_elements(each) - size))
        return self.known[nearest], size / max(_elements(nearest), 1)

    def flops(
        self, members: Iterable[int], calls: Iterable[KernelCall], timed: TimedSession
    ) -> int:
        """Return the operations of all calls of a kernel; 0 if they are not known of some.

        Parameters
        ----------
        members : iterable of int
            Nodes that the kernel stands for.
        calls : iterable of KernelCall
        timed : TimedSession
            Session that made them.
        """
        nodes, total = tuple(members), 0.0
        for call in calls:
            shapes = timed.shapes_of(call)
            if shapes is None or call.runs_others:  # a body has calls of its own
                return 0
            costs, factor = self._of_run(shapes)
            total += factor * sum(costs[node].flops for node in nodes if node in costs)
        return round(total)

    def seconds(self, runs: Iterable[InputShapes]) -> float | None:
        """Return the seconds of runs on one thread as predicted; None if no cost is known."""
        if not self.known:
            return None
        table = saved_calibration() or CostTable()
        total = 0.0
        for shapes, times in Counter(runs).items():
            costs, factor = self._of_run(shapes)
            once = sum(table.seconds(cost, self.stage.kernel) for cost in costs.values())
            total += once * factor * times
        return total


def _elements(shapes: InputShapes) -> int:
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _costs(stage: StageRef, proto: onnx.ModelProto, sizes: InputShapes) -> Mapping[int, NodeCost]:
    """Return the cost of each node at the shapes of a run; empty if they cannot be inferred."""
    model = OnnxModel(
        proto=proto.SerializeToString(),
        token=stage.token,
        name=stage.label,
        inputs=stage.inputs,
        outputs=stage.outputs,
        defaults=(),
        opsets={each.domain: each.version for each in proto.opset_import},
        ir_version=proto.ir_version,
        parameters=0,
        parameter_bytes=0,
    )
    shapes = {
        spec.name: shape
        for spec, shape in zip(stage.inputs, sizes, strict=True)
        if shape is not None
    }
    try:
        facts = GraphFacts(model)
        each = node_costs(facts, infer_shapes(facts, shapes, contrib_schemas()))
    except Exception:  # whatever ONNX's inference raises on a part of a graph: no numbers then
        return {}
    return dict(zip(stage.indices, each, strict=True))
