"""Offsets of the tensors' ``raw_data`` in the bytes of a serialised ModelProto.

protobuf's own parser does not report them. The wire format is that of protobuf's encoding guide: a
varint key (field number << 3 | wire type), then a varint (type 0), 8 bytes (1), a length and that
many bytes (2), or 4 bytes (5). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from dask_onnx.modelio.operator_names import standard_op_type

MAX_PROTO_BYTES = 2**31 - 1
"""Size limit of a serialised message in protobuf."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 6, 11
_TENSOR_RAW_DATA = 9

OFFSET_KEY = "offset in the model's file"
"""Key in a tensor's ``external_data`` that holds its offset until `strip_weights` reads it."""

Span = tuple[int, int]
"""Start and end of a message in the bytes of the file."""


def record_offsets(model: onnx.ModelProto, data: bytes, min_bytes: int) -> None:
    """Record in each tensor that `strip_weights` may move the offset of its ``raw_data``.

    Tensors keep no offset where `data` is not laid out as expected; their weights are then held in
    memory instead of being read from the file again.

    Parameters
    ----------
    model : ModelProto
        The model that `data` decodes to, unchanged. Modified in place.
    data : bytes
        Serialised ModelProto.
    min_bytes : int
        Size up to which tensors are skipped.
    """
    graphs = [span for number, span in _fields(data, (0, len(data))) if number == _MODEL_GRAPH]
    if len(graphs) == 1:  # protobuf merges repeated ones, which shifts positions
        _record_graph(model.graph, data, graphs[0], min_bytes)


def _record_graph(graph: onnx.GraphProto, data: bytes, span: Span, min_bytes: int) -> None:
    fields = list(_fields(data, span))
    initializers = [s for number, s in fields if number == _GRAPH_INITIALIZER]
    nodes = [s for number, s in fields if number == _GRAPH_NODE]
    if len(initializers) != len(graph.initializer) or len(nodes) != len(graph.node):
        return
    for tensor, place in zip(graph.initializer, initializers, strict=True):
        _record_tensor(tensor, data, place, min_bytes)
    for node, place in zip(graph.node, nodes, strict=True):
        _record_node(node, data, place, min_bytes)


def _record_node(node: onnx.NodeProto, data: bytes, span: Span, min_bytes: int) -> None:
    is_constant = standard_op_type(node) == "Constant"
    if not is_constant and not any(a.HasField("g") or a.graphs for a in node.attribute):
        return
    spans = [s for number, s in _fields(data, span) if number == _NODE_ATTRIBUTE]
    for attribute, place in zip(node.attribute, spans, strict=True):
        inner = list(_fields(data, place))
        if is_constant and attribute.name == "value":
            tensors = [s for number, s in inner if number == _ATTRIBUTE_TENSOR]
            _record_tensors([attribute.t], tensors, data, min_bytes)
        graphs = [s for number, s in inner if number == _ATTRIBUTE_GRAPH]
        bodies = [attribute.g] if attribute.HasField("g") else []
        graphs += [s for number, s in inner if number == _ATTRIBUTE_GRAPHS]
        bodies += attribute.graphs
        if len(graphs) == len(bodies):
            for body, body_place in zip(bodies, graphs, strict=True):
                _record_graph(body, data, body_place, min_bytes)


def _record_tensors(
    tensors: Sequence[onnx.TensorProto], spans: Sequence[Span], data: bytes, min_bytes: int
) -> None:
    if len(tensors) == len(spans):
        for tensor, span in zip(tensors, spans, strict=True):
            _record_tensor(tensor, data, span, min_bytes)


def _record_tensor(tensor: onnx.TensorProto, data: bytes, span: Span, min_bytes: int) -> None:
    if len(tensor.raw_data) <= min_bytes:
        return
    places = [s for number, s in _fields(data, span) if number == _TENSOR_RAW_DATA]
    if len(places) == 1 and places[0][1] - places[0][0] == len(tensor.raw_data):
        entry = tensor.external_data.add()
        entry.key, entry.value = OFFSET_KEY, str(places[0][0])


def pop_offset(tensor: onnx.TensorProto) -> int | None:
    """Remove and return the recorded offset of a tensor; None if there is none."""
    for index, entry in enumerate(tensor.external_data):
        if entry.key == OFFSET_KEY:
            offset = int(entry.value)
            del tensor.external_data[index]
            return offset
    return None


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """Yield number and span of each field with a length; other fields are skipped."""
    position, end = span
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        elif kind == _LENGTH:
            length, position = _varint(data, position)
            yield key >> 3, (position, position + length)
            position += length
        else:  # a group, which ONNX does not use: stop rather than guess its length
            return


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a varint's value and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
