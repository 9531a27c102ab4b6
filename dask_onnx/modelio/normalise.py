"""Normal form of models, in which the other layers see them.

Exporters write the same thing in several ways: constants as nodes or initializers, opset domains
under two names, nodes in any order.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Iterable, Sequence

import onnx
from onnx import helper, version_converter

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.operator_names import canonical_domain, standard_op_type
from dask_onnx.modelio.weights import graphs_of, subgraphs_of

log = logging.getLogger(__name__)

OLDEST_OPSET = 7
"""First version of ai.onnx for which ONNX Runtime promises kernels."""
_PLACEHOLDER_SIZE = 7919
"""Size given to unknown dimensions during opset conversion: a prime that graphs hardly contain."""
_MIN_IR_VERSION = 4
"""First IR version in which an initializer need not be a graph input too."""
_CONSTANT_ATTRIBUTES = {
    "value_float": onnx.TensorProto.FLOAT,
    "value_floats": onnx.TensorProto.FLOAT,
    "value_int": onnx.TensorProto.INT64,
    "value_ints": onnx.TensorProto.INT64,
    "value_string": onnx.TensorProto.STRING,
    "value_strings": onnx.TensorProto.STRING,
}


def normalise(model: onnx.ModelProto) -> int:
    """Bring a model into its normal form, in place, without changing its results.

    Afterwards the IR version is 4 or later, the domain of every node is imported once, all nodes of
    the main graph have names, ``Constant`` nodes are initializers and these no graph inputs,
    and nodes are in topological order. Documentation and metadata are removed.

    Returns
    -------
    int
        Number of elements in sparse initializers, which stay as they are.

    Raises
    ------
    ModelError
        The graph has a cycle.
    """
    if model.ir_version < _MIN_IR_VERSION:
        model.ir_version = _MIN_IR_VERSION
    _unify_domains(model)
    for index, node in enumerate(model.graph.node):
        # Named by its position in the original file, as other viewers show it.
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


def upgrade_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model converted to `OLDEST_OPSET` if its opset is older.

    Uses ONNX's version converter. Where operators broadcast by attribute, as they did before opset
    7, the converter needs known sizes, so unknown ones get a placeholder during the conversion.

    Returns
    -------
    ModelProto
        The model itself if its operators have not changed since, or if it cannot be converted.
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
                dim.dim_value = _PLACEHOLDER_SIZE
    try:
        _broadcast_by_shape(bound)
        converted = version_converter.convert_version(bound, OLDEST_OPSET)
    except (
        RuntimeError,
        onnx.shape_inference.InferenceError,
        version_converter.ConvertError,
    ) as error:
        log.info("opset %d is not converted: %r", version, " ".join(str(error).split()))
        return model
    for field in ("input", "output"):
        values = getattr(converted.graph, field)
        del values[:]
        values.extend(getattr(model.graph, field))
    del converted.graph.value_info[:]
    normalise(converted)
    return converted


def _has_changed(model: onnx.ModelProto, version: int) -> bool:
    """Return whether an operator of the model was redefined up to `OLDEST_OPSET`."""
    for node in (node for graph in graphs_of(model) for node in graph.node if not node.domain):
        if onnx.defs.has(node.op_type, version) and onnx.defs.has(node.op_type, OLDEST_OPSET):
            old, new = (
                onnx.defs.get_schema(node.op_type, opset).since_version
                for opset in (version, OLDEST_OPSET)
            )
            if old != new:
                return True
    return False


def _broadcast_by_shape(model: onnx.ModelProto) -> None:
    """Replace broadcasting by attribute with Unsqueeze nodes, in place.

    Before opset 7 the attribute ``axis`` gave the axis of A at which the axes of B begin, and the
    slopes of PRelu belonged to the channels. Trailing axes of size 1 on B are equivalent. ONNX's
    converter rejects some of these attributes and does not convert PRelu.
    """
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
            trailing = list(range(given, rank - first % rank)) if rank > 1 else []
            if trailing:
                name = f"{node.input[1]}/axes of {node.output[0]}"
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=trailing))
                node.input[1] = name
            for attribute in [a for a in node.attribute if a.name == "axis"]:
                node.attribute.remove(attribute)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _first_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis of A at which the axes of B begin; None if B is aligned at the end."""
    if standard_op_type(node) == "PRelu":
        return 1
    attributes = {a.name: a.i for a in node.attribute if a.name in ("axis", "broadcast")}
    return attributes.get("axis") if attributes.get("broadcast") else None


def _unify_domains(model: onnx.ModelProto) -> None:
    """Write each domain in its canonical form, and import it once.

    As in ONNX Runtime, the last import of a domain counts, and a domain without import has the
    newest version.
    """
    versions = {canonical_domain(opset.domain): opset.version for opset in model.opset_import}
    for nodes in [graph.node for graph in graphs_of(model)] + [f.node for f in model.functions]:
        for node in nodes:
            node.domain = canonical_domain(node.domain)
    used = {node.domain for graph in graphs_of(model) for node in graph.node}
    versions.update({domain: newest_version(domain) for domain in sorted(used - versions.keys())})
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(d, v) for d, v in versions.items())


def newest_version(domain: str) -> int:
    """Return the newest opset version of a domain that the installed onnx knows; 1 for others."""
    if not domain:
        return int(onnx.defs.onnx_opset_version())
    schemas = onnx.defs.get_all_schemas()
    return max((s.since_version for s in schemas if s.domain == domain), default=1)


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
    """Return the tensor of a ``Constant`` node; None for other nodes and sparse values."""
    if standard_op_type(node) != "Constant" or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        value_tensor: onnx.TensorProto = attribute.t
        return value_tensor
    if attribute.name not in _CONSTANT_ATTRIBUTES:
        return None  # sparse_value
    value = helper.get_attribute_value(attribute)
    values = value if attribute.name.endswith("s") else [value]
    dims = [len(values)] if attribute.name.endswith("s") else []
    return helper.make_tensor("", _CONSTANT_ATTRIBUTES[attribute.name], dims, values)


def _drop_initializers_from_inputs(graph: onnx.GraphProto) -> None:
    """Remove inputs that have an initializer, as all had before IR 4: constants run faster."""
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {sparse.values.name for sparse in graph.sparse_initializer}
    kept = [value for value in graph.input if value.name not in constant]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort nodes topologically, as the specification requires and some exporters do not."""
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
            f"the graph {graph.name!r} has a cycle: some nodes depend on their own results",
            "export the model again; onnx.checker names the first node of the cycle",
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def stable_topological_order(needs: Sequence[Iterable[int]]) -> list[int] | None:
    """Return a topological order by Kahn's algorithm, always taking the smallest ready index.

    Parameters
    ----------
    needs : sequence of iterables of int
        Indices that each index depends on.

    Returns
    -------
    list of int or None
        None if there is a cycle.
    """
    waiting = [set(dependencies) for dependencies in needs]
    dependents: list[list[int]] = [[] for _ in needs]
    for index, dependencies in enumerate(waiting):
        for other in dependencies:
            dependents[other].append(index)
    ready = [index for index, dependencies in enumerate(waiting) if not dependencies]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for dependent in dependents[index]:
            waiting[dependent].discard(index)
            if not waiting[dependent]:
                heapq.heappush(ready, dependent)
    return order if len(order) == len(needs) else None


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Return outer-scope values that a node's subgraph bodies read, in order of first use."""
    captured: dict[str, None] = {}
    for body in subgraphs_of(node):
        local = {value.name for value in body.input} | {t.name for t in body.initializer} | {""}
        local |= {sparse.values.name for sparse in body.sparse_initializer}
        for inner in body.node:
            for name in [*inner.input, *captured_names(inner)]:
                if name not in local:
                    captured[name] = None
            local.update(inner.output)
        for value in body.output:
            if value.name not in local:
                captured[value.name] = None
    return list(captured)
