"""Stand-ins of ONNX Runtime's attention operators, their caches included."""

from __future__ import annotations

from collections.abc import Callable

from dask_onnx.analysis.contrib_parts import (
    SAME,
    SLICE_END,
    Call,
    Rule,
    Table,
    permuted,
    reshaped,
    resized,
    split_heads,
    wide_as,
)


def _projected(past: int, like: str, parameters: str) -> Rule:
    """Return the rule of attention that projects x (batch, tokens, in) with its own weights.

    Parameters
    ----------
    past : int
        Position of the cache, shape (2, batch, heads, tokens, size).
    like : str
        Parameter whose dtype the results have.
    parameters : str
        Parameters of the function; ``w`` has shape (in, queries + keys + values).
    """

    def rule(call: Call) -> str:
        parts = ["_q, k, v = Split <axis = 1> (w)"]
        sizes = call.integers("qkv_hidden_sizes")
        for index, name in ((1, "k"), (2, "v")):
            part = f"{name}_x"
            parts.append(
                resized(part, "x", 2, sizes[index]) if sizes else wide_as(part, "x", name, "0")
            )
        parts += [
            split_heads("keys", "k_x", call.integer("num_heads", 1)),
            "zero = Constant <value_ints = [0]> () one = Unsqueeze (keys, zero)",
            f"new_t = Concat <axis = 0> (one, one) new = CastLike (new_t, {like})",
        ]
        present = "Concat <axis = 3> (past, new)" if call.has(past) else "Identity (new)"
        if call.has(past) and call.integer("past_present_share_buffer"):
            present = "Identity (past)"
        parts.append(f"y = CastLike (v_x, {like}) present = {present}")
        return f"({parameters}) => (y, present) {{ {' '.join(parts)} }}"

    return rule


def _multi_head(parameters: str, shared: Callable[[Call], bool]) -> Rule:
    """Return the rule of attention whose keys and values have as many heads as its queries.

    Parameters
    ----------
    parameters : str
        Parameters of the function; queries have shape (batch, tokens, heads * size), caches (batch,
        heads, tokens, size).
    shared : function of Call to bool
        True if past and present share a buffer: then the cache keeps its length.
    """

    def rule(call: Call) -> str:
        heads = call.integer("num_heads", 1)
        parts = [_queries_keys_values(call), wide_as("y", "q", "v")]
        has_past = call.has(parameters.split(", ").index("past_key"))
        for name in ("key", "value"):
            parts.append(split_heads(f"new_{name}", name[0], heads))
            present = f"Concat <axis = 2> (past_{name}, new_{name})"
            if not has_past:
                present = f"Identity (new_{name})"
            elif shared(call):
                present = f"Identity (past_{name})"
            parts.append(f"present_{name} = {present}")
        results = "y, present_key, present_value"
        if not shared(call):
            results += ", scores"
            parts += [split_heads("queries", "q", heads), _product("scores", "present_key")]
        return f"({parameters}) => ({results}) {{ {' '.join(parts)} }}"

    return rule


def _product(result: str, keys: str) -> str:
    """Return statements: `result` is queries times keys, shape (batch, heads, tokens, keys)."""
    transposed = f"{result}_t = Transpose <perm = [0, 1, 3, 2]> ({keys})"
    return f"{transposed} {result} = MatMul (queries, {result}_t)"


def _queries_keys_values(call: Call) -> str:
    """Return statements for q, k and v, each of shape (batch, tokens, heads * size)."""
    if call.has(2):
        # Keys and values of cross-attention may have shape (batch, heads, tokens, size).
        tokens = [
            f"{permuted(f'{name}_t', source, (0, 1), (-2, -1), (1, -2), (-1, None))} "
            + reshaped(name, f"{name}_t", 0, 0, -1)
            for name, source in (("k", "key"), ("v", "value"))
        ]
        return f"q = Identity (query) {' '.join(tokens)}"
    if call.node.op_type == "DecoderMaskedMultiHeadAttention":
        return "q, k, v = Split <axis = 2> (query)"
    # Packed, shape (batch, tokens, heads, 3 or 2, size): all three, or keys and values.
    packed, query = ("key", "query") if call.has(1) else ("query", "k")
    one = resized("one", packed, 3, 1)
    return f"{one} {reshaped('k', 'one', 0, 0, -1)} v = Identity (k) q = Identity ({query})"


def _grouped(call: Call) -> str:
    """Write attention whose heads share keys and values."""
    heads = call.integer("num_heads", 1)
    shared_heads = call.integer("kv_num_heads", heads)
    parts = [_grouped_result(call)]
    if call.has(1):
        parts += [split_heads(f"new_{name}", name, shared_heads) for name in ("key", "value")]
    else:
        keys = resized("keys", "split", 2, shared_heads)
        parts += [keys, "new_key = Transpose <perm = [0, 2, 1, 3]> (keys)"]
        parts.append("new_value = Identity (new_key)")
    parts += [_grown(call, name) for name in ("key", "value")]
    # Scores are (batch, heads, tokens, total).
    parts += [
        split_heads("queries", "y", heads),
        resized("all_keys", "key_total", 1, heads),
        wide_as("as_queries", "all_keys", "queries", "0, 1, 2"),
        _product("scores", "as_queries"),
    ]
    parameters = "query, key, value, past_key, past_value, _, total"
    results = "y, present_key, present_value, scores"
    return f"({parameters}) => ({results}) {{ {' '.join(parts)} }}"


def _grouped_result(call: Call) -> str:
    """Return statements for y, of the shape of the queries.

    Where one input packs queries, keys and values, they also define `split`, shape (batch, tokens,
    all heads, size).
    """
    if call.has(1):
        return "y = Identity (query)"
    heads = call.integer("num_heads", 1)
    in_all = heads + 2 * call.integer("kv_num_heads", heads)
    split = reshaped("split", "query", 0, 0, in_all, -1)
    return f"{split} {resized('own', 'split', 2, heads)} {reshaped('y', 'own', 0, 0, -1)}"


def _grown(call: Call, name: str) -> str:
    """Return statements for a present cache, of `total` tokens or as long as the past if longer.

    Caches have shape (batch, heads, tokens, size).
    """
    cache = f"past_{name}" if call.has(3) else f"new_{name}"
    numbers = {"zero": 0, "end": SLICE_END, "axis": 2}
    constants = [f"{name}_{k} = Constant <value = int32[1] {{{n}}}> ()" for k, n in numbers.items()]
    zero, end, axis = (f"{name}_{key}" for key in numbers)
    statements = [
        *constants,
        resized(f"{name}_long", cache, 2, SLICE_END),
        f"{name}_cut = Slice ({name}_long, {zero}, total, {axis})",
        # Slicing at an unknown index loses all sizes; joined to an empty slice they are kept.
        f"{name}_none = Slice ({cache}, {zero}, {zero}, {axis})",
        f"{name}_total = Concat <axis = 2> ({name}_none, {name}_cut)",
    ]
    if not call.has(3):
        statements.append(f"present_{name} = Identity ({name}_total)")
    elif call.integer("sliding_window_cache"):
        statements.append(f"present_{name} = Identity ({cache})")
    else:
        statements.append(f"{name}_rest = Slice ({cache}, total, {end}, {axis})")
        statements.append(f"present_{name} = Concat <axis = 2> ({name}_total, {name}_rest)")
    return " ".join(statements)


def _sparse(call: Call) -> str:
    """Write attention whose caches are allocated for all tokens from the start."""
    caches = "present_key = Identity (past_key) present_value = Identity (past_value)"
    parameters = "query, key, value, past_key, past_value"
    results = "y, present_key, present_value"
    return f"({parameters}) => ({results}) {{ {_grouped_result(call)} {caches} }}"


def _linear(call: Call) -> str:
    """Write attention with a state of shape (batch, heads, key size, value size) and no cache."""
    heads = call.integer("kv_num_heads", 1)
    window = call.integer("state_window")
    parts = [
        reshaped("keys", "key", 0, 0, heads, -1),
        reshaped("values", "value", 0, 0, heads, -1),
        resized("wide", "values", 2, max(heads, call.integer("q_num_heads", 1))),
        reshaped("y", "wide", 0, 0, -1),
        "k_t = Transpose <perm = [0, 2, 3, 1]> (keys)",
        "v_t = Transpose <perm = [0, 2, 1, 3]> (values)",
        "one = MatMul (k_t, v_t)",
    ]
    state = "Identity (one)"
    if window:
        parts.append("zero = Constant <value_ints = [0]> () slot = Unsqueeze (one, zero)")
        parts.append(resized("slots", "slot", 0, window))
        state = "Identity (slots)"
    if call.has(3):
        state = "Identity (past)"
    parts.append(f"state = {state}")
    return f"(query, key, value, past) => (y, state) {{ {' '.join(parts)} }}"


ATTENTION: Table = {
    "Attention": _projected(4, "x", "x, w, _, _, past"),
    "DecoderMaskedSelfAttention": _projected(4, "x", "x, w, _, _, past"),
    "QAttention": _projected(8, "scale", "x, w, _, scale, _, _, _, _, past"),
    "MultiHeadAttention": _multi_head(
        "query, key, value, _, _, _, past_key, past_value", lambda call: call.has(8)
    ),
    "DecoderMaskedMultiHeadAttention": _multi_head(
        "query, key, value, _, _, past_key, past_value",
        lambda call: bool(call.integer("past_present_share_buffer")),
    ),
    "GroupQueryAttention": _grouped,
    "SparseAttention": _sparse,
    "LinearAttention": _linear,
    "LinearAttentionGate": "(a, _, _, b) => (y, z) { y = Identity (a) z = Identity (b) }",
    "LongformerAttention": SAME,
    "QOrderedLongformerAttention": SAME,
    "DecoderAttention": SAME,
}
"""Stand-ins of attention operators."""
