"""Bodies of If, Loop and Scan as graphs of their own, with the types of the values they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.known_constants import scalar_constant
from dask_onnx.analysis.operands import Specs, known_size
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import public_op_type, standard_op_type
from dask_onnx.modelio.value_types import spec_of, value_info

_NO_BOUND = 2**31 - 1
"""Smallest trip count that exporters write for a loop that ends by its condition alone."""
_GENERATORS = frozenset(("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))
"""ONNX Runtime's operators whose bodies generate the next token."""


def body_graphs(
    facts: GraphFacts, node: NodeFacts, specs: Specs
) -> Iterator[tuple[GraphFacts, dict[str, TensorSpec]]]:
    """Yield each body of a node as a graph, with the specs of its values.

    A body is left out if the type of a value that it reads is unknown.

    Parameters
    ----------
    facts : GraphFacts
        The graph around the node.
    node : NodeFacts
    specs : mapping of value to TensorSpec
        Values of the graph around the node.
    """
    proto = facts.proto.graph.node[node.index]
    for attribute in proto.attribute:
        if attribute.type != onnx.AttributeProto.GRAPH:
            continue
        given = _formal_inputs(proto, attribute.g, specs)
        if given is None:
            continue
        body = _as_model(facts, node, attribute.g, specs, given)
        if body is not None:
            yield body, infer_shapes(body)


def trip_count(facts: GraphFacts, node: NodeFacts, specs: Specs) -> int:
    """Return how often the body of a node runs at most.

    1 where that is unknown, and for nodes other than Loop, Scan and ONNX Runtime's generators.
    """
    proto = facts.proto.graph.node[node.index]
    op_type = standard_op_type(node)
    if op_type == "Scan":
        count, axes = _scan_inputs(proto)
        for name, axis in zip(proto.input[len(proto.input) - count :], axes, strict=True):
            if (size := known_size(specs, name, axis)) is not None:
                return size
    if op_type == "Loop":
        most = scalar_constant(facts, proto.input[0]) if proto.input[0] else None
        if most is not None and most < _NO_BOUND:
            return max(int(most), 0)
        # Scan outputs, to which each iteration adds a row.
        for name in proto.output[len(proto.input) - 2 :]:
            if name and (size := known_size(specs, name, 0)) is not None:
                return size
    if public_op_type(node) in _GENERATORS:
        return _generated_tokens(facts, proto, specs)
    return 1


def _generated_tokens(facts: GraphFacts, proto: onnx.NodeProto, specs: Specs) -> int:
    """Return the largest number of tokens of all sequences together.

    A body computes one token of one sequence. Inputs 0, 1 and 3 are the prompts, shape (batch,
    ...), the largest number of tokens, and the number of beams.
    """
    rows = known_size(specs, proto.input[0], 0) or 1
    tokens = scalar_constant(facts, proto.input[1]) or 1
    beams = scalar_constant(facts, proto.input[3]) if "Beam" in proto.op_type else 1
    return rows * int(tokens) * int(beams or 1)


def _scan_inputs(proto: onnx.NodeProto) -> tuple[int, list[int]]:
    """Return the number of a Scan's last inputs that it iterates over, and the axis of each."""
    attributes = {a.name: a for a in proto.attribute}
    count = attributes["num_scan_inputs"].i
    axes = attributes.get("scan_input_axes")
    return count, [0] * count if axes is None else list(axes.ints)


def _formal_inputs(
    proto: onnx.NodeProto, body: onnx.GraphProto, specs: Specs
) -> list[TensorSpec] | None:
    """Return the specs of a body's formal inputs; None if one of them is unknown."""
    names = [value.name for value in body.input]
    op_type = public_op_type(proto)
    if op_type == "Loop":
        outer = [
            TensorSpec("", np.dtype(np.int64), ()),
            TensorSpec("", np.dtype(bool), ()),
            *(specs.get(name) for name in proto.input[2:]),
        ]
    elif op_type == "Scan":
        count, axes = _scan_inputs(proto)
        states = len(proto.input) - count
        outer = [
            *(specs.get(name) for name in proto.input[:states]),
            *(
                _without(specs.get(name), axis)
                for name, axis in zip(proto.input[states:], axes, strict=True)
            ),
        ]
    elif op_type == "FlexAttention":
        outer = [_scores(specs, proto)]
    else:  # generators declare the inputs of their bodies; open sizes count as 1
        outer = [spec_of(value) for value in body.input]
    found = []
    for name, spec in zip(names, outer, strict=False):
        if spec is None or spec.dtype is None:
            return None
        found.append(replace(spec, name=name))
    return found if len(found) == len(names) else None


def _scores(specs: Specs, proto: onnx.NodeProto) -> TensorSpec | None:
    """Return the spec of attention scores, shape (batch, heads, queries, keys).

    Inputs 0 and 1 are queries and keys, shape (batch, heads, tokens, head size).
    """
    query, key = specs.get(proto.input[0]), specs.get(proto.input[1])
    if query is None or key is None or query.shape is None or key.shape is None:
        return None
    return replace(query, shape=(*query.shape[:-1], *key.shape[-2:-1]))


def _without(spec: TensorSpec | None, axis: int) -> TensorSpec | None:
    """Return the spec of one slice along an axis."""
    if spec is None or spec.shape is None:
        return spec
    axis %= max(len(spec.shape), 1)
    return replace(spec, shape=spec.shape[:axis] + spec.shape[axis + 1 :])


def _as_model(
    facts: GraphFacts,
    node: NodeFacts,
    body: onnx.GraphProto,
    specs: Mapping[str, TensorSpec],
    given: list[TensorSpec],
) -> GraphFacts | None:
    """Return a body as a graph of its own; None if the type of a captured value is unknown.

    Captured values become inputs, captured initializers initializers.
    """
    model = onnx.ModelProto(ir_version=facts.proto.ir_version)
    model.opset_import.extend(facts.proto.opset_import)
    model.graph.CopyFrom(body)
    del model.graph.input[:]
    model.graph.input.extend(map(value_info, given))
    weights = {tensor.name: tensor for tensor in facts.proto.graph.initializer}
    for name in node.captures:
        if name in weights:
            model.graph.initializer.append(weights[name])
            continue
        spec = specs.get(name)
        if spec is None or spec.dtype is None:
            return None
        model.graph.input.append(value_info(spec))
    return GraphFacts(replace(facts.model, proto=model.SerializeToString()))
