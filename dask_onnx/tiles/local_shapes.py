"""Inputs that contain shapes or bounds, such as the target shape of a Reshape.

Their values for the whole image are wrong on a tile. In the parts of the model that run on tiles
they become inputs, *shape inputs*, which receive other values for each size of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from dask_onnx.tiles.flow import Flow, Step
from dask_onnx.tiles.tile_plan import TilePlan

Sizes = Mapping[str, Mapping[int, int]]
"""Value to the number of its positions of each tiled axis."""


def shape_inputs(flow: Flow, step: Step) -> tuple[int, ...]:
    """Return the indices of a node's inputs whose values depend on the size of a tile."""
    node = step.node
    if node.domain or step.is_untiled or step.reduced:
        return ()

    def is_size_dependent(index: int) -> bool:
        return index < len(node.inputs) and node.inputs[index] in flow.size_dependent

    if node.op_type in ("Reshape", "Expand"):
        return (1,)
    if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3]:
        return (3,)
    if node.op_type == "Slice" and (is_size_dependent(1) or is_size_dependent(2)):
        return 1, 2
    return (1,) if node.op_type == "Pad" and is_size_dependent(1) else ()


def shape_input_name(step: Step, index: int) -> str:
    """Return the name of a shape input in the part of the model that runs on tiles."""
    return f"{step.node.outputs[0]}::input{index}"


def shape_input_length(flow: Flow, step: Step, index: int) -> int:
    """Return the number of elements of a shape input."""
    if step.node.op_type in ("Reshape", "Expand"):
        return len(flow.shape(step.node.outputs[0]))
    known = flow.constant(step.node.inputs[index])
    return len(flow.shape(step.node.outputs[0])) if known is None else int(known.array.size)


def shape_input_values(plan: TilePlan, step: Step, sizes: Sizes) -> dict[str, np.ndarray]:
    """Return the values of a node's shape inputs on one tile.

    Parameters
    ----------
    plan : TilePlan
    step : Step
    sizes : Sizes
        Numbers of positions that values have on the tile.

    Returns
    -------
    dict of str to int64 array of rank 1
        By name of the shape input; empty for a node without.
    """
    indices = shape_inputs(plan.flow, step)
    if not indices:
        return {}
    name = step.node.outputs[0]
    after = plan.layout(name).joined_shape(sizes[name])
    proto = plan.flow.facts.proto.graph.node[step.node.index]
    if step.node.op_type == "Slice":
        found = _slice_bounds(plan, step, after)
    elif step.node.op_type == "Pad":
        found = [_pads(plan, step, sizes, after)]
    elif step.node.op_type == "Resize":
        found = [_resize_sizes(proto, after)]
    else:
        found = [list(after)]
    return {
        shape_input_name(step, index): np.array(values, np.int64)
        for index, values in zip(indices, found, strict=True)
    }


def _known(plan: TilePlan, step: Step, index: int) -> list[int] | None:
    """Return the integers of an input, or None if it is absent or not known."""
    if index >= len(step.node.inputs) or not step.node.inputs[index]:
        return None
    known = plan.flow.constant(step.node.inputs[index])
    return None if known is None else [int(n) for n in known.array.reshape(-1)]


def _resize_sizes(proto: onnx.NodeProto, after: tuple[int, ...]) -> list[int]:
    """Return the `sizes` of a Resize: of all axes, or of those that its attribute names."""
    named = next((helper.get_attribute_value(a) for a in proto.attribute if a.name == "axes"), None)
    return [after[axis] for axis in (range(len(after)) if named is None else named)]


def _slice_bounds(plan: TilePlan, step: Step, after: tuple[int, ...]) -> list[list[int]]:
    """Return the starts and ends of a Slice."""
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
    """Return the `pads` of a Pad: those before each axis, then those after each."""
    pads = _known(plan, step, 1) or []
    axes = _known(plan, step, 3) or list(range(len(after)))
    source = step.node.inputs[0]
    before = plan.layout(source).joined_shape(sizes[source])
    tiled = {place.axis for place in plan.places(source).values()}
    for i, axis in enumerate(axes):
        axis %= len(after)
        if axis in tiled:
            pads[i + len(axes)] = after[axis] - before[axis] - pads[i]
    return pads
