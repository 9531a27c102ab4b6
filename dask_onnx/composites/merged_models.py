"""Several models merged into one graph, in which equal nodes on equal values run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from dask_onnx.composites.prefixed_models import model_of
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.value_types import value_info

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators of ai.onnx whose results differ from node to node."""


@dataclass(frozen=True, slots=True)
class Merged:
    """Models in one graph."""

    facts: ModelFacts
    shared: Mapping[str, tuple[str, ...]]
    """Node that runs once, by its name, to the names of the nodes that it replaces."""


def merge(name: str, parts: Sequence[ModelFacts], inputs: Sequence[TensorSpec]) -> Merged:
    """Return models as one, whose outputs are those of all of them.

    Parameters
    ----------
    name : str
        Name of the new model.
    parts : sequence of ModelFacts
        Models with no name in common but those of inputs, of the same opsets, without kernels of
        the caller.
    inputs : sequence of TensorSpec
        Inputs of the new model.
    """
    graphs = _Graphs()
    for part in parts:
        graphs.add(part.onnx.parse().graph)
    proto = onnx.ModelProto()
    proto.CopyFrom(parts[0].onnx.parse())
    proto.ir_version = max(part.onnx.ir_version for part in parts)
    proto.ClearField("graph")
    proto.graph.CopyFrom(graphs.graph)
    proto.graph.name = name
    proto.graph.input.extend(map(value_info, inputs))
    model = model_of(proto, name, [part.onnx for part in parts])
    return Merged(ModelFacts(model), {k: tuple(v) for k, v in graphs.shared.items()})


class _Graphs:
    """A graph to which others are added; nodes and weights that it has already are not."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto()
        self.shared: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}
        """Value that is not added to the equal one in the graph."""
        self._weights: dict[bytes, str] = {}
        self._nodes: dict[bytes, onnx.NodeProto] = {}

    def add(self, graph: onnx.GraphProto) -> None:
        """Add the nodes, weights and outputs of a graph, but not its inputs."""
        outputs = {value.name for value in graph.output}
        for tensor in graph.initializer:
            if tensor.name not in outputs and self._is_known(tensor):
                continue
            self.graph.initializer.append(tensor)
        self.graph.sparse_initializer.extend(graph.sparse_initializer)
        for node in graph.node:
            self._add_node(node, outputs)
        self.graph.output.extend(graph.output)
        self.graph.value_info.extend(v for v in graph.value_info if v.name not in self._names)

    def _is_known(self, tensor: onnx.TensorProto) -> bool:
        unnamed = onnx.TensorProto()
        unnamed.CopyFrom(tensor)
        unnamed.name = ""
        # Weights that are not in the proto are named in it by a digest of their content.
        key = unnamed.SerializeToString(deterministic=True)
        known = self._weights.setdefault(key, tensor.name)
        if known != tensor.name:
            self._names[tensor.name] = known
        return known != tensor.name

    def _add_node(self, node: onnx.NodeProto, outputs: set[str]) -> None:
        _replace_inputs(node, self._names)
        key = None if _is_alone(node) else _content(node)
        known = None if key is None else self._nodes.get(key)
        if known is None:
            self.graph.node.append(node)
            if key is not None:
                self._nodes[key] = node
            return
        self.shared.setdefault(known.name, []).append(node.name)
        for own, other in zip(node.output, known.output, strict=True):
            if not own:
                continue
            self._names[own] = other
            if own in outputs:
                self.graph.node.add(op_type="Identity", input=[other], output=[own], name=own)


def _replace_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Replace values that a node and its bodies read."""
    for place, name in enumerate(node.input):
        node.input[place] = names.get(name, name)
    for attribute in node.attribute:
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in body.node:
                _replace_inputs(inner, names)


def _is_alone(node: onnx.NodeProto) -> bool:
    """Return whether an equal node on the same values may have other results, or has bodies."""
    is_random = node.domain in ("", "ai.onnx") and node.op_type in _RANDOM
    return (
        is_random
        or bool(captured_names(node))
        or any(a.HasField("g") or a.graphs for a in node.attribute)
    )


def _content(node: onnx.NodeProto) -> bytes:
    """Return what decides a node's results: operator, attributes, and the values that it reads."""
    unnamed = onnx.NodeProto()
    unnamed.CopyFrom(node)
    unnamed.name = unnamed.doc_string = ""
    unnamed.ClearField("output")
    unnamed.output.extend("v" if name else "" for name in node.output)
    attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
    unnamed.ClearField("attribute")
    unnamed.attribute.extend(attributes)
    content: bytes = unnamed.SerializeToString(deterministic=True)
    return content
