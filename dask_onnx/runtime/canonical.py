"""Small stages without their names, so that equal stages share one session."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from dask_onnx.modelio.weights import subgraphs_of

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
    _sort_by_name(graph.initializer)
    _sort_by_name(graph.value_info)
    return result


def _rename(value: onnx.ValueInfoProto, values: dict[str, str], symbols: dict[str, str]) -> None:
    value.name = _numbered(values, value.name, "v")
    if value.type.HasField("tensor_type"):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = _numbered(symbols, dim.dim_param, "d")


def _numbered(numbers: dict[str, str], name: str, letter: str) -> str:
    return numbers.setdefault(name, f"{letter}{len(numbers)}")


def _sort_by_name(field: Iterable[onnx.TensorProto | onnx.ValueInfoProto]) -> None:
    field.sort(key=lambda each: each.name)  # type: ignore[attr-defined]  # a protobuf container
