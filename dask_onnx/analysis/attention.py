"""Operations of attention: scores of queries with keys, and the values that they weigh.

Shapes are those of the operators' schemas in ONNX and in ONNX Runtime (docs/ContribOperators.md).
Caches count at the size that they have, masked keys as any other: kernels pass over all of them.
"""

from __future__ import annotations

import math

from dask_onnx.analysis.operands import Operands, Rule


def _scores(keys: Rule) -> Rule:
    """Each query with so many keys, and as many values weighed by the scores."""

    def rule(call: Operands) -> int:
        query = _query_size(call)
        return 2 * keys(call) * (query + (call.result_size or query))

    return rule


def _query_size(call: Operands) -> int:
    """Elements of the queries alone, where one value holds queries, keys and values."""
    shape, size = call.shape(0), call.size(0)
    if call.has(1):
        return size
    if len(shape) > 3:  # (..., heads, 3, head size)
        return size // 3
    heads = call.integer("num_heads", 1)
    return size * heads // (heads + 2 * call.integer("kv_num_heads", heads))


def _cached(past: int) -> Rule:
    """New keys, and those of the past, which are the second axis from the end."""

    def keys(call: Operands) -> int:
        # (..., heads, keys, size), (..., keys, heads * size), or all in one: (batch, keys, heads,
        # 2 or 3, size).
        source = 1 if call.has(1) else 0
        new = call.dim(source, 1 if len(call.shape(source)) == 5 else -2)
        return new + call.dim(past, -2)

    return keys


def _blocks(call: Operands) -> int:
    """Keys of one query where a mask in CSR form names the blocks that count, on average.

    block_row_indices are (layouts, rows of blocks + 1), block_col_indices (layouts, blocks)."""
    rows = max(call.dim(5, 1) - 1, 1)
    return call.integer("sparse_block_size", 1) * call.dim(6, 1) // rows


def _selected(index: int) -> Rule:
    """Keys that another node has selected, (queries, most keys), and a window where asked for."""

    def keys(call: Operands) -> int:
        is_local = call.text("attention_mode") == "local_plus_selected"
        return call.dim(index, -1) + is_local * max(call.integer("local_window_size"), 0)

    return keys


def _without_values(keys: Rule) -> Rule:
    """Scores alone, by which keys are selected."""
    return lambda call: 2 * keys(call) * call.size(0)


def _attention(call: Operands) -> int:
    """Two operators have the name: ONNX's, and ONNX Runtime's, which projects its input first."""
    is_projected = call.proto.domain == "com.microsoft"
    return _projected(1, _past_and_own(4))(call) if is_projected else _scores(_cached(4))(call)


def _past_and_own(past: int) -> Rule:
    """Tokens of x (batch, tokens, in), and keys of the past (2, batch, heads, keys, size)."""
    return lambda call: call.dim(0, -2) + call.dim(past, -2)


def _projected(weight: int, keys: Rule, other_weight: int | None = None) -> Rule:
    """x (..., tokens, in) times weights (in, query + key + value), then attention."""

    def rule(call: Operands) -> int:
        x, width = call.shape(0), call.dim(weight, 1)
        parts = call.integers("qkv_hidden_sizes") or [width // 3] * 3
        projections = width + (call.dim(other_weight, 1) if other_weight is not None else 0)
        attended = 2 * math.prod(x[:-1]) * keys(call) * (parts[0] + parts[2])
        return 2 * call.size(0) * projections + attended

    return rule


def _projected_apart(call: Operands) -> int:
    # QOrderedAttention: weights of queries, keys and values, (in, size) each, are inputs of their
    # own.
    widths = [call.dim(index, 1) for index in (5, 6, 7)]
    tokens = math.prod(call.shape(0)[:-1])
    attended = 2 * tokens * call.dim(0, -2) * (widths[0] + widths[2])
    return 2 * call.size(0) * sum(widths) + attended


def _decoder_attention(call: Operands) -> int:
    # DecoderAttention: query (tokens, batch, size), key (keys, batch, size), weights of queries
    # (size, size), of keys and values (size, 2 * size), cache (batch, heads, keys, head size).
    projections = call.size(0) * call.dim(2, 1) + call.size(1) * call.dim(3, 1)
    return 2 * projections + 4 * (call.dim(1, 0) + call.dim(6, -2)) * call.size(0)


_STATE = {"linear": 2, "gated": 3, "delta": 4, "gated_delta": 5}
"""Operations of one token for one element of the state: the update 2, decay 1, what the key finds
in it 2. Reading it by a query is 2 more."""


def _linear_attention(call: Operands) -> int:
    # query (batch, tokens, heads * k), key (batch, tokens, kv heads * k), value likewise with v;
    # the state of each kv head is (k, v).
    per_element = _STATE.get(call.text("update_rule"), _STATE["gated_delta"])
    value_size = call.dim(2, -1) // max(call.integer("kv_num_heads", 1), 1)
    return value_size * (2 * call.size(0) + per_element * call.size(1))


def _delta_net(call: Operands) -> int:
    # query (..., heads, k), value (..., heads, v), state (batch, heads, v, k); without keys, query
    # is (tokens, all in one).
    per_element = 2 + _STATE.get(call.text("update_rule"), _STATE["gated_delta"])
    state = call.shape(6)[1:] or [*call.shape(2)[-2:], call.dim(0, -1)]
    tokens = call.shape(0)[: -2 if call.has(1) else -1]
    return math.prod(tokens) * math.prod(state) * per_element


def _state_space(call: Operands) -> int:
    # Mamba2Verify: projection (tokens, width), state (slots, heads, state, head size), convolution
    # (channels, taps). Of the state: decay, input times B, their sum, reading by C.
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
    # What has no batch axis has (batch, tokens) in the offsets of its tokens.
    "PackedMultiHeadAttention": _scores(lambda call: call.dim(4, 1)),
    # A table of (sequences, blocks), and blocks of so many keys.
    "PagedAttention": _scores(lambda call: call.dim(7, 1) * call.dim(3, 1)),
    "SparseAttention": _scores(_blocks),
    "DynamicSparseAttention": _scores(_selected(7)),
    "SparsePagedAttention": _scores(_selected(9)),
    "SparseAttentionIndexer": _without_values(_cached(7)),
    "PackedSparseAttentionIndexer": _without_values(lambda call: call.dim(12, 1)),
    "QAttention": _projected(1, _past_and_own(8)),
    "DecoderMaskedSelfAttention": _projected(1, _past_and_own(4)),
    "PackedAttention": _projected(1, lambda call: call.dim(3, 1)),
    # A window to both sides; keys that all tokens see have projections of their own.
    "LongformerAttention": _projected(1, lambda call: 2 * call.integer("window") + 1, 4),
    "QOrderedLongformerAttention": _projected(2, lambda call: 2 * call.integer("window") + 1, 8),
    "QOrderedAttention": _projected_apart,
    "DecoderAttention": _decoder_attention,
    "GatedDeltaNet": _delta_net,
    "Mamba2Verify": _state_space,
    "GatedRelativePositionBias": _position_bias,
}
