"""Custom kernels: the caller's operators in Python, and libraries of ORT operators."""

from __future__ import annotations

import functools
import pickle
import threading

import cloudpickle
import numpy as np
import pytest
from onnx.reference.op_run import OpRun
from onnxruntime_extensions import get_library_path

import dask_onnx as dx
from dask_onnx.runtime.custom_kernels import CustomKernels, collect_custom_kernels

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
TEXT = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
g (float[N, 4] x) => (float[N, 4] y) { a = Gelu (x)  y = mine.Shift <by: float = 3.0> (a) }"""


class Shift(OpRun):
    op_domain = "mine"

    def _run(self, x, by):
        return (x + np.float32(by),)


def twice(x, approximate):
    return 2 * x


def test_custom_operators_and_replaced_kernels_run():
    model = dx.load(TEXT, custom_ops=[Shift], replace={"Gelu": twice})
    plan = model.plan()
    assert [stage.kernel for stage in plan.stages] == ["custom"]
    np.testing.assert_array_equal(model.predict(X), 2 * X + 3)
    assert "Gelu_0: your own kernel for Gelu" in plan.explain()


def test_a_model_with_custom_kernels_can_be_pickled():
    model = dx.load(TEXT, custom_ops=[Shift], replace={"Gelu": twice})
    copy = pickle.loads(cloudpickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(X), 2 * X + 3)
    half = copy.extract(outputs=["a"])
    np.testing.assert_array_equal(half.predict(X), 2 * X)


def test_other_kernels_make_another_token():
    one = dx.load(TEXT, custom_ops=[Shift], replace={"Gelu": lambda x, approximate: x})
    two = dx.load(TEXT, custom_ops=[Shift], replace={"Gelu": lambda x, approximate: -x})
    assert one.__dask_tokenize__() != two.__dask_tokenize__()
    np.testing.assert_array_equal(one.predict(X), X + 3)
    np.testing.assert_array_equal(two.predict(X), -X + 3)
    with pytest.raises(dx.PlanError, match="plan is of another model"):
        one.predict(X, plan=two.plan())


def test_rows_are_not_split_at_a_custom_operator_without_axes():
    # It may depend on other rows.
    model = dx.load(TEXT, custom_ops=[Shift], replace={"Gelu": twice})
    assert model.analysis.batch.opaque == ("Shift_1",)
    reason = "since rows are not proven: axis 0 of input 'x' is opaque at node 'Shift_1'"
    assert reason in model.plan().explain()


def test_a_function_of_the_model_can_be_replaced_as_a_whole():
    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { y = own.Act (x) }
    <domain: "own", opset_import: ["" : 20]> Act (x) => (y) { y = Relu (x) }"""
    np.testing.assert_array_equal(dx.load(text).predict(X), np.maximum(X, 0))
    replaced = dx.load(text, replace={"own::Act": lambda x: -x})
    np.testing.assert_array_equal(replaced.predict(X), -X)


def test_a_kernel_inside_a_body_takes_the_whole_node_along():
    text = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
    g (float[N, 4] x, bool yes) => (float[N, 4] y) {
      y = If (yes) <
        then_branch = t () => (float[N, 4] a) { a = mine.Shift <by: float = 1.0> (x) },
        else_branch = e () => (float[N, 4] b) { b = Neg (x) }
      >
    }"""
    model = dx.load(text, custom_ops=[Shift])
    assert [k.kernel for k in model._facts.kernels] == ["custom"]
    for yes, expected in ((True, X + 1), (False, -X)):
        found = model.predict({"x": X, "yes": np.array(yes)}, batch_size=None)
        np.testing.assert_array_equal(found, expected)


def with_axes(axes):
    """A function that declares `axes`."""

    def function(x):
        return x

    function.axes = axes
    return function


@pytest.mark.parametrize(
    ("custom_ops", "replace", "fields"),
    [
        ([int], {}, {"option"}),
        ([3], {}, {"option"}),
        ([], {"Gelu": 3}, {"option"}),
        ([], {"Gelu": with_axes("all")}, {"option"}),
        ([Shift], {"mine::Shift": twice}, set()),
        ([], {"Gelu": functools.partial(print, threading.Lock())}, {"reason"}),
        ([], {"Gelu": functools.partial(np.add, np.ones(2**20))}, {"numbers"}),
    ],
)
def test_an_invalid_kernel_is_refused(custom_ops, replace, fields):
    with pytest.raises(dx.ModelError) as caught:
        collect_custom_kernels(custom_ops, replace)
    assert set(caught.value.fields) == fields


def test_a_module_that_is_missing_on_a_worker_is_named():
    kernels = CustomKernels((("", "Gelu"),), b"cnot_a_module\nkernel\n.", "token")
    with pytest.raises(dx.StageError) as caught:
        kernels.operators()
    assert "not_a_module" in caught.value.reason
    assert "upload_file" in caught.value.next_step


LIBRARY_TEXT = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.contrib" : 1]>
g (string[N] x) => (string[N] y) { u = ai.onnx.contrib.StringUpper (x)  y = Identity (u) }"""


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_a_library_of_operators_is_registered_with_every_session(strategy):
    model = dx.load(LIBRARY_TEXT, custom_op_libraries=[get_library_path()])
    plan = model.plan(strategy)
    assert {stage.kernel for stage in plan.stages} == {"onnxruntime"}
    words = np.array(["ab", "ß", ""], object)
    assert model.predict(words, plan=plan).tolist() == ["AB", "ß", ""]
    copy = pickle.loads(cloudpickle.dumps(model))
    assert copy.predict(words).tolist() == ["AB", "ß", ""]


def test_a_library_is_loaded_only_if_it_is_named():
    with pytest.raises(dx.ModelError, match=r"(?s)neither ONNX nor onnxruntime.*custom_op_librar"):
        dx.load(LIBRARY_TEXT)


def test_a_missing_library_is_an_error():
    with pytest.raises(dx.StageError) as caught:
        dx.load(LIBRARY_TEXT, custom_op_libraries=["/no/lib.so"]).plan()
    assert caught.value.option == "custom_op_libraries"
    assert "/no/lib.so" in caught.value.cause
