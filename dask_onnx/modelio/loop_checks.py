"""Check of loops whose number of turns is a constant that no computer reaches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import subgraphs_of

MAX_TURNS = 10**9
"""Turns of a loop without another end. A turn of an empty body takes ONNX Runtime a microsecond."""

Constants = Mapping[str, onnx.TensorProto]
"""Initializers by name."""


def check_loops(graph: onnx.GraphProto, outer: Constants | None = None) -> None:
    """Raise an error for a ``Loop`` that runs more than `MAX_TURNS` turns whatever its inputs are.

    Loops whose condition is computed may end at any turn, and are accepted.

    Parameters
    ----------
    graph : GraphProto
        A graph in normal form: its constants are initializers.
    outer : mapping of str to TensorProto, optional
        Constants of the graphs around it.

    Raises
    ------
    ModelError
        A loop never ends in practice.
    """
    nodes = [node for node in graph.node if node.attribute and subgraphs_of(node)]
    if not nodes:
        return
    constants = _constants_of(graph, outer or {})
    for node in nodes:
        _check_loop(node, constants)
        for body in subgraphs_of(node):
            check_loops(body, constants)


def _constants_of(graph: onnx.GraphProto, outer: Constants) -> dict[str, onnx.TensorProto]:
    """Return the constants that the nodes of a graph may read."""
    found = {**outer}
    for name in (
        *(value.name for value in graph.input),
        *(n for v in graph.node for n in v.output),
    ):
        found.pop(name, None)
    found.update((tensor.name, tensor) for tensor in graph.initializer)
    return found


def _check_loop(node: onnx.NodeProto, constants: Constants) -> None:
    if standard_op_type(node) != "Loop" or len(node.input) < 2:
        return
    turns = _number(node.input[0], constants)
    if (node.input[0] and turns is None) or (turns is not None and turns <= MAX_TURNS):
        return
    condition = node.input[1]
    if condition and _number(condition, constants) in (None, 0):
        return
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    if not _goes_on(body, constants):
        return
    count = "for ever" if turns is None else f"{turns:,} turns"
    raise ModelError(
        f"the loop {node.name or node.op_type!r} runs {count}: nothing in it ends it before",
        "export the model with the number of turns, or a condition, as an input",
        node=node.name,
        numbers={} if turns is None else {"turns": turns, "most_turns": MAX_TURNS},
    )


def _goes_on(body: onnx.GraphProto, constants: Constants) -> bool:
    """Return whether the condition that a loop's body computes is always true."""
    if not body.output or len(body.input) < 2:
        return False
    known = _constants_of(body, constants)
    name = body.output[0].name
    sources = {node.output[0]: node for node in body.node if node.output}
    for _ in range(len(body.node) + 1):
        if name == body.input[1].name:
            return True  # as it was before: true
        if name not in sources or standard_op_type(sources[name]) != "Identity":
            break
        name = sources[name].input[0]
    # Without a condition ONNX Runtime looks at the one that the body computes all the same.
    return bool(_number(name, known))


def _number(name: str, constants: Constants) -> int | None:
    """Return the value of a constant of one element; None for other values."""
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    if np.prod([float(size) for size in tensor.dims]) != 1:
        return None
    value = numpy_helper.to_array(tensor).reshape(-1)[0]
    return int(value) if isinstance(value, (np.integer, np.bool_)) else None
