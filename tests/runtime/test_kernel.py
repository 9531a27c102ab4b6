from __future__ import annotations

import pickle
from dataclasses import replace

import dask.config
import numpy as np
import pytest
from builders import dense_model, make_model, node, value
from onnx import TensorProto

import dask_onnx as dx
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import (
    StageCall,
    Versions,
    as_ranges,
    check_versions,
    own_versions,
    run_stage,
)

X = np.ones((3, 8), np.float32)


def call_of(model: dx.Model, **changes) -> StageCall:
    (stage,) = model.plan("whole").stages
    call = StageCall(
        stage=stage_ref(model._published().ref, stage),
        session=SessionSpec(),
        picks=tuple((i, None) for i in range(len(stage.inputs))),
        row_axes=(0,) * len(stage.inputs),
        batching=Batching(None),
        join_axes=(0,) * len(stage.outputs),
    )
    return replace(call, **changes)


def test_a_call_is_small_and_travels():
    call = call_of(dx.load(dense_model(hidden=4096)))
    assert len(pickle.dumps(call)) < 2000
    assert pickle.loads(pickle.dumps(call)) == call


def test_an_argument_may_be_one_of_several_values():
    call = call_of(dx.load(dense_model()), picks=((0, 1),))
    np.testing.assert_array_equal(
        run_stage(call, ("other", X)), run_stage(replace(call, picks=((0, None),)), X)
    )


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (X.astype("f8"), "dtype float64; the model takes float32"),
        (X[0], "rank 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_the_task(x, reason):
    with pytest.raises(dx.InputError, match=reason):
        run_stage(call_of(dx.load(dense_model())), x)


def test_what_ort_refuses_is_a_stage_error_that_names_the_shapes():
    model = dx.load(
        make_model(
            [node("MatMul", "a b", "y")],
            [value("a", ["N", "K"]), value("b", ["M", "L"])],
            [value("y", None)],
        )
    )
    call = call_of(model, row_axes=(None, None), join_axes=(None,))
    with pytest.raises(dx.StageError, match=r"stage made failed .* a \(2, 3\), b \(4, 5\)"):
        run_stage(call, np.ones((2, 3), "f4"), np.ones((4, 5), "f4"))


def test_strings_of_fixed_width_are_taken():
    model = make_model(
        [node("Identity", "x", "y")],
        [value("x", ["N"], TensorProto.STRING)],
        [value("y", ["N"], TensorProto.STRING)],
    )
    assert run_stage(call_of(dx.load(model)), np.array(["a", "bc"])).tolist() == ["a", "bc"]


OTHER = replace(own_versions(), onnxruntime="0.0.1")


def test_other_versions_are_an_error_that_says_which():
    with pytest.raises(
        dx.StageError, match=r"onnxruntime .* here, 0\.0\.1 where the plan was made"
    ):
        check_versions(OTHER)


def test_other_versions_may_be_a_warning():
    with (
        dask.config.set({"onnx.version-mismatch": "warn"}),
        pytest.warns(UserWarning, match="other versions"),
    ):
        check_versions(OTHER)


def test_a_planner_without_onnxruntime_is_no_mismatch():
    check_versions(replace(own_versions(), onnxruntime=None))
    check_versions(own_versions())


def test_a_stage_checks_versions_before_it_is_built():
    model = dx.load(dense_model())
    call = call_of(model)
    other = replace(call.stage, versions=Versions("9.9.9", None), token="other")
    with pytest.raises(dx.StageError, match=r"9\.9\.9"):
        run_stage(replace(call, stage=other), X)


def test_positions_are_kept_as_ranges():
    assert as_ranges([1, 2, 3, 7, 9, 10]) == ((1, 4), (7, 8), (9, 11))
    assert as_ranges([]) == ()


@pytest.mark.parametrize("kind", [DaskOnnxError, *DaskOnnxError.__subclasses__()])
def test_errors_survive_pickling(kind):
    error = pickle.loads(pickle.dumps(kind("what happened", "what to do")))
    assert type(error) is kind
    assert (error.cause, error.next_step) == ("what happened", "what to do")
    assert str(error) == "what happened\nwhat to do"
