"""Values that follow from the size of the image: results of Shape, and arithmetic on them."""

from __future__ import annotations

import numpy as np
import onnx

from dask_onnx.analysis.axes.dependence import FREE
from dask_onnx.analysis.axes.shape_values import fold_node
from dask_onnx.analysis.axes.table import SHAPE_OPERATORS
from dask_onnx.analysis.axes.view import Known, NodeView
from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.tiles.flow import Flow


def known_sizes(flow: Flow, name: str) -> list[int] | None:
    """Return the shape of a value for the whole image, or None if some size is unknown."""
    if name in flow.known:
        return list(flow.known[name].array.shape)
    spec = flow.specs.get(name)
    if spec is None or spec.shape is None:
        return None
    sizes = [dim for dim in spec.shape if isinstance(dim, int)]
    return sizes if len(sizes) == len(spec.shape) else None


def is_shape_node(node: NodeFacts) -> bool:
    """Return whether a node reads the shape of its input only."""
    return standard_op_type(node) in ("Shape", "Size")


def fold_sizes(flow: Flow, node: NodeFacts, proto: onnx.NodeProto, opset: int) -> None:
    """Compute the outputs of a node that depend on sizes only, and add them to `flow.known`.

    Nodes whose outputs are not known, or not small, are left alone.
    """
    if is_shape_node(node):
        shape = known_sizes(flow, node.inputs[0])
        if shape is not None and node.op_type == "Size":
            flow.known[node.outputs[0]] = Known(np.array(int(np.prod(shape))))
        elif shape is not None:
            given = {a.name: a.i for a in proto.attribute}
            part = shape[given.get("start", 0) : given.get("end")]
            flow.known[node.outputs[0]] = Known(np.array(part, np.int64))
    elif standard_op_type(node) in SHAPE_OPERATORS:
        view = NodeView(
            proto,
            node.name,
            node.inputs,
            [FREE] * len(node.inputs),
            flow.dims,
            flow.constant,
            opset,
            1,
        )
        for name, value in zip(proto.output, fold_node(view) or (), strict=False):
            flow.known[name] = Known(value.array)
