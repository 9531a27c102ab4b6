"""Damaged and hostile models are refused when they are loaded, with the place of the fault."""

from __future__ import annotations

import os
import time

import dask
import numpy as np
import onnx
import pytest
from builders import make_model, node, value
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import dask_onnx as dx
from dask_onnx.core.errors import ModelError, UnexpectedModelError
from dask_onnx.modelio.loop_checks import MAX_TURNS

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
X, Y = value("x", ["N", 4]), value("y", None)


def model_of(nodes, weights=(), inputs=(X,), outputs=(Y,), **more):
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), list(weights))
    more.setdefault("opset_imports", IMPORTS)
    return helper.make_model(graph, ir_version=8, **more)


def function(name, nodes, inputs=("a",), outputs=("b",), attributes=()):
    return helper.make_function(
        "mine", name, list(inputs), list(outputs), nodes, IMPORTS, list(attributes)
    )


def call(name, inputs="a", outputs="b"):
    return helper.make_node(name, inputs.split(), outputs.split(), domain="mine")


def refusal(model) -> ModelError:
    """Return the error of loading a model, which no check may have missed."""
    with pytest.raises(ModelError) as caught:
        dx.load(model)
    assert not isinstance(caught.value, UnexpectedModelError), caught.value
    return caught.value


def tensor(name="w", dims=(4,), data_type=TensorProto.FLOAT, **fields):
    made = TensorProto(name=name, data_type=data_type, dims=dims)
    for field, given in fields.items():
        if field == "raw_data":
            made.raw_data = given
        else:
            getattr(made, field).extend(given)
    return made


# Functions


def doubling(levels):
    functions = [function("f0", [node("Relu", "a", "b")])]
    for level in range(1, levels):
        inner = f"f{level - 1}"
        functions.append(function(f"f{level}", [call(inner, "a", "c"), call(inner, "c", "b")]))
    return model_of([call(f"f{levels - 1}", "x", "y")], functions=functions)


@pytest.mark.parametrize("levels", [30, 90])
def test_functions_that_double_are_refused_before_they_are_inlined(levels):
    start = time.process_time()
    error = refusal(doubling(levels))
    assert error.numbers["nodes"] == 2 ** (levels - 1)
    assert error.option == "onnx.model.max-nodes"
    assert time.process_time() - start < 2


def test_functions_that_double_a_few_times_are_inlined():
    assert len(dx.load(doubling(9)).facts.nodes) == 2**8


def test_calls_inside_bodies_count_too():
    body = helper.make_graph([call("f29", "x", "y")], "b", [], [Y])
    model = doubling(30)
    del model.graph.node[:]
    model.graph.node.append(node("If", "c", "y", then_branch=body, else_branch=body))
    model.graph.input.append(value("c", [], TensorProto.BOOL))
    assert refusal(model).numbers["nodes"] == 2 * 2**29 + 1


def test_a_function_may_not_call_itself_through_others():
    functions = [
        function("f", [call("g")]),
        function("g", [call("h")]),
        function("h", [call("f")]),
    ]
    error = refusal(model_of([call("f", "x", "y")], functions=functions))
    assert error.node in ("f", "g", "h")
    assert "->" in error.cause


def test_a_function_may_not_call_itself_in_a_body():
    body = helper.make_graph([call("f", "a", "q")], "b", [], [value("q", None)])
    nodes = [node("If", "c", "b", then_branch=body, else_branch=body)]
    functions = [function("f", nodes, inputs=("a", "c"))]
    model = model_of(
        [call("f", "x c", "y")],
        functions=functions,
        inputs=[X, value("c", [], TensorProto.BOOL)],
    )
    assert refusal(model).node == "f"


@pytest.mark.parametrize(("length", "is_loaded"), [(100, True), (101, False), (5000, False)])
def test_chains_of_calls_are_bounded(length, is_loaded):
    functions = [function("f0", [node("Relu", "a", "b")])]
    functions += [function(f"f{i}", [call(f"f{i - 1}")]) for i in range(1, length)]
    model = model_of([call(f"f{length - 1}", "x", "y")], functions=functions)
    if is_loaded:
        assert len(dx.load(model).facts.nodes) == 1
    else:
        assert refusal(model).numbers["calls"] == length


def test_a_call_may_not_give_more_than_its_function_takes():
    functions = [function("f", [node("Relu", "a", "b")])]
    error = refusal(model_of([call("f", "x x", "y")], functions=functions))
    assert error.numbers == {"inputs": 2, "most": 1}


def test_the_limit_of_nodes_counts_the_graph_itself():
    nodes = [node("Relu", "x", "v0")] + [node("Relu", f"v{i}", f"v{i + 1}") for i in range(20)]
    model = model_of([*nodes, node("Relu", "v20", "y")])
    with dask.config.set({"onnx.model.max-nodes": 21}):
        assert refusal(model).numbers == {"nodes": 22, "most_nodes": 21}
    with dask.config.set({"onnx.model.max-nodes": 22}):
        assert dx.load(model).facts.nodes


# Names and references


@pytest.mark.parametrize(
    ("nodes", "weights", "fault"),
    [
        ([node("Relu", "x", "y"), node("Neg", "x", "y")], [], "y"),
        ([node("Relu", "x", "y")], [tensor("y", (1,), raw_data=bytes(4))], "y"),
        ([node("Neg", "x", "x"), node("Relu", "x", "y")], [], "x"),
        ([node("Relu", "gone", "y")], [], "gone"),
        ([node("Relu", "x", "y"), node("Relu", "gone", "z")], [], "gone"),
        ([node("Relu", "x", "z")], [], "y"),
    ],
    ids=["twice", "weight", "input", "missing", "dead node", "no output"],
)
def test_each_value_has_one_definition(nodes, weights, fault):
    assert refusal(model_of(nodes, weights)).input == fault


def test_two_inputs_of_one_name_are_refused():
    assert refusal(model_of([node("Relu", "x", "y")], inputs=[X, X])).input == "x"


def test_a_repeated_initializer_is_accepted_as_by_onnx_runtime():
    first = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    last = numpy_helper.from_array(np.ones(4, np.float32), "w")
    model = dx.load(model_of([node("Add", "x w", "y")], [first, last]))
    assert model.facts.initializers == {"w"}


@pytest.mark.parametrize("place", ["node", "value", "initializer", "domain", "operator"])
def test_names_that_are_not_text_are_refused(place):
    model = model_of([node("Add", "x w", "y", name="QQQQ")], [tensor(raw_data=bytes(16))])
    targets = {
        "node": b"QQQQ",
        "value": b"\x12\x01y",
        "initializer": b"\x42\x01w",
        "domain": b"mine",
        "operator": b"Add",
    }
    data = model.SerializeToString()
    target = targets[place]
    assert target in data
    damaged = data.replace(target, target[:-1] + b"\xf4")
    assert "UTF-8" in refusal(damaged).cause


@pytest.mark.parametrize("depth", [3, 28])
def test_bodies_may_be_nested(depth):
    assert dx.load(nested(depth)).facts.nodes


@pytest.mark.parametrize("depth", [33, 500])
def test_bodies_may_not_be_nested_too_deep(depth):
    model = onnx.ModelProto()
    model.CopyFrom(nested(1))
    graph = model.graph
    for _ in range(depth):
        inner = graph.node.add(op_type="If", input=["c"], output=[f"q{depth}"])
        first = inner.attribute.add(name="then_branch", type=AttributeProto.GRAPH)
        other = inner.attribute.add(name="else_branch", type=AttributeProto.GRAPH)
        other.g.output.add(name="x")
        first.g.output.add(name="x")
        graph = first.g
    assert refusal(model)


def nested(depth):
    branch = helper.make_graph([node("Relu", "x", "y")], "b", [], [Y])
    for _ in range(depth):
        other = helper.make_graph([node("Neg", "x", "y")], "e", [], [Y])
        inner = node("If", "c", "y", then_branch=branch, else_branch=other)
        branch = helper.make_graph([inner], "b", [], [Y])
    return model_of(list(branch.node), inputs=[X, value("c", [], TensorProto.BOOL)])


# Tensors and types


@pytest.mark.parametrize(
    "weight",
    [
        tensor(raw_data=bytes(3)),
        tensor(raw_data=bytes(32)),
        tensor(dims=(-4,), raw_data=bytes(16)),
        tensor(dims=(-2, -2), raw_data=bytes(16)),
        tensor(dims=(2**62,), raw_data=bytes(16)),
        tensor(dims=(2**62, 0), raw_data=b""),
        tensor(dims=(2**40, 2**40), raw_data=b""),
        tensor(dims=(1,) * 65, raw_data=bytes(4)),
        tensor(data_type=99, raw_data=bytes(16)),
        tensor(data_type=TensorProto.UNDEFINED, raw_data=bytes(16)),
        tensor(data_type=-1, raw_data=bytes(16)),
        tensor(float_data=[1, 2]),
        tensor(float_data=[1, 2, 3, 4, 5]),
        tensor(),
        tensor(data_type=TensorProto.STRING, string_data=[b"a"]),
        tensor(data_type=TensorProto.INT4, raw_data=bytes(4)),
        tensor(data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3, 4]),
    ],
)
def test_tensors_have_the_values_that_their_sizes_need(weight):
    assert refusal(model_of([node("Add", "x w", "y")], [weight])).input == "w"
    # The value of a node is a tensor too.
    constant = helper.make_node("Constant", [], ["w"], value=weight)
    assert refusal(model_of([constant, node("Add", "x w", "y")])).input == "w"


@pytest.mark.parametrize(
    "weight",
    [
        tensor(raw_data=bytes(16)),
        tensor(float_data=[1, 2, 3, 4]),
        tensor(raw_data=bytes(16), float_data=[1]),
        tensor(dims=(0,), raw_data=b""),
        tensor(dims=(0, 7)),
        tensor(data_type=TensorProto.INT4, raw_data=bytes(2)),
        tensor(data_type=TensorProto.INT4, int32_data=[1, 2]),
        tensor(dims=(3,), data_type=TensorProto.UINT4, raw_data=bytes(2)),
        tensor(data_type=TensorProto.FLOAT16, int32_data=[0, 1, 2, 3]),
        tensor(data_type=TensorProto.BOOL, raw_data=bytes(4)),
        tensor(data_type=TensorProto.UINT64, uint64_data=[1, 2, 3, 4]),
        tensor(data_type=TensorProto.STRING, string_data=[b"a"] * 4),
        tensor(dims=(2,), data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3, 4]),
    ],
)
def test_every_way_to_store_a_tensor_is_accepted(weight):
    model = model_of([node("Relu", "x", "y"), node("Identity", "w", "z")], [weight])
    assert dx.load(model).facts.initializers == {"w"}


@pytest.mark.parametrize("elem_type", [-(2**31), -1, 77, 2**31 - 1])
@pytest.mark.parametrize("where", ["input", "output", "value_info"])
def test_declared_types_exist(elem_type, where):
    model = model_of([node("Relu", "x", "v"), node("Relu", "v", "y")])
    if where == "value_info":
        model.graph.value_info.append(value("v", [1]))
    getattr(model.graph, where)[0].type.tensor_type.elem_type = elem_type
    assert refusal(model).numbers == {"element_type": elem_type}


def test_an_input_has_no_more_axes_than_an_array():
    model = model_of([node("Relu", "x", "y")], inputs=[value("x", [1] * 70)])
    assert refusal(model).numbers == {"axes": 70, "most_axes": 64}


def sparse(values, indices, dims):
    made = onnx.SparseTensorProto(dims=dims)
    made.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "s"))
    made.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), ""))
    return made


@pytest.mark.parametrize(
    "weight",
    [
        sparse([1, 2], [1, 9], [4]),
        sparse([1, 2], [-1, 1], [4]),
        sparse([1, 2], [2, 1], [4]),
        sparse([1, 2], [1], [4]),
        sparse([1, 2], [1, 2], [2**62, 4]),
    ],
    ids=["outside", "negative", "unsorted", "fewer", "huge"],
)
def test_sparse_initializers_lie_inside_their_sizes(weight):
    model = model_of([node("Add", "x s", "y")])
    model.graph.sparse_initializer.append(weight)
    assert refusal(model).input == "s"


def test_a_sound_sparse_initializer_is_loaded():
    model = model_of([node("Add", "x s", "y")])
    model.graph.sparse_initializer.append(sparse([1, 2], [1, 3], [4]))
    assert dx.load(model).facts.initializers == {"s"}


# Attributes and operators


def changed(change):
    concat = node("Concat", "x x", "y", name="c", axis=1)
    change(concat)
    return model_of([concat])


@pytest.mark.parametrize(
    "change",
    [
        lambda n: setattr(n.attribute[0], "type", AttributeProto.FLOAT),
        lambda n: setattr(n.attribute[0], "type", 0),
        lambda n: setattr(n.attribute[0], "type", AttributeProto.GRAPH),
        lambda n: setattr(n.attribute[0], "name", ""),
        lambda n: setattr(n.attribute[0], "ref_attr_name", "gone"),
        lambda n: n.attribute.append(n.attribute[0]),
        lambda n: n.ClearField("attribute"),
        lambda n: n.ClearField("input"),
        lambda n: n.ClearField("output"),
        lambda n: n.output.append("z"),
        lambda n: setattr(n, "op_type", ""),
    ],
    ids=[
        "type",
        "no type",
        "graph",
        "no name",
        "reference",
        "twice",
        "missing",
        "inputs",
        "outputs",
        "two outputs",
        "operator",
    ],
)
def test_nodes_are_as_their_operator_defines_them(change):
    model = changed(change)
    if not model.graph.node[0].output:
        model.graph.output[0].name = "x"
    assert refusal(model).node in ("c", "")


def test_an_operator_of_the_caller_has_attributes_of_its_own():
    # Concat of the domain "mine" is not ONNX's, and a replaced one neither.
    own = helper.make_node("Concat", ["x"], ["y"], domain="mine", axis=1.5)
    model = dx.load(model_of([own]), replace={"mine::Concat": lambda x, axis: x * axis})
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(model.predict(x), x * 1.5)


@pytest.mark.parametrize("target", ["gone", ""])
def test_references_to_attributes_belong_to_functions(target):
    inner = helper.make_node("LeakyRelu", ["a"], ["b"])
    attribute = inner.attribute.add(name="alpha", type=AttributeProto.FLOAT)
    attribute.ref_attr_name = target or "alpha"
    functions = [function("f", [inner], attributes=["alpha"])]
    model = model_of([call("f", "x", "y")], functions=functions)
    if target:
        assert refusal(model).node == "LeakyRelu_0"
    else:
        assert dx.load(model).facts.nodes[0].op_type == "LeakyRelu"


@pytest.mark.parametrize("version", [0, -1, 2**62, -(2**62)])
def test_versions_exist(version):
    model = model_of([node("Relu", "x", "y")])
    model.opset_import[0].version = version
    assert refusal(model).numbers == {"opset": version}


@pytest.mark.parametrize("op_type", ["If", "Loop", "Scan"])
def test_bodies_take_what_their_node_gives(op_type):
    body = helper.make_graph([node("Relu", "x", "b")], "b", [value("i", [1])], [value("b", None)])
    nodes = {
        "If": node("If", "c", "y", name="n", then_branch=body, else_branch=body),
        "Loop": node("Loop", "t c x", "y", name="n", body=body),
        "Scan": node("Scan", "x", "y z", name="n", body=body, num_scan_inputs=1),
    }
    inputs = [X, value("c", [], TensorProto.BOOL), value("t", [], TensorProto.INT64)]
    assert refusal(model_of([nodes[op_type]], inputs=inputs)).node == "n"


# Loops


def loop_model(turns, *, condition="", keeps_on="go", limit=""):
    body = helper.make_graph(
        [node("Identity", keeps_on, "on"), node("Add", "s x", "t"), node("Not", "go", "stop")],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("s", None),
        ],
        [value("on", [], TensorProto.BOOL), value("t", None)],
    )
    weights = [numpy_helper.from_array(np.array(True), "true")]
    if turns is not None:
        weights.append(numpy_helper.from_array(np.array(turns, np.int64), "turns"))
    name = "" if turns is None else "turns"
    loop = helper.make_node("Loop", [limit or name, condition, "x"], ["y"], "loop", body=body)
    inputs = [X]
    if limit:
        inputs.append(value(limit, [], TensorProto.INT64))
    return model_of([loop], weights, inputs=inputs)


@pytest.mark.parametrize("condition", ["", "true"])
@pytest.mark.parametrize("keeps_on", ["go", "true"])
@pytest.mark.parametrize("turns", [2**62, MAX_TURNS + 1, None])
def test_loops_without_an_end_are_refused(turns, condition, keeps_on):
    error = refusal(loop_model(turns, condition=condition, keeps_on=keeps_on))
    assert error.node == "loop"
    assert error.numbers.get("turns") == turns


@pytest.mark.parametrize(
    "model",
    [
        loop_model(5),
        loop_model(MAX_TURNS),
        loop_model(-1),
        loop_model(2**62, keeps_on="stop"),
        loop_model(None, limit="n"),
    ],
    ids=["few", "most", "negative", "condition", "input"],
)
def test_loops_that_may_end_are_loaded(model):
    if any(n.input[0] == "stop" for n in model.graph.node[0].attribute[0].g.node):
        body = model.graph.node[0].attribute[0].g
        order = [body.node[2], body.node[0], body.node[1]]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in order]
        del body.node[:]
        body.node.extend(nodes)
    assert dx.load(model).facts.nodes


# Trees


def trees(**changes):
    given = {
        "n_targets": 1,
        "nodes_treeids": [0, 0, 0, 0, 0],
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0, 1, 0, 0, 0],
        "nodes_values": [0.5, -0.5, 0.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ"] * 2 + ["LEAF"] * 3,
        "nodes_truenodeids": [1, 2, 0, 0, 0],
        "nodes_falsenodeids": [4, 3, 0, 0, 0],
        "target_treeids": [0, 0, 0],
        "target_nodeids": [2, 3, 4],
        "target_ids": [0, 0, 0],
        "target_weights": [1.0, 2.0, 3.0],
    }
    ensemble = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "trees", domain="ai.onnx.ml", **(given | changes)
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return model_of([ensemble], opset_imports=imports)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_truenodeids": [1, 0, 0, 0, 0]},
        {"nodes_truenodeids": [1, 1, 0, 0, 0]},
        {"nodes_truenodeids": [0, 2, 0, 0, 0]},
        {"nodes_truenodeids": [1, 9, 0, 0, 0]},
        {"nodes_truenodeids": [1, -1, 0, 0, 0]},
        {"nodes_truenodeids": [1, 2**62, 0, 0, 0]},
        {"nodes_truenodeids": [1, 2]},
        {"nodes_nodeids": [0, 1, 2, 3, 3]},
        {"nodes_nodeids": [0, 1, 2, 3, -4]},
        {"nodes_treeids": [0, 0, 0, 0, 2**62]},
        {"nodes_featureids": [-1, 1, 0, 0, 0]},
        {"target_ids": [0, 0, 1]},
        {"target_ids": [0, 0, -1]},
        {"target_nodeids": [2, 3, 77]},
        {"target_treeids": [0, 0, 5]},
        {"target_treeids": [0]},
    ],
)
def test_trees_lead_to_nodes_that_exist_and_never_back(changes):
    assert refusal(trees(**changes)).node == "trees"


def test_nodes_of_trees_may_be_in_any_order():
    order = [0, 4, 2, 3, 1]
    shuffled = {
        attribute.name: [
            list(attribute.ints or attribute.floats or attribute.strings)[i] for i in order
        ]
        for attribute in trees().graph.node[0].attribute
        if attribute.name.startswith("nodes_")
    }
    assert dx.load(trees(**shuffled)).facts.nodes[0].op_type == "TreeEnsembleRegressor"
    shuffled["nodes_falsenodeids"][order.index(1)] = 0
    assert refusal(trees(**shuffled)).node == "trees"


def test_a_deep_tree_is_checked_in_linear_time():
    count = 60_001  # a chain of branches, from the last node to the first
    is_branch = np.arange(count) >= 2
    below = np.maximum(np.arange(count) - 1, 0) * is_branch
    model = trees(
        nodes_treeids=[0] * count,
        nodes_nodeids=list(range(count)),
        nodes_featureids=[0] * count,
        nodes_values=[0.0] * count,
        nodes_modes=["BRANCH_LEQ" if each else "LEAF" for each in is_branch],
        nodes_truenodeids=below.tolist(),
        nodes_falsenodeids=[0] * count,
        target_treeids=[0],
        target_nodeids=[0],
        target_ids=[0],
        target_weights=[1.0],
    )
    start = time.process_time()
    assert dx.load(model).facts.nodes
    assert time.process_time() - start < 20


def flat_trees(**changes):
    given = {
        "n_targets": 1,
        "nodes_featureids": [0, 1],
        "nodes_splits": numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "s"),
        "nodes_modes": numpy_helper.from_array(np.zeros(2, np.uint8), "m"),
        "nodes_truenodeids": [1, 0],
        "nodes_trueleafs": [0, 1],
        "nodes_falsenodeids": [2, 1],
        "nodes_falseleafs": [1, 1],
        "leaf_targetids": [0, 0, 0],
        "leaf_weights": numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w"),
        "tree_roots": [0],
    }
    ensemble = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], "trees", domain="ai.onnx.ml", **(given | changes)
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 5)]
    return model_of([ensemble], opset_imports=imports)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_trueleafs": [0, 0]},
        {"nodes_truenodeids": [0, 0]},
        {"nodes_truenodeids": [2, 0]},
        {"nodes_falsenodeids": [3, 1]},
        {"nodes_falsenodeids": [-1, 1]},
        {"leaf_targetids": [0, 0, 1]},
        {"tree_roots": [2]},
        {"nodes_featureids": [0, -1]},
        {"nodes_featureids": [0]},
    ],
)
def test_flat_trees_lead_to_nodes_that_exist_and_never_back(changes):
    assert refusal(flat_trees(**changes)).node == "trees"


def test_sound_flat_trees_are_loaded():
    assert dx.load(flat_trees()).facts.nodes[0].op_type == "TreeEnsemble"


# Files


def external(tmp_path, **entries):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in ({"location": "w.bin", "offset": "0", "length": "16"} | entries).items():
        if text is not None:
            weight.external_data.add(key=key, value=text)
    (tmp_path / "w.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (tmp_path / "folder").mkdir(exist_ok=True)
    if not (tmp_path / "pipe").exists():
        os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of([node("Add", "x w", "y")], [weight]).SerializeToString())
    return path


@pytest.mark.parametrize(
    "entries",
    [
        *({"offset": text} for text in ("-1", "x", "1e3", "0x10", "1_0", "+4", "٣", "9" * 40)),
        *({"length": text} for text in ("-1", "x", "4.0", "9" * 40, "15", "17", "32")),
        *({"location": text} for text in ("", ".", "..", "../w.bin", "/etc/passwd", "gone.bin")),
        *({"location": text} for text in ("folder", "pipe", "device", "w.bin\0", "/dev/zero")),
        *({"location": text} for text in ("a" * 5000, "a/" * 5000 + "w.bin")),
        {"location": None},
        {"offset": "17"},
        {"offset": str(2**62)},
    ],
)
def test_external_data_lie_inside_a_regular_file(tmp_path, entries):
    assert refusal(external(tmp_path, **entries)).input == "w"


@pytest.mark.parametrize("entries", [{}, {"offset": "16"}, {"length": None}, {"offset": None}])
def test_external_data_have_the_length_of_their_tensor(tmp_path, entries):
    model = dx.load(external(tmp_path, **entries))
    first = 4 if entries.get("offset") == "16" else 0
    found = model.predict(np.zeros((1, 4), np.float32))
    np.testing.assert_array_equal(found, [np.arange(first, first + 4)])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_a_model_is_a_regular_file_of_a_size_that_can_be_read(tmp_path, kind):
    path = tmp_path / "m.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(2**42)
    assert refusal(path)


def test_what_no_check_foresees_is_told_with_its_cause(monkeypatch):
    # An error of code that relies on a sound model, at a node.
    def fail(model):
        node = model.graph.node[0]
        raise IndexError(f"list index out of range at {node.op_type}")

    monkeypatch.setattr("dask_onnx.modelio.onnx_model.normalise", fail)
    with pytest.raises(UnexpectedModelError) as caught:
        dx.load(model_of([node("Relu", "x", "y", name="first")]))
    assert caught.value.node == "first"
    assert isinstance(caught.value.__cause__, IndexError)
    assert caught.value.reason.startswith("IndexError: list index")


def test_make_model_of_the_tests_is_sound():
    assert dx.load(make_model([node("Relu", "x", "y")], [X], [value("y", ["N", 4])])).inputs


def test_an_input_without_a_type_is_refused_unless_it_is_a_constant():
    untyped = onnx.ValueInfoProto(name="x")
    assert refusal(model_of([node("Relu", "x", "y")], inputs=[untyped])).input == "x"
    constant = numpy_helper.from_array(np.ones(4, np.float32), "c")
    model = model_of(
        [node("Add", "x c", "y")], [constant], inputs=[X, onnx.ValueInfoProto(name="c")]
    )
    assert [spec.name for spec in dx.load(model).inputs] == ["x"]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "", "y")],
        [helper.make_node("Loop", ["", "", "x"], ["y"])],
        [node("Relu", "x x", "y")],
    ],
    ids=["no inputs", "no body", "too many inputs"],
)
def test_nodes_of_a_domain_that_is_not_imported_are_those_of_its_newest_version(nodes):
    """As ONNX Runtime takes them, if the model imports another domain."""
    other = [helper.make_opsetid("mine", 1)]
    assert refusal(model_of(nodes, opset_imports=other)).node
    sound = model_of([node("Relu", "x", "y")], opset_imports=other)
    assert dx.load(sound).inputs
