"""ONNX's shape inference, of which one bad node does not spoil the rest.

In its lenient mode the inference skips most nodes whose shapes do not fit; some faults raise all
the same, such as a function's body that does not fit the call. The nodes at fault are found by
bisection and left out: their outputs stay unknown.
"""

from __future__ import annotations

import logging
from typing import Literal

import onnx
from onnx import shape_inference

log = logging.getLogger(__name__)

_UNKNOWN = "dask_onnx.unknown"
"""Domain of nodes that are left out: inference passes over operators that it does not know."""
_MAX_LEFT_OUT = 32
"""Nodes that are left out at most, each for several runs of the inference."""


Mode = Literal["lenient", "raise", "strict"]
"""Treatment of nodes whose shapes do not fit: left out, or an error where ONNX's lenient mode
raises one, or an error in any case."""


def inferred_model(model: onnx.ModelProto, *, mode: Mode = "lenient") -> onnx.ModelProto:
    """Return a model with the types and shapes that ONNX infers, by operators and values.

    Parameters
    ----------
    model : ModelProto
        Not changed. What cannot be inferred stays as it is.
    mode : {"lenient", "raise", "strict"}
        What becomes of a node whose shapes do not fit.

    Raises
    ------
    onnx.shape_inference.InferenceError
        Not if lenient.
    """
    if mode != "lenient":
        return _infer(model, is_strict=mode == "strict")
    try:
        return _infer(model)
    except Exception as error:  # whatever the operators' inference functions raise
        log.debug("shape inference stopped: %r", error)
    lenient = onnx.ModelProto()
    lenient.CopyFrom(model)
    lenient.opset_import.add(domain=_UNKNOWN, version=1)
    nodes = list(lenient.graph.node)
    first = 0
    for _ in range(_MAX_LEFT_OUT):
        fault = _first_fault(lenient, nodes, first)
        if fault is None:
            return _infer(lenient)
        if fault == len(nodes):  # what does not fit is outside of nodes, such as an output's type
            break
        log.debug("no shapes are inferred of node %d (%r)", fault, nodes[fault].op_type)
        # Inference resolves a value by its producer only, so the names of the outputs suffice.
        nodes[fault] = onnx.NodeProto(
            op_type="Unknown", domain=_UNKNOWN, output=list(nodes[fault].output)
        )
        first = fault + 1
    del lenient.graph.node[:]
    lenient.graph.node.extend(nodes[:first])
    return _infer(lenient) if _works(lenient) else model


def _first_fault(model: onnx.ModelProto, nodes: list[onnx.NodeProto], start: int) -> int | None:
    """Return the first node from `start` on at which inference raises, and set the nodes."""
    if _works_with(model, nodes):
        return None
    low, high = start, len(nodes)  # works with nodes[:low], does not with nodes[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if _works_with(model, nodes[:middle]):
            low = middle
        else:
            high = middle
    return low


def _works_with(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> bool:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return _works(model)


def _works(model: onnx.ModelProto) -> bool:
    try:
        _infer(model)
    except Exception:  # as above
        return False
    return True


def _infer(model: onnx.ModelProto, *, is_strict: bool = False) -> onnx.ModelProto:
    inferred: onnx.ModelProto = shape_inference.infer_shapes(
        model, strict_mode=is_strict, data_prop=True
    )
    return inferred
