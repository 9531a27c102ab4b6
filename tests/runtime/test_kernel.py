from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.package_versions import PackageVersions
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_options import StageOptions

X = np.ones((3, 8), np.float32)


def call_of(model: dx.Model, **changes) -> StageCall:
    (stage,) = model.plan("whole").stages
    call = StageCall(
        stage=stage_ref(model._published().ref, stage),
        options=StageOptions(SessionSpec(), Batching(None)),
        picks=tuple((i, None) for i in range(len(stage.inputs))),
        row_axes=(0,) * len(stage.inputs),
        join_axes=(0,) * len(stage.outputs),
    )
    return replace(call, **changes)


def test_a_call_is_small_and_survives_pickling():
    call = call_of(dx.load(dense_model(hidden=4096)))
    assert len(pickle.dumps(call)) < 2000
    assert pickle.loads(pickle.dumps(call)) == call


def test_an_argument_may_be_one_of_several_values():
    call = call_of(dx.load(dense_model()), picks=((0, 1),))
    np.testing.assert_array_equal(
        run_stage(call, ("other", X)), run_stage(replace(call, picks=((0, None),)), X)
    )


@pytest.mark.parametrize(
    ("x", "numbers"),
    [
        (X.astype("c8"), {}),
        (X[0], {"rank": 1, "expected_rank": 2}),
    ],
    ids=["dtype", "rank"],
)
def test_arrays_that_do_not_fit_are_refused_in_the_task(x, numbers):
    with pytest.raises(dx.InputError) as caught:
        run_stage(call_of(dx.load(dense_model())), x)
    assert caught.value.input == "x"
    assert caught.value.numbers == numbers


def test_arrays_that_ort_rejects_are_an_error_with_their_shapes():
    model = dx.load(
        make_model(
            [node("MatMul", "a b", "y")],
            [value("a", ["N", "K"]), value("b", ["M", "L"])],
            [value("y", None)],
        )
    )
    call = call_of(model, row_axes=(None, None), join_axes=(None,))
    with pytest.raises(dx.RunError, match=r" a \(2, 3\), b \(4, 5\)") as caught:
        run_stage(call, np.ones((2, 3), "f4"), np.ones((4, 5), "f4"))
    assert caught.value.stage == "made"


def test_strings_of_fixed_width_are_accepted():
    model = make_model(
        [node("Identity", "x", "y")],
        [value("x", ["N"], TensorProto.STRING)],
        [value("y", ["N"], TensorProto.STRING)],
    )
    assert run_stage(call_of(dx.load(model)), np.array(["a", "bc"])).tolist() == ["a", "bc"]


def test_a_stage_checks_versions_before_it_is_built():
    model = dx.load(dense_model())
    call = call_of(model)
    other = replace(call.stage, versions=PackageVersions("9.9.9", None), token="other")
    with pytest.raises(dx.StageError) as caught:
        run_stage(replace(call, stage=other), X)
    assert caught.value.option == "onnx.version-mismatch"


@pytest.mark.parametrize("kind", [DaskOnnxError, *DaskOnnxError.__subclasses__()])
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what happened", "what to do")))
    assert type(error) is kind
    assert (error.cause, error.next_step) == ("what happened", "what to do")
    assert str(error) == "what happened\nwhat to do"


def test_a_shape_that_the_model_declares_otherwise_is_warned_about_once():
    # A Reshape by an input: shape inference cannot see that y has 4 columns.
    model = make_model(
        [node("Reshape", "x s", "y")],
        [value("x", ["N", 8]), value("s", [2], TensorProto.INT64)],
        [value("y", ["N", 8])],
    )
    call = call_of(dx.load(model), row_axes=(None, None), join_axes=(None,))
    shape = np.array([6, 4])
    with pytest.warns(UserWarning, match="declares"):
        assert run_stage(call, X, shape).shape == (6, 4)
    assert run_stage(call, X, shape).shape == (6, 4)
