"""Operation counts of attention: scores of queries with keys, and weighted sums of values.

Shapes are those of the operators' schemas in ONNX and in ONNX Runtime (docs/ContribOperators.md).
Caches count at their full size, and masked keys like any others: kernels go over all of them.
"""

from __future__ import annotations

import math

from dask_onnx.analysis.operands import Operands, Rule


def _scores(keys: Rule) -> Rule:
    """Return the count of attention over `keys` keys: scores, and the weighted sum of values."""

    def rule(call: Operands) -> int:
        query = _query_size(call)
        return 2 * keys(call) * (query + (call.result_size or query))

    return rule


def _query_size(call: Operands) -> int:
    """Return the elements of the queries, where one input may pack queries, keys and values."""
    shape, size = call.shape(0), call.size(0)
    if call.has(1):
        return size
    if len(shape) > 3:  # (..., heads, 3, head size)
        return size // 3
    heads = call.integer("num_heads", 1)
    return size * heads // (heads + 2 * call.integer("kv_num_heads", heads))


def _cached(past: int) -> Rule:
    """Return the count of new and cached keys; the cache, input `past`, has them on axis -2."""

    def keys(call: Operands) -> int:
        # Shape (..., heads, keys, size) or (..., keys, heads * size); packed, (batch, keys, heads,
        # 2 or 3, size).
        source = 1 if call.has(1) else 0
        new = call.dim(source, 1 if len(call.shape(source)) == 5 else -2)
        return new + call.dim(past, -2)

    return keys


def _blocks(call: Operands) -> int:
    """Return the average number of keys of one query under a block mask in CSR form.

    block_row_indices have shape (layouts, rows of blocks + 1), block_col_indices (layouts, blocks).
    """
    rows = max(call.dim(5, 1) - 1, 1)
    return call.integer("sparse_block_size", 1) * call.dim(6, 1) // rows


def _selected(index: int) -> Rule:
    """Return the count of keys selected by another node, and of a local window where there is one.

    Input `index` has shape (queries, largest number of keys).
    """

    def keys(call: Operands) -> int:
        is_local = call.text("attention_mode") == "local_plus_selected"
        return call.dim(index, -1) + is_local * max(call.integer("local_window_size"), 0)

    return keys


def _without_values(keys: Rule) -> Rule:
    """Return the count of scores alone, by which an indexer selects keys."""
    return lambda call: 2 * keys(call) * call.size(0)


def _attention(call: Operands) -> int:
    """Count ``Attention``: ONNX Runtime's operator projects its input, ONNX's does not."""
    is_projected = call.proto.domain == "com.microsoft"
    return _projected(1, _past_and_own(4))(call) if is_projected else _scores(_cached(4))(call)


def _past_and_own(past: int) -> Rule:
    """Return the count of keys of input 0, shape (batch, tokens, in), and of a cache (2,
    batch, heads, keys, size).
    """
    return lambda call: call.dim(0, -2) + call.dim(past, -2)


def _projected(weight: int, keys: Rule, other_weight: int | None = None) -> Rule:
    """Return the count of a projection of input 0, and of attention over `keys` keys.

    Input 0 has shape (..., tokens, in), the weights (in, query + key + value).
    """

    def rule(call: Operands) -> int:
        x, width = call.shape(0), call.dim(weight, 1)
        parts = call.integers("qkv_hidden_sizes") or [width // 3] * 3
        projections = width + (call.dim(other_weight, 1) if other_weight is not None else 0)
        attended = 2 * math.prod(x[:-1]) * keys(call) * (parts[0] + parts[2])
        return 2 * call.size(0) * projections + attended

    return rule


def _projected_apart(call: Operands) -> int:
    # QOrderedAttention: weights of queries, keys and values are separate inputs, shape (in, size).
    widths = [call.dim(index, 1) for index in (5, 6, 7)]
    tokens = math.prod(call.shape(0)[:-1])
    attended = 2 * tokens * call.dim(0, -2) * (widths[0] + widths[2])
    return 2 * call.size(0) * sum(widths) + attended


def _decoder_attention(call: Operands) -> int:
    # DecoderAttention: query (tokens, batch, size), key (keys, batch, size), query weights (size,
    # size), key and value weights (size, 2 * size), cache (batch, heads, keys, head size).
    projections = call.size(0) * call.dim(2, 1) + call.size(1) * call.dim(3, 1)
    return 2 * projections + 4 * (call.dim(1, 0) + call.dim(6, -2)) * call.size(0)


_STATE = {"linear": 2, "gated": 3, "delta": 4, "gated_delta": 5}
"""Operations per token and element of the state, by update rule: 2 for the update, 1 for decay, 2
for reading with the key. Reading with a query is 2 more."""


def _linear_attention(call: Operands) -> int:
    # query (batch, tokens, heads * k), key (batch, tokens, kv heads * k), value (batch, tokens, kv
    # heads * v); the state of each kv head has shape (k, v).
    per_element = _STATE.get(call.text("update_rule"), _STATE["gated_delta"])
    value_size = call.dim(2, -1) // max(call.integer("kv_num_heads", 1), 1)
    return value_size * (2 * call.size(0) + per_element * call.size(1))


def _delta_net(call: Operands) -> int:
    # query (..., heads, k), value (..., heads, v), state (batch, heads, v, k); packed, query is
    # (tokens, queries + keys + values).
    per_element = 2 + _STATE.get(call.text("update_rule"), _STATE["gated_delta"])
    state = call.shape(6)[1:] or [*call.shape(2)[-2:], call.dim(0, -1)]
    tokens = call.shape(0)[: -2 if call.has(1) else -1]
    return math.prod(tokens) * math.prod(state) * per_element


def _state_space(call: Operands) -> int:
    # Mamba2Verify: projection (tokens, width), state (slots, heads, state, head size), convolution
    # (channels, taps). Operations on the state: decay, input times B, their sum, reading with C.
    return call.dim(0, 0) * (5 * math.prod(call.shape(2)[1:]) + 2 * call.size(3))


def _position_bias(call: Operands) -> int:
    # GatedRelativePositionBias: query (batch, tokens, heads * size) times weight (size, d), and a
    # gate for each pair of tokens.
    pairs = math.prod(call.shape(0)[:-1]) * call.dim(0, -2) * call.integer("num_heads", 1)
    return 2 * call.size(0) * call.dim(3, 1) + 3 * pairs


ATTENTION: dict[str, Rule] = {
    "Attention": _attention,
    "FlexAttention": _scores(_cached(4)),
    "LinearAttention": _linear_attention,
    # ONNX Runtime's own.
    "MultiHeadAttention": _scores(_cached(6)),
    "GroupQueryAttention": _scores(_cached(3)),
    "DecoderMaskedMultiHeadAttention": _scores(_cached(5)),
    # Packed tokens have no batch axis; the offsets of the tokens have shape (batch, tokens).
    "PackedMultiHeadAttention": _scores(lambda call: call.dim(4, 1)),
    # A block table (sequences, blocks), and the number of keys in a block.
    "PagedAttention": _scores(lambda call: call.dim(7, 1) * call.dim(3, 1)),
    "SparseAttention": _scores(_blocks),
    "DynamicSparseAttention": _scores(_selected(7)),
    "SparsePagedAttention": _scores(_selected(9)),
    "SparseAttentionIndexer": _without_values(_cached(7)),
    "PackedSparseAttentionIndexer": _without_values(lambda call: call.dim(12, 1)),
    "QAttention": _projected(1, _past_and_own(8)),
    "DecoderMaskedSelfAttention": _projected(1, _past_and_own(4)),
    "PackedAttention": _projected(1, lambda call: call.dim(3, 1)),
    # A window to both sides; global keys have a projection of their own.
    "LongformerAttention": _projected(1, lambda call: 2 * call.integer("window") + 1, 4),
    "QOrderedLongformerAttention": _projected(2, lambda call: 2 * call.integer("window") + 1, 8),
    "QOrderedAttention": _projected_apart,
    "DecoderAttention": _decoder_attention,
    "GatedDeltaNet": _delta_net,
    "Mamba2Verify": _state_space,
    "GatedRelativePositionBias": _position_bias,
}
"""Counts of attention operators by name."""
