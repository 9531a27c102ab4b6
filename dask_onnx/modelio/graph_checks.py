"""Checks of a graph: every value has one definition, every read one, and bodies are not too deep.

They refuse what ONNX Runtime refuses, and no more: the name of an initializer may be repeated, and
nodes may be in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.node_checks import check_bodies, check_node
from dask_onnx.modelio.operator_names import OperatorName, operator_name
from dask_onnx.modelio.tensor_checks import check_sparse, check_tensor, check_text, check_type
from dask_onnx.modelio.tree_checks import check_trees
from dask_onnx.modelio.weights import subgraphs_of

MAX_DEPTH = 32
"""Largest depth of bodies inside bodies. Protobuf's parsers stop at about the same depth."""
_ADVICE = "export the model again: it is damaged, or its exporter has a fault"


@dataclass(frozen=True, slots=True)
class Scope:
    """Surroundings of a graph that the checks of its nodes need."""

    opsets: Mapping[str, int]
    """Version of each imported domain, in canonical form."""
    foreign: frozenset[OperatorName]
    """Operators that ONNX's schemas say nothing about."""
    parameters: frozenset[str] | None = None
    """Attribute parameters of the function; None outside functions."""


def check_graph(graph: onnx.GraphProto, scope: Scope) -> None:
    """Check a main graph, with the bodies below it.

    Raises
    ------
    ModelError
        A name is defined twice or not at all, a tensor or attribute is damaged, or bodies are
        nested too deeply.
    """
    _check_graph(graph, scope, (), 0)
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        # In bodies types may be left out. ONNX's inference ends the process on some of these.
        if value.type.WhichOneof("value") is None and value.name not in constants:
            raise ModelError(
                f"input {value.name!r} of the graph {graph.name!r} has no type",
                "export the model again: it is damaged; of a graph of your own, give each input a "
                "type, as onnx.helper.make_tensor_value_info does",
                input=value.name,
            )


def check_function(function: onnx.FunctionProto, scope: Scope) -> None:
    """Check the nodes of a model-local function as those of a graph."""
    where = f"the function {function.name!r}"
    defined = _unique(function.input, where)
    _check_nodes(function.node, defined, list(function.output), scope, (), 0, where)
    for value in function.value_info:
        check_type(value.type, f"value {value.name!r}", value.name)


def _check_graph(
    graph: onnx.GraphProto, scope: Scope, outer: Sequence[frozenset[str] | set[str]], depth: int
) -> None:
    check_text(graph.name)
    where = f"the graph {graph.name!r}"
    if depth > MAX_DEPTH:
        raise ModelError(
            f"bodies are nested more than {MAX_DEPTH} deep, in {where}",
            "export the model with fewer If, Loop and Scan inside each other",
            numbers={"most_depth": MAX_DEPTH},
        )
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            check_type(value.type, f"{what} {value.name!r}", value.name)
    for value in graph.value_info:
        check_type(value.type, f"value {value.name!r}", value.name)
    defined = _unique((value.name for value in graph.input), where)
    for tensor in graph.initializer:
        check_tensor(tensor, f"initializer {tensor.name!r}")
        defined.add(tensor.name)
    for sparse in graph.sparse_initializer:
        check_sparse(sparse)
        defined.add(sparse.values.name)
    outputs = [value.name for value in graph.output]
    _check_nodes(graph.node, defined, outputs, scope, outer, depth, where)


def _unique(names: Iterable[str], where: str) -> set[str]:
    found: set[str] = set()
    for name in names:
        if name in found:
            raise ModelError(f"{where} has two inputs called {name!r}", _ADVICE, input=name)
        found.add(name)
    return found


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    defined: set[str],
    outputs: Sequence[str],
    scope: Scope,
    outer: Sequence[frozenset[str] | set[str]],
    depth: int,
    where: str,
) -> None:
    """Check the nodes of one graph or function.

    Parameters
    ----------
    defined : set of str
        Names of inputs and initializers; those of the nodes' outputs are added.
    outputs : sequence of str
        Names of the graph's outputs.
    outer : sequence of set of str
        Names of each graph around this one.
    """
    reads: dict[str, int] = {}
    with_bodies: list[onnx.NodeProto] = []
    for index, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{index}"
        check_node(node, name, scope.opsets, scope.foreign, scope.parameters)
        if node.domain == "ai.onnx.ml" and operator_name(node) not in scope.foreign:
            check_trees(node, name)
        for value in node.input:
            reads[value] = index
        for value in node.output:
            if value in defined and value:
                raise ModelError(
                    f"node {name!r} computes {value!r}, which {where} already defines",
                    _ADVICE,
                    node=name,
                    input=value,
                )
            defined.add(value)
        if node.attribute and subgraphs_of(node):
            if operator_name(node) not in scope.foreign:
                check_bodies(node, name)
            with_bodies.append(node)
    check_text(*defined, *reads, *outputs)
    _check_defined(nodes, reads, outputs, [defined, *outer], where)
    for node in with_bodies:
        for body in subgraphs_of(node):
            _check_graph(body, scope, [defined, *outer], depth + 1)


def _check_defined(
    nodes: Sequence[onnx.NodeProto],
    reads: Mapping[str, int],
    outputs: Sequence[str],
    scopes: Sequence[frozenset[str] | set[str]],
    where: str,
) -> None:

    def is_known(name: str) -> bool:
        return any(name in names for names in scopes)

    for value, index in reads.items():
        if value and not is_known(value):
            name = nodes[index].name or f"{nodes[index].op_type}_{index}"
            raise ModelError(
                f"node {name!r} reads {value!r}, which nothing in {where} defines",
                _ADVICE,
                node=name,
                input=value,
            )
    for value in outputs:
        if not is_known(value):
            raise ModelError(
                f"no node computes {value!r}, an output of {where}", _ADVICE, input=value
            )
