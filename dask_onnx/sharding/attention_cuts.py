"""Fused attention with fewer heads in each shard: operators of ONNX and of com.microsoft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.node_cuts import Step, stop
from dask_onnx.sharding.shard_layout import Layout

Special = Callable[[NodeView], Step | None]
"""Rule of one operator; returns None where the general rule applies."""


class Heads(NamedTuple):
    """Axes of an operator's inputs and outputs that hold heads, or heads times features."""

    inputs: Mapping[int, int]
    """Input to its axis of heads."""
    outputs: Mapping[int, int]
    """Output to its axis of heads."""
    counts: tuple[str, ...]
    """Attributes that are numbers of heads."""
    outer: Mapping[int, int]
    """Inputs with several blocks of all heads, to the number of blocks."""
    broadcast: frozenset[int] = frozenset()
    """Inputs that may have one element for all heads."""


def _by_heads(view: NodeView, heads: Heads) -> Step | None:
    """Return the step that cuts every input of `heads` along its axis."""
    for name in heads.counts:
        count = view.attr(name, 0)
        if count % view.positions:
            return stop(
                Kind.FACTORED,
                f"{name} of {count} cannot be divided into {view.positions} equal shards",
            )
    cuts = {}
    for index, axis in heads.inputs.items():
        if not view.has(index):
            continue
        size, dep, outer = view.size(index, axis), view.dep(index), heads.outer.get(index, 1)
        if size is None or (size == 1 and index not in heads.broadcast):
            return None
        if size == 1:
            continue
        if size % (outer * view.positions):
            return stop(
                Kind.FACTORED,
                f"{size} heads or features cannot be divided into {view.positions} shards",
            )
        cut = Layout(axis, outer, size // (outer * view.positions))
        if dep.kind == Kind.FREE:
            cuts[index] = cut
        elif not dep.is_independent or (dep.axis, dep.outer, dep.inner) != (axis, outer, cut.inner):
            return None
    if any(i not in heads.inputs for i in view.carriers):
        return None
    outputs = [_output(view, number, heads) for number in range(len(view.proto.output))]
    changed: dict[str, Any] = {
        name: view.attr(name) // view.positions for name in heads.counts if view.attr(name)
    }
    return Step("through", outputs, cuts, attributes=changed)


def _output(view: NodeView, number: int, heads: Heads) -> Dependence:
    shape, axis = view.out_shape(number), heads.outputs.get(number)
    if axis is None:
        return FREE
    size = None if shape is None else shape[axis]
    inner = 1 if size is None else size // view.positions
    return Dependence(Kind.INDEPENDENT, axis, 1, inner)


def _multi_head(view: NodeView) -> Step | None:
    """Return the step of com.microsoft.MultiHeadAttention with separate inputs."""
    if view.rank(0) != 3 or not view.has(1) or not view.has(2) or view.has(8):
        return None
    widths = {view.size(i, 2 if view.rank(i) == 3 else 1) for i in (0, 1, 2) if view.rank(i) == 3}
    if view.has(3) and len(widths) > 1:
        return None
    axes = {i: 2 if view.rank(i) == 3 else 1 for i in (0, 1, 2)}
    inputs = {**axes, 3: 0, 5: 1, 6: 1, 7: 1}
    heads = Heads(inputs, {0: 2, 1: 1, 2: 1, 3: 1}, ("num_heads",), {3: 3}, frozenset((5,)))
    return _by_heads(view, heads)


def _grouped_query(view: NodeView) -> Step | None:
    """Return the step of com.microsoft.GroupQueryAttention with separate inputs."""
    if (
        not view.has(1)
        or not view.has(2)
        or view.attr("kv_quant_bit_width", view.attr("kv_cache_bit_width"))
    ):
        return None
    inputs = {0: 2, 1: 2, 2: 2, 3: 1, 4: 1, 10: 1, 11: 0}
    counts = ("num_heads", "kv_num_heads")
    return _by_heads(view, Heads(inputs, {0: 2, 1: 1, 2: 1}, counts, {}, frozenset((10,))))


def _attention(view: NodeView) -> Step | None:
    """Return the step of ONNX's Attention with three or four axes."""
    rank, mask = view.rank(0), view.rank(3)
    axis = 1 if rank == 4 else 2
    inputs = {0: axis, 1: axis, 2: axis, 4: 1, 5: 1}
    if mask in (3, 4):
        inputs[3] = mask - 3
    counts = () if rank == 4 else ("q_num_heads", "kv_num_heads")
    heads = Heads(inputs, {0: axis, 1: 1, 2: 1, 3: 1}, counts, {}, frozenset((3,)))
    return _by_heads(view, heads)


def _rotary(view: NodeView) -> Step | None:
    """Return the step of RotaryEmbedding: each shard has whole heads."""
    dep, rank, heads = view.dep(0), view.rank(0), view.attr("num_heads", 0)
    if view.carriers != [0] or not dep.is_independent or dep.outer != 1:
        return None
    if rank == 4 and dep.axis == 1:
        changed = {"num_heads": heads // view.positions} if heads else {}
        return Step("through", view.all(dep), attributes=changed)
    if rank != 3 or dep.axis != 2:
        return None
    cache = view.size(2 if view.proto.domain else 1, -1)
    size = None if cache is None or heads else 2 * cache
    if (heads and heads % view.positions) or (size is not None and dep.inner % size):
        return stop(Kind.FACTORED, f"{view.positions} shards would end inside heads")
    if not heads and (size is None or view.attr("rotary_embedding_dim", 0)):
        return None
    changed = {"num_heads": heads // view.positions} if heads else {}
    return Step("through", view.all(dep), attributes=changed)


def packed_start(view: NodeView) -> Step | None:
    """Return the step of com.microsoft.Attention or QAttention, cut by heads.

    The weights of these operators hold queries, keys and values. Returns None for any other node.
    """
    if view.proto.domain != "com.microsoft" or view.op not in ("Attention", "QAttention"):
        return None
    sizes = view.attr("qkv_hidden_sizes") or []
    if len(set(sizes)) > 1:
        return stop(Kind.FACTORED, f"its queries, keys and values have {list(sizes)} features")
    quantized = view.op == "QAttention"
    extra = {4: 0, 7: 0, 8: 2} if quantized else {4: 2, 5: 1}
    thirds = {1: 3, 2: 3, **({4: 3, 7: 3} if quantized else {})}
    inputs = {1: 1, 2: 0, **{i: axis for i, axis in extra.items() if (view.rank(i) or 0) > axis}}
    shared = frozenset((4, 7)) if quantized else frozenset((5,))
    step = _by_heads(view, Heads(inputs, {0: 2, 1: 2}, ("num_heads",), thirds, shared))
    if step is None or step.how != "through" or not sizes:
        return step
    changed = {**step.attributes, "qkv_hidden_sizes": [size // view.positions for size in sizes]}
    return Step("through", step.outputs, step.cuts, attributes=changed)


ATTENTION: Mapping[tuple[str, str], Special] = {
    ("", "Attention"): _attention,
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped_query,
}
"""Rules of attention operators."""
