"""Rewriting of com.microsoft.Attention, so that keys and values are separate from queries.

The operator multiplies its input with the weights of queries, keys and values at once. On shards
the keys and values have to be gathered, the queries not. The rewritten graph has the product, its
split and a MultiHeadAttention as nodes.
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
"""Attributes with which a node is left as it is."""
_WEIGHTS, _BIAS, _MASK, _PAST, _SCORES_BIAS = 1, 2, 3, 4, 5


def unpack_attention(model: OnnxModel, specs: Mapping[str, TensorSpec]) -> OnnxModel:
    """Return an equivalent model whose packed attentions are split into separate projections.

    Nodes with cached keys, or with a mask that MultiHeadAttention does not know, stay as they are.
    Returns `model` itself if there is nothing to rewrite.
    """
    proto = model.parse()
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    opset = model.opsets.get("", 1)
    nodes: list[onnx.NodeProto] = []
    is_changed = False
    for node in proto.graph.node:
        sizes = _projection_sizes(node, specs, weights)
        if sizes is None:
            nodes.append(node)
            continue
        is_changed = True
        replacements, constants = _unpacked_nodes(node, sizes, opset)
        nodes += replacements
        proto.graph.initializer.extend(constants)
    if not is_changed:
        return model
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    data = proto.SerializeToString(deterministic=True)
    return replace(model, proto=data, token=hashlib.sha256(data).hexdigest()[:32], source=None)


def _projection_sizes(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    weights: Mapping[str, onnx.TensorProto],
) -> list[int] | None:
    """Return the features of queries, keys and values; None for a node that stays as it is."""
    if (node.domain, node.op_type) != ("com.microsoft", "Attention"):
        return None
    names = [*node.input, *[""] * 7]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    has_other_inputs = any(names[_PAST:_SCORES_BIAS]) or any(names[_SCORES_BIAS + 1 :])
    has_present = any(list(node.output)[1:])
    if has_other_inputs or has_present or any(attributes.get(name) for name in _UNSUPPORTED):
        return None
    if names[_MASK] and not _is_common_mask(specs.get(names[_MASK]), specs.get(names[0])):
        return None
    if names[_WEIGHTS] not in weights or (names[_BIAS] and names[_BIAS] not in weights):
        return None
    total = weights[names[_WEIGHTS]].dims[1]
    sizes = [int(size) for size in attributes.get("qkv_hidden_sizes") or [total // 3] * 3]
    return sizes if sum(sizes) == total else None


def _is_common_mask(mask: TensorSpec | None, data: TensorSpec | None) -> bool:
    """Return whether MultiHeadAttention reads a mask as Attention does.

    Such masks have shape (batch,): the number of keys, (batch, keys) or (batch, queries, keys).
    """
    if mask is None or mask.shape is None:
        return False
    if len(mask.shape) == 1:  # also (2 * batch,) and (3 * batch + 2,), which it does not know
        rows = mask.shape[0]
        return rows is not None and data is not None and (data.shape or (None,))[0] == rows
    return len(mask.shape) in (2, 3)


def _unpacked_nodes(
    node: onnx.NodeProto, sizes: Sequence[int], opset: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that replace a packed attention, and the constants that they read."""
    output = node.output[0]
    names = [*node.input, *[""] * 7]
    label = node.name or output

    def new_node(
        op: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any
    ) -> onnx.NodeProto:
        name = f"{label}.{outputs[0].removeprefix(output + '.')}"
        return helper.make_node(op, inputs, outputs, name=name, **more)

    packed = f"{output}.packed"
    nodes = [new_node("MatMul", [names[0], names[_WEIGHTS]], [packed])]
    if names[_BIAS]:
        nodes.append(new_node("Add", [packed, names[_BIAS]], [f"{packed}_bias"]))
        packed = f"{packed}_bias"
    projections = [f"{output}.{projection}" for projection in ("query", "key", "value")]
    constants = []
    if opset >= 13:
        constants.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{output}.sizes"))
        nodes.append(new_node("Split", [packed, f"{output}.sizes"], projections, axis=-1))
    else:
        nodes.append(new_node("Split", [packed], projections, axis=-1, split=list(sizes)))
    inputs = [*projections, "", names[_MASK], names[_SCORES_BIAS]]
    while not inputs[-1]:
        inputs.pop()
    attention = helper.make_node(
        "MultiHeadAttention", inputs, [output], name=label, domain="com.microsoft"
    )
    attention.attribute.extend(a for a in node.attribute if a.name in _KEPT)
    return [*nodes, attention], constants
