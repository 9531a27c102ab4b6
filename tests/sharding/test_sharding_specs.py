"""ONNX sharding specs are followed, checked by the axis analysis, and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights
from transformer_models import encoder_layer, fused_projection, norm_node, scaled

import dask_onnx as dx
from dask_onnx.sharding.sharding_specs import Annotated
from dask_onnx.sharding.tensor_plan import TensorPlan

Factors = Sequence[tuple[int | None, int]]


def declare(model: onnx.ModelProto, devices: int, name: str = "mesh") -> onnx.ModelProto:
    model.ir_version = max(model.ir_version, 11)
    model.configuration.add(name=name, num_devices=devices)
    return model


def shard(
    model: onnx.ModelProto,
    at: str,
    tensor: str,
    axes: Mapping[int, int | Factors],
    devices: Sequence[int] | None = None,
    groups: Mapping[int, Sequence[int]] | None = None,
    name: str = "mesh",
) -> None:
    """Write a sharding_spec of `tensor` into the node called `at`."""
    found = next(n for n in model.graph.node if n.name == at)
    entry = next((e for e in found.device_configurations if e.configuration_id == name), None)
    entry = entry or found.device_configurations.add(configuration_id=name)
    spec = entry.sharding_spec.add(tensor_name=tensor)
    count = 1
    for axis, factors in axes.items():
        dim = spec.sharded_dim.add(axis=axis)
        for size, shards in [(None, factors)] if isinstance(factors, int) else factors:
            simple = dim.simple_sharding.add(num_shards=shards)
            if size is not None:
                simple.dim_value = size
            count *= shards
    spec.device.extend(range(count) if devices is None else devices)
    for key, group in (groups or {}).items():
        spec.index_to_device_group_map.add(key=key, value=group)


def product(rows: Any = "N", inner: int = 8, columns: int = 12) -> onnx.ModelProto:
    constants = {"W": scaled(inner, columns, seed=1)}
    made = make_model(
        [node("MatMul", "x W", "y", "product")],
        [value("x", [rows, inner])],
        [value("y", [rows, columns])],
        constants,
    )
    return declare(made, 4)


def plan_of(made: onnx.ModelProto, configuration: str | None = None) -> TensorPlan:
    model = dx.load(made)
    outputs = tuple(spec.name for spec in model.outputs)
    plan = TensorPlan(model._facts, Annotated(configuration), outputs, None, dx.SessionSpec())
    plan.partition()
    return plan


def assert_followed(made: onnx.ModelProto, tasks: int, feeds: Mapping[str, Any]) -> TensorPlan:
    """Assert that the plan equals ORT and has `tasks` tasks on shards; return it."""
    plan = plan_of(made)
    names = list(plan.outputs)
    results = plan.predict(dict(feeds), outputs=names)
    expected = run_onnx(made, dict(feeds))
    for name, right in zip(names, expected, strict=True):
        np.testing.assert_allclose(results[name], right, rtol=1e-4, atol=1e-4)
    assert sum(part.group is not None for part in plan.partition().submodels) == tasks
    return plan


X = {"x": weights(6, 8, seed=5)}


@pytest.mark.parametrize("axis", [1, -1])
def test_column_shards_are_multiplied_separately_and_concatenated(axis):
    made = product()
    shard(made, "product", "W", {axis: 2})
    plan = assert_followed(made, 2, X)
    assert plan.partition().wholes["y"].how == "join"
    shapes = [list(p.model.parse().graph.initializer[0].dims) for p in plan.partition().submodels]
    assert shapes == [[8, 6], [8, 6]]


def test_row_shards_are_multiplied_separately_and_summed():
    made = product()
    shard(made, "product", "x", {1: 4})
    shard(made, "product", "W", {0: 4})
    plan = assert_followed(made, 4, X)
    assert plan.partition().wholes["y"].how == "sum"


def test_a_spec_of_one_operand_determines_the_other():
    made = product()
    shard(made, "product", "W", {0: 2})
    assert assert_followed(made, 2, X).partition().wholes["y"].how == "sum"


def test_shards_of_data_rows_read_the_whole_weight():
    made = product(rows=6)
    shard(made, "product", "x", {0: 3})
    plan = assert_followed(made, 3, X)
    assert plan.partition().wholes["y"].layout.axis == 0


def test_devices_of_one_group_share_one_task():
    made = product()
    shard(made, "product", "W", {1: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    assert_followed(made, 2, X)


def test_two_axes_of_a_weight_are_cut_over_four_devices():
    made = product()
    shard(made, "product", "x", {1: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    shard(made, "product", "W", {0: 2, 1: 2})
    plan = assert_followed(made, 4, X)
    y = plan.partition().wholes["y"]
    assert y.how == "join" and {each.how for each in y.of} == {"sum"}
    shapes = {tuple(p.model.parse().graph.initializer[0].dims) for p in plan.partition().submodels}
    assert shapes == {(4, 6)}


def test_rows_and_columns_are_combined_on_four_devices():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    shard(made, "product", "W", {1: 2}, [-1, -2], {-1: [0, 2], -2: [1, 3]})
    plan = assert_followed(made, 4, X)
    assert {cut.layout.axis for cut in plan.sharding().flow.nodes[0].output_layouts["y"]} == {0, 1}


def test_combinations_of_shards_without_a_device_are_refused():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [0, 1])
    shard(made, "product", "W", {1: 2}, [1, 0])
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert refused.value.input == "y"


def test_unannotated_nodes_between_products_run_on_shards():
    made = declare(dense_model(), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "second", "W2", {0: 2})
    plan = assert_followed(made, 2, {"x": weights(5, 8)})
    assert [len(part.stage.nodes) for part in plan.partition().submodels] == [4, 4]


def test_an_output_is_resharded_to_its_annotation():
    made = declare(dense_model(rows=4), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "first", "h1", {0: 2})
    plan = assert_followed(made, 4, {"x": weights(4, 8)})
    flow = plan.sharding().flow
    assert [cut.layout.axis for cut in flow.nodes[0].output_layouts["h1"]] == [1]
    assert [cut.layout.axis for cut in flow.nodes[1].output_layouts["h2"]] == [0]


def test_an_input_annotated_as_whole_is_gathered():
    made = declare(dense_model(), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "bias", "h1", {}, [-1], {-1: [0, 1]})
    plan = assert_followed(made, 2, {"x": weights(5, 8)})
    assert plan.sharding().flow.nodes[1].mesh_axes == ()


def test_an_axis_of_several_factors_is_cut_in_blocks():
    made = declare(fused_projection(), 2)
    shard(made, "product_qkv", "W_qkv", {1: [(3, 1), (32, 2)]})
    plan = assert_followed(made, 2, {"x": weights(2, 5, 32)})
    (cut,) = plan.sharding().flow.nodes[0].output_layouts["qkv_product"]
    assert (cut.layout.outer, cut.layout.inner) == (3, 16)
    assert "attended_product" in plan.partition().wholes


def test_pipeline_stages_split_the_submodels_of_shards():
    made = declare(dense_model(), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "second", "W2", {0: 2})
    for number, each in enumerate(made.graph.node):
        entry = next(iter(each.device_configurations), None)
        entry = entry or each.device_configurations.add(configuration_id="mesh")
        entry.pipeline_stage = number // 2
    assert_followed(made, 4, {"x": weights(5, 8)})


def normed() -> onnx.ModelProto:
    constants: dict[str, Any] = {"W": scaled(8, 16, seed=1)}
    nodes = [node("MatMul", "x W", "h", "product"), norm_node("h", "y", 16, constants)]
    return declare(make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 16])], constants), 2)


def test_a_norm_over_shards_is_refused_with_its_name():
    made = normed()
    shard(made, "norm_y", "h", {1: 2})
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert (refused.value.node, refused.value.input, refused.value.axis) == ("norm_y", "h", 1)
    assert refused.value.reason.startswith("reduced")


def test_an_unannotated_norm_reads_its_input_whole():
    made = normed()
    shard(made, "product", "W", {1: 2})
    assert_followed(made, 2, X)


def added() -> onnx.ModelProto:
    shape = [4, 6]
    return declare(
        make_model(
            [node("Add", "a b", "y", "sum")],
            [value("a", shape), value("b", shape)],
            [value("y", shape)],
        ),
        2,
    )


def test_operands_that_are_cut_differently_are_refused():
    made = added()
    shard(made, "sum", "a", {0: 2})
    shard(made, "sum", "b", {1: 2})
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert refused.value.input == "a" and "paired" in refused.value.reason


def test_an_operand_annotated_as_whole_is_not_cut():
    made = added()
    shard(made, "sum", "a", {0: 2})
    shard(made, "sum", "b", {}, [-1], {-1: [0, 1]})
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert (refused.value.input, refused.value.axis) == ("b", 0)


@pytest.mark.parametrize(
    ("tensor", "axes", "devices", "fields"),
    [
        ("z", {0: 2}, None, {}),
        ("W", {2: 2}, None, {"axis": 2, "numbers": {"rank": 2}}),
        ("W", {1: 2, -1: 2}, [0, 1, 2, 3], {"axis": 1}),
        ("W", {1: 2}, [0, 1, 2], {"numbers": {"devices": 3, "shards": 2}}),
        ("W", {1: 2}, [0, 4], {"numbers": {"device": 4}}),
        ("W", {1: 5}, [0, 1, 2, 3, 0], {"axis": 1, "numbers": {"size": 12, "shards": 5}}),
        ("W", {1: [(3, 2), (4, 2)]}, None, {"axis": 1, "numbers": {"sharded_factors": 2}}),
        ("W", {1: [(3, 1), (5, 2)]}, None, {"axis": 1, "numbers": {"size": 12}}),
        ("W", {1: 0}, [], {}),
        ("W", {1: 4}, [0, 1, 2, 0], {"numbers": {"device": 0}}),
    ],
    ids=[
        "unknown tensor",
        "axis out of range",
        "axis named twice",
        "wrong number of devices",
        "unknown device",
        "size not divisible",
        "two sharded factors",
        "factors do not multiply to the size",
        "no shards",
        "device listed twice",
    ],
)
def test_specs_that_do_not_fit_their_node_are_refused(tensor, axes, devices, fields):
    made = product()
    shard(made, "product", tensor, axes, devices)
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert refused.value.fields == {"node": "product", "input": tensor, **fields}


def test_different_devices_for_tensors_of_one_node_are_refused():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [0, 1])
    shard(made, "product", "W", {1: 2}, [2, 3])
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert refused.value.node == "product"


def test_one_of_several_configurations_has_to_be_named():
    made = product()
    declare(made, 2, "other")
    shard(made, "product", "W", {1: 2})
    shard(made, "product", "W", {0: 2}, name="other")
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert [each.value for each in refused.value.suggestions] == ["mesh", "other"]
    assert plan_of(made, "other").partition().wholes["y"].how == "sum"
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made, "absent")
    assert refused.value.option == "configuration"


def test_a_model_without_sharding_specs_is_refused():
    with pytest.raises(dx.PlanError) as refused:
        plan_of(dense_model())
    assert refused.value.option == "strategy"


# Writing specs.


def heads_plan(model: dx.Model, n: int) -> TensorPlan:
    plan = model.plan(dx.Sharded(axis="heads", n=n))
    assert isinstance(plan, TensorPlan)
    return plan


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (encoder_layer(), (2, 5, 32)),
        (encoder_layer(kv_heads=2), (2, 5, 32)),
        (fused_projection(), (2, 5, 32)),
        (dense_model(), (5, 8)),
    ],
)
def test_shards_of_heads_are_written_and_read_back(made, shape):
    plan = heads_plan(dx.load(made), 2)
    written = plan.annotate()
    onnx.checker.check_model(written)
    assert written.ir_version >= 11 and written.configuration[0].num_devices == 2
    x = weights(*shape)
    np.testing.assert_array_equal(run_onnx(written, {"x": x})[0], run_onnx(made, {"x": x})[0])
    again = plan_of(written)
    assert [p.sliced_bytes for p in again.partition().submodels if p.group is not None] == [
        p.sliced_bytes for p in plan.partition().submodels if p.group is not None
    ]
    np.testing.assert_allclose(again.predict(x), plan.predict(x), rtol=1e-5, atol=1e-5)


def test_annotations_are_written_into_the_file_that_was_loaded(tmp_path):
    path, target = tmp_path / "dense.onnx", tmp_path / "sharded.onnx"
    onnx.save(dense_model(), path)
    onnx.save(heads_plan(dx.load(path), 4).annotate(path), target)
    x = weights(5, 8)
    read = onnx.load(target)
    assert_followed(read, 4, {"x": x})
    again = heads_plan(dx.load(target), 2).annotate(target)
    assert [(c.name, c.num_devices) for c in again.configuration] == [("dask_onnx", 2)]
    assert_followed(again, 2, {"x": x})


def test_the_name_of_the_strategy_is_enough():
    model = dx.load(heads_plan(dx.load(dense_model()), 2).annotate())
    by_name, by_object = (model.plan(each) for each in ("from_annotations", dx.from_annotations()))
    assert by_name.explain() == by_object.explain()
    assert isinstance(by_name, TensorPlan)


def test_another_model_is_not_annotated():
    plan = heads_plan(dx.load(dense_model()), 2)
    with pytest.raises(dx.PlanError) as refused:
        plan.annotate(encoder_layer())
    assert (refused.value.option, refused.value.node) == ("model", "first")


def test_minilm_runs_as_annotated(asset):
    model = dx.load(asset("minilm.onnx"))
    plan = heads_plan(model, 2)
    again = plan_of(plan.annotate())
    ids = np.arange(10).reshape(1, 10)
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    np.testing.assert_allclose(again.predict(feeds), model.predict(feeds), rtol=1e-4, atol=1e-4)
    assert sum(part.group is not None for part in again.partition().submodels) == 24


def test_explain_lists_cuts_and_partial_sums():
    made = product()
    shard(made, "product", "x", {1: 2})
    text = plan_of(made).explain()
    assert "configuration 'mesh': 1 nodes on shards over 4 devices" in text
    assert "'x' along axis 1 in 2, 'W' along axis 0 in 2; adds 96 bytes" in text
