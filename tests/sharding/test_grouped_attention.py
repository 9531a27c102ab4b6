"""GroupQueryAttention in query blocks gives what ONNX Runtime gives for the whole."""

from __future__ import annotations

import dask
import numpy as np
import onnx
import pytest
from builders import make_model, node, run_onnx, value, weights
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.sharding.strategy import Sharded

HEADS, SHARED, SIZE, TOKENS = 4, 2, 16, 13
RNG = np.random.default_rng(0)
INT32 = TensorProto.INT32
SHARED_WIDTH = SHARED * SIZE
PROJECTED = {"q": HEADS * SIZE, "k": SHARED_WIDTH, "v": SHARED_WIDTH}


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def decoder(inputs="q k v - - lengths total", packed=False, outputs="a pk pv", **attributes):
    """Return a decoder layer of projections, grouped attention and an output projection."""
    widths = {"q": sum(PROJECTED.values())} if packed else PROJECTED
    nodes = [node("MatMul", f"x w{name}", name, name) for name in widths]
    made = {
        f"w{name}": weights(32, width, seed=i) / 6 for i, (name, width) in enumerate(widths.items())
    }
    attention = node(
        "GroupQueryAttention",
        inputs,
        outputs,
        "attention",
        num_heads=HEADS,
        kv_num_heads=SHARED,
        domain="com.microsoft",
        **attributes,
    )
    made["wo"] = weights(HEADS * SIZE, 32, seed=9) / 8
    nodes += [attention, node("MatMul", "a wo", "y", "out")]
    names = inputs.split()
    values = [value("x", ["N", "T", 32]), value("lengths", ["N"], INT32), value("total", [], INT32)]
    if "past_key" in names:
        values += [value(each, ["N", SHARED, "P", SIZE]) for each in ("past_key", "past_value")]
    if "bias" in names:
        values.append(value("bias", ["B", "H", "T", "S"]))
    if "sinks" in names:
        made["sinks"] = weights(HEADS, seed=4)
    if "cos" in names:
        made |= {"cos": weights(64, SIZE // 2, seed=5), "sin": weights(64, SIZE // 2, seed=6)}
    results = [value("y", ["N", "T", 32])]
    results += [value(each, ["N", SHARED, "S", SIZE]) for each in outputs.split()[1:]]
    return make_model(nodes, values, results, made, domains={"com.microsoft": 1})


def prompt(rows=1, lengths=None, tokens=TOKENS):
    lengths = [tokens] * rows if lengths is None else lengths
    return {
        "x": RNG.standard_normal((rows, tokens, 32)).astype(np.float32),
        "lengths": np.array(lengths, np.int32) - 1,
        "total": np.array(tokens, np.int32),
    }


def continued(past, *, static=0, tokens=TOKENS):
    """Return tokens after a cache of `past` tokens, in a buffer of `static` tokens if not zero."""
    feeds = prompt(1, [past + tokens], tokens)
    feeds["total"] = np.array(past + tokens, np.int32)
    for name in ("past_key", "past_value"):
        shape = (1, SHARED, static or past, SIZE)
        feeds[name] = RNG.standard_normal(shape).astype(np.float32)
    return feeds


def on_shards(proto: onnx.ModelProto, feeds, n=3):
    """Return the plan of a model on shards, and what it gives for all of the model's outputs."""
    model = dx.load(proto)
    shapes = {name: array.shape for name, array in feeds.items()}
    plan = model.plan(Sharded({"x": 1}, n), shapes=shapes)
    found = model.predict(feeds, plan=plan)
    return plan, found if isinstance(found, dict) else {model.outputs[0].name: found}


def nodes_on_shards(plan):
    made = plan.at()
    nodes = made.segments.candidates.facts.nodes
    segments = [segment for segment in made.segments.segments if segment.is_sharded]
    return {nodes[instance.node].op_type for segment in segments for instance in segment.instances}


def nodes_run_whole(plan):
    made = plan.at()
    nodes = made.segments.candidates.facts.nodes
    segments = [segment for segment in made.segments.segments if not segment.is_sharded]
    return {nodes[instance.node].name for segment in segments for instance in segment.instances}


def assert_equal_on_shards(proto, feeds, n=3):
    plan, found = on_shards(proto, feeds, n)
    expected = run_onnx(proto, feeds)
    assert len(found) == len(expected)
    for (name, result), array in zip(found.items(), expected, strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert "GroupQueryAttention" in nodes_on_shards(plan), plan.explain()
    return plan


PROMPT = "q k v - - lengths total"
ROTARY = f"{PROMPT} cos sin"


@pytest.mark.parametrize("n", [2, 3, 13])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.2},
        {"softcap": 2.0},
        {"smooth_softmax": 1},
        {"local_window_size": 3},
        {"inputs": ROTARY, "do_rotary": 1},
        {"inputs": ROTARY, "do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 4},
        {"inputs": f"{PROMPT} - - - - sinks"},
        {"packed": True, "inputs": "q - - - - lengths total"},
        {"packed": True, "inputs": "q - - - - lengths total cos sin", "do_rotary": 1},
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else str(value),
)
def test_a_prompt_in_query_blocks_equals_the_whole(options, n):
    plan = assert_equal_on_shards(decoder(**options), prompt(), n)
    assert "attention" not in nodes_run_whole(plan)
    assert len(plan.at().segments.gathers) == 2  # keys and values


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("lengths", [[13, 13], [13, 6], [1, 13], [4, 9]])
def test_padded_rows_equal_the_whole_where_they_are_padding_too(lengths, window):
    more = {"local_window_size": window} if window else {}
    assert_equal_on_shards(decoder(ROTARY, do_rotary=1, **more), prompt(2, lengths), 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, HEADS), (2, 1), (2, HEADS)])
def test_a_bias_is_cut_with_the_queries(shape):
    feeds = prompt(2, [13, 8])
    feeds["bias"] = RNG.standard_normal((*shape, TOKENS, TOKENS)).astype(np.float32)
    assert_equal_on_shards(decoder(f"{PROMPT} - - - bias"), feeds)


PAST = "q k v past_key past_value lengths total"


@pytest.mark.parametrize("static", [0, 40])
@pytest.mark.parametrize("options", [{}, {"local_window_size": 5}, {"softcap": 1.5}])
@pytest.mark.parametrize("rotates", [False, True])
def test_tokens_after_a_cache_equal_the_whole(static, options, rotates):
    more = {"inputs": f"{PAST} cos sin", "do_rotary": 1} if rotates else {"inputs": PAST}
    feeds = continued(7, static=static)
    assert_equal_on_shards(decoder(**more, **options), feeds)


@pytest.mark.parametrize("lengths", [[13], [13, 13], [13, 5]])
@pytest.mark.parametrize("static", [0, 13, 20])
def test_a_prompt_into_a_cache_equals_the_whole(static, lengths):
    feeds = prompt(len(lengths), lengths)
    for name in ("past_key", "past_value"):
        shape = (len(lengths), SHARED, static, SIZE)
        feeds[name] = RNG.standard_normal(shape).astype(np.float32)
    assert_equal_on_shards(decoder(f"{PAST} cos sin", do_rotary=1), feeds)


def test_several_rows_after_a_cache_fail_as_in_onnxruntime():
    feeds = prompt(2, [20, 15])
    feeds["total"] = np.array(20, np.int32)
    for name in ("past_key", "past_value"):
        feeds[name] = RNG.standard_normal((2, SHARED, 7, SIZE)).astype(np.float32)
    proto = decoder(PAST)
    with pytest.raises(Exception, match="batch_size must be 1"):
        run_onnx(proto, feeds)
    with pytest.raises(dx.StageError):
        on_shards(proto, feeds)


def test_a_bias_beside_a_cache_reaches_all_keys():
    feeds = continued(5)
    feeds["bias"] = RNG.standard_normal((1, 1, TOKENS, TOKENS + 5)).astype(np.float32)
    assert_equal_on_shards(decoder(f"{PAST} - - - bias"), feeds)


@pytest.mark.parametrize("outputs", ["a", "a pk pv"])
def test_two_layers_share_their_tokens(outputs):
    first = decoder(ROTARY, outputs=outputs, do_rotary=1)
    assert_equal_on_shards(first, prompt(), 5)


def test_positions_of_the_callers_own_keep_the_attention_whole_and_explain_names_it():
    proto = decoder(f"{ROTARY} places", do_rotary=1)
    proto.graph.input.append(value("places", ["N", "T"], TensorProto.INT64))
    feeds = {**prompt(), "places": np.arange(TOKENS)[None] + 2}
    plan, found = on_shards(proto, feeds)
    for result, array in zip(found.values(), run_onnx(proto, feeds), strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-5)
    assert "GroupQueryAttention" not in nodes_on_shards(plan)
    assert "node 'attention' (com.microsoft.GroupQueryAttention)" in plan.explain()


def test_one_token_of_several_rows_with_caches_is_refused_with_its_node():
    feeds = continued(7, tokens=1)
    feeds = {
        name: array if name == "total" else np.concatenate([array, array])
        for name, array in feeds.items()
    }
    model = dx.load(decoder(PAST))
    shapes = {name: array.shape for name, array in feeds.items()}
    with pytest.raises(dx.PlanError) as caught:
        model.plan(Sharded({"x": 1}, 2), shapes=shapes).explain()
    assert caught.value.node == "attention"
    assert caught.value.numbers == {"rows": 2}


@pytest.mark.parametrize("window", [0, 4])
def test_tokens_of_padded_rows_equal_the_whole_with_a_soft_cap(window):
    more = {"local_window_size": window} if window else {}
    proto, feeds = decoder(ROTARY, do_rotary=1, softcap=2.0, **more), prompt(2, [13, 6])
    _, found = on_shards(proto, feeds)
    is_token = np.arange(TOKENS) < np.array([[13], [6]])  # others are not defined with a soft cap
    np.testing.assert_allclose(
        found["y"][is_token], run_onnx(proto, feeds)[0][is_token], rtol=1e-5, atol=1e-5
    )


def test_half_precision_runs_on_shards():
    proto = onnx.ModelProto()
    proto.CopyFrom(decoder(ROTARY, do_rotary=1, local_window_size=4))
    half = TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for each in (*proto.graph.input, *proto.graph.output):
        if each.type.tensor_type.elem_type == TensorProto.FLOAT:
            each.type.tensor_type.elem_type = half
    feeds = prompt(2, [13, 6])
    feeds["x"] = feeds["x"].astype(np.float16)
    plan, found = on_shards(proto, feeds)
    is_token = np.arange(TOKENS) < np.array([[13], [6]])  # others are not defined in float16
    expected = run_onnx(proto, feeds)
    for name, array in zip(found, expected, strict=True):
        result, tokens = found[name], is_token if name == "y" else slice(None)
        np.testing.assert_allclose(
            result[tokens].astype(np.float32),
            array[tokens].astype(np.float32),
            rtol=1e-2,
            atol=1e-2,
        )
    assert "GroupQueryAttention" in nodes_on_shards(plan)


def two_layers() -> onnx.ModelProto:
    """Return a decoder as builders for generation write it: packed, rotary, lengths of a mask."""
    nodes = [
        node("Gather", "table ids", "x0", "embed"),
        node("ReduceSum", "mask axis", "counts", "counts", keepdims=0),
        node("Cast", "counts", "counts32", to=INT32),
        node("Sub", "counts32 one32", "lengths"),
        node("Shape", "mask", "mask_shape"),
        node("Gather", "mask_shape one", "total64"),
        node("Cast", "total64", "total", to=INT32),
    ]
    made = {
        "table": weights(50, 32, seed=1),
        "one": np.array(1),
        "axis": np.array([1]),
        "one32": np.array(1, np.int32),
        "cos": weights(64, SIZE // 2, seed=2),
        "sin": weights(64, SIZE // 2, seed=3),
        "head": weights(32, 50, seed=7),
    }
    inputs = [
        value("ids", ["B", "S"], TensorProto.INT64),
        value("mask", ["B", "P+S"], TensorProto.INT64),
    ]
    outputs, x = [value("logits", ["B", "S", 50])], "x0"
    for layer in "ab":
        made[f"{layer}w"] = weights(32, sum(PROJECTED.values()), seed=4) / 6
        made[f"{layer}o"] = weights(HEADS * SIZE, 32, seed=5) / 8
        nodes += [
            node("MatMul", f"{x} {layer}w", f"{layer}p"),
            node(
                "GroupQueryAttention",
                f"{layer}p - - {layer}pk {layer}pv lengths total cos sin",
                f"{layer}a {layer}nk {layer}nv",
                f"{layer}attention",
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=SHARED,
                do_rotary=1,
                local_window_size=-1,
            ),
            node("MatMul", f"{layer}a {layer}o", f"{layer}m"),
            node("Add", f"{x} {layer}m", f"{layer}x"),
        ]
        x = f"{layer}x"
        inputs += [value(f"{layer}p{each}", ["B", SHARED, "P", SIZE]) for each in "kv"]
        outputs += [value(f"{layer}n{each}", ["B", SHARED, "P+S", SIZE]) for each in "kv"]
    nodes.append(node("MatMul", f"{x} head", "logits"))
    return make_model(nodes, inputs, outputs, made, domains={"com.microsoft": 1})


@pytest.mark.parametrize(("rows", "past", "padding"), [(1, 0, 0), (2, 0, 7), (1, 9, 0)])
def test_a_decoder_with_caches_equals_the_whole(rows, past, padding):
    proto, tokens = two_layers(), 20
    mask = np.ones((rows, past + tokens), np.int64)
    mask[-1, past + tokens - padding :] = 0
    feeds = {"ids": RNG.integers(0, 50, (rows, tokens)), "mask": mask}
    for name in ("apk", "apv", "bpk", "bpv"):
        feeds[name] = RNG.standard_normal((rows, SHARED, past, SIZE)).astype(np.float32)
    model = dx.load(proto)
    shapes = {name: array.shape for name, array in feeds.items()}
    plan = model.plan(Sharded({"ids": 1}, 3), shapes=shapes)
    found = model.predict(feeds, plan=plan)
    for (name, result), array in zip(found.items(), run_onnx(proto, feeds), strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert "GroupQueryAttention" in nodes_on_shards(plan)
