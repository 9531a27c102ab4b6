"""com.microsoft.Attention written out, so that its keys and values can be told from its queries.

It multiplies its input with the weights of queries, keys and values at once. On shards the keys
and values have to be made whole, the queries not: the product, its parts and the attention between
them become nodes of their own, as MultiHeadAttention has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

_KEPT = ("num_heads", "unidirectional", "scale", "mask_filter_value")
"""Attributes that MultiHeadAttention has as well."""
_UNSUPPORTED = ("do_rotary", "past_present_share_buffer", "rotary_embedding_dim")
_WEIGHTS, _BIAS, _MASK, _PAST, _SCORES_BIAS = 1, 2, 3, 4, 5


def unpacked(model: OnnxModel, specs: Mapping[str, TensorSpec]) -> OnnxModel:
    """Return a model with the same values whose packed attentions are written out; itself if it
    has none that is simple: without earlier keys, with a mask of (batch, keys) at most."""
    proto = model.parse()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    opset = model.opsets.get("", 1)
    nodes: list[onnx.NodeProto] = []
    is_changed = False
    for node in proto.graph.node:
        sizes = _part_sizes(node, specs, weights)
        if sizes is None:
            nodes.append(node)
            continue
        is_changed = True
        written, constants = _written_out(node, sizes, opset)
        nodes += written
        proto.graph.initializer.extend(constants)
    if not is_changed:
        return model
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    data = proto.SerializeToString(deterministic=True)
    return replace(model, proto=data, token=hashlib.sha256(data).hexdigest()[:32], source=None)


def _part_sizes(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    weights: Mapping[str, onnx.TensorProto],
) -> list[int] | None:
    """Features of queries, keys and values; None for a node that stays as it is."""
    if (node.domain, node.op_type) != ("com.microsoft", "Attention"):
        return None
    names = [*node.input, *[""] * 7]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    has_more = any(names[_PAST:_SCORES_BIAS]) or any(names[_SCORES_BIAS + 1 :])
    has_present = any(list(node.output)[1:])
    if has_more or has_present or any(attributes.get(name) for name in _UNSUPPORTED):
        return None
    mask = specs.get(names[_MASK]) if names[_MASK] else None
    if names[_MASK] and (mask is None or mask.rank != 2):
        return None
    if names[_WEIGHTS] not in weights or (names[_BIAS] and names[_BIAS] not in weights):
        return None
    total = weights[names[_WEIGHTS]].dims[1]
    sizes = [int(size) for size in attributes.get("qkv_hidden_sizes") or [total // 3] * 3]
    return sizes if sum(sizes) == total else None


def _written_out(
    node: onnx.NodeProto, sizes: Sequence[int], opset: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    output = node.output[0]
    names = [*node.input, *[""] * 7]
    label = node.name or output

    def made(op: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> onnx.NodeProto:
        name = f"{label}.{outputs[0].removeprefix(output + '.')}"
        return helper.make_node(op, inputs, outputs, name=name, **more)

    packed = f"{output}.packed"
    nodes = [made("MatMul", [names[0], names[_WEIGHTS]], [packed])]
    if names[_BIAS]:
        nodes.append(made("Add", [packed, names[_BIAS]], [f"{packed}_bias"]))
        packed = f"{packed}_bias"
    parts = [f"{output}.{part}" for part in ("query", "key", "value")]
    constants = []
    if opset >= 13:
        constants.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{output}.sizes"))
        nodes.append(made("Split", [packed, f"{output}.sizes"], parts, axis=-1))
    else:
        nodes.append(made("Split", [packed], parts, axis=-1, split=list(sizes)))
    inputs = [*parts, "", names[_MASK], names[_SCORES_BIAS]]
    while not inputs[-1]:
        inputs.pop()
    attention = helper.make_node(
        "MultiHeadAttention", inputs, [output], name=label, domain="com.microsoft"
    )
    attention.attribute.extend(a for a in node.attribute if a.name in _KEPT)
    return [*nodes, attention], constants
