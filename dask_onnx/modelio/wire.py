"""Where in the bytes of a serialised ModelProto each tensor's ``raw_data`` lies.

protobuf's own parser does not say. The wire format is that of protobuf's encoding guide: a varint
key (field number << 3 | wire type), then a varint (type 0), 8 bytes (1), a length and so many bytes
(2), or 4 bytes (5). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 6, 11
_TENSOR_RAW_DATA = 9

OFFSET_KEY = "offset in the model's file"
"""Until the weights are taken out, a tensor notes in its ``external_data`` where its bytes lay."""

Span = tuple[int, int]
"""Start and end of a message's bytes."""


def note_offsets(model: onnx.ModelProto, data: bytes, min_bytes: int) -> None:
    """Note in each tensor that strip_weights may move where its ``raw_data`` lies in `data`.

    Parameters
    ----------
    model : ModelProto
        What `data` decodes to, unchanged.
    data : bytes
    min_bytes : int
        Tensors up to this size are left alone.
    """
    graphs = [span for number, span in _fields(data, (0, len(data))) if number == _MODEL_GRAPH]
    if len(graphs) == 1:
        _note_graph(model.graph, data, graphs[0], min_bytes)


def _note_graph(graph: onnx.GraphProto, data: bytes, span: Span, min_bytes: int) -> None:
    fields = list(_fields(data, span))
    initializers = [s for number, s in fields if number == _GRAPH_INITIALIZER]
    nodes = [s for number, s in fields if number == _GRAPH_NODE]
    if len(initializers) != len(graph.initializer) or len(nodes) != len(graph.node):
        return
    for tensor, place in zip(graph.initializer, initializers, strict=True):
        _note_tensor(tensor, data, place, min_bytes)
    for node, place in zip(graph.node, nodes, strict=True):
        _note_node(node, data, place, min_bytes)


def _note_node(node: onnx.NodeProto, data: bytes, span: Span, min_bytes: int) -> None:
    is_constant = node.op_type == "Constant"
    if not is_constant and not any(a.HasField("g") or a.graphs for a in node.attribute):
        return
    spans = [s for number, s in _fields(data, span) if number == _NODE_ATTRIBUTE]
    for attribute, place in zip(node.attribute, spans, strict=True):
        inner = list(_fields(data, place))
        if is_constant and attribute.name == "value":
            tensors = [s for number, s in inner if number == _ATTRIBUTE_TENSOR]
            _note_all([attribute.t], tensors, data, min_bytes)
        graphs = [s for number, s in inner if number == _ATTRIBUTE_GRAPH]
        bodies = [attribute.g] if attribute.HasField("g") else []
        graphs += [s for number, s in inner if number == _ATTRIBUTE_GRAPHS]
        bodies += attribute.graphs
        if len(graphs) == len(bodies):
            for body, body_place in zip(bodies, graphs, strict=True):
                _note_graph(body, data, body_place, min_bytes)


def _note_all(
    tensors: Sequence[onnx.TensorProto], spans: Sequence[Span], data: bytes, min_bytes: int
) -> None:
    if len(tensors) == len(spans):
        for tensor, span in zip(tensors, spans, strict=True):
            _note_tensor(tensor, data, span, min_bytes)


def _note_tensor(tensor: onnx.TensorProto, data: bytes, span: Span, min_bytes: int) -> None:
    if len(tensor.raw_data) <= min_bytes:
        return
    places = [s for number, s in _fields(data, span) if number == _TENSOR_RAW_DATA]
    if len(places) == 1 and places[0][1] - places[0][0] == len(tensor.raw_data):
        entry = tensor.external_data.add()
        entry.key, entry.value = OFFSET_KEY, str(places[0][0])


def take_offset(tensor: onnx.TensorProto) -> int | None:
    """The noted offset of a tensor, which then no longer has it."""
    for index, entry in enumerate(tensor.external_data):
        if entry.key == OFFSET_KEY:
            offset = int(entry.value)
            del tensor.external_data[index]
            return offset
    return None


def _fields(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and content of each field with a length; the others are stepped over."""
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
        else:  # groups are not used by ONNX; the parser has accepted them, so leave off
            return


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
