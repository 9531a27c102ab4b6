"""Shapes that nodes are told, such as the target of a Reshape: on a tile they are others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from dask_onnx.tiles.flow import Flow, Step
from dask_onnx.tiles.tile_plan import TilePlan

Sizes = Mapping[str, Mapping[int, int]]
"""Value to the positions that it has of each tiled axis."""


def told_inputs(flow: Flow, step: Step) -> tuple[int, ...]:
    """Return the inputs of a node that must be told anew for each size of a tile."""
    node = step.node
    if node.domain or step.is_once or step.reduced:
        return ()

    def is_sized(index: int) -> bool:
        return index < len(node.inputs) and node.inputs[index] in flow.sized

    if node.op_type in ("Reshape", "Expand"):
        return (1,)
    if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3]:
        return (3,)
    if node.op_type == "Slice" and (is_sized(1) or is_sized(2)):
        return 1, 2
    return (1,) if node.op_type == "Pad" and is_sized(1) else ()


def told_name(step: Step, index: int) -> str:
    """Return the name of such an input."""
    return f"{step.node.outputs[0]}::input{index}"


def told_length(flow: Flow, step: Step, index: int) -> int:
    """Return how many numbers such an input has."""
    if step.node.op_type in ("Reshape", "Expand"):
        return len(flow.shape(step.node.outputs[0]))
    known = flow.constant(step.node.inputs[index])
    return len(flow.shape(step.node.outputs[0])) if known is None else int(known.array.size)


def told_values(plan: TilePlan, step: Step, sizes: Sizes) -> dict[str, np.ndarray]:
    """Return the values of the inputs that a node is told on a tile, as int64."""
    told = told_inputs(plan.flow, step)
    if not told:
        return {}
    name = step.node.outputs[0]
    after = plan.layout(name).joined(sizes[name])
    proto = plan.flow.facts.proto.graph.node[step.node.index]
    if step.node.op_type == "Slice":
        found = _bounds(plan, step, after)
    elif step.node.op_type == "Pad":
        found = [_pads(plan, step, sizes, after)]
    elif step.node.op_type == "Resize":
        found = [_resized(proto, after)]
    else:
        found = [list(after)]
    return {
        told_name(step, index): np.array(values, np.int64)
        for index, values in zip(told, found, strict=True)
    }


def _known(plan: TilePlan, step: Step, index: int) -> list[int] | None:
    if index >= len(step.node.inputs) or not step.node.inputs[index]:
        return None
    known = plan.flow.constant(step.node.inputs[index])
    return None if known is None else [int(n) for n in known.array.reshape(-1)]


def _resized(proto: onnx.NodeProto, after: tuple[int, ...]) -> list[int]:
    named = next((helper.get_attribute_value(a) for a in proto.attribute if a.name == "axes"), None)
    return [after[axis] for axis in (range(len(after)) if named is None else named)]


def _bounds(plan: TilePlan, step: Step, after: tuple[int, ...]) -> list[list[int]]:
    """Starts and ends of a Slice."""
    starts, ends = _known(plan, step, 1) or [], _known(plan, step, 2) or []
    axes = _known(plan, step, 3) or list(range(len(starts)))
    steps = _known(plan, step, 4) or [1] * len(starts)
    tiled = {place.axis for place in plan.places(step.node.outputs[0]).values()}
    for i, axis in enumerate(axes):
        axis %= len(after)
        if axis in tiled:
            ends[i] = starts[i] + (after[axis] - 1) * steps[i] + 1
    return [starts, ends]


def _pads(plan: TilePlan, step: Step, sizes: Sizes, after: tuple[int, ...]) -> list[int]:
    """What a Pad puts in front of each axis, then behind each."""
    pads = _known(plan, step, 1) or []
    axes = _known(plan, step, 3) or list(range(len(after)))
    source = step.node.inputs[0]
    before = plan.layout(source).joined(sizes[source])
    tiled = {place.axis for place in plan.places(source).values()}
    for i, axis in enumerate(axes):
        axis %= len(after)
        if axis in tiled:
            pads[i + len(axes)] = after[axis] - before[axis] - pads[i]
    return pads
