"""Bodies of If, Loop and Scan as graphs of their own, with the types of what they read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.operands import Specs
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.value_types import spec_of, value_info
from dask_onnx.modelio.weights import is_external

log = logging.getLogger(__name__)

_NO_BOUND = 2**31 - 1
"""What exporters write where a loop ends by its condition alone, or more."""
_GENERATORS = frozenset(("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))
"""ONNX Runtime's operators whose bodies write the next token."""


def body_graphs(
    facts: GraphFacts, node: NodeFacts, specs: Specs
) -> Iterator[tuple[GraphFacts, dict[str, TensorSpec]]]:
    """Each body of a node, and the specs of its values.

    A body is left out if the type of something that it reads is not known.
    """
    proto = facts.proto.graph.node[node.index]
    for attribute in proto.attribute:
        if attribute.type != onnx.AttributeProto.GRAPH:
            continue
        given = _formal_inputs(proto, attribute.g, specs)
        if given is None:
            continue
        made = _standing_alone(facts, node, attribute.g, specs, given)
        if made is None:
            continue
        try:
            yield made, infer_shapes(made)
        except shape_inference.InferenceError as error:
            # Costs are an aid: the model itself is checked where it is loaded.
            log.debug("body %s of %s has no shapes: %s", attribute.name, node.name, error)


def trip_count(facts: GraphFacts, node: NodeFacts, specs: Specs) -> int:
    """How often the body of a Loop or a Scan runs, at most; 1 where that is not known, and for
    other nodes."""
    proto = facts.proto.graph.node[node.index]
    if node.op_type == "Scan":
        scanned, axes = _scanned(proto)
        for name, axis in zip(proto.input[len(proto.input) - scanned :], axes, strict=True):
            if (size := _size(specs, name, axis)) is not None:
                return size
    if node.op_type == "Loop":
        most = scalar_constant(facts, proto.input[0]) if proto.input[0] else None
        if most is not None and most < _NO_BOUND:
            return max(int(most), 0)
        # What each iteration adds a row to, if anything.
        for name in proto.output[len(proto.input) - 2 :]:
            if name and (size := _size(specs, name, 0)) is not None:
                return size
    if node.op_type in _GENERATORS:
        return _generated_tokens(facts, proto, specs)
    return 1


def _generated_tokens(facts: GraphFacts, proto: onnx.NodeProto, specs: Specs) -> int:
    """Of all sequences together, at most: bodies are written for one token of one sequence each.

    Inputs are (batch, ...), the most tokens, and for beams the fewest tokens and how many beams.
    """
    rows = _size(specs, proto.input[0], 0) or 1
    tokens = scalar_constant(facts, proto.input[1]) or 1
    beams = scalar_constant(facts, proto.input[3]) if "Beam" in proto.op_type else 1
    return rows * int(tokens) * int(beams or 1)


def _scanned(proto: onnx.NodeProto) -> tuple[int, list[int]]:
    """Of a Scan the inputs that it goes through, and the axis of each."""
    attributes = {a.name: a for a in proto.attribute}
    count = attributes["num_scan_inputs"].i
    axes = attributes.get("scan_input_axes")
    return count, [0] * count if axes is None else list(axes.ints)


def _size(specs: Specs, name: str, axis: int) -> int | None:
    spec = specs.get(name)
    if spec is None or spec.shape is None or not -len(spec.shape) <= axis < len(spec.shape):
        return None
    size = spec.shape[axis]
    return size if isinstance(size, int) else None


def scalar_constant(facts: GraphFacts, name: str) -> float | None:
    """The value of a scalar that the model has written in it."""
    producer = facts.producer.get(name)
    if producer is None:
        tensors = [t for t in facts.proto.graph.initializer if t.name == name]
    else:
        node = facts.proto.graph.node[producer]
        tensors = [a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
    if not tensors or is_external(tensors[0]):
        return None
    array = numpy_helper.to_array(tensors[0])
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def _formal_inputs(
    proto: onnx.NodeProto, body: onnx.GraphProto, specs: Specs
) -> list[TensorSpec] | None:
    """What a body's own inputs are given; None if that is not known."""
    names = [value.name for value in body.input]
    if proto.op_type == "Loop":
        outer = [
            TensorSpec("", np.dtype(np.int64), ()),
            TensorSpec("", np.dtype(bool), ()),
            *(specs.get(name) for name in proto.input[2:]),
        ]
    elif proto.op_type == "Scan":
        count, axes = _scanned(proto)
        states = len(proto.input) - count
        outer = [
            *(specs.get(name) for name in proto.input[:states]),
            *(
                _without(specs.get(name), axis)
                for name, axis in zip(proto.input[states:], axes, strict=True)
            ),
        ]
    elif proto.op_type == "FlexAttention":
        outer = [_scores(specs, proto)]
    else:  # open sizes of generators count as 1
        outer = [spec_of(value) for value in body.input]
    found = []
    for name, spec in zip(names, outer, strict=False):
        if spec is None or spec.dtype is None:
            return None
        found.append(replace(spec, name=name))
    return found if len(found) == len(names) else None


def _scores(specs: Specs, proto: onnx.NodeProto) -> TensorSpec | None:
    """(batch, heads, queries, keys), of queries and keys (batch, heads, tokens, head size)."""
    query, key = specs.get(proto.input[0]), specs.get(proto.input[1])
    if query is None or key is None or query.shape is None or key.shape is None:
        return None
    return replace(query, shape=(*query.shape[:-1], *key.shape[-2:-1]))


def _without(spec: TensorSpec | None, axis: int) -> TensorSpec | None:
    if spec is None or spec.shape is None:
        return spec
    axis %= max(len(spec.shape), 1)
    return replace(spec, shape=spec.shape[:axis] + spec.shape[axis + 1 :])


def _standing_alone(
    facts: GraphFacts,
    node: NodeFacts,
    body: onnx.GraphProto,
    specs: Mapping[str, TensorSpec],
    given: list[TensorSpec],
) -> GraphFacts | None:
    """A body as a model: what it reads of the graph around it are inputs and weights of its own."""
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
