"""Rules of attention operators and of rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.model_rules import batched
from dask_onnx.analysis.axes.view import NodeView, join


def attention(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ai.onnx Attention.

    Inputs are query, key and value, shape (batch, heads, tokens, head size) or (batch, tokens,
    features); a mask broadcast to (batch, heads, queries, keys); past key and value, shape (batch,
    heads, tokens, head size); and the number of valid tokens, shape (batch,). Batch, heads and, if
    no mask or causality orders them, queries are independent; keys are PAIRED.
    """
    carriers = v.carriers
    if not carriers:
        return v.all(FREE)
    roles = {_role(v, i) for i in carriers}
    (role,) = roles if len(roles) == 1 else ("",)
    if role not in ("batch", "heads", "queries"):
        return v.all(v.lost(v.dep(carriers[0]), Kind.PAIRED, "attention"))
    result = v.dep(carriers[0])
    for index in carriers:
        if not result.has_blocks_of(v.dep(index)):
            return v.all(v.lost(result, Kind.FACTORED, "different blocks"))
        result = join(result, v.dep(index), v.name)
    if role == "queries":
        return _queries(v, result)
    needed = (0, 1, 2, 4, 5, 6) if role == "batch" else (0, 1, 2, 4, 5)
    place = 0 if role == "batch" else 1
    mask_place = place - 4 + (v.rank(3) or 0)
    is_given = v.has(3) and 3 not in carriers and mask_place >= 0 and v.size(3, mask_place) != 1
    if is_given or any(v.has(i) and i not in carriers for i in needed):
        return v.all(result.at(place).broken(Kind.LENGTH, v.name, "position"))
    return v.all(result.at(place))


def _role(v: NodeView, index: int) -> str:
    """Return the meaning of the positions' axis: batch, heads, queries, keys or unknown."""
    axis, rank = v.dep(index).axis or 0, v.rank(index)
    if rank is None:
        return "unknown"
    if index == 3:
        return ("batch", "heads", "queries", "keys")[axis + 4 - rank]
    if axis == 0:
        return "batch"
    if rank == 4 and axis == 1:
        return "heads"
    return "queries" if index == 0 and axis == rank - 2 else "keys"


def _queries(v: NodeView, result: Dependence) -> Sequence[Dependence]:
    """Return the outputs' dependences where query tokens are the positions.

    They are independent unless causality, a local window or a mask depends on their index.
    """
    is_placed = v.attr("is_causal", 0) or any(
        v.attr(f"{side}_window_size", -1) >= 0 for side in ("left", "right")
    )
    is_masked = v.has(3) and v.dep(3).axis is None and v.size(3, -2) != 1
    if is_placed or is_masked or v.dep(0).axis is None:
        return v.all(v.lost(result, Kind.PAIRED, "attention"))
    return [result.at((v.rank(0) or 4) - 2), FREE, FREE, result.at(2)][: len(v.proto.output)]


def packed_qkv_attention(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through com.microsoft Attention and QAttention.

    The input has shape (batch, tokens, features); one weight projects it to query, key and value.
    """
    is_quantized = v.op == "QAttention"
    mask, past = (5, 8) if is_quantized else (3, 4)
    # A mask of one axis has a length for each element of the batch, or several in blocks.
    inputs = {0: 0, past: 1, mask: 0}
    bias = {} if is_quantized else {5: 0}
    rule = batched(
        {**inputs, **bias}, {0: 0, 1: 1}, kind=Kind.PAIRED, how="attention", needed=tuple(inputs)
    )
    return rule(v)


def rotary(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through RotaryEmbedding.

    Inputs are (x, cos, sin, position ids) in ai.onnx and (x, position ids, cos, sin) in
    com.microsoft. Without position ids the tables have shape (batch, tokens, head size / 2).
    """
    dep, rank = v.dep(0), v.rank(0)
    place = 1 if v.proto.domain else 3
    if dep.axis is None:
        return v.opaque("positions in a parameter") if v.carriers else v.all(FREE)
    if rank is None:
        return v.opaque("unknown rank")
    tables = [i for i in (1, 2, 3) if i != place]
    tokens = rank - 2
    needed = [place] if v.has(place) else tables
    if rank == 4 and dep.axis == 1 and v.carriers == [0]:
        return v.all(dep)
    if dep.axis not in (0, tokens) or any(i not in (0, *needed) for i in v.carriers):
        return v.all(v.lost(dep, Kind.OPAQUE, "positions in a parameter"))
    for index in needed:
        other, axis = v.dep(index), 0 if dep.axis == 0 else 1
        if other.axis == axis and dep.has_blocks_of(other):
            dep = join(dep, other, v.name)
        elif other.axis is not None or axis or _has_rows(v, index):
            return v.all(v.lost(dep, Kind.LENGTH, "position"))
    return v.all(dep)


def _has_rows(v: NodeView, index: int) -> bool:
    """Return whether an input has an entry for each element of the batch."""
    return v.size(index, 0) != 1 and v.rank(index) != 0


def multi_head_attention(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch, or query tokens, through com.microsoft MultiHeadAttention.

    Inputs are query, key, value (batch first), bias, key padding mask, attention bias (batch or 1,
    ...), past key and value (batch first).
    """
    # A padding mask of one axis has a length for each element of the batch, or several in blocks.
    inputs = {0: 0, 1: 0, 2: 0, 4: 0, 5: 0, 6: 0, 7: 0}
    has_bias = v.has(4) or v.has(5) or v.attr("unidirectional", 0)
    rule = batched(
        inputs,
        {0: 0, 1: 0, 2: 0, 3: 0},
        queries=None if has_bias else {0: 1},
        kind=Kind.PAIRED,
        how="attention",
    )
    return rule(v)


def decoding_attention(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through com.microsoft DecoderMaskedMultiHeadAttention.

    Each sequence has one token and a cache of past keys and values.
    """
    inputs = dict.fromkeys((0, 1, 2, 3, 4, 5, 6, 9), 0)
    rule = batched(inputs, dict.fromkeys(range(4), 0), kind=Kind.PAIRED, how="attention")
    return rule(v)


def grouped_query_attention(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through com.microsoft GroupQueryAttention.

    It is always causal, so tokens depend on their index.
    """
    inputs = {0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 9: 0, 10: 0}
    rule = batched(inputs, dict.fromkeys(range(4), 0), kind=Kind.PAIRED, how="attention")
    return rule(v)
