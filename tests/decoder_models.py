"""Decoders with a KV cache and random weights, in the forms of exporters, and a plain ORT loop."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime
import tokenizers
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, HEAD_SIZE, VOCABULARY, CONTEXT = 3, 2, 16, 61, 64
WIDTH = HEADS * HEAD_SIZE
_INT64_MAX = 2**63 - 1


class Graph:
    """Nodes and weights of a graph under construction."""

    def __init__(self, seed=0):
        self.nodes, self.weights = [], []
        self.random = np.random.default_rng(seed)

    def op(self, kind, *inputs, outputs=1, domain="", **attributes):
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value, name):
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def const(self, value, dtype=np.int64):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape, scale=None):
        scale = 1.5 / np.sqrt(shape[0]) if scale is None else scale
        return self.const(self.random.standard_normal(shape) * scale, np.float32)


def inputs_of(*, masks=True, positions=True, cache=True, heads=HEADS, past="past_key_values.{}.{}"):
    found = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"])]
    if masks:
        found.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"]))
    if positions:
        found.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["B", "S"]))
    if cache:
        found += [
            helper.make_tensor_value_info(
                past.format(i, part), TensorProto.FLOAT, ["B", heads, "P", HEAD_SIZE]
            )
            for i in range(LAYERS)
            for part in ("key", "value")
        ]
    return found


def outputs_of(*, cache=True, heads=HEADS, present="present.{}.{}", vocabulary=VOCABULARY):
    found = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", vocabulary])]
    if cache:
        found += [
            helper.make_tensor_value_info(
                present.format(i, part), TensorProto.FLOAT, ["B", heads, "T", HEAD_SIZE]
            )
            for i in range(LAYERS)
            for part in ("key", "value")
        ]
    return found


def model_of(graph, inputs, outputs):
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    onnx.checker.check_model(proto)
    return proto


def _attention_bias(g, masks):
    """Return the causal mask with the mask of padding, shape (B or 1, 1, S, T)."""
    size = g.op("Shape", "input_ids")
    queries = g.op("Gather", size, g.const(1))
    if masks:
        keys = g.op("Gather", g.op("Shape", "attention_mask"), g.const(1))
    else:
        past = g.op("Gather", g.op("Shape", "past_key_values.0.key"), g.const(2))
        keys = g.op("Add", past, queries)
    columns = g.op("Range", g.const(0), keys, g.const(1))
    rows = g.op("Range", g.op("Sub", keys, queries), keys, g.const(1))
    seen = g.op("LessOrEqual", columns, g.op("Unsqueeze", rows, g.const([1])))
    zero, low = g.const(0, np.float32), g.const(-1e9, np.float32)
    bias = g.op("Where", seen, zero, low)
    if not masks:
        return bias, keys
    real = g.op("Cast", "attention_mask", to=TensorProto.BOOL)
    padding = g.op("Unsqueeze", g.op("Where", real, zero, low), g.const([1, 2]))
    return g.op("Add", bias, padding), keys


def _norm(g, x):
    ones, zeros = g.const(np.ones(WIDTH), np.float32), g.const(np.zeros(WIDTH), np.float32)
    return g.op("LayerNormalization", x, ones, zeros)


def _split_heads(g, x):
    shaped = g.op("Reshape", x, g.const([0, 0, HEADS, HEAD_SIZE]))
    return g.op("Transpose", shaped, perm=[0, 2, 1, 3])


def gpt2_nodes(g, *, masks=True, positions=True, cache=True, past=None, present=None):
    """Add the nodes of a decoder like GPT-2 to a graph."""
    past, present = past or "past_key_values.{}.{}", present or "present.{}.{}"
    bias, keys = _attention_bias(g, masks)
    table = g.weight(VOCABULARY, WIDTH, scale=1.0)
    places = "position_ids"
    if not positions:
        queries = g.op("Gather", g.op("Shape", "input_ids"), g.const(1))
        places = g.op("Range", g.op("Sub", keys, queries), keys, g.const(1))
    tokens = g.op("Gather", table, "input_ids")
    x = g.op("Add", tokens, g.op("Gather", g.weight(CONTEXT, WIDTH, scale=1.0), places))
    for layer in range(LAYERS):
        normal = _norm(g, x)
        q, k, v = (
            _split_heads(g, g.op("MatMul", normal, g.weight(WIDTH, WIDTH))) for _ in range(3)
        )
        if cache:
            k = g.op("Concat", past.format(layer, "key"), k, axis=2)
            v = g.op("Concat", past.format(layer, "value"), v, axis=2)
            g.name(k, present.format(layer, "key"))
            g.name(v, present.format(layer, "value"))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        scaled = g.op("Mul", scores, g.const(HEAD_SIZE**-0.5, np.float32))
        weights = g.op("Softmax", g.op("Add", scaled, bias), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        joined = g.op("Reshape", mixed, g.const([0, 0, WIDTH]))
        x = g.op("Add", x, g.op("MatMul", joined, g.weight(WIDTH, WIDTH)))
        wide = g.op("Relu", g.op("MatMul", _norm(g, x), g.weight(WIDTH, 4 * WIDTH)))
        x = g.op("Add", x, g.op("MatMul", wide, g.weight(4 * WIDTH, WIDTH)))
    g.name(g.op("MatMul", _norm(g, x), g.weight(WIDTH, VOCABULARY)), "logits")


@functools.cache
def gpt2_like(*, masks=True, positions=True, past="past_key_values.{}.{}", present="present.{}.{}"):
    """Return a decoder with learned positions and a concatenated cache."""
    g = Graph()
    gpt2_nodes(g, masks=masks, positions=positions, past=past, present=present)
    inputs = inputs_of(masks=masks, positions=positions, past=past)
    return model_of(g, inputs, outputs_of(present=present))


@functools.cache
def without_cache():
    """Return the same decoder without a cache."""
    g = Graph()
    gpt2_nodes(g, cache=False)
    return model_of(g, inputs_of(cache=False), outputs_of(cache=False))


@functools.cache
def llama_like(*, buffer=None):
    """Return a decoder with rotary positions and grouped queries in one operator.

    With a buffer, its cache has so many positions always, and its inputs tell how many are used.
    """
    g, groups = Graph(1), 1
    if buffer is None:
        total = g.op("Gather", g.op("Shape", "attention_mask"), g.const(1))
        total = g.op("Cast", total, to=TensorProto.INT32)
        lengths = g.op("ReduceSum", "attention_mask", g.const([1]), keepdims=0)
        lengths = g.op("Cast", g.op("Sub", lengths, g.const(1)), to=TensorProto.INT32)
    else:
        total, lengths = "total_sequence_length", "seqlens_k"
    steps = 10000.0 ** (-np.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2))
    angles = np.arange(CONTEXT)[:, None] * steps
    cos, sin = g.const(np.cos(angles), np.float32), g.const(np.sin(angles), np.float32)
    ones = g.const(np.ones(WIDTH), np.float32)

    def norm(x):
        return g.op("SimplifiedLayerNormalization", x, ones, axis=-1, epsilon=1e-6)

    x = g.op("Gather", g.weight(VOCABULARY, WIDTH, scale=1.0), "input_ids")
    for layer in range(LAYERS):
        normal = norm(x)
        q = g.op("MatMul", normal, g.weight(WIDTH, WIDTH))
        k, v = (g.op("MatMul", normal, g.weight(WIDTH, groups * HEAD_SIZE)) for _ in range(2))
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        mixed, key, value = g.op(
            "GroupQueryAttention", q, k, v, *past, lengths, total, cos, sin,
            outputs=3, domain="com.microsoft", num_heads=HEADS, kv_num_heads=groups, do_rotary=1,
        )  # fmt: skip
        g.name(key, f"present.{layer}.key")
        g.name(value, f"present.{layer}.value")
        x = g.op("Add", x, g.op("MatMul", mixed, g.weight(WIDTH, WIDTH)))
        gate = g.op("MatMul", norm(x), g.weight(WIDTH, 4 * WIDTH))
        wide = g.op("Mul", gate, g.op("Sigmoid", gate))
        x = g.op("Add", x, g.op("MatMul", wide, g.weight(4 * WIDTH, WIDTH)))
    g.name(g.op("MatMul", norm(x), g.weight(WIDTH, VOCABULARY)), "logits")
    inputs = inputs_of(positions=False, heads=groups, masks=buffer is None)
    outputs = outputs_of(heads=groups)
    if buffer is not None:
        for value in [*inputs[1:], *outputs[1:]]:
            value.type.tensor_type.shape.dim[2].Clear()
            value.type.tensor_type.shape.dim[2].dim_value = buffer
        inputs.append(helper.make_tensor_value_info(lengths, TensorProto.INT32, ["B"]))
        inputs.append(helper.make_tensor_value_info(total, TensorProto.INT32, [1]))
    return helper.make_model(
        helper.make_graph(g.nodes, "llama", inputs, outputs, g.weights),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )


@functools.cache
def merged():
    """Return a decoder with a branch for the prompt and one for what follows."""
    # Both branches draw the same weights in the same order.
    branches = {}
    for name, cache in (("then_branch", True), ("else_branch", False)):
        g = Graph()
        if cache:
            gpt2_nodes(g)
        else:
            _prompt_nodes(g)
        prefix = f"{name}/"
        branches[name] = _as_branch(g, prefix)
    names = [value.name for value in outputs_of()]
    node = helper.make_node("If", ["use_cache_branch"], names, **branches)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    proto = helper.make_model(
        helper.make_graph([node], "merged", [*inputs_of(), flag], outputs_of()),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    onnx.checker.check_model(proto)
    return proto


def _prompt_nodes(g):
    """Add the nodes of a decoder that ignores its past and returns a present."""
    gpt2_nodes(g, past="empty.{}.{}")
    for node in g.nodes:
        if node.op_type == "Concat":
            node.op_type = "Identity"
            del node.input[0], node.attribute[:]


def _as_branch(g, prefix, names=None):
    inner = {name for node in g.nodes for name in node.output} | {w.name for w in g.weights}
    for node in g.nodes:
        node.input[:] = [prefix + n if n in inner else n for n in node.input]
        node.output[:] = [prefix + n for n in node.output]
    for weight in g.weights:
        weight.name = prefix + weight.name
    outputs = [
        helper.make_tensor_value_info(prefix + name, TensorProto.FLOAT, None)
        for name in names or [value.name for value in outputs_of()]
    ]
    return helper.make_graph(g.nodes, prefix.strip("/"), [], outputs, g.weights)


def _attend(g, x, k, v, bias=None):
    """Return the attention of the rows of x over keys and values, before its projection."""
    q = _split_heads(g, g.op("MatMul", x, g.weight(WIDTH, WIDTH)))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.op("Mul", scores, g.const(HEAD_SIZE**-0.5, np.float32))
    if bias is not None:
        scores = g.op("Add", scores, bias)
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.const([0, 0, WIDTH]))
    return g.op("MatMul", joined, g.weight(WIDTH, WIDTH))


def _keys(g, x):
    return [_split_heads(g, g.op("MatMul", x, g.weight(WIDTH, WIDTH))) for _ in range(2)]


def _source_bias(g, mask):
    real = g.op("Cast", mask, to=TensorProto.BOOL)
    bias = g.op("Where", real, g.const(0, np.float32), g.const(-1e9, np.float32))
    return g.op("Unsqueeze", bias, g.const([1, 2]))


def _places(g, size, past=None):
    """Return embeddings of positions from the length of the past on, shape (S, WIDTH)."""
    first = g.const(0) if past is None else past
    table = g.weight(CONTEXT, WIDTH, scale=1.0)
    return g.op("Gather", table, g.op("Range", first, g.op("Add", first, size), g.const(1)))


@functools.cache
def t5_encoder():
    """Return an encoder of tokens with a mask."""
    g = Graph(2)
    size = g.op("Gather", g.op("Shape", "input_ids"), g.const(1))
    x = g.op("Gather", g.weight(VOCABULARY, WIDTH, scale=1.0), "input_ids")
    x = g.op("Add", x, _places(g, size))
    bias = _source_bias(g, "attention_mask")
    for _ in range(2):
        normal = _norm(g, x)
        x = g.op("Add", x, _attend(g, normal, *_keys(g, normal), bias))
    g.name(_norm(g, x), "last_hidden_state")
    states = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, ["B", "S", WIDTH]
    )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "S"])
        for name in ("input_ids", "attention_mask")
    ]
    return model_of(g, inputs, [states])


def _source_decoder(*, is_first, cache=True, masked=True):
    """Return a graph of a decoder that attends to an encoder, for its first or a later token."""
    g = Graph(3)
    size = g.op("Gather", g.op("Shape", "input_ids"), g.const(1))
    past = None
    if not is_first:
        shape = g.op("Shape", "past_key_values.0.decoder.key")
        past = g.op("Gather", shape, g.const(2))
    x = g.op("Gather", g.weight(VOCABULARY, WIDTH, scale=1.0), "input_ids")
    x = g.op("Add", x, _places(g, size, past))
    keys = size if past is None else g.op("Add", past, size)
    columns = g.op("Range", g.const(0), keys, g.const(1))
    rows = g.op("Range", g.op("Sub", keys, size), keys, g.const(1))
    seen = g.op("LessOrEqual", columns, g.op("Unsqueeze", rows, g.const([1])))
    causal = g.op("Where", seen, g.const(0, np.float32), g.const(-1e9, np.float32))
    source = _source_bias(g, "encoder_attention_mask") if masked else None
    for layer in range(LAYERS):
        normal = _norm(g, x)
        names = [f"{layer}.decoder.{part}" for part in ("key", "value")]
        own = _keys(g, normal)
        if not is_first:
            own = [
                g.op("Concat", f"past_key_values.{name}", new, axis=2)
                for name, new in zip(names, own, strict=True)
            ]
        x = g.op("Add", x, _attend(g, normal, *own, causal))
        crossed = _keys(g, "encoder_hidden_states")  # of both branches, so that weights are equal
        others = [f"{layer}.encoder.{part}" for part in ("key", "value")]
        if not is_first:
            used = [f"past_key_values.{name}" for name in others]
            # Exporters return a placeholder here.
            kept = [g.op("Slice", v, *(g.const([n]) for n in (0, 0, 2))) for v in crossed]
        else:
            used = kept = crossed
        x = g.op("Add", x, _attend(g, _norm(g, x), *used, source))
        if cache:
            for name, value in zip([*names, *others], [*own, *kept], strict=True):
                g.name(value, f"present.{name}")
    g.name(g.op("MatMul", _norm(g, x), g.weight(WIDTH, VOCABULARY)), "logits")
    return g


def _source_values(kind, length):
    return [
        helper.make_tensor_value_info(
            f"{kind}.{layer}.{side}.{part}",
            TensorProto.FLOAT,
            ["B", HEADS, f"{length}_{side}", HEAD_SIZE],
        )
        for layer in range(LAYERS)
        for side in ("decoder", "encoder")
        for part in ("key", "value")
    ]


def _source_inputs(*, masked=True):
    mask = helper.make_tensor_value_info("encoder_attention_mask", TensorProto.INT64, ["B", "E"])
    return [
        *([mask] if masked else []),
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]),
        helper.make_tensor_value_info(
            "encoder_hidden_states", TensorProto.FLOAT, ["B", "E", WIDTH]
        ),
    ]


@functools.cache
def t5_merged(*, masked=True):
    """Return the merged decoder of an encoder-decoder."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", VOCABULARY])
    outputs = [logits, *_source_values("present", "T")]
    names = [value.name for value in outputs]
    branches = {
        "then_branch": _as_branch(_source_decoder(is_first=False, masked=masked), "then/", names),
        "else_branch": _as_branch(_source_decoder(is_first=True, masked=masked), "else/", names),
    }
    node = helper.make_node("If", ["use_cache_branch"], names, **branches)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    inputs = [*_source_inputs(masked=masked), *_source_values("past_key_values", "P"), flag]
    proto = helper.make_model(
        helper.make_graph([node], "t5", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(proto)
    return proto


@functools.cache
def t5_without_cache(*, masked=True):
    """Return the decoder of an encoder-decoder without a cache."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", VOCABULARY])
    graph = _source_decoder(is_first=True, cache=False, masked=masked)
    return model_of(graph, _source_inputs(masked=masked), [logits])


@functools.cache
def t5_pair(*, masked=True):
    """Return the decoders of the first and of later tokens of an encoder-decoder."""
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", VOCABULARY])
    inputs, present = _source_inputs(masked=masked), _source_values("present", "T")
    first = model_of(_source_decoder(is_first=True, masked=masked), inputs, [logits, *present])
    own = [value for value in present if ".decoder." in value.name]
    past = _source_values("past_key_values", "P")
    graph = _source_decoder(is_first=False, masked=masked)
    return first, model_of(graph, [*inputs, *past], [logits, *own])


@functools.cache
def gpt2_pair():
    """Return the decoders of the first and of later tokens of a decoder like GPT-2."""
    g = Graph()
    _prompt_nodes(g)
    return model_of(g, inputs_of(cache=False), outputs_of()), gpt2_like()


MELS = 5


@functools.cache
def speech_encoder(*, frames="F"):
    """Return an encoder like Whisper's: features of (mels, frames) to a state for two frames."""
    g = Graph(4)
    turned = g.op("Transpose", "input_features", perm=[0, 2, 1])
    ends = (g.const([each]) for each in (0, _INT64_MAX, 1, 2))
    thinned = g.op("Slice", turned, *ends)
    x = g.op("MatMul", thinned, g.weight(MELS, WIDTH))
    size = g.op("Gather", g.op("Shape", x), g.const(1))
    x = g.op("Add", x, _places(g, size))
    normal = _norm(g, x)
    x = g.op("Add", x, _attend(g, normal, *_keys(g, normal)))
    g.name(_norm(g, x), "last_hidden_state")
    float32 = TensorProto.FLOAT
    states = helper.make_tensor_value_info("last_hidden_state", float32, ["B", "S", WIDTH])
    features = helper.make_tensor_value_info("input_features", float32, ["B", MELS, frames])
    return model_of(g, [features], [states])


def speech_reference(features, count, eos=(), start=(0,)):
    """Return the greedy tokens after one array, all run again each time."""
    feeds = {"input_features": features[None]}
    (states,) = session_of(speech_encoder()).run(None, feeds)
    session, found = session_of(t5_without_cache(masked=False)), []
    for _ in range(count):
        ids = np.array([[*start, *found]], np.int64)
        feeds = {"input_ids": ids, "encoder_hidden_states": states}
        found.append(int(session.run(["logits"], feeds)[0][0, -1].argmax()))
        if found[-1] in eos:
            break
    return found


def source_reference(prompt, count, eos=(), start=(0,)):
    """Return the greedy tokens of the encoder-decoder after one prompt, all run again each time."""
    ids = np.array([prompt], np.int64)
    ones = np.ones_like(ids)
    (states,) = _session(t5_encoder().SerializeToString()).run(
        None, {"input_ids": ids, "attention_mask": ones}
    )
    session, found = _session(t5_without_cache().SerializeToString()), []
    for _ in range(count):
        feeds = {
            "input_ids": np.array([[*start, *found]], np.int64),
            "encoder_hidden_states": states,
            "encoder_attention_mask": ones,
        }
        found.append(int(session.run(["logits"], feeds)[0][0, -1].argmax()))
        if found[-1] in eos:
            break
    return found


def greedy_reference(proto, prompt, count, eos=()):
    """Return the tokens of a plain loop over one prompt, each of the largest logit."""
    session = _session(proto.SerializeToString())
    shapes = {value.name: value.shape for value in session.get_inputs()}
    past = {
        name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
        for name, shape in shapes.items()
        if len(shape) == 4
    }
    names = [value.name for value in session.get_outputs()]
    pasts, ids, found = list(past), list(prompt), []
    fed = 0
    for _ in range(count):
        new = ids[fed:] if past else ids
        start = fed if past else 0
        feeds = {"input_ids": np.array([new], np.int64), **past}
        if "attention_mask" in shapes:
            feeds["attention_mask"] = np.ones((1, len(ids)), np.int64)
        if "position_ids" in shapes:
            feeds["position_ids"] = np.arange(start, len(ids))[None]
        if "use_cache_branch" in shapes:
            feeds["use_cache_branch"] = np.array([fed > 0])
        results = dict(zip(names, session.run(names, feeds), strict=True))
        fed = len(ids)
        past = dict(zip(pasts, [results[n] for n in names if n != "logits"], strict=True))
        token = int(results["logits"][0, -1].argmax())
        found.append(token)
        ids.append(token)
        if token in eos:
            break
    return found


def session_of(proto):
    """Return a session of ORT on one thread."""
    return _session(proto.SerializeToString())


@functools.lru_cache(maxsize=8)
def _session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def prompts(count, longest=12, seed=0):
    """Return prompts of mixed length, as lists of tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return [[int(t) for t in random.integers(1, VOCABULARY, n)] for n in lengths]


def tokenizer():
    """Return a tokenizer of words w0 to w60, each a token with that number."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def text_of(tokens):
    """Return the text of tokens, as `tokenizer` reads and writes it."""
    return " ".join(f"w{token}" for token in tokens)
