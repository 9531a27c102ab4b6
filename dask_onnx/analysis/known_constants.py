"""Constants that are stored in a graph's proto: initializers, and values of Constant nodes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import is_external


def constant_array(facts: GraphFacts, name: str) -> np.ndarray | None:
    """Return a constant; None for other values, and for weights that are not in the proto."""
    tensor = _constant_tensor(facts, name)
    return None if tensor is None or is_external(tensor) else numpy_helper.to_array(tensor)


def scalar_constant(facts: GraphFacts, name: str) -> float | None:
    """Return a constant of one element; None for other values."""
    array = constant_array(facts, name)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def _constant_tensor(facts: GraphFacts, name: str) -> onnx.TensorProto | None:
    producer = facts.producer.get(name)
    if producer is not None:
        node = facts.proto.graph.node[producer]
        attributes = node.attribute if standard_op_type(node) == "Constant" else ()
        return next((a.t for a in attributes if a.name == "value"), None)
    return facts.tensors.get(name)
