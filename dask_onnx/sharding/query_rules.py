"""Attention of a shard of queries to all keys: rules for masks, and causal masks written out.

The algebra of axes sees a fused attention that is causal, or has masks, as pairing every position
with every other. With whole keys and values a shard of queries gives what it gives in the whole,
if it gets its own rows of the mask, and if "causal" counts from where it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.shard_operands import Constant, LocalOperand

_MULTI_HEAD = ("com.microsoft", "MultiHeadAttention")
_ATTENTION = ("", "Attention")


def is_causal(proto: onnx.NodeProto) -> bool:
    """Return whether an attention lets a query see earlier keys only, by an attribute."""
    name = _CAUSAL.get((proto.domain, proto.op_type))
    return any(attribute.name == name and attribute.i for attribute in proto.attribute)


_CAUSAL: Mapping[tuple[str, str], str] = {_MULTI_HEAD: "unidirectional", _ATTENTION: "is_causal"}
"""Operator to the attribute that makes it causal."""
_MASK: Mapping[tuple[str, str], int] = {_MULTI_HEAD: 5, _ATTENTION: 3}
"""Operator to the input that takes a mask of queries and keys."""


def shard_of_queries(v: NodeView) -> Sequence[Dependence] | None:
    """Return the dependences of an attention that reads queries in shards and keys whole.

    None where that is not what it reads; then its rule of the algebra decides.
    """
    name = (v.proto.domain, v.op)
    if name not in _MASK or v.dep(0).axis is None:
        return None
    rank, queries = v.rank(0), v.dep(0)
    if rank not in (3, 4) or (queries.axis, queries.outer, queries.inner) != (rank - 2, 1, 1):
        return None
    masks = {4, 5} if name == _MULTI_HEAD else {3}
    is_plain = v.has(1) and v.has(2) and (rank == 3 or name == _ATTENTION)
    if not is_plain or not set(v.carriers) <= {0} | masks:
        return None
    if name == _MULTI_HEAD and not _has_own_padding(v):
        return None
    if not _has_own_mask(v, _MASK[name]):
        return None
    if is_causal(v.proto) and not _counts_alike(v, _MASK[name]):
        return None
    rest = v.lost(queries, queries.kind, "keys and values")
    return [queries, *[rest] * (len(v.proto.output) - 1)]


def _has_own_padding(v: NodeView) -> bool:
    """Whether the mask of padded keys is whole, or has rows of the queries that are there."""
    if not v.has(4):
        return True
    if v.rank(4) == 3:
        return v.dep(4).axis == 1
    is_lengths = v.rank(4) == 1 and v.size(4, 0) == v.size(0, 0)
    return v.dep(4).axis is None and (v.rank(4) == 2 or is_lengths)


def _has_own_mask(v: NodeView, mask: int) -> bool:
    """Whether a mask of queries and keys has one row for all, or those of the shard."""
    if not v.has(mask):
        return True
    rank = v.rank(mask)
    if rank is None or rank < 2:
        return False
    return v.dep(mask).axis == rank - 2 or (v.dep(mask).axis is None and v.size(mask, -2) == 1)


def _counts_alike(v: NodeView, mask: int) -> bool:
    """Whether a causal attention can be told by a mask: as many keys as queries, none earlier."""
    has_more = any(v.has(i) for i in range(mask, len(v.proto.input)))
    rank = v.rank(1)
    keys = None if rank is None else v.size(1, rank - 2)
    return not has_more and keys == v.positions and v.size(0, (v.rank(0) or 2) - 2) == keys


Sources = dict[str, LocalOperand | Constant]


def with_causal_mask(
    node: onnx.NodeProto, prefix: str, dtype: np.dtype, positions: int
) -> tuple[list[onnx.NodeProto], Sources]:
    """Return the nodes that stand for a causal attention on a shard, and what they are given.

    Parameters
    ----------
    prefix : what the names of new values begin with
    dtype : of the queries
    positions : number of keys
    """
    name = (node.domain, node.op_type)
    start = LocalOperand(0, np.array(0, np.int64), np.array(False), 1)
    stop = LocalOperand(1, np.array(positions, np.int64), np.array(True), 1)
    sources: Sources = {
        f"{prefix}.start": start,
        f"{prefix}.stop": stop,
        f"{prefix}.zero": Constant(np.array(0, np.int64)),
        f"{prefix}.one": Constant(np.array(1, np.int64)),
        f"{prefix}.keys": Constant(np.array(positions, np.int64)),
        f"{prefix}.column": Constant(np.array([1, 1, -1, 1], np.int64)),
    }
    nodes = [
        _node("Range", prefix, ("start", "stop", "one"), "rows"),
        _node("Range", prefix, ("zero", "keys", "one"), "places"),
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
