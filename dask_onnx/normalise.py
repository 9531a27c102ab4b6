"""Bringing what exporters write in several ways into one, before anything else looks at it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

import onnx
from onnx import helper

from dask_onnx.errors import ModelError
from dask_onnx.weights import graphs_of, subgraphs_of

_MIN_IR_VERSION = 4
"""From IR 4 on an initializer need not be an input too; older models are raised to it."""
_CONSTANT_ATTRIBUTES = {
    "value_float": onnx.TensorProto.FLOAT,
    "value_floats": onnx.TensorProto.FLOAT,
    "value_int": onnx.TensorProto.INT64,
    "value_ints": onnx.TensorProto.INT64,
    "value_string": onnx.TensorProto.STRING,
    "value_strings": onnx.TensorProto.STRING,
}


def normalise(model: onnx.ModelProto) -> int:
    """Bring what exporters write in several ways into one: see the steps. Changes no number.

    Returns the number of elements in sparse initializers, which stay as they are.
    """
    if model.ir_version < _MIN_IR_VERSION:
        model.ir_version = _MIN_IR_VERSION
    for index, node in enumerate(model.graph.node):
        # Position in the file as it was, which is what other viewers show.
        node.name = node.name or f"{node.op_type}_{index}"
    for graph in graphs_of(model):
        _constants_to_initializers(graph)
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    _drop_initializers_from_inputs(model.graph)
    _sort_nodes(model.graph)
    del model.graph.metadata_props[:]
    return sum(math.prod(sparse.dims) for sparse in model.graph.sparse_initializer)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        tensor = _constant_value(node)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        value_tensor: onnx.TensorProto = attribute.t
        return value_tensor
    if attribute.name not in _CONSTANT_ATTRIBUTES:
        return None  # sparse_value: stays a node
    value = helper.get_attribute_value(attribute)
    values = value if attribute.name.endswith("s") else [value]
    dims = [len(values)] if attribute.name.endswith("s") else []
    return helper.make_tensor("", _CONSTANT_ATTRIBUTES[attribute.name], dims, values)


def _drop_initializers_from_inputs(graph: onnx.GraphProto) -> None:
    """Before IR 4 every initializer had to be listed as an input; as a constant it runs faster."""
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {sparse.values.name for sparse in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in constant]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Topological order, which the specification asks for and not every exporter keeps."""
    seen = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    seen |= {sparse.values.name for sparse in graph.sparse_initializer} | {""}
    produced = {name for node in graph.node for name in node.output}
    needs = [
        {name for name in [*node.input, *captured_names(node)] if name in produced}
        for node in graph.node
    ]
    in_order = True
    for node, needed in zip(graph.node, needs, strict=True):
        in_order = in_order and needed <= seen
        seen.update(node.output)
    if in_order:
        return
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    order = stable_topological_order([{producer[name] for name in needed} for needed in needs])
    if order is None:
        raise ModelError(
            f"the graph {graph.name!r} has a cycle: some nodes need their own results",
            "export the model again; onnx.checker names the first node of the cycle",
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def stable_topological_order(needs: Sequence[Iterable[int]]) -> list[int] | None:
    """Kahn's algorithm, the smallest index first; None where there is a cycle."""
    waiting = [set(before) for before in needs]
    after: list[list[int]] = [[] for _ in needs]
    for index, before in enumerate(waiting):
        for other in before:
            after[other].append(index)
    ready = [index for index, before in enumerate(waiting) if not before]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in after[index]:
            waiting[follower].discard(index)
            if not waiting[follower]:
                heapq.heappush(ready, follower)
    return order if len(order) == len(needs) else None


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Values of the outer graph that the node's subgraph bodies read, in order of first use."""
    captured: dict[str, None] = {}
    for body in subgraphs_of(node):
        local = {value.name for value in body.input} | {t.name for t in body.initializer} | {""}
        for inner in body.node:
            for name in [*inner.input, *captured_names(inner)]:
                if name not in local:
                    captured[name] = None
            local.update(inner.output)
        for value in body.output:
            if value.name not in local:
                captured[value.name] = None
    return list(captured)
