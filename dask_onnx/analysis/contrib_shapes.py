"""Shape inference behind ONNX Runtime's own operators, for which ONNX has no schema.

In a copy of the model that only inference reads, they are replaced by calls of functions with the
same types and shapes: `contrib_operators` has one for each operator. Inference enters functions in
the same pass, also in bodies of If and Loop.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx
from onnx import helper, parser

from dask_onnx.analysis.contrib_images import BLOCKED
from dask_onnx.analysis.contrib_operators import TABLES
from dask_onnx.analysis.contrib_parts import Call
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import subgraphs_of

log = logging.getLogger(__name__)

_DOMAIN = "dask_onnx.stand_in"
"""Domain of the functions."""
_OPSET = 17
"""Opset of the functions' bodies, independent of the model's."""
_WITH_BODIES = frozenset(("If", "Loop", "Scan", "SequenceMap"))
"""Operators whose bodies are inferred too."""


def write_stand_ins(model: onnx.ModelProto, facts: GraphFacts) -> frozenset[str]:
    """Replace nodes that ONNX does not know by calls of functions with the same shapes and dtypes.

    Parameters
    ----------
    model : ModelProto
        A copy of the proto of `facts`; afterwards fit for shape inference only.
    facts : GraphFacts

    Returns
    -------
    frozenset of str
        Values of the main graph that come from a replaced node.
    """
    nodes = model.graph.node
    outer = [nodes[n.index] for n in facts.nodes if n.op_type in TABLES.get(n.domain, ())]
    bodies = [
        body
        for owner in facts.nodes
        if standard_op_type(owner) in _WITH_BODIES
        for body in _bodies(nodes[owner.index])
    ]
    inner = [node for body in bodies for node in body.node]
    candidates = [*outer, *(n for n in inner if n.op_type in TABLES.get(n.domain, ()))]
    if candidates:
        _replace(model, candidates, _constants([model.graph, *bodies]))
    return frozenset(name for n in outer if n.domain == _DOMAIN for name in n.output if name)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of a node, nested ones included."""
    for body in subgraphs_of(node):
        yield body
        for inner in body.node:
            yield from _bodies(inner)


def _constants(graphs: Iterable[onnx.GraphProto]) -> Mapping[str, onnx.TensorProto]:
    """Return initializers and values of Constant nodes, by name."""
    found: dict[str, onnx.TensorProto] = {}
    for graph in graphs:
        found.update((tensor.name, tensor) for tensor in graph.initializer)
        for node in graph.node:
            if standard_op_type(node) == "Constant":
                found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def _replace(
    model: onnx.ModelProto,
    candidates: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> None:
    """Turn nodes into calls of their stand-ins, and add the functions to the model."""
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    kept = {(function.domain, function.name) for function in model.functions}
    blocked = [node for node in candidates if node.domain == BLOCKED and node.op_type == "Conv"]
    convolutions = {node.input[0]: node for node in blocked}
    names: dict[tuple[str, int], str] = {}
    for node in candidates:
        key = node.domain, node.op_type
        if key in kept or (not node.domain and onnx.defs.has(node.op_type, opsets.get("", 1))):
            continue
        text = _text_of(node, Call(node, constants, convolutions))
        if text is None:
            continue
        variant = text, len(node.output)
        if variant not in names:
            name = f"{node.op_type}_{len(names)}"
            try:
                model.functions.append(_function(name, *variant))
            except parser.ParseError as error:
                log.debug("no stand-in of node %r (%r): %r", node.name, node.op_type, error)
                continue
            names[variant] = name
        node.domain, node.op_type = _DOMAIN, names[variant]
    if names:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _text_of(node: onnx.NodeProto, call: Call) -> str | None:
    """Return the text of a node's stand-in; None where there is none."""
    entry = TABLES[node.domain][node.op_type]
    if not callable(entry):
        return entry
    try:
        return entry(call)
    except (IndexError, KeyError, ValueError) as error:
        # Rules read what the schema demands; a node without it is refused by its runtime.
        log.debug("no stand-in of node %r (%r): %r", node.name, node.op_type, error)
        return None


@functools.lru_cache(maxsize=256)
def _function(name: str, text: str, n_outputs: int) -> onnx.FunctionProto:
    """Return a stand-in with its first `n_outputs` results: a call must take all of them."""
    header = f'<domain: "{_DOMAIN}", opset_import: ["" : {_OPSET}]> {name}'
    function = parser.parse_function(f"{header} {text}")
    for index, parameter in enumerate(function.input):
        if parameter == "_":
            function.input[index] = f"unused_{index}"
    del function.output[n_outputs:]
    references = {a.ref_attr_name for node in function.node for a in node.attribute}
    function.attribute.extend(sorted(references - {""}))
    return function
