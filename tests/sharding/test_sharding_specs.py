"""ONNX's sharding specs: followed as they say, held against the algebra, and written."""

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
from dask_onnx.sharding.tensors import TensorPlan

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
    plan = TensorPlan(model, Annotated(configuration), outputs, None, dx.SessionSpec())
    plan.parts()
    return plan


def assert_followed(made: onnx.ModelProto, tasks: int, feeds: Mapping[str, Any]) -> TensorPlan:
    """Whether the plan gives what ORT gives, in so many tasks on shards; returns it."""
    plan = plan_of(made)
    names = list(plan.outputs)
    results = plan.predict(dict(feeds), outputs=names)
    expected = run_onnx(made, dict(feeds))
    for name, right in zip(names, expected, strict=True):
        np.testing.assert_allclose(results[name], right, rtol=1e-4, atol=1e-4)
    assert sum(part.group is not None for part in plan.parts().parts) == tasks
    return plan


X = {"x": weights(6, 8, seed=5)}


@pytest.mark.parametrize("axis", [1, -1])
def test_columns_are_multiplied_apart_and_joined(axis):
    made = product()
    shard(made, "product", "W", {axis: 2})
    plan = assert_followed(made, 2, X)
    assert plan.parts().wholes["y"].how == "join"
    shapes = [list(p.model.parse().graph.initializer[0].dims) for p in plan.parts().parts]
    assert shapes == [[8, 6], [8, 6]]


def test_rows_are_multiplied_apart_and_added():
    made = product()
    shard(made, "product", "x", {1: 4})
    shard(made, "product", "W", {0: 4})
    plan = assert_followed(made, 4, X)
    assert plan.parts().wholes["y"].how == "sum"


def test_what_only_one_operand_says_follows_for_the_other():
    made = product()
    shard(made, "product", "W", {0: 2})
    assert assert_followed(made, 2, X).parts().wholes["y"].how == "sum"


def test_rows_of_the_data_are_multiplied_with_the_whole_weight():
    made = product(rows=6)
    shard(made, "product", "x", {0: 3})
    plan = assert_followed(made, 3, X)
    assert plan.parts().wholes["y"].layout.axis == 0


def test_devices_of_one_group_do_the_same_work_once():
    made = product()
    shard(made, "product", "W", {1: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    assert_followed(made, 2, X)


def test_two_axes_of_a_weight_are_cut_over_four_devices():
    made = product()
    shard(made, "product", "x", {1: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    shard(made, "product", "W", {0: 2, 1: 2})
    plan = assert_followed(made, 4, X)
    y = plan.parts().wholes["y"]
    assert y.how == "join" and {each.how for each in y.of} == {"sum"}
    shapes = {tuple(p.model.parse().graph.initializer[0].dims) for p in plan.parts().parts}
    assert shapes == {(4, 6)}


def test_rows_and_columns_meet_on_four_devices():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [-1, -2], {-1: [0, 1], -2: [2, 3]})
    shard(made, "product", "W", {1: 2}, [-1, -2], {-1: [0, 2], -2: [1, 3]})
    plan = assert_followed(made, 4, X)
    assert {cut.layout.axis for cut in plan.sharding().flow.placed[0].made["y"]} == {0, 1}


def test_shards_that_meet_on_no_device_are_refused():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [0, 1])
    shard(made, "product", "W", {1: 2}, [1, 0])
    with pytest.raises(dx.PlanError, match="no device makes the shard"):
        plan_of(made)


def test_nodes_between_stay_on_the_shards():
    made = declare(dense_model(), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "second", "W2", {0: 2})
    plan = assert_followed(made, 2, {"x": weights(5, 8)})
    assert [len(part.stage.nodes) for part in plan.parts().parts] == [4, 4]


def test_an_output_is_brought_into_the_form_that_it_says():
    made = declare(dense_model(rows=4), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "first", "h1", {0: 2})
    plan = assert_followed(made, 4, {"x": weights(4, 8)})
    flow = plan.sharding().flow
    assert [cut.layout.axis for cut in flow.placed[0].made["h1"]] == [1]
    assert [cut.layout.axis for cut in flow.placed[1].made["h2"]] == [0]


def test_an_input_that_says_nothing_else_is_whole_after_an_explicit_spec():
    made = declare(dense_model(), 2)
    shard(made, "first", "W1", {1: 2})
    shard(made, "bias", "h1", {}, [-1], {-1: [0, 1]})
    plan = assert_followed(made, 2, {"x": weights(5, 8)})
    assert plan.sharding().flow.placed[1].spreads == ()


def test_an_axis_of_several_factors_is_cut_in_blocks():
    made = declare(fused_projection(), 2)
    shard(made, "product_qkv", "W_qkv", {1: [(3, 1), (32, 2)]})
    plan = assert_followed(made, 2, {"x": weights(2, 5, 32)})
    (cut,) = plan.sharding().flow.placed[0].made["qkv_product"]
    assert (cut.layout.outer, cut.layout.inner) == (3, 16)
    assert "attended_product" in plan.parts().wholes


def test_pipeline_stages_part_what_shards_do():
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


def test_a_norm_over_its_shards_is_refused_by_name():
    made = normed()
    shard(made, "norm_y", "h", {1: 2})
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert "'norm_y' (LayerNormalization)" in refused.value.cause
    assert "'h' along axis 1: reduced" in refused.value.cause


def test_a_norm_that_says_nothing_reads_its_input_whole():
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
    assert "'a'" in refused.value.cause and "paired" in refused.value.cause


def test_an_operand_that_is_said_to_be_whole_is_not_cut():
    made = added()
    shard(made, "sum", "a", {0: 2})
    shard(made, "sum", "b", {}, [-1], {-1: [0, 1]})
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert "'b' cut along axis 0" in refused.value.cause


@pytest.mark.parametrize(
    ("tensor", "axes", "devices", "words"),
    [
        ("z", {0: 2}, None, "neither reads nor makes"),
        ("W", {2: 2}, None, "axis 2 of a tensor with 2 axes"),
        ("W", {1: 2, -1: 2}, [0, 1, 2, 3], "one axis twice"),
        ("W", {1: 2}, [0, 1, 2], "3 devices for 2 shards"),
        ("W", {1: 2}, [0, 4], "names device 4; the configuration has 4"),
        ("W", {1: 5}, [0, 1, 2, 3, 0], "axis 1 of size 12 is not 5 equal shards"),
        ("W", {1: [(3, 2), (4, 2)]}, None, "sharded in 2 of its factors"),
        ("W", {1: [(3, 1), (5, 2)]}, None, "has size 12, and the spec says 3 x 5"),
        ("W", {1: 0}, [], "without a positive num_shards"),
        ("W", {1: 4}, [0, 1, 2, 0], "device 0 has shards 0 and 3"),
    ],
)
def test_specs_that_do_not_fit_their_node_are_refused(tensor, axes, devices, words):
    made = product()
    shard(made, "product", tensor, axes, devices)
    with pytest.raises(dx.PlanError) as refused:
        plan_of(made)
    assert words in refused.value.cause and "'product'" in refused.value.cause


def test_different_devices_for_tensors_of_one_node_are_refused():
    made = product(rows=6)
    shard(made, "product", "x", {0: 2}, [0, 1])
    shard(made, "product", "W", {1: 2}, [2, 3])
    with pytest.raises(dx.PlanError, match=r"\[0, 1\] and \[2, 3\]"):
        plan_of(made)


def test_one_of_several_configurations_is_named():
    made = product()
    declare(made, 2, "other")
    shard(made, "product", "W", {1: 2})
    shard(made, "product", "W", {0: 2}, name="other")
    with pytest.raises(dx.PlanError, match="2 configurations: 'mesh', 'other'"):
        plan_of(made)
    assert plan_of(made, "other").parts().wholes["y"].how == "sum"
    with pytest.raises(dx.PlanError, match="'absent'"):
        plan_of(made, "absent")


def test_a_model_that_says_no_shardings_is_refused():
    with pytest.raises(dx.PlanError, match="says how its tensors are sharded"):
        plan_of(dense_model())


# Written.


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
    assert [p.sliced_bytes for p in again.parts().parts if p.group is not None] == [
        p.sliced_bytes for p in plan.parts().parts if p.group is not None
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


def test_another_model_is_not_annotated():
    plan = heads_plan(dx.load(dense_model()), 2)
    with pytest.raises(dx.PlanError, match="not in the model given"):
        plan.annotate(encoder_layer())


def test_minilm_is_annotated_and_runs_as_it_says(asset):
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
    assert sum(part.group is not None for part in again.parts().parts) == 24


def test_explain_says_what_is_cut_and_what_is_added():
    made = product()
    shard(made, "product", "x", {1: 2})
    text = plan_of(made).explain()
    assert "configuration 'mesh': 1 nodes on shards over 4 devices" in text
    assert "'x' along axis 1 in 2, 'W' along axis 0 in 2; adds 96 bytes" in text
