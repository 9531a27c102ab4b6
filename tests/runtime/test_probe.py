"""Kernels of nodes: which one a plan has, and that it is the one that runs."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import onnx
import pytest
from builders import make_model, node, value, weights
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.core import process_caches
from dask_onnx.core.process_caches import BoundedCache, ProcessCaches
from dask_onnx.runtime import probe
from dask_onnx.runtime.reference import ReferenceSession
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_cache import SESSION_CACHE

X = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)


def kernels(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    loaded = dx.load(model)
    return {
        facts.name: (found.kernel, found.reason)
        for facts, found in zip(loaded.facts.nodes, loaded._facts.kernels, strict=True)
    }


def int4_in_the_middle() -> onnx.ModelProto:
    """Return Relu, casts through integers of 4 bits, which ONNX Runtime does not take, and Mul."""
    return make_model(
        [
            node("Relu", "x", "h", "before"),
            node("Cast", "h", "small", "narrow", to=TensorProto.INT4),
            node("Cast", "small", "wide", "widen", to=TensorProto.FLOAT),
            node("Mul", "wide h", "y", "after"),
        ],
        [value("x", ["N", 6])],
        [value("y", ["N", 6])],
        opset=21,
        ir_version=10,
    )


def test_a_node_without_a_kernel_runs_on_the_reference_and_the_rest_on_onnxruntime():
    found = kernels(int4_in_the_middle())
    assert {name: kernel for name, (kernel, _) in found.items()} == {
        "before": "onnxruntime",
        "narrow": "reference",
        "widen": "reference",
        "after": "onnxruntime",
    }
    assert found["narrow"][1] == "onnxruntime cannot be given tensor(int4)"


@pytest.mark.parametrize("strategy", ["whole", "fused", "per_node"])
def test_a_whole_model_becomes_stages_around_the_reference(strategy):
    model = dx.load(int4_in_the_middle())
    plan = model.plan(strategy)
    if strategy != "per_node":
        assert [stage.kernel for stage in plan.stages] == [
            "onnxruntime",
            "reference",
            "onnxruntime",
        ]
        assert [len(stage.nodes) for stage in plan.stages] == [1, 2, 1]
    h = np.maximum(X, 0)
    np.testing.assert_allclose(model.predict(X, plan=plan), np.trunc(h) * h, rtol=1e-6)
    kinds = {type(session) for session in SESSION_CACHE.sessions.values()}
    assert kinds == {Session, ReferenceSession}


def test_the_plan_shows_kernels_and_their_share_of_the_time():
    text = dx.load(int4_in_the_middle()).plan().explain()
    assert "runs on" in text
    assert "on onnx.reference: " in text and "of the predicted time" in text
    assert "narrow, widen: onnxruntime cannot be given tensor(int4)" in text


def test_kernels_alternate_between_branches_without_a_cycle():
    """Two branches that change kernels at different depths, and meet."""
    wide, narrow = TensorProto.FLOAT, TensorProto.INT4
    model = make_model(
        [
            node("Cast", "x", "a1", "a_narrow", to=narrow),
            node("Cast", "a1", "a2", "a_widen", to=wide),
            node("Neg", "a2", "a3", "a_neg"),
            node("Relu", "x", "b1", "b_relu"),
            node("Cast", "b1", "b2", "b_narrow", to=narrow),
            node("Cast", "b2", "b3", "b_widen", to=wide),
            node("Add", "a3 b3", "y", "meet"),
        ],
        [value("x", ["N", 6])],
        [value("y", ["N", 6])],
        opset=21,
        ir_version=10,
    )
    loaded = dx.load(model)
    plan = loaded.plan()
    for number, stage in enumerate(plan.stages):
        for edge in plan.stage_graph.edges:
            assert edge.producer < edge.consumer
        assert len({loaded._facts.kernels[i].kernel for i in stage.nodes}) == 1, number
    expected = -np.trunc(X) + np.trunc(np.maximum(X, 0))
    np.testing.assert_array_equal(loaded.predict(X), expected)


def test_equal_nodes_are_probed_once(monkeypatch):
    probed = []
    monkeypatch.setattr(process_caches, "PROCESS_CACHES", ProcessCaches())
    monkeypatch.setattr(probe, "_answers", BoundedCache("answers of a test", 100))
    monkeypatch.setattr(probe, "session_build_error", lambda *_: probed.append(1))
    names = ["x", *(f"h{i}" for i in range(20))]
    model = make_model(
        [node("Relu", before, after) for before, after in itertools.pairwise(names)],
        [value("x", ["N", 6])],
        [value(names[-1], ["N", 6])],
    )
    assert dx.load(model).plan("per_node")
    assert len(probed) == 1


def test_a_client_without_onnxruntime_plans_for_workers_with_it(monkeypatch):
    monkeypatch.setattr(probe, "has_onnxruntime", lambda: False)
    monkeypatch.setattr(probe, "session_build_error", None)
    found = kernels(int4_in_the_middle())
    assert found["before"][0] == "onnxruntime" and found["narrow"][0] == "reference"


def test_a_node_without_any_kernel_is_an_error_with_both_reasons():
    model = make_model(
        [node("Multinomial", "x", "y", "draw", sample_size=3, dtype=TensorProto.INT32)],
        [value("x", ["N", 6], TensorProto.DOUBLE)],
        [value("y", ["N", 3], TensorProto.INT32)],
    )
    with pytest.raises(dx.ModelError) as caught:
        dx.load(model).plan()
    assert caught.value.node == "draw"
    assert caught.value.reason.startswith("onnxruntime: 9 : NOT_IMPLEMENTED : ")
    assert "; " in caught.value.reason
    assert [each.option for each in caught.value.suggestions] == [
        "custom_ops",
        "custom_op_libraries",
    ]


def resize(scale: float, mode: str = "align_corners") -> onnx.ModelProto:
    return make_model(
        [
            node(
                "Resize",
                "x - s",
                "y",
                "resize",
                mode="linear",
                coordinate_transformation_mode=mode,
            )
        ],
        [value("x", ["N", 1, 4, 6])],
        [value("y", None)],
        {"s": np.array([1, 1, scale, scale], np.float32)},
        opset=19,
        ir_version=9,
    )


@pytest.mark.parametrize(
    ("scale", "mode", "kernel"),
    [
        (2.0, "align_corners", "onnxruntime"),
        (0.6, "half_pixel", "onnxruntime"),
        (0.6, "align_corners", "reference"),
    ],
)
def test_a_known_bad_kernel_is_not_used(scale, mode, kernel):
    assert kernels(resize(scale, mode))["resize"][0] == kernel


def test_a_resize_to_whole_sizes_runs_on_onnxruntime():
    model = resize(0.5)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert kernels(model)["resize"][0] == "onnxruntime"


def test_seeded_random_numbers_of_the_reference_repeat():
    model = dx.load(
        make_model(
            [node("RandomNormalLike", "x", "r", "draw", seed=7.0), node("Add", "x r", "y")],
            [value("x", ["N", 6])],
            [value("y", ["N", 6])],
        )
    )
    first = model.predict(X, batch_size=None)
    np.testing.assert_array_equal(model.predict(X, batch_size=None), first)
    assert "draw with a seed: a task that is repeated gives the same" in model.plan().explain()


def test_unseeded_random_numbers_differ_between_requests():
    model = dx.load(
        make_model(
            [node("RandomNormalLike", "x", "y", "draw")],
            [value("x", ["N", 6])],
            [value("y", ["N", 6])],
        )
    )
    import dask.array as da

    lazy = da.from_array(X, chunks=(2, 6))
    first, second = model.predict(lazy), model.predict(lazy)
    assert first.name != second.name
    text = model.plan().explain()
    assert "draw without a seed: every request draws anew" in text and "retries" in text


def test_types_behind_a_custom_kernel_come_from_the_values():
    text = """<ir_version: 10, opset_import: ["" : 17, "mine" : 1]>
    g (float[N, 6] x) => (float[N, 6] y) { h = mine.Half (x)  k = Relu (h)  y = Neg (k) }"""
    model = dx.load(text, replace={"mine::Half": lambda x: x / np.float32(2)})
    for strategy in ("whole", "per_node"):
        found = model.predict(X, plan=model.plan(strategy))
        np.testing.assert_array_equal(found, -np.maximum(X / 2, 0))


def test_large_weights_reach_the_reference_through_the_store():
    model = make_model(
        [
            node("Cast", "x", "n", "narrow", to=TensorProto.INT4),
            node("Cast", "n", "w", to=TensorProto.FLOAT),
            helper.make_node("Gemm", ["w", "W", "b"], ["c"], name="gemm"),
            node("DFT", "signal -", "y", "spectrum", axis=1),
        ][3:],
        [value("x", ["N", 6])],
        [value("y", None)],
        {"signal": weights(2, 4096, 1)},
    )
    found = dx.load(model).predict({"x": X}, batch_size=None)
    expected = np.fft.fft(weights(2, 4096, 1)[..., 0])
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, rtol=1e-3, atol=1e-3)


def test_a_failed_reference_stage_has_stage_shapes_and_reason():
    text = """<ir_version: 10, opset_import: ["" : 17, "mine" : 1]>
    g (float[N, 6] x) => (float[N, 6] y) { y = mine.Fail (x) }"""

    def fail(x):
        raise ValueError("no luck")

    model = dx.load(text, replace={"mine::Fail": fail})
    with pytest.raises(dx.RunError, match=r" x \(4, 6\)") as caught:
        model.predict(X)
    assert caught.value.reason.endswith("no luck")


def forest(leaves: int) -> onnx.ModelProto:
    """Return a model of one full tree whose leaf i gives i."""
    count = 2 * leaves - 1
    ids = np.arange(count)
    is_leaf = ids >= leaves - 1
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        name="forest",
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * count,
        nodes_nodeids=ids.tolist(),
        nodes_featureids=(ids % 6).tolist(),
        nodes_values=np.zeros(count).tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        nodes_truenodeids=np.where(is_leaf, 0, 2 * ids + 1).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * ids + 2).tolist(),
        target_treeids=[0] * leaves,
        target_nodeids=ids[is_leaf].tolist(),
        target_ids=[0] * leaves,
        target_weights=np.arange(leaves, dtype=float).tolist(),
    )
    ends = [value("x", ["N", 6])], [value("y", ["N", 1])]
    return make_model([tree], *ends, domains={"ai.onnx.ml": 3})


def test_a_large_forest_is_not_built_and_travels_by_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "session_build_error", None)  # building it would take seconds
    path = tmp_path / "forest.onnx"
    onnx.save_model(forest(2**17), str(path))
    for model in (dx.load(path), dx.load(forest(2**17))):
        assert model._facts.kernels[0].kernel == "onnxruntime"
        pickled = pickle.dumps(model)
        assert len(pickled) < 8192
        copy = pickle.loads(pickled)
        np.testing.assert_array_equal(copy.predict(X), model.predict(X))


def test_answers_keep_digests_of_large_attributes():
    count = 5000
    forest = {
        "nodes_treeids": [0] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": [0] * count,
        "nodes_modes": ["LEAF"] * count,
        "nodes_values": [0.0] * count,
        "nodes_truenodeids": [0] * count,
        "nodes_falsenodeids": [0] * count,
        "target_treeids": [0],
        "target_nodeids": [0],
        "target_ids": [0],
        "target_weights": [1.0],
        "n_targets": 1,
    }
    inputs, outputs = [value("x", ["N", 4])], [value("y", ["N", 1])]
    made = node("TreeEnsembleRegressor", "x", "y", domain="ai.onnx.ml", **forest)
    model = make_model([made], inputs, outputs, domains={"ai.onnx.ml": 3})
    assert len(model.SerializeToString()) > 100_000
    probe._answers.clear()
    assert [each.kernel for each in dx.load(model)._facts.kernels] == ["onnxruntime"]
    assert sum(len(pickle.dumps(key)) for key in probe._answers._entries) < 4096


@pytest.mark.parametrize("outputs", ["y", "y pk pv"])
def test_attention_with_a_cache_that_it_does_not_return_is_refused(outputs):
    cache = [value(name, ["N", 2, "P", 4]) for name in ("pk0", "pv0")]
    attention = node(
        "MultiHeadAttention",
        "q k v - - - pk0 pv0",
        outputs,
        "attention",
        num_heads=2,
        domain="com.microsoft",
    )
    tokens = [value(name, ["N", "T", 8]) for name in "qkv"]
    proto = make_model(
        [attention], [*tokens, *cache], [value("y", None)], domains={"com.microsoft": 1}
    )
    model = dx.load(proto)
    if outputs == "y":
        with pytest.raises(dx.ModelError) as caught:
            model.plan()
        assert caught.value.node == "attention"
        assert "cache" in caught.value.reason
        return
    assert [each.kernel for each in model._facts.kernels] == ["onnxruntime"]
