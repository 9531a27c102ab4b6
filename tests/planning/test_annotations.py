"""Stages from ONNX's own annotations, and plans written as such annotations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import (
    branching_model,
    captured_model,
    dense_model,
    layers_model,
    make_model,
    node,
    run_onnx,
    value,
    weights,
)
from onnx import helper, numpy_helper

import dask_onnx as dx
from dask_onnx.core.errors import Suggestion
from dask_onnx.runtime.session_cache import SESSION_CACHE

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def annotated(model, stages, name="mine", devices=2):
    """Annotate a model by hand with the stage of each node, by its name."""
    model.ir_version = 11
    model.configuration.add(name=name, num_devices=devices)
    for each in model.graph.node:
        if each.name in stages:
            each.device_configurations.add(configuration_id=name, pipeline_stage=stages[each.name])
    return model


def names_of(plan):
    """The nodes of each stage by name."""
    nodes = plan.facts.graph.nodes
    return [[nodes[i].name for i in stage.nodes] for stage in plan.stages]


def stages_in(model, name="dask_onnx"):
    """Return the annotated stage of each node, by its first output."""
    found = [
        (each.output[0], entry.pipeline_stage)
        for each in model.graph.node
        for entry in each.device_configurations
        if entry.configuration_id == name
    ]
    assert len(dict(found)) == len(found)  # no node has two
    return dict(found)


def chain(*stages):
    """Return x -> n0 -> n1 ...: a node for each stage; None stands for no annotation."""
    ops = ["Relu", "Neg", "Abs", "Exp", "Sigmoid"]
    names = ["x", *(f"v{i}" for i in range(len(stages)))]
    nodes = [node(ops[i % 5], names[i], names[i + 1], f"n{i}") for i in range(len(stages))]
    made = make_model(nodes, [value("x", ["N", 8])], [value(names[-1], ["N", 8])])
    return annotated(made, {f"n{i}": k for i, k in enumerate(stages) if k is not None})


def test_nodes_of_one_number_are_a_stage_in_ascending_order():
    model = dx.load(chain(-3, 5, 5, 40))
    plan = model.plan(dx.from_annotations())
    assert names_of(plan) == [["n0"], ["n1", "n2"], ["n3"]]
    np.testing.assert_array_equal(model.predict(X, plan=plan), model.predict(X))


def test_the_strategy_can_be_named():
    model = dx.load(chain(0, 1))
    assert names_of(model.plan("from_annotations")) == [["n0"], ["n1"]]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ((None, 0, None, 1, None), [["n0", "n1", "n2"], ["n3", "n4"]]),
        ((None, None, 4, None, 7), [["n0", "n1", "n2", "n3"], ["n4"]]),
    ],
)
def test_a_node_without_a_number_joins_its_producers_or_else_its_consumers(stages, expected):
    assert names_of(dx.load(chain(*stages)).plan(dx.from_annotations())) == expected


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            {"stem": 0, "left": 1, "left_end": 2, "join": 3},
            [["stem", "middle", "right"], ["left"], ["left_end"], ["join"]],
        ),
        (
            {"left": 1, "left_end": 2, "join": 3},
            [["stem", "left"], ["left_end"], ["middle", "right", "join"]],
        ),
        ({"left": 1, "middle": 2}, [["stem", "left", "left_end"], ["middle", "right", "join"]]),
    ],
)
def test_branches_without_numbers_join_the_nodes_before_or_else_after_them(stages, expected):
    model = dx.load(annotated(branching_model(), stages))
    plan = model.plan(dx.from_annotations())
    assert names_of(plan) == expected
    whole = model.predict(X[:, :4])
    for name, found in model.predict(X[:, :4], plan=plan).items():
        np.testing.assert_array_equal(found, whole[name])


def test_parts_without_a_path_to_a_number_are_in_the_first_stage():
    made = make_model(
        [
            node("Neg", "x", "a", "a"),
            node("Relu", "z", "b", "b"),
            node("Abs", "a", "c", "c"),
            node("Exp", "b", "d", "d"),
        ],
        [value("x", ["N", 8]), value("z", ["N", 8])],
        [value("c", ["N", 8]), value("d", ["N", 8])],
    )
    plan = dx.load(annotated(made, {"a": 3, "c": 4})).plan(dx.from_annotations())
    assert names_of(plan) == [["a", "b", "d"], ["c"]]


def test_nodes_that_depend_on_weights_alone_join_their_consumer():
    made = make_model(
        [
            node("Transpose", "W", "T", "turn", perm=[1, 0]),
            node("Relu", "x", "h", "first"),
            node("MatMul", "h T", "y", "second"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 4])],
        {"W": weights(4, 8)},
    )
    plan = dx.load(annotated(made, {"first": 0, "second": 1})).plan(dx.from_annotations())
    assert names_of(plan) == [["first"], ["turn", "second"]]


def test_a_plan_for_an_intermediate_value_has_the_stages_that_it_needs():
    model = dx.load(chain(0, 1, 2))
    plan = model.plan(dx.from_annotations(), outputs="v1")
    assert names_of(plan) == [["n0"], ["n1"]]
    assert names_of(model.plan(dx.from_annotations()).for_outputs(("v0",))) == [["n0"]]


def test_stages_against_the_data_flow_are_refused_with_names():
    with pytest.raises(dx.PlanError) as error:
        dx.load(chain(1, 0, 0)).plan(dx.from_annotations())
    assert error.value.option == "configuration" and error.value.node == "n1"
    assert error.value.numbers == {"faults": 1}
    assert "node 'n1' of stage 0 reads 'v0', which 'n0' produces in stage 1" in error.value.cause


def test_stages_against_the_data_flow_over_a_node_without_one_are_refused():
    with pytest.raises(dx.PlanError) as error:
        dx.load(chain(1, None, 0)).plan(dx.from_annotations())
    assert error.value.node == "n2" and "as follows from its inputs" in error.value.cause


def test_a_model_without_stages_is_refused_and_told_how_to_get_them():
    with pytest.raises(dx.PlanError) as error:
        dx.load(dense_model()).plan(dx.from_annotations())
    assert error.value.suggestions == (Suggestion("strategy", "pipeline"),)
    assert ".annotate(path)" in error.value.next_step
    only_devices = annotated(dense_model(), {}, "tensors")
    with pytest.raises(dx.PlanError, match="its configurations 'tensors' have no stages"):
        dx.load(only_devices).plan(dx.from_annotations())


def test_one_of_several_configurations_must_be_named():
    made = annotated(chain(0, 0, 1), {"n0": 0, "n1": 1, "n2": 2}, "fine", devices=3)
    model = dx.load(annotated(made, {}, "empty"))
    choices = [Suggestion("configuration", "mine"), Suggestion("configuration", "fine")]
    with pytest.raises(dx.PlanError) as error:
        model.plan(dx.from_annotations())
    assert error.value.numbers == {"configurations": 2}
    assert list(error.value.suggestions) == choices
    assert len(model.plan(dx.from_annotations("mine")).stages) == 2
    assert len(model.plan(dx.from_annotations(configuration="fine")).stages) == 3
    for name in ("empty", "other"):
        with pytest.raises(dx.PlanError) as error:
            model.plan(dx.from_annotations(name))
        assert error.value.option == "configuration"
        assert list(error.value.suggestions) == choices


@pytest.mark.parametrize(
    ("devices", "worker_groups"), [(1, None), (2, (0, 1, 0)), (3, (0, 1, 2)), (8, (0, 1, 2))]
)
def test_stages_keep_to_as_many_worker_groups_as_there_are_devices(devices, worker_groups):
    made = chain(0, 1, 2)
    made.configuration[0].num_devices = devices
    placement = dx.load(made).plan(dx.from_annotations()).placement
    assert (None if placement is None else placement.worker_groups) == worker_groups


def test_a_stage_that_two_kernels_run_stays_on_its_worker_group():
    model = dx.load(chain(0, 0, 1, 2), replace={"Neg": np.negative})
    plan = model.plan(dx.from_annotations())
    assert [stage.kernel for stage in plan.stages] == [
        "onnxruntime",
        "custom",
        *["onnxruntime"] * 2,
    ]
    assert plan.placement.worker_groups == (0, 0, 1, 0)


def test_a_configuration_that_only_nodes_name_has_stages_and_no_worker_groups():
    made = chain(0, 1)
    del made.configuration[:]
    plan = dx.load(made).plan(dx.from_annotations())
    assert len(plan.stages) == 2 and plan.placement is None


def test_sharded_tensors_run_on_shards():
    made = chain(0, 1)
    spec = made.graph.node[1].device_configurations[0].sharding_spec.add(tensor_name="v0")
    spec.device.extend([0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(num_shards=2)
    model = dx.load(made)
    plan = model.plan(dx.from_annotations(), shapes={"x": (2 * len(X), 8)})
    assert "1 nodes on shards over 2 devices" in plan.explain()
    both = np.concatenate([X, X])
    np.testing.assert_array_equal(model.predict(both, plan=plan), model.predict(both))


def test_equal_nodes_share_a_session_whatever_their_stages():
    nodes = [node("Neg", "x", "a"), node("Neg", "a", "b"), node("Neg", "b", "y")]
    made = make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 8])])
    for number, each in enumerate(nodes):
        each.name = made.graph.node[number].name = f"n{number}"
    model = dx.load(annotated(made, {"n0": 0, "n1": 1, "n2": 2}))
    plan = model.plan(dx.from_annotations())
    np.testing.assert_array_equal(model.predict(X, plan=plan), -X)
    assert len(plan.stages) == 3 and len(SESSION_CACHE.sessions) == 1


def test_annotations_are_content():
    tokens = {dx.load(chain(*stages)).token for stages in [(0, 1), (0, 1), (0, 2)]}
    assert len(tokens) == 2


# Functions and old opsets: forms that loading changes


def function_model(first, second):
    """Return two calls of Twice = Neg after Inner = Abs after Relu, with the calls' stages."""
    opset = helper.make_opsetid("", 17)
    inner = helper.make_function(
        "own", "Inner", ["a"], ["c"], [node("Relu", "a", "b"), node("Abs", "b", "c")], [opset]
    )
    twice = helper.make_function(
        "own",
        "Twice",
        ["p"],
        ["q"],
        [helper.make_node("Inner", ["p"], ["r"], domain="own"), node("Neg", "r", "q")],
        [opset, helper.make_opsetid("own", 1)],
    )
    calls = [
        helper.make_node("Twice", ["x"], ["h"], name="one", domain="own"),
        helper.make_node("Twice", ["h"], ["y"], name="two", domain="own"),
    ]
    made = make_model(
        calls,
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"own": 1},
        ir_version=11,
        functions=[inner, twice],
    )
    return annotated(made, {} if first is None else {"one": first, "two": second})


def test_the_stage_of_a_call_holds_for_the_nodes_of_its_body():
    written = function_model(0, 1)
    model = dx.load(written)
    plan = model.plan(dx.from_annotations())
    operators = [[model.facts.nodes[i].op_type for i in stage.nodes] for stage in plan.stages]
    assert operators == [["Relu", "Abs", "Neg"]] * 2
    assert not model.facts.proto.functions
    (expected,) = run_onnx(written, {"x": X})
    np.testing.assert_array_equal(model.predict(X, plan=plan), expected)


def test_the_stage_of_a_node_in_a_body_is_kept():
    written = function_model(0, 3)
    written.functions[1].node[1].device_configurations.add(
        configuration_id="mine", pipeline_stage=3
    )
    stages = dx.load(written).plan(dx.from_annotations()).stages
    assert [len(stage.nodes) for stage in stages] == [2, 4]


def test_the_stage_of_a_call_within_a_body_holds_for_its_nodes():
    written = function_model(None, None)
    for number, each in enumerate(written.functions[1].node):
        each.device_configurations.add(configuration_id="mine", pipeline_stage=number)
    written.graph.node.pop()
    written.graph.output[0].name = "h"
    model = dx.load(written)
    operators = [
        [model.facts.nodes[i].op_type for i in stage.nodes]
        for stage in model.plan(dx.from_annotations()).stages
    ]
    assert operators == [["Relu", "Abs"], ["Neg"]]


def test_sharding_of_a_calls_tensors_goes_to_the_nodes_that_have_them():
    written = function_model(0, 1)
    written.graph.node[1].device_configurations[0].sharding_spec.add(tensor_name="h")
    model = dx.load(written)
    entries = [
        list(each.device_configurations[0].sharding_spec) for each in model.facts.proto.graph.node
    ]
    assert [len(specs) for specs in entries] == [0, 0, 0, 1, 0, 0]
    assert model.facts.proto.graph.node[3].input[0] == entries[3][0].tensor_name == "h"


def test_a_call_that_stays_a_node_keeps_its_stage():
    written = function_model(0, 1)
    model = dx.load(written, replace={"own::Twice": lambda x: -np.maximum(x, 0)})
    assert names_of(model.plan(dx.from_annotations())) == [["one"], ["two"]]
    assert [(f.name, f.overload) for f in model.facts.proto.functions] == [("Twice", "")]


def test_a_model_of_an_old_opset_keeps_the_stages_of_its_nodes():
    made = make_model(
        [
            node("Add", "x b", "h", "shift", broadcast=1),
            node("Relu", "h", "r", "activate"),
            node("Dropout", "r", "y", "drop", is_test=1),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        {"b": weights(8)},
        opset=6,
    )
    model = dx.load(annotated(made, {"shift": 0, "activate": 1, "drop": 1}))
    assert model.opsets[""] == 7
    plan = model.plan(dx.from_annotations())
    assert [len(stage.nodes) for stage in plan.stages] == [1, 2]


def test_an_extracted_model_keeps_the_stages_of_its_nodes():
    part = dx.load(chain(0, 1, 2)).extract(inputs=["v0"])
    plan = part.plan(dx.from_annotations())
    assert names_of(plan) == [["n1"], ["n2"]]
    assert plan.placement.worker_groups == (0, 1)


# Writing


@pytest.fixture
def layers():
    return layers_model([64, 512, 64, 128])


def test_an_annotated_model_runs_everywhere_and_is_cut_alike(layers, tmp_path):
    plan = dx.load(layers).plan("pipeline", n_stages=3)
    path = tmp_path / "annotated.onnx"
    onnx.save(plan.annotate(), path)
    onnx.checker.check_model(path, full_check=True)
    (expected,) = run_onnx(layers, {"x": X})
    (plainly,) = run_onnx(onnx.load(path), {"x": X})
    np.testing.assert_array_equal(plainly, expected)
    model = dx.load(path)
    again = model.plan(dx.from_annotations())
    assert names_of(again) == names_of(plan) and len(again.stages) == 3
    assert again.placement.worker_groups == (0, 1, 2)
    np.testing.assert_array_equal(
        model.predict(X, plan=again), dx.load(layers).predict(X, plan=plan)
    )
    np.testing.assert_allclose(model.predict(X, plan=again), model.predict(X), rtol=1e-5, atol=1e-4)


def test_annotating_changes_annotations_and_nothing_else(layers):
    before = layers.SerializeToString()
    written = dx.load(layers).plan("pipeline", n_stages=2).annotate(layers)
    assert layers.SerializeToString() == before
    assert written.ir_version == 11
    (configuration,) = written.configuration
    assert (configuration.name, configuration.num_devices) == ("dask_onnx", 2)
    assert list(configuration.device) == ["worker_0", "worker_1"]
    assert set(stages_in(written)) == {name for each in layers.graph.node for name in each.output}
    for each in written.graph.node:
        del each.device_configurations[:]
        del each.metadata_props[:]
    del written.configuration[:]
    written.ir_version = layers.ir_version
    assert written.SerializeToString() == before


def test_a_newer_ir_version_stays():
    made = dense_model()
    made.ir_version = 12
    assert dx.load(made).plan("per_node").annotate(made).ir_version == 12


def test_worker_groups_are_devices(layers):
    plan = dx.load(layers).plan("fused", n_stages=4).with_placement(dx.Placement((0, 1, 0, 1)))
    written = plan.annotate()
    assert written.configuration[0].num_devices == 2
    again = dx.load(written).plan(dx.from_annotations())
    assert again.placement == plan.placement


def test_another_name_replaces_its_own_and_keeps_the_others():
    made = chain(0, 0, 1)
    model = dx.load(made)
    written = model.plan("per_node").annotate(made)
    written = dx.load(written).plan("fused", n_stages=2).annotate(written)
    assert [c.name for c in written.configuration] == ["mine", "dask_onnx"]
    assert stages_in(written, "mine") == {"v0": 0, "v1": 0, "v2": 1}
    assert sorted(set(stages_in(written).values())) == [0, 1] and len(stages_in(written)) == 3
    renamed = model.plan("whole").annotate(made, configuration="mine")
    assert stages_in(renamed, "mine") == {"v0": 0, "v1": 0, "v2": 0}
    assert [c.num_devices for c in renamed.configuration] == [1]


def test_a_model_is_matched_by_its_values(tmp_path):
    """Constants are initializers once loaded, nodes have names, and stand in another order."""
    made = make_model(
        [
            node("MatMul", "h W", "y"),
            helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(weights(8, 4))),
            node("Relu", "x", "h"),
            helper.make_node("Constant", [], ["unread"], value_int=1),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 4])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    plan = dx.load(path).plan("per_node")
    assert (
        stages_in(plan.annotate(path))
        == stages_in(plan.annotate(str(path)))
        == {"h": 0, "W": 1, "y": 1}
    )
    assert [each.name for each in plan.annotate(path).graph.node] == [""] * 4
    assert stages_in(plan.annotate()) == {"h": 0, "y": 1}


def test_another_model_is_refused():
    plan = dx.load(dense_model()).plan("per_node")
    with pytest.raises(dx.PlanError) as error:
        plan.annotate(branching_model())
    assert error.value.numbers == {"nodes": 4} and error.value.node == "first"


def test_a_node_with_bodies_has_one_stage_for_them():
    made = captured_model()
    flag = np.array(True)
    x = X[:, :4]
    plan = dx.load(made).plan("per_node")
    written = plan.annotate(made)
    assert stages_in(written) == {"h": 0, "y": 1}
    again = dx.load(written).plan(dx.from_annotations())
    (expected,) = run_onnx(made, {"x": x, "flag": flag})
    found = again.predict({"x": x, "flag": flag})
    np.testing.assert_array_equal(found, expected)


def test_a_call_in_one_stage_is_annotated_and_one_that_is_cut_is_refused():
    written = function_model(0, 1)
    model = dx.load(written)
    between = model.plan(dx.at_values(["h"])).annotate(written)
    assert stages_in(between) == {"h": 0, "y": 1}
    assert names_of(dx.load(between).plan(dx.from_annotations("dask_onnx"))) == names_of(
        model.plan(dx.at_values(["h"]))
    )
    with pytest.raises(dx.PlanError) as error:
        model.plan("per_node").annotate(written)
    assert error.value.node == "one" and error.value.numbers == {"nodes": 3, "stages": 3}
    inlined = model.plan("per_node").annotate()
    assert sorted(stages_in(inlined).values()) == [0, 1, 2, 3, 4, 5]
    onnx.checker.check_model(inlined)


def test_an_annotated_model_has_its_weights_wherever_they_came_from(tmp_path):
    made = layers_model([300, 40])  # large ones, and small ones that share a blob
    path, beside = tmp_path / "m.onnx", tmp_path / "external" / "m.onnx"
    beside.parent.mkdir()
    (expected,) = run_onnx(made, {"x": X})
    onnx.save(made, path)
    onnx.save(made, beside, save_as_external_data=True, location="weights", size_threshold=0)
    made = onnx.load(path)  # saving took the weights out of it
    for source in (made, path, beside):
        written = dx.load(source).plan("fused", n_stages=2).annotate()
        np.testing.assert_array_equal(run_onnx(written, {"x": X})[0], expected)


def test_external_data_of_a_path_stay_where_they_are(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(
        layers_model([300]), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    model = dx.load(path)
    written = model.plan("fused", n_stages=2).annotate(path)
    assert written.ByteSize() < 2000
    onnx.save(written, tmp_path / "annotated.onnx")
    assert len(list(tmp_path.iterdir())) == 3
    again = dx.load(tmp_path / "annotated.onnx")
    plan = again.plan(dx.from_annotations())
    assert len(plan.stages) == 2
    np.testing.assert_allclose(again.predict(X, plan=plan), model.predict(X), rtol=1e-5, atol=1e-5)


def test_more_weights_than_a_proto_holds_stay_in_their_files(tmp_path):
    made = make_model(
        [node("MatMul", "x W", "h", "large"), node("Relu", "h", "y", "end")],
        [value("x", ["N", 2**15])],
        [value("y", ["N", 2**14])],
    )
    tensor = made.graph.initializer.add(name="W", data_type=1, dims=[2**15, 2**14])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    with open(tmp_path / "weights", "wb") as file:
        file.truncate(2**31)  # takes no place on the disk
    onnx.save(made, tmp_path / "m.onnx")
    plan = dx.load(tmp_path / "m.onnx").plan("per_node")
    with pytest.raises(dx.ModelError, match="2,147,483,648 bytes of weights") as error:
        plan.annotate()
    assert "pass the path" in error.value.next_step
    assert stages_in(plan.annotate(tmp_path / "m.onnx")) == {"h": 0, "y": 1}


def test_a_plan_for_an_intermediate_value_annotates_only_its_nodes():
    made = make_model(
        [node("Relu", "x", "a", "a"), node("Neg", "a", "b", "b"), node("Abs", "b", "y", "c")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )
    plan = dx.load(made).plan("per_node", outputs="b")
    assert stages_in(plan.annotate(made)) == {"a": 0, "b": 1}


@pytest.mark.real
def test_a_real_model_is_annotated_saved_and_followed(asset, tmp_path):
    whole = dx.load(asset("det.onnx"))
    plan = whole.plan("pipeline", n_stages=3)
    path = tmp_path / "det.onnx"
    onnx.save(plan.annotate(asset("det.onnx")), path)
    onnx.checker.check_model(path)
    model = dx.load(path)
    again = model.plan(dx.from_annotations())
    assert names_of(again) == names_of(plan) and len(again.stages) == 3
    spec = model.inputs[0]
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    (plainly,) = run_onnx(onnx.load(path), {spec.name: x})
    np.testing.assert_array_equal(
        plainly, run_onnx(onnx.load(asset("det.onnx")), {spec.name: x})[0]
    )
    expected = whole.predict(x)
    np.testing.assert_allclose(plainly, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict(x, plan=again), expected, rtol=1e-4, atol=1e-5)


def test_nodes_that_several_stages_repeat_are_warned_of():
    nodes = [node("Mul", "x two", "p", "cheap")]
    constants = {"two": np.array(2, np.float32)}
    for side in "ab":
        constants |= {f"u{side}": weights(64, 4096), f"d{side}": weights(4096, 64)}
        nodes += [
            node("MatMul", f"p u{side}", f"h{side}"),
            node("MatMul", f"h{side} d{side}", side),
        ]
    nodes.append(node("Add", "a b", "y"))
    proto = make_model(nodes, [value("x", ["N", 64])], [value("y", ["N", 64])], constants)
    plan = dx.load(proto).plan("branches", shapes={"x": (512, 64)})
    with pytest.warns(UserWarning, match="node 'cheap' run in several stages"):
        plan.annotate()


def test_viewers_find_the_stage_its_seconds_and_its_bytes_at_each_node(layers, tmp_path):
    plan = dx.load(layers).plan("pipeline", n_stages=2)
    plan.visualize(tmp_path / "plan.onnx")
    written = onnx.load(tmp_path / "plan.onnx")
    onnx.checker.check_model(written)
    for number, stage in enumerate(plan.stages):
        sent = sum(edge.bytes for edge in plan.stage_graph.edges if edge.producer == number)
        for index in stage.nodes:
            notes = {each.key: each.value for each in written.graph.node[index].metadata_props}
            assert notes["dask_onnx.stage"] == f"{number}: {stage.label}"
            assert float(notes["dask_onnx.stage_seconds"]) == pytest.approx(
                stage.cost.seconds, rel=1e-5
            )
            assert int(notes["dask_onnx.stage_sent_bytes"]) == sent
    again = dx.load(written).plan("pipeline", n_stages=3).annotate(written)
    keys = [each.key for each in again.graph.node[0].metadata_props]
    assert len(keys) == len(set(keys)) == 5
