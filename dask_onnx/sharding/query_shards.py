"""Fused attention on a shard of queries with all keys: rules for masks, and explicit causal masks.

The axis analysis treats a fused attention that is causal or has masks as pairing every position
with every other. With whole keys and values, a shard of queries gives the rows that it has in the
unsharded result, provided that it reads its own rows of the mask, and that the causal mask counts
from its first position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import OperatorName, operator_name
from dask_onnx.sharding.grouped_attention import GROUPED
from dask_onnx.sharding.grouped_shards import Sources, on_shard, shard_of_grouped_queries
from dask_onnx.sharding.shard_operands import Constant, LocalOperand

_MULTI_HEAD = ("com.microsoft", "MultiHeadAttention")
_ATTENTION = ("", "Attention")


def is_causal(proto: onnx.NodeProto) -> bool:
    """Return whether an attribute of an attention hides later keys from a query."""
    name = _CAUSAL.get((proto.domain, proto.op_type))
    return any(attribute.name == name and attribute.i for attribute in proto.attribute)


_CAUSAL: Mapping[tuple[str, str], str] = {_MULTI_HEAD: "unidirectional", _ATTENTION: "is_causal"}
"""Attribute that makes an operator causal."""
_MASK: Mapping[tuple[str, str], int] = {_MULTI_HEAD: 5, _ATTENTION: 3}
"""Position of the input that takes a mask with shape (..., queries, keys)."""

_PAST: Mapping[OperatorName, int] = {_MULTI_HEAD: 6, _ATTENTION: 4}
"""Position of the input that takes cached keys, shape (batch, heads, keys, size)."""


def shard_of_queries(view: NodeView) -> Sequence[Dependence] | None:
    """Return the dependences of an attention that reads queries in shards and keys whole.

    Returns None for other nodes and layouts, whose rule of the axis analysis decides.
    """
    name = (view.proto.domain, view.op)
    if name == GROUPED:
        return shard_of_grouped_queries(view)
    if name not in _MASK or view.dep(0).axis is None:
        return None
    rank, queries = view.rank(0), view.dep(0)
    if rank not in (3, 4) or (queries.axis, queries.outer, queries.inner) != (rank - 2, 1, 1):
        return None
    masks = {4, 5} if name == _MULTI_HEAD else {3}
    is_plain = view.has(1) and view.has(2) and (rank == 3 or name == _ATTENTION)
    if not is_plain or not set(view.carriers) <= {0} | masks:
        return None
    if name == _MULTI_HEAD and not _has_own_padding(view):
        return None
    if not _has_own_mask(view, _MASK[name]):
        return None
    if is_causal(view.proto) and not _counts_alike(view, _MASK[name]):
        return None
    rest = view.lost(queries, queries.kind, "keys and values")
    return [queries, *[rest] * (len(view.proto.output) - 1)]


def _has_own_padding(view: NodeView) -> bool:
    """Return whether the padding mask is whole, or has the rows of the shard's queries."""
    if not view.has(4):
        return True
    if view.rank(4) == 3:
        return view.dep(4).axis == 1
    is_lengths = view.rank(4) == 1 and view.size(4, 0) == view.size(0, 0)
    return view.dep(4).axis is None and (view.rank(4) == 2 or is_lengths)


def _has_own_mask(view: NodeView, mask: int) -> bool:
    """Return whether a mask has one row for all queries, or the rows of the shard."""
    if not view.has(mask):
        return True
    rank = view.rank(mask)
    if rank is None or rank < 2:
        return False
    return view.dep(mask).axis == rank - 2 or (
        view.dep(mask).axis is None and view.size(mask, -2) == 1
    )


def _counts_alike(view: NodeView, mask: int) -> bool:
    """Return whether an explicit mask can replace the causal attribute.

    It can if there are as many new keys as queries, no mask and no other input than cached keys and
    values, whose number is known.
    """
    past = _PAST[operator_name(view.proto)]
    known = {past, past + 1} if isinstance(view.size(past, 2), int) else set[int]()
    others = set(range(mask, len(view.proto.input))) - known
    rank = view.rank(1)
    keys = None if rank is None else view.size(1, rank - 2)
    has_more = any(view.has(i) for i in others)
    return not has_more and keys == view.positions and view.size(0, (view.rank(0) or 2) - 2) == keys


def attention_on_shard(
    node: onnx.NodeProto,
    original: onnx.NodeProto,
    prefix: str,
    specs: Mapping[str, TensorSpec],
    positions: int,
) -> tuple[list[onnx.NodeProto], Sources]:
    """Return the nodes that compute a node on a shard, and the new values that they read.

    This is the node itself, except for causal attentions, which get an explicit mask, and for
    grouped ones.

    Parameters
    ----------
    node : NodeProto
        The node, with the names of the values that the shard reads and writes.
    original : NodeProto
        The node in the unsharded graph.
    prefix : str
        Start of the names of new values.
    specs : mapping of value to TensorSpec
        Values of the unsharded graph, with fixed sizes.
    positions : int
        Number of queries of all shards.
    """
    name = operator_name(node)
    if name == GROUPED:
        return on_shard(node, original, prefix, specs, positions)
    if not is_causal(node):
        return [node], {}
    dtype = specs[original.input[0]].dtype or np.dtype(np.float32)
    past = [*original.input, *[""] * 8][_PAST[name]]
    shape = specs[past].shape if past else None
    before = int(shape[2] or 0) if shape is not None else 0
    return _with_causal_mask(node, prefix, dtype, positions, before)


def _with_causal_mask(
    node: onnx.NodeProto, prefix: str, dtype: np.dtype, positions: int, before: int
) -> tuple[list[onnx.NodeProto], Sources]:
    """Return nodes that compute a causal attention with an explicit mask, and their inputs.

    Parameters
    ----------
    prefix : str
        Start of the names of new values.
    dtype : numpy.dtype
        Type of the queries.
    positions : int
        Number of new keys.
    before : int
        Number of cached keys, which all queries see.
    """
    name = (node.domain, node.op_type)
    start = LocalOperand(0, np.array(0, np.int64), np.array(False), 1)
    stop = LocalOperand(1, np.array(positions, np.int64), np.array(True), 1)
    sources: Sources = {
        f"{prefix}.start": start,
        f"{prefix}.stop": stop,
        f"{prefix}.one": Constant(np.array(1, np.int64)),
        f"{prefix}.keys": Constant(np.array(positions, np.int64)),
        f"{prefix}.oldest": Constant(np.array(-before, np.int64)),
        f"{prefix}.column": Constant(np.array([1, 1, -1, 1], np.int64)),
    }
    nodes = [
        _node("Range", prefix, ("start", "stop", "one"), "rows"),
        _node("Range", prefix, ("oldest", "keys", "one"), "places"),
        _node("Reshape", prefix, ("rows", "column"), "queries"),
        _node("Less", prefix, ("queries", "places"), "later"),
    ]
    if name == _ATTENTION:
        nodes.append(_node("Not", prefix, ("later",), "mask"))
    else:
        sources[f"{prefix}.never"] = Constant(np.array(-np.inf, dtype))
        sources[f"{prefix}.always"] = Constant(np.array(0, dtype))
        nodes.append(_node("Where", prefix, ("later", "never", "always"), "mask"))
    place = _MASK[name]
    while len(node.input) <= place:
        node.input.append("")
    node.input[place] = f"{prefix}.mask"
    kept = [attribute for attribute in node.attribute if attribute.name != _CAUSAL[name]]
    del node.attribute[:]
    node.attribute.extend(kept)
    return [*nodes, node], sources


def _node(op: str, prefix: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    names = [f"{prefix}.{name}" for name in inputs]
    return helper.make_node(op, names, [f"{prefix}.{output}"], name=f"{prefix}.{output}")
