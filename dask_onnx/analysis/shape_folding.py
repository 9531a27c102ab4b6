"""Evaluation of shape arithmetic: small integer tensors that ONNX's inference cannot follow.

Nodes whose inputs are known are evaluated with ONNX's reference operators and become initializers,
in a copy of the model that only shape inference reads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from dask_onnx.analysis.known_branches import write_branch
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external

log = logging.getLogger(__name__)

_MAX_FOLD_ELEMENTS = 1024
"""Elements of the largest tensor that is folded: shapes are small, anything larger is data."""
_SHAPE_ARITHMETIC = frozenset(
    (
        "Abs Add And Cast Ceil Clip Concat ConstantOfShape Div Equal Expand Flatten Floor "
        "Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual "
        "Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum "
        "Reshape ScatterElements ScatterND Size Slice Split Sqrt Squeeze Sub Tile "
        "Transpose Unsqueeze Where Xor"
    ).split()
)
"""Operators that exporters compute shapes with."""


def fold_shape_arithmetic(
    model: onnx.ModelProto, specs: Mapping[str, TensorSpec], known: dict[str, np.ndarray]
) -> bool:
    """Replace nodes of known inputs by their values, and If nodes of known conditions by a branch.

    Parameters
    ----------
    model : ModelProto
        Changed in place.
    specs : mapping of value to TensorSpec
        Shapes inferred so far, which Shape nodes return.
    known : dict of value to array
        Values found so far; extended.

    Returns
    -------
    bool
        True if anything was replaced.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer if not is_external(tensor)}
    opsets = list(model.opset_import)
    kept, is_changed = [], False
    for number, node in enumerate(graph.node):
        condition = _condition(node, known, initializers)
        if condition is not None:
            nodes, tensors = write_branch(node, condition, len(known) + number)
            kept += nodes
            graph.initializer.extend(tensors)
            is_changed = True
            continue
        values = _evaluate(node, specs, known, initializers, opsets)
        if values is None:
            kept.append(node)
            continue
        is_changed = True
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    if is_changed:
        del graph.node[:]
        graph.node.extend(kept)
    return is_changed


def _condition(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray],
    initializers: Mapping[str, onnx.TensorProto],
) -> bool | None:
    """Return the condition of an If node; None if it is unknown, and for other nodes."""
    if node.op_type != "If" or node.domain:
        return None
    name = node.input[0]
    if name in known:
        return bool(known[name].any())
    if name in initializers:
        return bool(numpy_helper.to_array(initializers[name]).any())
    return None


def _evaluate(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    known: dict[str, np.ndarray],
    initializers: Mapping[str, onnx.TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
) -> list[np.ndarray] | None:
    """Return a node's outputs; None if an input is unknown or large, or the operator is no shape
    arithmetic.
    """
    if node.domain:
        return None
    if node.op_type == "Shape":
        return _shape_value(node, specs)
    if node.op_type not in _SHAPE_ARITHMETIC:
        return None
    feeds = {}
    for name in node.input:
        if name and name not in known:
            tensor = initializers.get(name)
            if tensor is None or np.prod(tensor.dims) > _MAX_FOLD_ELEMENTS:
                return None
            known[name] = numpy_helper.to_array(tensor)
        if name:
            feeds[name] = known[name]
    if not feeds or _elements_made(node, [feeds.get(n) for n in node.input]) > _MAX_FOLD_ELEMENTS:
        return None
    evaluator = ReferenceEvaluator(_single_node_model(node, feeds, opsets))
    try:
        results = evaluator.run(None, feeds)
    except Exception as error:
        # Inference is an aid: what the reference cannot evaluate stays unknown, and shows as such.
        log.debug("shape arithmetic of %r (%r) not folded: %r", node.name, node.op_type, error)
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.size <= _MAX_FOLD_ELEMENTS for array in arrays) else None


def _elements_made(node: onnx.NodeProto, inputs: Sequence[np.ndarray | None]) -> float:
    """Return the elements of the output of an operator whose inputs tell its size; 0 for others.

    Two small numbers are enough for an output that fills all memory. The outputs of other operators
    have no more elements than all their inputs multiplied.
    """
    first, last = inputs[0], inputs[-1]
    if first is None or last is None:
        return 0
    if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
        elements = float(np.prod(np.abs(last.astype(np.float64)), initial=1.0))
        return elements * first.size if node.op_type == "Tile" else elements
    if node.op_type == "Range" and len(inputs) == 3 and inputs[1] is not None:
        start, limit, step = (float(each.reshape(-1)[0]) for each in (first, inputs[1], last))
        return abs(limit - start) / abs(step) if step else np.inf
    return 0


def _single_node_model(
    node: onnx.NodeProto,
    feeds: Mapping[str, np.ndarray],
    opsets: list[onnx.OperatorSetIdProto],
) -> onnx.ModelProto:
    def value(name: str, dtype: np.dtype | None) -> onnx.ValueInfoProto:
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype) if dtype is not None else 0
        return onnx.helper.make_tensor_value_info(name, elem_type, None)

    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [value(name, array.dtype) for name, array in feeds.items()],
        [value(name, None) for name in node.output],
    )
    return onnx.helper.make_model(graph, opset_imports=opsets)


def _shape_value(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> list[np.ndarray] | None:
    """Return the output of a Shape node; None if one of its sizes is unknown."""
    spec = specs.get(node.input[0])
    if spec is None or spec.shape is None:
        return None
    attributes = {a.name: a.i for a in node.attribute}
    dims = spec.shape[attributes.get("start", 0) : attributes.get("end")]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return [np.array(dims, dtype=np.int64)]
