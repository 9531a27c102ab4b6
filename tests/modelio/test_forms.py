"""Models in every form give the same results as their ModelProto."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)

TEXT = """
<ir_version: 10, opset_import: ["" : 17]>
scaled (float[N, 8] x) => (float[N, 8] y) {
  two = Constant <value_float: float = 2> ()
  y = Mul (x, two)
}
"""


def scale_function(overload: str = "") -> onnx.FunctionProto:
    """Return a function y = relu(x) * factor, which calls another function."""
    return helper.make_function(
        "own",
        "Scale",
        ["x"],
        ["y"],
        [
            helper.make_node("Inner", ["x"], ["h"], domain="own"),
            onnx.parser.parse_node("k = Constant <value_float: float = @factor> ()"),
            helper.make_node("Mul", ["h", "k"], ["y"]),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
        attributes=["factor"],
        overload=overload,
    )


INNER = helper.make_function(
    "own", "Inner", ["x"], ["y"], [node("Relu", "x", "y")], [helper.make_opsetid("", 17)]
)


@pytest.mark.parametrize(
    "form",
    [
        lambda m: m,
        lambda m: m.SerializeToString(),
        lambda m: io.BytesIO(m.SerializeToString()),
        lambda m: onnx_ir.from_proto(m),
        lambda m: onnx.printer.to_text(m),
        lambda m: io.StringIO(onnx.printer.to_text(m)),
    ],
    ids=["proto", "bytes", "file", "onnx_ir", "text", "text file"],
)
def test_a_model_is_the_same_in_every_form(form):
    model = dense_model()
    expected = dx.load(model).predict(X)
    np.testing.assert_allclose(dx.load(form(model)).predict(X), expected, rtol=1e-6)


@pytest.mark.parametrize("extension", ["onnxtxt", "textproto", "json"])
def test_text_formats_are_recognised_by_their_extension(tmp_path, extension):
    path = tmp_path / f"model.{extension}"
    onnx.save_model(onnx.parser.parse_model(TEXT), str(path))
    np.testing.assert_array_equal(dx.load(path).predict(X), 2 * X)


def test_an_open_file_is_a_model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(dense_model(), str(path))
    with path.open("rb") as file:
        assert dx.load(file).predict(X).shape == (3, 4)


def test_a_syntax_error_gives_the_parsers_reason():
    with pytest.raises(dx.ModelError) as caught:
        dx.load("<ir_version: 10> broken => ")
    assert "position" in caught.value.reason


def test_a_graph_with_its_opset_is_a_model():
    model = dense_model()
    expected = dx.load(model).predict(X)
    np.testing.assert_array_equal(dx.load(model.graph, opsets=17).predict(X), expected)


def test_a_graph_without_an_opset_is_refused():
    with pytest.raises(dx.ModelError, match="graph 'dense'") as caught:
        dx.load(dense_model().graph)
    assert caught.value.option == "opsets"


def test_functions_are_passed_with_a_graph_that_calls_them():
    graph = make_model(
        [node("Inner", "x", "y", domain="own")], [value("x", ["N", 8])], [value("y", ["N", 8])]
    ).graph
    model = dx.load(graph, opsets={"": 17, "own": 1}, functions=[INNER])
    np.testing.assert_array_equal(model.predict(X), np.maximum(X, 0))


@pytest.mark.parametrize(
    "types",
    [
        ["tensor(float)"],
        {"x": "float32"},
        {"x": (np.float32, ("N", 8))},
        {"x": TensorProto.FLOAT},
        [dx.TensorSpec("x", np.dtype("f4"), (None, 8))],
        [value("x", ["N", 8]).type],
        [value("x", ["N", 8])],
    ],
    ids=["text", "dtype", "dtype and shape", "element", "spec", "type", "value"],
)
def test_a_node_with_opset_and_types_is_a_model(types):
    model = dx.load(node("LeakyRelu", "x", "y", alpha=0.5), opsets=16, input_types=types)
    np.testing.assert_array_equal(model.predict(X), np.where(X < 0, X / 2, X))
    assert model.outputs[0].dtype == np.float32


def test_values_that_a_body_captures_are_inputs_of_its_node():
    body = helper.make_graph([node("Add", "x outside", "b")], "then", [], [value("b", None)])
    other = helper.make_graph([node("Neg", "x", "c")], "else", [], [value("c", None)])
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other)
    model = dx.load(
        branch, opsets=17, input_types={"yes": "bool", "x": "f4", "outside": (np.float32, (8,))}
    )
    feeds = {"yes": np.array(True), "x": X, "outside": np.ones(8, "f4")}
    np.testing.assert_array_equal(model.predict(feeds, batch_size=None), X + 1)


def test_a_function_is_a_model_with_its_attributes_bound():
    model = dx.load(
        scale_function(),
        input_types={"x": (np.float32, ("N", 8))},
        attributes={"factor": 3.0},
        functions=[INNER],
    )
    assert [n.op_type for n in model.facts.nodes] == ["Relu", "Mul"]
    np.testing.assert_array_equal(model.predict(X), 3 * np.maximum(X, 0))


def test_a_function_without_its_attributes_is_refused():
    with pytest.raises(dx.ModelError, match="'factor'") as caught:
        dx.load(scale_function(), input_types=["f4"])
    assert caught.value.option == "attributes"


def test_missing_types_are_named():
    with pytest.raises(dx.ModelError) as caught:
        dx.load(node("Add", "a b", "c"), opsets=17, input_types={"a": "f4"})
    assert (caught.value.option, caught.value.input) == ("input_types", "b")


@pytest.mark.parametrize("text", ["tensor(flaot)", "seq(float)", "tensor(float", "list(int64)"])
def test_text_that_is_not_a_type_is_refused(text):
    with pytest.raises(dx.ModelError, match="is not a type"):
        dx.load(node("Relu", "a", "b"), opsets=17, input_types={"a": text})


@pytest.mark.parametrize("source", [dense_model(), dense_model().SerializeToString()])
def test_opsets_are_not_accepted_with_a_whole_model(source):
    with pytest.raises(dx.ModelError) as caught:
        dx.load(source, opsets=17)
    assert caught.value.option == "opsets"


def test_functions_are_not_accepted_with_a_file(tmp_path):
    onnx.save_model(dense_model(), str(tmp_path / "m.onnx"))
    with pytest.raises(dx.ModelError) as caught:
        dx.load(tmp_path / "m.onnx", functions=[INNER])
    assert caught.value.option == "functions"


def test_an_object_that_is_not_a_model_is_refused():
    with pytest.raises(dx.ModelError, match="cannot be made from dict"):
        dx.load({})


def called_in_a_body() -> onnx.ModelProto:
    def calls(overload: str, result: str, **attributes) -> onnx.NodeProto:
        return helper.make_node(
            "Scale", ["x"], [result], domain="own", overload=overload, **attributes
        )

    bodies = {
        "then_branch": helper.make_graph(
            [calls("", "b", factor=2.0)], "then", [], [value("b", None)]
        ),
        "else_branch": helper.make_graph(
            [calls("other", "c", factor=5.0)], "else", [], [value("c", None)]
        ),
    }
    other = scale_function("other")
    other.node[0].op_type, other.node[0].domain = "Neg", ""
    return make_model(
        [helper.make_node("If", ["yes"], ["y"], **bodies)],
        [value("x", ["N", 8]), value("yes", [], TensorProto.BOOL)],
        [value("y", ["N", 8])],
        domains={"own": 1},
        ir_version=10,
        functions=[scale_function(), other, INNER],
    )


@pytest.mark.parametrize(("yes", "expected"), [(True, 2 * np.maximum(X, 0)), (False, -5 * X)])
def test_overloaded_functions_called_in_bodies_are_inlined(yes, expected):
    model = dx.load(called_in_a_body())
    assert not model.facts.proto.functions
    found = model.predict({"x": X, "yes": np.array(yes)}, batch_size=None)
    np.testing.assert_array_equal(found, expected)


def test_opsets_imported_by_a_function_only_are_imported():
    function = helper.make_function(
        "own",
        "Scaled",
        ["x"],
        ["y"],
        [node("Scaler", "x", "y", domain="ai.onnx.ml", offset=[1.0], scale=[2.0])],
        [helper.make_opsetid("ai.onnx.ml", 3)],
    )
    model = make_model(
        [node("Scaled", "x", "y", domain="own")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"own": 1},
        functions=[function],
    )
    np.testing.assert_allclose(dx.load(model).predict(X), 2 * (X - 1), rtol=1e-6)


def old_model() -> onnx.ModelProto:
    """Return a model of opset 6: broadcasting by attribute, and a Dropout in inference mode."""
    return make_model(
        [
            node("Add", "x b", "h", broadcast=1, axis=1),
            node("Relu", "h", "r"),
            node("Mul", "r b", "q", broadcast=1, axis=1),
            node("Dropout", "q", "y mask", is_test=1),
        ],
        [value("x", ["N", 3, 4, 5]), value("b", [3])],
        [value("y", ["N", 3, 4, 5])],
        {"b": np.arange(3, dtype=np.float32)},
        opset=6,
        ir_version=3,
    )


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_an_opset_older_than_onnxruntime_supports_is_converted(strategy):
    model = dx.load(old_model())
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    b = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    assert model.opsets[""] == 7
    assert model.inputs[0].shape == ("N", 3, 4, 5)
    found = model.predict(x, plan=model.plan(strategy))
    np.testing.assert_array_equal(found, np.maximum(x + b, 0) * b)


def test_slopes_of_an_old_prelu_belong_to_the_channels():
    model = make_model(
        [node("PRelu", "x s", "y")],
        [value("x", ["N", 3, 4])],
        [value("y", ["N", 3, 4])],
        {"s": np.arange(3, dtype=np.float32)},
        opset=6,
        ir_version=3,
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    expected = np.where(x < 0, x * np.arange(3, dtype=np.float32)[:, None], x)
    np.testing.assert_array_equal(dx.load(model).predict(x), expected)


def test_an_old_operator_that_cannot_be_converted_is_refused():
    model = make_model(
        [node("Add", "x b", "y", "sum", broadcast=1, axis=0)],
        [value("x", None), value("b", None)],
        [value("y", None)],
        opset=6,
        ir_version=3,
    )
    with pytest.raises(dx.ModelError, match="'sum'"):
        dx.load(model).plan()


def test_an_input_with_an_initializer_may_be_fed():
    model = make_model(
        [node("Add", "x b", "h"), node("Mul", "h c", "y")],
        [value("x", ["N", 8]), value("b", [8])],
        [value("y", ["N", 8])],
        {"b": np.ones(8, "f4"), "c": np.full(8, 2, "f4")},
    )
    loaded = dx.load(model)
    assert [spec.name for spec in loaded.inputs] == ["x"]
    assert [spec.name for spec in loaded.defaults] == ["b"]
    np.testing.assert_array_equal(loaded.predict(X), (X + 1) * 2)
    fed = {"x": X, "b": np.full(8, 5, "f4")}
    np.testing.assert_array_equal(loaded.predict(fed), (X + 5) * 2)
    plan = loaded.plan("per_node")
    np.testing.assert_array_equal(loaded.predict(fed, plan=plan), (X + 5) * 2)
    np.testing.assert_array_equal(loaded(fed), (X + 5) * 2)
    with pytest.raises(dx.InputError, match="'b' has size 7 on axis 0"):
        loaded.check({"x": X, "b": np.ones(7, "f4")})
    assert loaded.extract(inputs=["x", "b"]).predict(fed).shape == (3, 8)


def test_an_initializer_that_is_not_an_input_cannot_be_fed():
    model = make_model(
        [node("Mul", "x c", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        {"c": np.full(8, 2, "f4")},
    )
    with pytest.raises(dx.InputError, match="'c' is not one of the model's"):
        dx.load(model).predict({"x": X, "c": np.ones(8, "f4")})


def test_repeated_opset_imports_are_merged():
    model = dense_model()
    for version in (13, 17):
        model.opset_import.append(helper.make_opsetid("ai.onnx", version))
    model.graph.node[0].domain = "ai.onnx"
    loaded = dx.load(model)
    assert dict(loaded.opsets) == {"": 17}
    assert loaded.predict(X).shape == (3, 4)


def test_names_may_contain_any_character_and_repeat():
    names = ["a:0", "层/0.weight", "", "same", "same"]
    ops = ["Relu", "Neg", "Abs", "Exp", "Tanh"]
    values = ["x:0", "h/1", "h.2", "值", "h:4", "out/y:0"]
    model = make_model(
        [
            helper.make_node(op, [before], [after], name=name)
            for op, name, before, after in zip(ops, names, values, values[1:], strict=False)
        ],
        [value("x:0", ["N", 8])],
        [value("out/y:0", ["N", 8])],
    )
    loaded = dx.load(model)
    expected = np.tanh(np.exp(np.abs(-np.maximum(X, 0))))
    for strategy in ("whole", "per_node"):
        plan = loaded.plan(strategy)
        np.testing.assert_allclose(loaded.predict(X, plan=plan), expected, rtol=1e-5)
    assert all(stage.label[0].isalpha() and "-" not in stage.label for stage in plan.stages)


def test_inputs_and_initializers_may_be_outputs_beside_dead_nodes():
    model = make_model(
        [node("Relu", "x", "y"), node("NoSuchThing", "x", "dead", domain="nobody")],
        [value("x", ["N", 8]), value("unused", ["N"])],
        [value("y", ["N", 8]), value("x", ["N", 8]), value("w", [8])],
        {"w": np.arange(8, dtype="f4"), "never": np.ones(3, "f4")},
        domains={"nobody": 1},
    )
    loaded = dx.load(model)
    for strategy in ("whole", "per_node"):
        found = loaded.predict({"x": X}, plan=loaded.plan(strategy), batch_size=None)
        np.testing.assert_array_equal(found["y"], np.maximum(X, 0))
        np.testing.assert_array_equal(found["x"], X)
        np.testing.assert_array_equal(found["w"], np.arange(8))


@pytest.mark.parametrize("ir_version", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version_runs(ir_version):
    model = dense_model()
    model.ir_version = ir_version
    if ir_version < 4:
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            model.graph.input.append(value(tensor.name, array.shape))
    assert dx.load(model).predict(X).shape == (3, 4)


@pytest.mark.parametrize("opset", range(1, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_runs(opset):
    model = make_model(
        [node("Relu", "x", "h"), node("Sigmoid", "h", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        opset=opset,
        ir_version=3 if opset < 9 else 10,
    )
    expected = 1 / (1 + np.exp(-np.maximum(X, 0)))
    np.testing.assert_allclose(dx.load(model).predict(X), expected, rtol=1e-5)


def test_a_wrong_declared_output_shape_warns_once_and_the_actual_one_is_returned():
    loop_body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Concat", "s x", "s_out", axis=0)],
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("s", None),
        ],
        [value("go_on", [], TensorProto.BOOL), value("s_out", None)],
    )
    model = make_model(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=loop_body)],
        [value("x", [2, 8]), value("times", [], TensorProto.INT64)],
        [value("y", [3, 8])],
    )
    loaded = dx.load(model)
    feeds = {"x": X[:2], "times": np.array(2)}
    with pytest.warns(UserWarning, match=r"declares y: float32 \(3, 8\), .* gives \(6, 8\)"):
        assert loaded.predict(feeds).shape == (6, 8)
    assert loaded.predict(feeds).shape == (6, 8)


BIG = r"""
import re, sys
import dask_onnx as dx
model = dx.load(sys.argv[1])
plan = model.plan("fused", n_stages=5)
peak = re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())
print(len(plan.stages), int(peak[1]) // 1024)
"""


def test_a_model_of_more_than_2_gib_is_planned_without_reading_its_weights(tmp_path):
    size, layers = 8192, 10  # 2.5 GiB, in a file with holes
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(layers * size * size * 4)
    model = make_model(
        [node("MatMul", f"h{i} W{i}", f"h{i + 1}") for i in range(layers)],
        [value("h0", ["N", size])],
        [value(f"h{layers}", ["N", size])],
    )
    for i in range(layers):
        tensor = model.graph.initializer.add(name=f"W{i}", data_type=TensorProto.FLOAT)
        tensor.dims.extend([size, size])
        tensor.data_location = TensorProto.EXTERNAL
        bytes_ = size * size * 4
        for key, text in (("location", "weights"), ("offset", i * bytes_), ("length", bytes_)):
            tensor.external_data.add(key=key, value=str(text))
    onnx.save_model(model, str(tmp_path / "big.onnx"))
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "big.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    stages, mebibytes = map(int, done.stdout.split())
    assert stages == 5 and mebibytes < 500


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_functions_of_another_opset_that_call_one_another_stay_together(strategy):
    """ONNX's inliner leaves calls of functions whose opset is not the model's."""
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Double", ["a"], ["b"], [node("Add", "a a", "b")], opsets)
    call = node("Double", "a", "b", "twice", domain="own")
    outer = helper.make_function(
        "own", "DoubleRoot", ["a"], ["c"], [call, node("Sqrt", "b", "c")], opsets
    )
    model = make_model(
        [node("Abs", "x", "p"), node("DoubleRoot", "p", "q", domain="own"), node("Neg", "q", "y")],
        [value("x", ["N", 3])],
        [value("y", ["N", 3])],
        opset=18,
        domains={"own": 1},
        functions=[inner, outer],
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = dx.load(model)
    found = loaded.predict(x, plan=loaded.plan(strategy))
    np.testing.assert_allclose(found, -np.sqrt(2 * x), rtol=1e-6)
