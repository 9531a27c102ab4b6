"""Locations of the tiled axes in the inputs of a node, constants included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.analysis.axes.value_rules import elementwise
from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.tiles.flow import Flow, SizeMismatchError
from dask_onnx.tiles.places import Place, Places
from dask_onnx.tiles.size_values import known_sizes
from dask_onnx.tiles.tile_rules import NodeRules

InputPlaces = Mapping[int, Places]
"""Input of a node, by index, to the locations of the tiled axes in it."""


def input_places_of(
    flow: Flow, node: NodeFacts, rules: NodeRules, traced_inputs: Sequence[int]
) -> dict[int, dict[int, Place]]:
    """Return the locations of the tiled axes in each input of a node.

    Constants of an element-wise node or a Concat that have the image's size along a tiled axis (a
    grid of coordinates, a position embedding) carry that axis too, and are cut like the image.

    Parameters
    ----------
    flow : Flow
        Traced up to the node.
    node : NodeFacts
    rules : NodeRules
        Rules of the node.
    traced_inputs : sequence of int
        Inputs that depend on the pixels, by index.

    Raises
    ------
    SizeMismatchError
        Two inputs differ in size along a tiled axis, and none of the two is broadcast.
    """
    found = {i: dict(flow.values[node.inputs[i]].places) for i in traced_inputs}
    is_concat = standard_op_type(node) == "Concat"
    if rules.entry.rule is not elementwise and not is_concat:
        return found
    shapes = [known_sizes(flow, name) if name else None for name in node.inputs]
    for k in flow.axes:
        leading = next((i for i in found if k in found[i]), None)
        if leading is None or (leading_shape := shapes[leading]) is None:
            continue
        place = found[leading][k]
        if is_concat and _concat_axis(flow, node, len(leading_shape)) == place.axis:
            continue
        # Broadcasting aligns the last axes.
        size, axis = leading_shape[place.axis], place.axis - len(leading_shape)
        for i, shape in enumerate(shapes):
            if shape is None or len(shape) + axis < 0 or shape[axis] == 1:
                continue
            if shape[axis] != size:
                raise SizeMismatchError(
                    f"node {node.name!r} ({node.op_type}) reads {node.inputs[leading]!r} of shape "
                    f"{tuple(leading_shape)} and {node.inputs[i]!r} of shape {tuple(shape)}"
                )
            if k not in found.get(i, {}):
                found.setdefault(i, {})[k] = place.at(len(shape) + axis)
    return found


def _concat_axis(flow: Flow, node: NodeFacts, rank: int) -> int:
    attributes = flow.facts.proto.graph.node[node.index].attribute
    return next((int(a.i) for a in attributes if a.name == "axis"), 1) % rank
