"""Tensor-parallel plans: cuts, refusals, and results equal to those of the whole model."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights
from dask.delayed import delayed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from random_models import models
from transformer_models import (
    conv_net,
    encoder_layer,
    fused_projection,
    gated_mlp,
    norm_node,
    scaled,
)

import dask_onnx as dx
from dask_onnx.modelio.weights import BlobPlace
from dask_onnx.sharding.tensor_plan import TensorPlan


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return weights(*shape, seed=seed)


def plan_of(model: dx.Model, n: int, **options: Any) -> TensorPlan:
    plan = model.plan(dx.Sharded(axis="heads", n=n), **options)
    assert isinstance(plan, TensorPlan)
    return plan


def assert_equals_whole(model: dx.Model, n: int, x: Any, *, tolerance: float = 1e-4) -> Any:
    """Assert that the plan on `n` shards equals the whole model; return the plan."""
    plan = plan_of(model, n)
    names = [spec.name for spec in model.outputs]
    whole = model.predict(x, outputs=names)
    sharded = model.predict(x, outputs=names, plan=plan)
    for name in names:
        assert sharded[name].dtype == whole[name].dtype
        np.testing.assert_allclose(sharded[name], whole[name], rtol=tolerance, atol=tolerance)
    return plan


def starts(plan: Any) -> list[list[str]]:
    """Names of the products whose columns are cut, of each group."""
    found = plan.sharding()
    nodes = found.graph.facts.nodes
    return [[nodes[i].name for i in group.starts] for group in found.groups]


@pytest.mark.parametrize("n", [2, 4])
def test_columns_and_rows_of_a_dense_net_are_cut_and_partial_results_added(n):
    plan = assert_equals_whole(dx.load(dense_model()), n, rows(5, 8))
    (group,) = plan.sharding().groups
    assert starts(plan) == [["first"]]
    assert group.sums == ("y",) and not group.joins
    assert len([part for part in plan.partition().submodels if part.group == 0]) == n


@pytest.mark.parametrize("n", [2, 4])
def test_an_encoder_layer_runs_on_heads_and_on_columns_of_its_mlp(n):
    plan = assert_equals_whole(dx.load(encoder_layer()), n, rows(3, 7, 32))
    assert starts(plan) == [["product_q", "product_k", "product_v"], ["product_up"]]
    attention, mlp = plan.sharding().groups
    assert attention.sums == ("attended_product",)
    assert mlp.sums == ("down_product",)


def test_grouped_queries_are_cut_with_the_heads_that_they_share():
    plan = assert_equals_whole(dx.load(encoder_layer(kv_heads=2)), 2, rows(2, 5, 32))
    assert starts(plan)[0] == ["product_q", "product_k", "product_v"]


def test_more_shards_than_key_heads_are_refused():
    model = dx.load(encoder_layer(kv_heads=2))
    with pytest.raises(dx.PlanError) as refused:
        plan_of(model, 4)
    assert refused.value.option == "n" and refused.value.numbers == {"n": 4}
    assert refused.value.node == "product_k"
    assert "(2, 64, 2, 8)" in refused.value.reason
    assert refused.value.suggestions == (dx.Suggestion("n", 2),)


@pytest.mark.parametrize("n", [3, 8])
def test_shards_that_end_inside_heads_are_refused(n):
    model = dx.load(encoder_layer())
    with pytest.raises(dx.PlanError) as refused:
        plan_of(model, n)
    assert refused.value.numbers == {"n": n}
    assert refused.value.suggestions[:2] == (dx.Suggestion("n", 2), dx.Suggestion("n", 4))


def test_products_whose_results_are_multiplied_are_cut_together():
    plan = assert_equals_whole(dx.load(gated_mlp()), 4, rows(6, 16))
    assert starts(plan) == [["gate_product", "up_product"]]


def test_a_matrix_of_queries_keys_and_values_is_cut_in_three_blocks():
    plan = assert_equals_whole(dx.load(fused_projection()), 2, rows(2, 6, 32))
    assert starts(plan) == [["product_qkv"]]
    (group,) = plan.sharding().groups
    first = group.starts[0]
    assert group.steps[first].cuts[1].outer == 3


@pytest.mark.parametrize("n", [2, 4])
def test_a_conv_net_runs_on_channels(n):
    plan = assert_equals_whole(dx.load(conv_net()), n, rows(2, 3, 6, 7), tolerance=1e-3)
    assert starts(plan) == [["first"]]
    assert plan.sharding().groups[0].sums == ("y",)


def test_a_norm_of_cut_columns_is_refused_with_its_name():
    constants = {"W": scaled(8, 16, seed=1)}
    nodes = [node("MatMul", "x W", "h", "product"), norm_node("h", "y", 16, constants)]
    model = dx.load(make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 16])], constants))
    with pytest.raises(dx.PlanError) as refused:
        plan_of(model, 2)
    assert refused.value.node == "product" and "norm_y" in refused.value.cause
    assert refused.value.reason == "reduced (mean)"


def test_columns_that_no_node_needs_together_are_concatenated():
    constants = {"W": scaled(8, 16, seed=1), "b": weights(16, seed=2)}
    nodes = [node("MatMul", "x W", "h", "product"), node("Add", "h b", "y", "bias")]
    model = dx.load(make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 16])], constants))
    plan = assert_equals_whole(model, 4, rows(3, 8))
    (group,) = plan.sharding().groups
    assert not group.sums and list(group.joins) == ["y"] and group.joins["y"].axis == 1


def test_a_model_without_weights_is_refused():
    model = dx.load(make_model([node("Relu", "x", "y")], [value("x", ["N"])], [value("y", ["N"])]))
    with pytest.raises(dx.PlanError) as refused:
        plan_of(model, 2)
    assert refused.value.option == "axis"


def quantized_mlp() -> onnx.ModelProto:
    """Dynamically quantised products with a scale for each column."""
    rng = np.random.default_rng(0)
    constants = {
        "up": rng.integers(-127, 127, (16, 32)).astype(np.int8),
        "up_scale": (rng.random(32) / 500).astype(np.float32),
        "up_zero": np.zeros(32, np.int8),
        "down": rng.integers(-127, 127, (32, 16)).astype(np.int8),
        "down_scale": np.float32(0.004),
        "down_zero": np.int8(0),
    }

    def product(source: str, name: str) -> list[onnx.NodeProto]:
        return [
            node(
                "DynamicQuantizeLinear", source, f"{name}_q {name}_s {name}_z", f"quantize_{name}"
            ),
            node("MatMulInteger", f"{name}_q {name} {name}_z {name}_zero", f"{name}_i", name),
            node("Cast", f"{name}_i", f"{name}_c", to=TensorProto.FLOAT),
            node("Mul", f"{name}_s {name}_scale", f"{name}_scales"),
            node("Mul", f"{name}_c {name}_scales", f"{name}_f"),
        ]

    nodes = [*product("x", "up"), node("Relu", "up_f", "h"), *product("h", "down")]
    shape = ["N", 16]
    return make_model(nodes, [value("x", shape)], [value("down_f", shape)], constants)


def test_a_quantisation_statistic_is_taken_over_all_shards_together():
    plan = assert_equals_whole(dx.load(quantized_mlp()), 2, rows(4, 16), tolerance=1e-6)
    first = plan.sharding().groups[0]
    assert starts(plan)[0] == ["up"]
    assert list(first.joins) == ["h"] and not first.sums


def test_dequantised_weights_are_cut_with_their_scales():
    rng = np.random.default_rng(0)
    constants = {
        "up_q": rng.integers(-127, 127, (32, 16)).astype(np.int8),
        "up_s": (rng.random(32) / 100).astype(np.float32),
        "down_q": rng.integers(-127, 127, (32, 16)).astype(np.int8),
        "down_s": np.float32(0.01),
    }
    nodes = [
        node("DequantizeLinear", "up_q up_s", "up_t", axis=0),
        node("Transpose", "up_t", "up", perm=[1, 0]),
        node("MatMul", "x up", "h", "first"),
        node("Relu", "h", "r"),
        node("DequantizeLinear", "down_q down_s", "down"),
        node("MatMul", "r down", "y", "second"),
    ]
    shape = ["N", 16]
    model = dx.load(make_model(nodes, [value("x", shape)], [value("y", shape)], constants))
    # ORT's fusions of whole dequantised products compute in eight bits.
    exact = dx.SessionSpec(optimization="basic")
    plan = plan_of(model, 4, session=exact)
    x = rows(3, 16)
    whole = model.predict(x, plan=model.plan("whole", session=exact))
    np.testing.assert_allclose(plan.predict(x), whole, rtol=1e-4, atol=1e-4)
    first = next(part for part in plan.partition().submodels if part.group == 0)
    assert plan.sharding().groups[0].sums == ("y",)
    assert first.sliced_bytes == (2 * 32 * 16 + 32 * 4) // 4


def fused_attention(op: str, **attributes: int) -> onnx.ModelProto:
    """Projections around an attention operator of com.microsoft, of 4 heads of 16."""
    kv = 16 * attributes.get("kv_num_heads", 4)
    constants = {
        "Wq": scaled(64, 64, seed=1),
        "Wk": scaled(64, kv, seed=2),
        "Wv": scaled(64, kv, seed=3),
        "Wo": scaled(64, 64, seed=4),
        "lengths": np.array([4, 4], np.int32),
        "length": np.array([5], np.int32),
        "bias": weights(64 + 2 * kv, seed=5),
    }
    rest = "- - lengths length" if op == "GroupQueryAttention" else "bias"
    nodes = [
        node("MatMul", "x Wq", "q", "queries"),
        node("MatMul", "x Wk", "k", "keys"),
        node("MatMul", "x Wv", "v", "values"),
        node(op, f"q k v {rest}", "a", "attend", domain="com.microsoft", num_heads=4, **attributes),
        node("MatMul", "a Wo", "y", "out"),
    ]
    shape = [2, 5, 64]
    return make_model(
        nodes,
        [value("x", shape)],
        [value("y", shape)],
        constants,
        domains={"com.microsoft": 1},
    )


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("MultiHeadAttention", {}), ("GroupQueryAttention", {"kv_num_heads": 2})],
)
def test_fused_attention_runs_with_fewer_heads_in_each_shard(op, attributes):
    model = dx.load(fused_attention(op, **attributes))
    plan = assert_equals_whole(model, 2, rows(2, 5, 64))
    assert starts(plan) == [["queries", "keys", "values"]]
    assert plan.sharding().groups[0].sums == ("y",)


def test_fused_grouped_queries_name_the_heads_that_are_too_few():
    model = dx.load(fused_attention("GroupQueryAttention", kv_num_heads=2))
    with pytest.raises(dx.PlanError) as refused:
        plan_of(model, 4)
    assert "kv_num_heads of 2" in refused.value.reason


def test_packed_attention_is_cut_in_its_own_weights():
    constants = {
        "W": scaled(32, 96, seed=1),
        "b": weights(96, seed=2),
        "Wo": scaled(32, 32, seed=3),
    }
    nodes = [
        node("Attention", "x W b", "a", "attend", domain="com.microsoft", num_heads=4),
        node("MatMul", "a Wo", "y", "out"),
    ]
    shape = ["N", "T", 32]
    made = make_model(
        nodes, [value("x", shape)], [value("y", shape)], constants, domains={"com.microsoft": 1}
    )
    plan = assert_equals_whole(dx.load(made), 4, rows(2, 5, 32))
    assert starts(plan) == [["attend"]]


def test_weights_of_four_bits_are_cut_in_whole_blocks():
    rng = np.random.default_rng(0)

    def packed(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        blocks = rows // 16
        return {
            name: rng.integers(0, 255, (columns, blocks, 8), np.uint8),
            f"{name}_s": (rng.random(columns * blocks) / 50).astype(np.float32),
            f"{name}_z": rng.integers(0, 255, columns * blocks // 2, np.uint8),
        }

    constants = {**packed("up", 32, 128), **packed("down", 128, 32)}

    def product(source: str, name: str, result: str, rows: int, columns: int) -> onnx.NodeProto:
        return node(
            "MatMulNBits",
            f"{source} {name} {name}_s {name}_z",
            result,
            name,
            domain="com.microsoft",
            K=rows,
            N=columns,
            bits=4,
            block_size=16,
        )

    nodes = [
        product("x", "up", "h", 32, 128),
        node("Relu", "h", "r"),
        product("r", "down", "y", 128, 32),
    ]
    made = make_model(
        nodes,
        [value("x", ["N", 32])],
        [value("y", ["N", 32])],
        constants,
        domains={"com.microsoft": 1},
    )
    plan = assert_equals_whole(dx.load(made), 4, rows(3, 32), tolerance=2e-3)
    assert starts(plan) == [["up"]] and plan.sharding().groups[0].sums == ("y",)


def test_attention_of_einsums_is_cut_along_the_letter_of_its_heads():
    constants = {
        f"W{name}": scaled(16, 32, seed=i).reshape(16, 4, 8) for i, name in enumerate("qkv")
    }
    constants["Wo"] = scaled(32, 16, seed=4).reshape(4, 8, 16)
    nodes = [
        node("Einsum", f"x W{name}", name, f"make_{name}", equation="btw,whd->bthd")
        for name in "qkv"
    ]
    nodes += [
        node("Einsum", "q k", "s", "scores", equation="bthd,bshd->bhts"),
        node("Softmax", "s", "p", axis=-1),
        node("Einsum", "p v", "a", "weigh", equation="bhts,bshd->bthd"),
        node("Einsum", "a Wo", "y", "join", equation="bthd,hdw->btw"),
    ]
    shape = ["N", "T", 16]
    made = make_model(nodes, [value("x", shape)], [value("y", shape)], constants)
    plan = assert_equals_whole(dx.load(made), 4, rows(2, 5, 16))
    assert starts(plan) == [["make_q", "make_k", "make_v"]]
    assert plan.sharding().groups[0].sums == ("y",)


def test_whole_operands_are_sliced_along_the_cut_axis():
    constants = {"W": scaled(8, 16, seed=1), "V": scaled(16, 8, seed=2)}
    nodes = [
        node("MatMul", "x W", "h", "up"),
        node("Mul", "h factor", "m", "weigh"),
        node("MatMul", "m V", "y", "down"),
    ]
    inputs = [value("x", ["N", 8]), value("factor", ["N", 16])]
    model = dx.load(make_model(nodes, inputs, [value("y", ["N", 8])], constants))
    assert_equals_whole(model, 2, {"x": rows(3, 8), "factor": rows(3, 16, seed=3)})


def test_a_shape_computed_from_cut_columns_is_that_of_the_shard():
    constants = {
        "W": scaled(8, 16, seed=1),
        "V": scaled(16, 8, seed=2),
        "minus": np.array([-1], np.int64),
        "last": np.array([1], np.int64),
    }
    nodes = [
        node("MatMul", "x W", "h", "up"),
        node("Shape", "h", "s", "measure"),
        node("Gather", "s last", "width", axis=0),
        node("Concat", "minus width", "target", axis=0),
        node("Relu", "h", "r"),
        node("Reshape", "r target", "f", "flatten"),
        node("MatMul", "f V", "y", "down"),
    ]
    made = make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 8])], constants)
    plan = assert_equals_whole(dx.load(made), 2, rows(3, 8))
    assert plan.sharding().groups[0].sums == ("y",)


def test_weights_that_two_nodes_share_are_cut_for_one_and_whole_for_the_other():
    constants = {"W": scaled(16, 16, seed=1), "V": scaled(16, 16, seed=2)}
    nodes = [
        node("MatMul", "x W", "h", "up"),
        node("Relu", "h", "r"),
        node("MatMul", "r V", "d", "down"),
        node("Softmax", "d", "p", axis=-1),
        node("MatMul", "p W", "e", "again"),
        node("Softmax", "e", "y", axis=-1),
    ]
    shape = ["N", 16]
    model = dx.load(make_model(nodes, [value("x", shape)], [value("y", shape)], constants))
    plan = assert_equals_whole(model, 2, rows(3, 16))
    assert starts(plan) == [["up"]]


def test_building_reads_no_weights_and_runs_nothing(tmp_path, monkeypatch):
    path = tmp_path / "encoder.onnx"
    onnx.save_model(
        encoder_layer(), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    model = dx.load(path)

    def raises(*_: Any, **__: Any) -> Any:
        raise AssertionError("something ran")

    with dask.config.set(scheduler=raises), monkeypatch.context() as patch:
        patch.setattr(BlobPlace, "read", raises)
        plan = plan_of(model, 2)
        x = rows(3, 5, 32)
        lazy = model.predict(da.from_array(x, chunks=(2, 5, 32)), plan=plan)
        late = model.predict(delayed(x), plan=plan)
    whole = model.predict(x)
    assert lazy.chunks == ((2, 1), (5,), (32,))
    np.testing.assert_allclose(lazy.compute(), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(late.compute(), whole, rtol=1e-4, atol=1e-4)


def test_each_shard_reads_its_own_bytes_of_the_weights(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save_model(
        dense_model(hidden=256), path, save_as_external_data=True, location="w", size_threshold=0
    )
    plan = plan_of(dx.load(path), 4)
    shards = [part.model for part in plan.partition().submodels if part.group == 0]
    sizes = [sum(place.length for place in model.places.values()) for model in shards]
    whole = 4 * (8 * 256 + 256 * 4)
    assert all(whole // 4 <= size < whole // 4 + 2048 for size in sizes)
    assert len({model.token for model in shards}) == 4


def test_explain_lists_bytes_of_shards_and_of_partial_sums():
    plan = plan_of(dx.load(dense_model(hidden=256)), 2, shapes={"x": (10, 8)})
    text = plan.explain()
    assert f"{4 * (8 * 256 + 256 + 256 * 4) // 2:,} for each shard" in text
    assert f"adds 'y', partial sums of second: {2 * 10 * 4 * 4:,} bytes" in text


@pytest.mark.parametrize("n", [2, 3])
def test_minilm_runs_on_its_heads(asset, n):
    model = dx.load(asset("minilm.onnx"))
    ids = np.random.default_rng(0).integers(0, 30000, (2, 9))
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    plan = assert_equals_whole(model, n, feeds)
    assert len(plan.sharding().groups) == 12
    assert all(group.sums for group in plan.sharding().groups)


def test_five_shards_do_not_divide_the_heads_of_minilm(asset):
    with pytest.raises(dx.PlanError) as refused:
        plan_of(dx.load(asset("minilm.onnx")), 5)
    assert "384 columns" in refused.value.reason
    assert [each.value for each in refused.value.suggestions[:4]] == [2, 3, 4, 6]


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(models(), st.sampled_from([2, 3]))
def test_random_graphs_on_shards_equal_the_whole(made, n):
    model = dx.load(made)
    names = [spec.name for spec in model.outputs]
    try:
        plan = plan_of(model, n)
    except dx.PlanError:
        return
    feeds = {"x": rows(4, 6), "z": rows(4, 6, seed=1)}
    needed = {spec.name for spec in model._facts.inputs_of(tuple(names))}
    with dask.config.set(scheduler="synchronous"):
        results = plan.predict({k: v for k, v in feeds.items() if k in needed}, outputs=names)
    for name, expected in zip(names, run_onnx(made, feeds), strict=True):
        np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-4)
