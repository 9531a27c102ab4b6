"""Runs of loops that do not end are ended after a time, with an error that says so."""

from __future__ import annotations

import math
import pickle

import dask
import numpy as np
import pytest
from builders import make_model, node, value
from onnx import TensorProto, helper

import dask_onnx as dx
from dask_onnx.core import config
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime import guarded_runs
from dask_onnx.runtime.run_records import RunningTask
from dask_onnx.runtime.time_limits import check_deadline, deadline_in

X = np.ones((2, 4), np.float32)
FOR_EVER = np.array(2**40, np.int64)
SECONDS = 1.0


def loop_model(*, in_branch: bool = False, operator: str = "Add"):
    """Return x (N, 4), turns, go -> y (N, 4): x plus itself at each turn, while `go` is true."""
    body = helper.make_graph(
        [node("Identity", "go_in", "go_out"), node(operator, "sum x", "total")],
        "body",
        [
            value("turn", [], TensorProto.INT64),
            value("go_in", [], TensorProto.BOOL),
            value("sum", ["N", 4]),
        ],
        [value("go_out", [], TensorProto.BOOL), value("total", ["N", 4])],
    )
    loop = node("Loop", "turns go x", "looped", "again", body=body)
    last = node("Identity", "looped", "y")
    if in_branch:
        branch = helper.make_graph([loop], "branch", [], [value("looped", ["N", 4])])
        other = helper.make_graph([node("Neg", "x", "n")], "other", [], [value("n", ["N", 4])])
        nodes = [
            node("If", "go", "chosen", then_branch=branch, else_branch=other),
            node("Identity", "chosen", "y"),
        ]
    else:
        nodes = [loop, last]
    return make_model(
        nodes,
        [
            value("x", ["N", 4]),
            value("turns", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
        ],
        [value("y", ["N", 4])],
        opset=17,
    )


def fed(turns, go=True):
    return {"x": X, "turns": np.array(turns, np.int64), "go": np.array(go)}


def check(caught, seconds=SECONDS):
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is dx.TimeLimitError
    assert error.option == "max_run_seconds"
    assert error.numbers == {"seconds": seconds}
    assert error.stage


@pytest.mark.parametrize("in_branch", [False, True], ids=["loop", "loop in a branch"])
def test_a_loop_without_end_is_ended(in_branch):
    model = dx.load(loop_model(in_branch=in_branch))
    plan = model.plan(session=SessionSpec(max_run_seconds=SECONDS))
    with pytest.raises(dx.TimeLimitError) as caught:
        model.predict(fed(FOR_EVER), plan=plan)
    check(caught)
    # The session is as good as before.
    np.testing.assert_array_equal(model.predict(fed(3), plan=plan), 4 * X)


def test_a_loop_in_the_reference_evaluator_is_ended():
    model = dx.load(loop_model(operator="Sub"), replace={"Sub": np.subtract})
    assert model.plan("whole").stages[0].kernel != "onnxruntime"
    plan = model.plan(session=SessionSpec(max_run_seconds=SECONDS))
    with pytest.raises(dx.TimeLimitError) as caught:
        model.predict(fed(FOR_EVER), plan=plan)
    check(caught)
    np.testing.assert_array_equal(model.predict(fed(1), plan=plan), 0 * X)


@pytest.fixture
def untried(monkeypatch):
    """Spare models that are not trusted the subprocess in which they are tried first."""
    monkeypatch.setattr("dask_onnx.api.loading.try_model", lambda *_: None)


def test_of_untrusted_models_those_with_loops_have_a_limit(untried):
    with dask.config.set({"onnx.untrusted.max-run-seconds": SECONDS}):
        model = dx.load(loop_model(), untrusted=True)
        assert model.plan("whole").recipe.session.max_run_seconds == SECONDS
        with pytest.raises(dx.TimeLimitError) as caught:
            model.predict(fed(FOR_EVER))
        check(caught)
        given = model.plan(session=SessionSpec(max_run_seconds=7))
        assert given.recipe.session.max_run_seconds == 7
        again = pickle.loads(pickle.dumps(model))
        for other in (again, model.extract(outputs=["looped"])):
            assert other.plan("whole").recipe.session.max_run_seconds == SECONDS
        trusted = dx.load(loop_model())
        assert trusted.plan("whole").recipe.session.max_run_seconds is None


def test_untrusted_models_without_loops_run_for_as_long_as_they_take(untried):
    relu = make_model([node("Relu", "x", "y")], [value("x", ["N"])], [value("y", ["N"])])
    model = dx.load(relu, untrusted=True)
    assert model.plan("whole").recipe.session.max_run_seconds is None


def test_the_setting_holds_for_all_models_and_the_smaller_limit_counts(untried):
    with dask.config.set({"onnx.session.max-run-seconds": "2 minutes"}):
        assert dx.load(loop_model()).plan("whole").recipe.session.max_run_seconds == 120
        untrusted = dx.load(loop_model(), untrusted=True)
        assert untrusted.plan("whole").recipe.session.max_run_seconds == 120


def test_a_limit_is_the_same_in_numbers_of_any_type():
    given = (3, 3.0, np.float32(3), np.int64(3))
    assert len({SessionSpec(max_run_seconds=seconds) for seconds in given}) == 1


@pytest.mark.parametrize("value", [0, -1, True, "soon", math.nan, math.inf, [3], 1e30])
def test_a_limit_that_is_no_time_is_refused(value):
    with pytest.raises(dx.PlanError) as refused:
        SessionSpec(max_run_seconds=value)
    assert refused.value.option == "max_run_seconds"
    setting = dask.config.set({"onnx.session.max-run-seconds": value})
    with setting, pytest.raises(dx.InputError) as caught:
        config.seconds("session.max-run-seconds")
    assert caught.value.option == "onnx.session.max-run-seconds"


def test_dask_repeats_a_task_out_of_time_without_waiting_again(monkeypatch):
    model = dx.load(loop_model())
    plan = model.plan(session=SessionSpec(max_run_seconds=SECONDS))
    task = RunningTask(("loop-0123", 0))
    monkeypatch.setattr(guarded_runs, "running_task", lambda: task)
    with pytest.raises(dx.TimeLimitError) as first:
        model.predict(fed(FOR_EVER), plan=plan)
    monkeypatch.setattr(guarded_runs, "compute_rows", pytest.fail)
    with pytest.raises(dx.TimeLimitError) as again:
        model.predict(fed(FOR_EVER), plan=plan)
    check(again)
    assert again.value.stage == first.value.stage


def test_a_deadline_ends_with_its_context():
    check_deadline()
    with deadline_in(60):
        check_deadline()
    check_deadline()
