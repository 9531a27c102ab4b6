"""Shapes and dtypes behind ONNX Runtime's own operators, compared with ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import make_model, node, run_onnx, value, weights
from contrib_cases import GROUPS, LOADED, RUN
from contrib_nodes import CONTRIB, SIZES, bert_model, case
from onnx import TensorProto, helper, shape_inference
from onnxruntime.transformers import optimizer

from dask_onnx.analysis.contrib_operators import TABLES
from dask_onnx.analysis.contrib_shapes import write_stand_ins
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx
from dask_onnx.modelio.value_types import value_info

INT64 = TensorProto.INT64
OWN = {CONTRIB: 1}


def facts_of(model, **options) -> GraphFacts:
    return GraphFacts(load_onnx(model, **options))


def shapes_of(feeds):
    return {name: array.shape for name, array in feeds.items()}


def found(facts, names, shapes=None):
    """Return the inferred (dtype, shape) of each value."""
    specs = infer_shapes(facts, shapes)
    return {name: (specs[name].dtype, specs[name].shape) for name in names}


def given(results):
    return {name: (array.dtype, array.shape) for name, array in results.items()}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", RUN, ids=str)
def test_results_have_the_shapes_and_dtypes_of_onnx_runtime(case, sizes):
    model, feeds = case.model(), case.feeds(sizes)
    names = [output.name for output in model.graph.output]
    expected = dict(zip(names, run_onnx(model, feeds), strict=True))
    assert found(facts_of(model), names, shapes_of(feeds)) == given(expected)


def loading_error(model, shapes, outputs) -> Exception | None:
    """Return the error of loading a model with these shapes: ONNX Runtime infers before it runs."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for graph_input in bound.graph.input:
        sizes = graph_input.type.tensor_type.shape.dim
        for dim, size in zip(sizes, shapes[graph_input.name], strict=True):
            dim.dim_value = size
    del bound.graph.output[:]
    bound.graph.output.extend(map(value_info, outputs))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    try:
        onnxruntime.InferenceSession(
            bound.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("case", LOADED, ids=str)
def test_shapes_and_dtypes_are_those_that_onnx_runtime_infers(case, sizes):
    model, shapes = case.model(), shapes_of(case.feeds(sizes))
    specs = infer_shapes(facts_of(model), shapes)
    outputs = [specs[output.name] for output in model.graph.output]
    error = loading_error(model, shapes, outputs)
    assert error is None or type(error).__name__ == "NotImplemented", error
    for index, spec in enumerate(outputs):
        longer = list(outputs)
        longer[index] = replace(spec, shape=tuple(size + 1 for size in spec.shape))
        assert "ShapeInferenceError" in str(loading_error(model, shapes, longer))


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (case("Rfft", "x=f:B,W", signal_ndim=1, onesided=1, normalized=0), (2, 5, 2)),
        (case("Rfft", "x=f:B,9", signal_ndim=1, onesided=1, normalized=0), (2, 5, 2)),
        (case("Irfft", "x=f:B,5,2", signal_ndim=1, onesided=1, normalized=0), (2, 8)),
        (case("ComplexMul", "x=f:B,T,2 z=f:T,2"), (2, 3, 2)),
        (case("ComplexMulConj", "x=f:T,2 z=f:B,T,2"), (2, 3, 2)),
    ],
    ids=str,
)
def test_shapes_without_inference_in_onnx_runtime_are_those_of_its_documentation(case, shape):
    facts = facts_of(case.model())
    assert found(facts, ["y"], shapes_of(case.feeds(SIZES[0])))["y"] == (np.dtype("f4"), shape)


def test_every_operator_is_tested():
    tested = {(case.domain, case.op) for case in (*RUN, *LOADED)}
    others = "Rfft Irfft ComplexMul ComplexMulConj Unique GroupQueryAttention Tokenizer".split()
    tested |= {(CONTRIB, op) for op in others}
    named = {(domain, op) for domain, table in TABLES.items() for op in table}
    assert {(d, op) for d, op in named if d != "com.microsoft.nchwc"} <= tested


@pytest.mark.parametrize("shape", [(7,), (5, 3)])
def test_tokens_are_a_new_axis_of_open_size(shape):
    node = helper.make_node(
        "Tokenizer",
        ["x"],
        ["y"],
        domain="com.microsoft",
        mark=0,
        mincharnum=1,
        pad_value="#",
        separators=[" "],
    )
    graph = helper.make_graph(
        [node],
        "tokens",
        [helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [None] * len(shape))],
        [onnx.ValueInfoProto(name="y")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    spec = infer_shapes(facts_of(model), {"x": shape})["y"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (result,) = session.run(None, {"x": np.full(shape, "a b", object)})
    assert spec.dtype == result.dtype == object
    assert spec.rank == result.ndim == len(shape) + 1


def test_sizes_that_depend_on_data_stay_open():
    facts = facts_of(case("Unique", "x=f:T", "y i c").model())
    specs = infer_shapes(facts, {"x": (7,)})
    assert [specs[name].rank for name in "yic"] == [1, 1, 1]
    assert not isinstance(specs["y"].shape[0], int)
    assert specs["i"].shape == (7,)
    assert (specs["i"].dtype, specs["c"].dtype) == (np.int64, np.int64)


def grouped_model(has_past: bool, packed: bool = False, axis: int | list[int] = 1):
    """Return attention whose number of tokens is computed from a mask, as in generative exports."""
    heads = "q - -" if packed else "q k v"
    nodes = [
        node("Shape", "mask", "sizes"),
        node("Gather", "sizes which", "count"),
        node("Cast", "count", "total", to=TensorProto.INT32),
        node("ReduceSum", "mask axis", "lengths", keepdims=0),
        node("Sub", "lengths one", "last"),
        node("Cast", "last", "lasts", to=TensorProto.INT32),
        node(
            "GroupQueryAttention",
            f"{heads} {'past_k past_v' if has_past else '- -'} lasts total",
            "y present_k present_v scores",
            domain=CONTRIB,
            qk_output=1,
            **GROUPS,
        ),
        node("Neg", "present_k", "z"),
    ]
    caches = [value(name, ["B", 2, "P", 8]) for name in ("past_k", "past_v")]
    inputs = [
        value("q", ["B", "T", 64 if packed else 32]),
        *([] if packed else [value("k", ["B", "T", 16]), value("v", ["B", "T", 16])]),
        value("mask", ["B", "L"], INT64),
        *(caches if has_past else []),
    ]
    outputs = [value(name, None) for name in ("y", "present_k", "present_v", "scores", "z")]
    constants = {"one": np.array(1), "axis": np.array([1]), "which": np.array(axis)}
    return make_model(nodes, inputs, outputs, constants, domains=OWN)


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("axis", [1, [1]], ids=["scalar", "vector"])
@pytest.mark.parametrize(
    ("tokens", "past", "total"),
    [(3, None, 3), (1, 4, 5), (1, 9, 5)],
    ids=["first", "grows", "room"],
)
def test_caches_grow_to_the_length_of_the_mask_or_keep_theirs(tokens, past, total, axis, packed):
    model = grouped_model(past is not None, packed, axis)
    feeds = {"q": weights(1, tokens, 64 if packed else 32)}
    if not packed:
        feeds |= {name: weights(1, tokens, 16) for name in "kv"}
    feeds["mask"] = np.ones((1, total), np.int64)
    if past:
        feeds |= {name: weights(1, 2, past, 8) for name in ("past_k", "past_v")}
    names = [output.name for output in model.graph.output]
    expected = dict(zip(names, run_onnx(model, feeds), strict=True))
    assert found(facts_of(model), names, shapes_of(feeds)) == given(expected)


def test_symbols_are_propagated():
    facts = facts_of(grouped_model(has_past=True))
    specs = infer_shapes(facts)
    assert specs["y"].shape == ("B", "T", 32)
    assert [specs["z"].shape[axis] for axis in (0, 1, 3)] == ["B", 2, 8]
    products = facts_of(case("FusedMatMul", "a=f:B,8,T b=f:8,5", transA=1).model())
    assert infer_shapes(products)["y"].shape == ("B", "T", 5)


def chain_model(length: int) -> onnx.ModelProto:
    nodes = [
        node("BiasGelu", f"v{i} b", f"v{i + 1}", f"gelu{i}", domain=CONTRIB) for i in range(length)
    ]
    nodes.append(node("Concat", f"v{length} v{length}", "y", axis=1))
    inputs, outputs = [value("v0", ["N", 4])], [value("y", None)]
    return make_model(nodes, inputs, outputs, {"b": weights(4)}, domains=OWN)


def test_a_chain_takes_one_inference_pass(monkeypatch):
    passes, infer = [], shape_inference.infer_shapes

    def counted(*args, **kwargs):
        passes.append(1)
        return infer(*args, **kwargs)

    monkeypatch.setattr(shape_inference, "infer_shapes", counted)
    assert infer_shapes(facts_of(chain_model(100)), {"v0": (3, 4)})["y"].shape == (3, 8)
    assert len(passes) == 1


def test_the_model_itself_does_not_change():
    facts = facts_of(chain_model(3))
    before = facts.proto.SerializeToString(deterministic=True)
    specs = infer_shapes(facts, {"v0": (3, 4)})
    assert facts.proto.SerializeToString(deterministic=True) == before
    assert set(specs) == {"v0", "v1", "v2", "v3", "b", "y"}


def test_a_model_of_standard_operators_is_unchanged():
    facts = facts_of(bert_model())
    copy = onnx.ModelProto()
    copy.CopyFrom(facts.proto)
    assert write_stand_ins(copy, facts) == frozenset()
    assert copy == facts.proto


def test_missing_imports_of_domains_are_added():
    model = chain_model(2)
    del model.opset_import[1:]
    assert run_onnx(model, {"v0": weights(3, 4)})[0].shape == (3, 8)
    assert infer_shapes(facts_of(model), {"v0": (3, 4)})["y"].shape == (3, 8)


def test_an_unknown_operator_without_import_is_no_error():
    nodes = [node("Secret", "x", "h", domain="other"), node("Relu", "x", "y")]
    model = make_model(nodes, [value("x", ["N", 4])], [value("h", None), value("y", None)])
    assert infer_shapes(facts_of(model), {"x": (3, 4)})["y"].shape == (3, 4)


def test_bodies_are_inferred_too():
    def body(name: str, op: str) -> onnx.GraphProto:
        fused = node(op, "x", f"{name}_h", domain=CONTRIB)
        nodes = [fused, node("Concat", f"{name}_h {name}_h", name, axis=1)]
        return helper.make_graph(nodes, name, [], [value(name, None)])

    choose = helper.make_node(
        "If", ["flag"], ["y"], then_branch=body("a", "Gelu"), else_branch=body("b", "QuickGelu")
    )
    inputs = [value("flag", [], TensorProto.BOOL), value("x", ["N", 4])]
    facts = facts_of(make_model([choose], inputs, [value("y", None)]))
    assert found(facts, ["y"], {"x": (3, 4), "flag": ()})["y"] == (np.dtype("f4"), (3, 8))


def noted_model(op: str, noted) -> onnx.ModelProto:
    """Return x (N, 4) -> h by an operator of com.microsoft, with a value_info for h -> y."""
    nodes = [node(op, "x", "h", domain=CONTRIB), node("Relu", "h", "y")]
    model = make_model(nodes, [value("x", ["N", 4])], [value("y", None)], domains=OWN)
    model.graph.value_info.append(value("h", noted))
    return model


def test_value_info_counts_only_where_inference_finds_nothing():
    facts = facts_of(noted_model("Secret", ["N", 7]))
    assert infer_shapes(facts, {"x": (3, 4)})["y"].shape == (3, 7)
    open_size = noted_model("Unique", [5])
    assert infer_shapes(facts_of(open_size), {"x": (3,)})["y"].shape == (5,)
    stale = noted_model("Gelu", [1, 4])
    assert infer_shapes(facts_of(stale), {"x": (3, 4)})["y"].shape == (3, 4)


def test_functions_of_the_model_are_kept():
    double = helper.make_function(
        CONTRIB,
        "Gelu",
        ["x"],
        ["y"],
        [node("Concat", "x x", "y", axis=1)],
        [helper.make_opsetid("", 17)],
    )
    nodes = [node("Gelu", "x", "y", domain=CONTRIB)]
    model = make_model(
        nodes, [value("x", ["N", 4])], [value("y", None)], domains=OWN, functions=[double]
    )
    facts = facts_of(model, kept_functions=[(CONTRIB, "Gelu")])
    assert [n.op_type for n in facts.nodes] == ["Gelu"]
    assert infer_shapes(facts, {"x": (3, 4)})["y"].shape == (3, 8)


def assert_every_value_is_found(model: onnx.ModelProto, feeds) -> None:
    """Run a model with each value as an output, without optimization, and compare."""
    facts = facts_of(model)
    specs = infer_shapes(facts, shapes_of(feeds))
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    names = {name for made in model.graph.node for name in made.output if name}
    del whole.graph.output[:]
    whole.graph.output.extend(value_info(replace(specs[n], shape=None)) for n in sorted(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = dict(zip(sorted(names), session.run(None, feeds), strict=True))
    assert {n: (specs[n].dtype, specs[n].shape) for n in results} == given(results)


def optimised(source: bytes | str, level: str, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


IDS = {name: np.ones((3, 5), np.int64) for name in ("ids", "mask", "kind")}
LEVELS = pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])


@LEVELS
def test_fused_nodes_of_an_encoder_are_inferred(level, tmp_path):
    source = bert_model().SerializeToString()
    model = optimised(source, level, tmp_path / "optimised.onnx")
    assert {n.op_type for n in model.graph.node} >= {"FusedMatMul", "BiasGelu"}
    assert_every_value_is_found(model, IDS)


def layout_model() -> onnx.ModelProto:
    """Return convolutions and pooling on x (N, 3, 16, 16), which ONNX Runtime runs on blocks."""
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x w1", "a", **same),
        node("Conv", "a w2", "b", **same),
        node("MaxPool", "b", "c", kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", "c w3", "d", group=32, **same),
        node("AveragePool", "d", "e", kernel_shape=[2, 2], ceil_mode=1),
        node(
            "Resize",
            "e - scales",
            "f",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        node("Conv", "f w2", "g", **same),
        node("GlobalMaxPool", "g", "h"),
        node("GlobalAveragePool", "g", "i"),
        node("Add", "h i", "j"),
        node("Conv", "j w4", "k"),
        node("Transpose", "g", "l", perm=[0, 2, 3, 1]),
        node("Softmax", "l", "m"),
    ]
    constants = {
        "w1": weights(32, 3, 3, 3), "w2": weights(32, 32, 3, 3), "w3": weights(32, 1, 3, 3),
        "w4": weights(20, 32, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    outputs = [value("k", None), value("m", None)]
    return make_model(nodes, [value("x", ["N", 3, 16, 16])], outputs, constants)


@LEVELS
def test_operators_on_blocks_of_channels_are_inferred(level, tmp_path):
    source = layout_model().SerializeToString()
    model = optimised(source, level, tmp_path / "optimised.onnx")
    assert_every_value_is_found(model, {"x": weights(2, 3, 16, 16)})


@pytest.mark.parametrize("half", [False, True])
def test_fused_nodes_of_the_transformer_optimizer_are_inferred(half, tmp_path):
    path = tmp_path / "encoder.onnx"
    onnx.save(bert_model(), path)
    fused = optimizer.optimize_model(str(path), "bert", num_heads=2, hidden_size=8, opt_level=0)
    if half:
        fused.convert_float_to_float16(keep_io_types=True)
    assert {n.op_type for n in fused.model.graph.node} >= {"Attention", "SkipLayerNormalization"}
    assert_every_value_is_found(fused.model, IDS)


@pytest.mark.real
@LEVELS
@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("cls.onnx", {"x": np.ones((2, 3, 48, 192), np.float32)}),
        ("det.onnx", {"x": np.ones((2, 3, 64, 96), np.float32)}),
        ("magika.onnx", {"bytes": np.ones((2, 2048), np.int32)}),
        ("rawi.onnx", None),
    ],
)
def test_fused_nodes_of_trained_models_are_inferred(asset, name, feeds, level, tmp_path):
    model = optimised(asset(name), level, tmp_path / "optimised.onnx")
    if feeds is None:
        feeds = {
            spec.name: np.ones([d if isinstance(d, int) else 3 for d in spec.shape], spec.dtype)
            for spec in load_onnx(model).inputs
        }
    assert any(made.domain for made in model.graph.node) or name == "magika.onnx"
    assert_every_value_is_found(model, feeds)
