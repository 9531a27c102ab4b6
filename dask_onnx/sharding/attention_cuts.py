"""Fused attention with fewer heads in each shard: operators of ONNX and of com.microsoft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.node_cuts import Step, stop
from dask_onnx.sharding.shard_layout import Layout

Special = Callable[[NodeView], Step | None]


class Heads(NamedTuple):
    """Where an operator's inputs and outputs have heads, or features that are heads by size."""

    inputs: Mapping[int, int]
    """Input to that axis."""
    outputs: Mapping[int, int]
    counts: tuple[str, ...]
    """Attributes that are numbers of heads."""
    outer: Mapping[int, int]
    """Inputs with several blocks of all heads, to their number."""
    broadcast: frozenset[int] = frozenset()
    """Inputs that may have one element for all heads."""


def _by_heads(v: NodeView, heads: Heads) -> Step | None:
    """Return the step with every input of `heads` cut on its axis, those that are whole too."""
    for name in heads.counts:
        count = v.attr(name, 0)
        if count % v.positions:
            return stop(Kind.FACTORED, f"{name} of {count} is not {v.positions} equal shards")
    cuts = {}
    for index, axis in heads.inputs.items():
        if not v.has(index):
            continue
        size, dep, outer = v.size(index, axis), v.dep(index), heads.outer.get(index, 1)
        if size is None or (size == 1 and index not in heads.broadcast):
            return None
        if size == 1:
            continue
        if size % (outer * v.positions):
            return stop(Kind.FACTORED, f"{size} heads or features are not {v.positions} shards")
        cut = Layout(axis, outer, size // (outer * v.positions))
        if dep.kind == Kind.FREE:
            cuts[index] = cut
        elif not dep.is_own or (dep.axis, dep.outer, dep.inner) != (axis, outer, cut.inner):
            return None
    if any(i not in heads.inputs for i in v.carriers):
        return None
    outputs = [_output(v, number, heads) for number in range(len(v.proto.output))]
    changed: dict[str, Any] = {
        name: v.attr(name) // v.positions for name in heads.counts if v.attr(name)
    }
    return Step("through", outputs, cuts, attributes=changed)


def _output(v: NodeView, number: int, heads: Heads) -> Dependence:
    shape, axis = v.out_shape(number), heads.outputs.get(number)
    if axis is None:
        return FREE
    size = None if shape is None else shape[axis]
    inner = 1 if size is None else size // v.positions
    return Dependence(Kind.INDEPENDENT, axis, 1, inner)


def _multi_head(v: NodeView) -> Step | None:
    """com.microsoft.MultiHeadAttention with queries, keys and values apart."""
    if v.rank(0) != 3 or not v.has(1) or not v.has(2) or v.has(8):
        return None
    widths = {v.size(i, 2 if v.rank(i) == 3 else 1) for i in (0, 1, 2) if v.rank(i) == 3}
    if v.has(3) and len(widths) > 1:
        return None
    axes = {i: 2 if v.rank(i) == 3 else 1 for i in (0, 1, 2)}
    inputs = {**axes, 3: 0, 5: 1, 6: 1, 7: 1}
    heads = Heads(inputs, {0: 2, 1: 1, 2: 1, 3: 1}, ("num_heads",), {3: 3}, frozenset((5,)))
    return _by_heads(v, heads)


def _grouped_query(v: NodeView) -> Step | None:
    """com.microsoft.GroupQueryAttention, not packed."""
    if not v.has(1) or not v.has(2) or v.attr("kv_quant_bit_width", v.attr("kv_cache_bit_width")):
        return None
    inputs = {0: 2, 1: 2, 2: 2, 3: 1, 4: 1, 10: 1, 11: 0}
    counts = ("num_heads", "kv_num_heads")
    return _by_heads(v, Heads(inputs, {0: 2, 1: 1, 2: 1}, counts, {}, frozenset((10,))))


def _attention(v: NodeView) -> Step | None:
    """ONNX's Attention, of three axes or four."""
    rank, mask = v.rank(0), v.rank(3)
    axis = 1 if rank == 4 else 2
    inputs = {0: axis, 1: axis, 2: axis, 4: 1, 5: 1}
    if mask in (3, 4):
        inputs[3] = mask - 3
    counts = () if rank == 4 else ("q_num_heads", "kv_num_heads")
    heads = Heads(inputs, {0: axis, 1: 1, 2: 1, 3: 1}, counts, {}, frozenset((3,)))
    return _by_heads(v, heads)


def _rotary(v: NodeView) -> Step | None:
    """RotaryEmbedding over features: whole heads in each shard."""
    dep, rank, heads = v.dep(0), v.rank(0), v.attr("num_heads", 0)
    if v.carriers != [0] or not dep.is_own or dep.outer != 1:
        return None
    if rank == 4 and dep.axis == 1:
        changed = {"num_heads": heads // v.positions} if heads else {}
        return Step("through", v.all(dep), attributes=changed)
    if rank != 3 or dep.axis != 2:
        return None
    cache = v.size(2 if v.proto.domain else 1, -1)
    size = None if cache is None or heads else 2 * cache
    if (heads and heads % v.positions) or (size is not None and dep.inner % size):
        return stop(Kind.FACTORED, f"{v.positions} shards end inside its heads")
    if not heads and (size is None or v.attr("rotary_embedding_dim", 0)):
        return None
    changed = {"num_heads": heads // v.positions} if heads else {}
    return Step("through", v.all(dep), attributes=changed)


def packed_start(v: NodeView) -> Step | None:
    """Return the step of com.microsoft's Attention or QAttention, whose weights make queries, keys
    and values; None for any other node."""
    if v.proto.domain != "com.microsoft" or v.op not in ("Attention", "QAttention"):
        return None
    sizes = v.attr("qkv_hidden_sizes") or []
    if len(set(sizes)) > 1:
        return stop(Kind.FACTORED, f"its queries, keys and values have {list(sizes)} features")
    quantized = v.op == "QAttention"
    extra = {4: 0, 7: 0, 8: 2} if quantized else {4: 2, 5: 1}
    thirds = {1: 3, 2: 3, **({4: 3, 7: 3} if quantized else {})}
    inputs = {1: 1, 2: 0, **{i: axis for i, axis in extra.items() if (v.rank(i) or 0) > axis}}
    shared = frozenset((4, 7)) if quantized else frozenset((5,))
    step = _by_heads(v, Heads(inputs, {0: 2, 1: 2}, ("num_heads",), thirds, shared))
    if step is None or step.how != "through" or not sizes:
        return step
    changed = {**step.attributes, "qkv_hidden_sizes": [size // v.positions for size in sizes]}
    return Step("through", step.outputs, step.cuts, attributes=changed)


ATTENTION: Mapping[tuple[str, str], Special] = {
    ("", "Attention"): _attention,
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped_query,
}
