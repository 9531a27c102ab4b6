"""Operators in domains of the caller's that are called like ONNX's are not taken for them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import onnx
import pytest
from builders import make_model, node, value
from onnx import helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_argmax import ArgMax_12

import dask_onnx as dx

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
NAMES = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
"""All operators of ai.onnx."""
STRATEGIES = ("whole", "per_node", "fused", "branches", "auto")


def chain(rows, names=NAMES, **attributes) -> onnx.ModelProto:
    """Return a chain of operators of the domain "mine", each with one input and one output."""
    nodes = [
        helper.make_node(name, [f"v{i}"], [f"v{i + 1}"], name=name, domain="mine", **attributes)
        for i, name in enumerate(names)
    ]
    last = f"v{len(names)}"
    return make_model(nodes, [value("v0", [rows, 3])], [value(last, [rows, 3])])


def plus_one(x, **attributes):
    assert not attributes, "attributes of ONNX's operator"
    return x + np.float32(1)


def replacing(names=NAMES, function=plus_one):
    return {f"mine::{name}": function for name in names}


@pytest.mark.parametrize("rows", ["N", 4])
def test_every_name_of_onnx_is_free_in_another_domain(rows):
    model = dx.load(chain(rows), replace=replacing())
    assert {each.kernel for each in model._facts.kernels} == {"custom"}
    assert all(cost.flops <= 12 for cost in model.analyse({"v0": (4, 3)}).node_costs)
    assert not model.analysis.batch.random
    assert model.analysis.batch.blockers or rows == 4
    for strategy in STRATEGIES:
        model.plan(strategy)
    model.axes()
    expected = X
    for _ in NAMES:
        expected = expected + np.float32(1)
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_onnx_lets_rows_be_cut_or_a_batch_be_opened(name):
    model = dx.load(chain("N", [name]), replace=replacing([name]))
    assert model.analysis.batch.blockers
    with pytest.raises(dx.InputError):
        model.predict(X, batch_size=2)
    with pytest.raises(dx.InputError):
        model.predict(da.from_array(X, chunks=(2, 3)))
    fixed = dx.load(chain(4, [name]), replace=replacing([name]))
    with pytest.raises(dx.ModelError):
        fixed.freed()


def test_declared_axes_hold_for_an_operator_called_like_one_that_mixes_rows():
    def doubled(x):
        return 2 * x

    doubled.axes = "independent"
    model = dx.load(chain("N", ["Softmax"]), replace={"mine::Softmax": doubled})
    lazy = model.predict(da.from_array(X, chunks=(2, 3)))
    assert lazy.chunks == ((2, 2), (3,))
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), 2 * X)


def test_the_kernel_for_a_domain_does_not_run_onnx_s_operator():
    nodes = [node("Relu", "x", "h"), helper.make_node("Relu", ["h"], ["y"], domain="mine")]
    model = make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])])
    loaded = dx.load(model, replace={"mine::Relu": plus_one})
    np.testing.assert_array_equal(loaded.predict(X), np.maximum(X, 0) + 1)
    assert [each.kernel for each in loaded._facts.kernels] == ["onnxruntime", "custom"]


class ArgMax(OpRun):
    op_domain = "mine"

    def _run(self, x):
        return (x + np.float32(1),)


class Softmax(OpRun):
    op_domain = "ai.onnx"

    def _run(self, x, axis):
        return (x + np.float32(axis),)


class ArgMin(ArgMax_12):
    op_domain = "mine"


def test_a_class_called_like_an_operator_of_onnx_has_its_own_attributes():
    model = dx.load(chain("N", ["ArgMax"]), custom_ops=[ArgMax])
    np.testing.assert_array_equal(model.predict(X), X + 1)


def test_a_class_derived_from_onnx_s_operator_has_the_attributes_of_that():
    model = dx.load(chain("N", ["ArgMin"]), custom_ops=[ArgMin])
    np.testing.assert_array_equal(model.predict(X), X.argmax(0)[None])


@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (13, -1)])
def test_a_replaced_operator_has_the_attributes_of_the_model_s_opset(opset, axis):
    nodes = [node("Softmax", "x", "y")]
    model = make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])], opset=opset)
    by_function = dx.load(model, replace={"Softmax": lambda x, axis: x + np.float32(axis)})
    np.testing.assert_array_equal(by_function.predict(X), X + axis)
    # "ai.onnx" is the name of the domain "" in long: the class runs, not ONNX's kernel.
    by_class = dx.load(model, custom_ops=[Softmax])
    np.testing.assert_array_equal(by_class.predict(X), X + axis)


def test_attributes_may_be_called_like_members_of_the_evaluator_s_operators():
    def weighed(x, *, input, run, domain, output):  # noqa: A002 - an attribute's name
        assert (run, domain) == ("r", 7)
        return x * np.float32(input) + np.float32(sum(output))

    nodes = [node("Foo", "x", "y", domain="mine")]
    for name, given in {"input": 3, "run": "r", "domain": 7, "output": [1, 2]}.items():
        nodes[0].attribute.append(helper.make_attribute(name, given))
    model = make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])])
    np.testing.assert_array_equal(
        dx.load(model, replace={"mine::Foo": weighed}).predict(X), 3 * X + 3
    )


def test_a_function_of_the_model_called_like_an_operator_of_onnx_is_what_it_says():
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function(
        "mine", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Relu", ["x"], ["y"], domain="mine")]
    model = make_model(nodes, [value("x", ["N", 3])], [value("y", ["N", 3])], functions=[function])
    for imports in ({}, {"mine": 1}):
        for domain, version in imports.items():
            model.opset_import.append(helper.make_opsetid(domain, version))
        loaded = dx.load(model)
        np.testing.assert_array_equal(loaded.predict(X), -X)
        kept = dx.load(model, replace={"mine::Relu": plus_one})
        np.testing.assert_array_equal(kept.predict(X), X + 1)


def test_a_kept_function_may_call_operators_that_only_the_caller_has():
    body = [helper.make_node("Secret", ["a"], ["b"], domain="theirs")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("theirs", 1)]
    function = helper.make_function("mine", "Outer", ["a"], ["b"], body, imports)
    nodes = [helper.make_node("Outer", ["x"], ["y"], domain="mine")]
    model = make_model(
        nodes,
        [value("x", ["N", 3])],
        [value("y", ["N", 3])],
        functions=[function],
        domains={"mine": 1},
    )
    kept = dx.load(model, replace={"mine::Outer": plus_one})
    np.testing.assert_array_equal(kept.predict(X), X + 1)
