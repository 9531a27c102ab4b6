"""Small stages without their names, so that equal stages share one session."""

from __future__ import annotations

import re

import onnx

from dask_onnx.modelio.weights import subgraphs_of

_CANONICAL = re.compile(r"(?<![A-Za-z0-9/.])[nv]\d+(?![A-Za-z0-9])")
"""A name of a node or a value in a message, but no part of a path or of another word."""
_MAX_NODES = 16
"""Larger stages are not equal in practice, and would take time to compare."""


def canonical_form(stage: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the stage with values, nodes and symbolic sizes numbered by their first use.

    The computation and the order of inputs and outputs stay the same: weights are named by their
    content.

    Returns
    -------
    onnx.ModelProto or None
        None for a stage that is large or has subgraphs.
    """
    graph = stage.graph
    if len(graph.node) > _MAX_NODES or any(subgraphs_of(node) for node in graph.node):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(stage)
    graph = result.graph
    graph.name = "stage"
    result.ClearField("configuration")
    values: dict[str, str] = {"": ""}
    symbols: dict[str, str] = {}
    for value in graph.input:
        _rename(value, values, symbols)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.ClearField("device_configurations")
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = _numbered(values, name, "v")
    for value in (*graph.output, *graph.value_info):
        _rename(value, values, symbols)
    for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        tensor.name = _numbered(values, tensor.name, "v")
    graph.initializer.sort(key=_name_of)
    graph.value_info.sort(key=_name_of)
    return result


def with_original_names(text: str, stage: onnx.ModelProto) -> str:
    """Return a message about a stage's canonical form with the names of the model.

    Parameters
    ----------
    text : str
        Message of a runtime, which names nodes ("n0") and values ("v2").
    stage : ModelProto
        The stage, before its names were replaced.
    """
    canonical = canonical_form(stage)
    if canonical is None:
        return text
    names: dict[str, str] = {}
    for ours, theirs in zip(canonical.graph.node, stage.graph.node, strict=True):
        names[ours.name] = theirs.name
        names.update(zip(ours.input, theirs.input, strict=True))
        names.update(zip(ours.output, theirs.output, strict=True))
    for field in ("input", "output"):
        values = zip(getattr(canonical.graph, field), getattr(stage.graph, field), strict=True)
        names.update((ours.name, theirs.name) for ours, theirs in values)
    return _CANONICAL.sub(lambda match: names.get(match[0], match[0]), text)


def _rename(value: onnx.ValueInfoProto, values: dict[str, str], symbols: dict[str, str]) -> None:
    value.name = _numbered(values, value.name, "v")
    if value.type.HasField("tensor_type"):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = _numbered(symbols, dim.dim_param, "d")


def _numbered(numbers: dict[str, str], name: str, letter: str) -> str:
    return numbers.setdefault(name, f"{letter}{len(numbers)}")


def _name_of(proto: onnx.TensorProto | onnx.ValueInfoProto) -> str:
    return proto.name
