"""Bringing what exporters write in several ways into one, before anything else looks at it."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterable, Sequence

import onnx
from onnx import helper, version_converter

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.weights import graphs_of, subgraphs_of

log = logging.getLogger(__name__)

OLDEST_OPSET = 7
"""Of ai.onnx: from here on ONNX Runtime promises kernels."""
_UNUSUAL_SIZE = 7919
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
    _one_name_for_each_domain(model)
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


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of an opset that ONNX Runtime has no kernels for, by ONNX's own converter.

    The converter wants sizes where operators broadcast by attribute, as they did then: open ones
    get a size that hardly a graph has, and are open again afterwards. A model that it cannot
    convert stays as it is.
    """
    version = next((opset.version for opset in model.opset_import if not opset.domain), None)
    if version is None or version >= OLDEST_OPSET or not _has_changed(model, version):
        return model
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    del bound.graph.value_info[:]
    for value in (*bound.graph.input, *bound.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = _UNUSUAL_SIZE
    try:
        _broadcast_by_shape(bound)
        converted = version_converter.convert_version(bound, OLDEST_OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        log.info("opset %d stays: %s", version, " ".join(str(error).split()))
        return model
    for field in ("input", "output"):
        values = getattr(converted.graph, field)
        del values[:]
        values.extend(getattr(model.graph, field))
    del converted.graph.value_info[:]
    normalise(converted)
    return converted


def _has_changed(model: onnx.ModelProto, version: int) -> bool:
    """Whether an operator means something else as of `OLDEST_OPSET`."""
    for node in (node for graph in graphs_of(model) for node in graph.node if not node.domain):
        if onnx.defs.has(node.op_type, version) and onnx.defs.has(node.op_type, OLDEST_OPSET):
            then, now = (
                onnx.defs.get_schema(node.op_type, opset).since_version
                for opset in (version, OLDEST_OPSET)
            )
            if then != now:
                return True
    return False


def _broadcast_by_shape(model: onnx.ModelProto) -> None:
    """Before opset 7 an attribute said on which axis of A the axes of B begin, and a PRelu's slopes
    were those of the channels. Axes of size 1 at the end of B say the same; the converter refuses
    some of the attributes, and leaves PRelu as it was."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    ranks.update({tensor.name: len(tensor.dims) for tensor in graph.initializer})
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        first = _first_axis(node)
        if first is not None and ranks.keys() >= set(node.input):
            rank, given = (ranks[name] for name in node.input)
            after = list(range(given, rank - first % rank)) if rank > 1 else []
            if after:
                name = f"{node.input[1]}/axes of {node.output[0]}"
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=after))
                node.input[1] = name
            for attribute in [a for a in node.attribute if a.name == "axis"]:
                node.attribute.remove(attribute)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _first_axis(node: onnx.NodeProto) -> int | None:
    """The axis of A on which the axes of B begin; None if they end together."""
    if node.op_type == "PRelu":
        return 1
    attributes = {a.name: a.i for a in node.attribute if a.name in ("axis", "broadcast")}
    return attributes.get("axis") if attributes.get("broadcast") else None


def _one_name_for_each_domain(model: onnx.ModelProto) -> None:
    """ "ai.onnx" is ""; of a domain that is imported several times the newest version counts."""
    versions: dict[str, int] = {}
    for opset in model.opset_import:
        domain = plain_domain(opset.domain)
        versions[domain] = max(versions.get(domain, 0), opset.version)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(d, v) for d, v in versions.items())
    bodies = [graph.node for graph in graphs_of(model)] + [f.node for f in model.functions]
    for nodes in bodies:
        for node in nodes:
            node.domain = plain_domain(node.domain)


def plain_domain(domain: str) -> str:
    """A domain as it is written here: "ai.onnx" is ""."""
    return "" if domain == "ai.onnx" else domain


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
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
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
