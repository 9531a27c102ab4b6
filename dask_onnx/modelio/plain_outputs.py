"""Graph outputs that are maps or optionals, written as the tensors that they hold.

Converters of classifiers end a graph with ``ZipMap``, which turns a matrix of scores into a list
with one map for each row. Such a list is neither an array nor a column, and cannot be joined from
chunks. On loading, ``ZipMap`` becomes ``Identity``: the output is the matrix, under the same name.
The class labels stay in the node's metadata, from which `class_labels_of` reads them, and
`restore_plain_outputs` makes the original graph again. ``Optional`` with a value is treated alike.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.operator_names import operator_name, standard_op_type

Labels = tuple[str | int, ...]
"""Classes of a classifier, in the order of its scores."""

_KEY = "dask_onnx.replaced"
"""Key of the metadata of a node that has become Identity; the value is JSON."""
_ZIP_MAP, _OPTIONAL = ("ai.onnx.ml", "ZipMap"), ("", "Optional")
_LABELS = ("classlabels_strings", "classlabels_int64s")
"""Attributes of ZipMap with the keys of its maps; exactly one is given."""
_IDENTITY_OPSET = 13
"""Version of ai.onnx for a model that imports only ai.onnx.ml."""


def write_plain_outputs(model: onnx.ModelProto) -> None:
    """Replace ``ZipMap`` and ``Optional`` by Identity where only graph outputs depend on them.

    A node whose result is read by any operator but Identity stays as it is.

    Parameters
    ----------
    model : ModelProto
        Model whose nodes have no metadata. Modified in place.
    """
    graph = model.graph
    targets = [node for node in graph.node if _replaces(node)]
    if not targets:
        return
    readers = _readers(graph)
    outputs = {value.name: value for value in graph.output}
    for node in targets:
        reached = _values_behind(node.output[0], readers)
        if reached is None or not outputs.keys() & reached:
            continue
        for name in outputs.keys() & reached:
            _set_tensor_type(outputs[name], node)
        kept = [value for value in graph.value_info if value.name not in reached]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        _write_identity(node)
        if not any(not opset.domain for opset in model.opset_import):
            model.opset_import.add(domain="", version=_IDENTITY_OPSET)


def restore_plain_outputs(model: onnx.ModelProto) -> None:
    """Undo `write_plain_outputs`, in place: outputs are maps and optionals again."""
    notes = [(node, found) for node in model.graph.node if (found := _note(node)) is not None]
    if not notes:
        return
    readers = _readers(model.graph)
    outputs = {value.name: value for value in model.graph.output}
    for node, found in notes:
        reached = _values_behind(node.output[0], readers) or frozenset()
        for name in outputs.keys() & reached:
            _set_wrapped_type(outputs[name], found)
        node.domain, node.op_type = found["domain"], found["op_type"]
        if found.get("labels") is not None:
            attribute = _LABELS[0 if found["are_strings"] else 1]
            node.attribute.append(onnx.helper.make_attribute(attribute, found["labels"]))
        del node.metadata_props[:]


def class_labels_of(node: onnx.NodeProto) -> Labels | None:
    """Return the keys of the maps that a node made before it became Identity; None for others."""
    found = _note(node)
    return None if found is None or "labels" not in found else tuple(found["labels"])


def _replaces(node: onnx.NodeProto) -> bool:
    return _labels(node) is not None or (operator_name(node) == _OPTIONAL and any(node.input))


def _labels(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """Return the attribute with the keys of a ``ZipMap``; None for other nodes."""
    if operator_name(node) != _ZIP_MAP:
        return None
    given = (a for a in node.attribute if a.name in _LABELS and (a.strings or a.ints))
    return next(given, None)


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each value, in their own inputs or in their bodies."""
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        for name in captured_names(node):
            readers[name].append(node)
    return readers


def _values_behind(
    value: str, readers: Mapping[str, Sequence[onnx.NodeProto]]
) -> frozenset[str] | None:
    """Return a value with its copies by Identity; None if another operator reads one of them."""
    reached: set[str] = set()
    left = [value]
    while left:
        name = left.pop()
        reached.add(name)
        for node in readers.get(name, ()):
            if standard_op_type(node) != "Identity":
                return None
            left.append(node.output[0])
    return frozenset(reached)


def _write_identity(node: onnx.NodeProto) -> None:
    """Turn a node into Identity, with what it was in its metadata."""
    labels = _labels(node)
    found: dict[str, Any] = {"domain": node.domain, "op_type": node.op_type}
    if labels is not None:
        found["are_strings"] = bool(labels.strings)
        found["labels"] = [s.decode("utf-8", "surrogateescape") for s in labels.strings] or list(
            labels.ints
        )
    del node.attribute[:]
    node.domain, node.op_type = "", "Identity"
    node.metadata_props.add(key=_KEY, value=json.dumps(found))


def _note(node: onnx.NodeProto) -> dict[str, Any] | None:
    """Return what a node was before it became Identity; None for other nodes."""
    if not node.metadata_props or standard_op_type(node) != "Identity":
        return None
    entry = next((entry.value for entry in node.metadata_props if entry.key == _KEY), None)
    return None if entry is None else dict(json.loads(entry))


def _set_tensor_type(value: onnx.ValueInfoProto, node: onnx.NodeProto) -> None:
    """Give a graph output the type of the tensor that a node wraps."""
    labels = _labels(node)
    if labels is None:  # an Optional
        if value.type.HasField("optional_type"):
            inner = onnx.TypeProto()
            inner.CopyFrom(value.type.optional_type.elem_type)
            value.type.CopyFrom(inner)
        return
    columns = len(labels.strings) or len(labels.ints)
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (None, columns))
    value.type.CopyFrom(kind)


def _set_wrapped_type(value: onnx.ValueInfoProto, found: Mapping[str, Any]) -> None:
    """Give a graph output the type that it had before `_set_tensor_type`."""
    if found["op_type"] == _OPTIONAL[1]:
        value.type.CopyFrom(onnx.helper.make_optional_type_proto(value.type))
        return
    key = onnx.TensorProto.STRING if found["are_strings"] else onnx.TensorProto.INT64
    scores = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    maps = onnx.helper.make_map_type_proto(key, scores)
    value.type.CopyFrom(onnx.helper.make_sequence_type_proto(maps))
