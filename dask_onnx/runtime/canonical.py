"""Small stages without their names, so that those that are alike share one session."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from dask_onnx.modelio.weights import subgraphs_of

_MOST_NODES = 16
"""Larger stages are not alike in practice, and would cost time to compare."""


def canonical(stage: onnx.ModelProto) -> onnx.ModelProto | None:
    """The stage with values, nodes and symbolic sizes numbered in the order in which they appear.

    What it computes, and the order of its inputs and outputs, stay: weights are named by their
    content. None for a stage that is large or has subgraph bodies.
    """
    graph = stage.graph
    if len(graph.node) > _MOST_NODES or any(subgraphs_of(node) for node in graph.node):
        return None
    alike = onnx.ModelProto()
    alike.CopyFrom(stage)
    graph = alike.graph
    graph.name = "stage"
    alike.ClearField("configuration")
    values: dict[str, str] = {"": ""}
    symbols: dict[str, str] = {}
    # Types are often written for what the stage does not have; those say nothing here.
    for value in graph.input:
        _rename(value, values, symbols)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.ClearField("device_configurations")
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = _numbered(values, name, "v")
    for value in (*graph.output, *graph.value_info):
        _rename(value, values, symbols)
    for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
        tensor.name = _numbered(values, tensor.name, "v")
    _sort_by_name(graph.initializer)
    _sort_by_name(graph.value_info)
    return alike


def _rename(value: onnx.ValueInfoProto, values: dict[str, str], symbols: dict[str, str]) -> None:
    value.name = _numbered(values, value.name, "v")
    if value.type.HasField("tensor_type"):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = _numbered(symbols, dim.dim_param, "d")


def _numbered(known: dict[str, str], name: str, letter: str) -> str:
    return known.setdefault(name, f"{letter}{len(known)}")


def _sort_by_name(field: Iterable[onnx.TensorProto | onnx.ValueInfoProto]) -> None:
    field.sort(key=lambda each: each.name)  # type: ignore[attr-defined]  # a protobuf container
