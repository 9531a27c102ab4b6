"""Replacement of an If node of known condition by its branch, for shape inference only.

Exporters write an If that tests whether an axis has one element, to squeeze it or not. Inference
finds no shape for two branches of different rank, but finds that of the one that runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def taken_branch(node: onnx.NodeProto, condition: bool) -> onnx.GraphProto:
    """Return the body of an If that runs under `condition`."""
    wanted = "then_branch" if condition else "else_branch"
    found: onnx.GraphProto = next(a.g for a in node.attribute if a.name == wanted)
    return found


def write_branch(
    node: onnx.NodeProto, condition: bool, number: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes and initializers that replace an If under a known condition.

    Parameters
    ----------
    node : NodeProto
        The If.
    condition : bool
    number : int
        Prefix of the names inside: other branches may use the same ones.
    """
    body = onnx.GraphProto()
    body.CopyFrom(taken_branch(node, condition))
    local = {name for inner in body.node for name in inner.output if name}
    local.update(tensor.name for tensor in body.initializer)
    renamed = {name: f"branch_{number}/{name}" for name in local}
    _rename(body, renamed)
    copies = [
        onnx.helper.make_node("Identity", [renamed.get(inner.name, inner.name)], [outer])
        for inner, outer in zip(taken_branch(node, condition).output, node.output, strict=True)
        if outer
    ]
    return [*body.node, *copies], list(body.initializer)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for part in _graphs_in(graph):
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for value in part.output if part is not graph else ():
            value.name = names.get(value.name, value.name)


def _graphs_in(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and the bodies of its nodes, nested ones included."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs_in(attribute.g)
    return found
