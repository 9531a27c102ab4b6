"""Runs that are halved where memory is short."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from builders import make_model, node, value

import dask_onnx as dx
from dask_onnx.core.errors import RunError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime import tuning
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.memory_faults import is_memory_fault
from dask_onnx.runtime.row_runs import compute_rows
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.tuning import clear_tunings, fitting_rows

ROWS = 64
X = np.random.default_rng(0).standard_normal((ROWS, 3), dtype=np.float32)


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        yield


@pytest.fixture(autouse=True)
def returned(monkeypatch):
    """List that grows where memory is returned, as garbage of all tests takes long to collect."""
    calls = []
    monkeypatch.setattr("dask_onnx.runtime.row_runs.return_memory", lambda: calls.append(1))
    return calls


class Small:
    """An operator that has memory for so many rows, and notes those of each run."""

    axes = "independent"

    def __init__(self, most, words="Failed to allocate memory for requested buffer of size 1"):
        self.most, self.words, self.runs = most, words, []

    def __call__(self, x):
        if len(x) > self.most:
            raise RuntimeError(self.words)
        self.runs.append(len(x))
        return x + np.float32(1)


def call_of(operator, monkeypatch, batching, **changes):
    model = dx.load(
        make_model(
            [node("Step", "x", "y", "step", domain="own")],
            [value("x", ["N", 3])],
            [value("y", ["N", 3])],
            domains={"own": 1},
        ),
        replace={"own::Step": step},
    )
    monkeypatch.setattr(Current, "operator", operator)
    (stage,) = model.plan("whole").stages
    ref = stage_ref(model._published().ref, stage, model._facts.custom)
    options = StageOptions(SessionSpec(intra_op_num_threads=1), batching)
    return StageCall(ref, options, ((0, None),), **{"row_axes": (0,), "join_axes": (0,)} | changes)


class Current:
    """The operator of the running test, as kernels are pickled by name."""

    operator = None


def step(x):
    return Current.operator(x)


step.axes = "independent"


@pytest.mark.parametrize(
    "batching", [Batching(ROWS, is_divisible=True), Batching(is_divisible=True)]
)
@pytest.mark.parametrize("most", [1, 5, 33])
def test_runs_are_halved_until_they_fit_in_the_order_of_rows(monkeypatch, batching, most, returned):
    operator = Small(most)
    call = call_of(operator, monkeypatch, batching)
    with pytest.warns(UserWarning, match="memory was short"):
        np.testing.assert_array_equal(run_stage(call, X), X + 1)
    fitting = max(operator.runs)
    assert most / 2 < fitting <= most
    assert len(returned) == np.log2(ROWS // fitting)  # after each run that failed
    assert fitting_rows(call.stage.token, ((3,),)) == fitting
    # Later tasks begin with what fits, in this process and in others; nobody is told again.
    clear_tunings()
    operator.runs.clear()
    np.testing.assert_array_equal(run_stage(call, X), X + 1)
    assert max(operator.runs) == fitting
    assert sum(operator.runs) == ROWS


def test_sizes_that_are_tried_stay_below_what_fits(monkeypatch):
    operator = Small(4)
    call = call_of(operator, monkeypatch, Batching(is_auto=True))
    x = np.tile(X, (20, 1))
    with pytest.warns(UserWarning, match="memory was short"):
        np.testing.assert_array_equal(run_stage(call, x), x + 1)
    operator.runs.clear()
    np.testing.assert_array_equal(run_stage(call, x), x + 1)
    assert max(operator.runs) <= 4


@pytest.mark.parametrize(
    ("batching", "changes"),
    [
        (Batching(ROWS), {}),
        (Batching(ROWS, is_fixed=True), {}),
        (Batching(ROWS, is_divisible=True), {"join_axes": (None,)}),
        (Batching(ROWS, is_divisible=True), {"join_axes": ("split",)}),
        (Batching(is_divisible=True), {"row_axes": (None,), "join_axes": (None,)}),
    ],
    ids=["coupled", "fixed", "no rows in the result", "between stages", "no rows"],
)
def test_rows_that_must_not_be_split_are_an_error_with_what_helps(monkeypatch, batching, changes):
    operator = Small(8)
    call = call_of(operator, monkeypatch, batching, **changes)
    with pytest.raises(RunError) as caught:
        run_stage(call, X)
    assert operator.runs == []
    assert [each.option for each in caught.value.suggestions] == ["memory_limit", "batch_size"]


def test_a_single_row_that_does_not_fit_is_an_error_and_says_nothing_of_others(monkeypatch):
    call = call_of(Small(0), monkeypatch, Batching(is_auto=True))
    with pytest.raises(RunError) as caught:
        run_stage(call, X)
    assert caught.value.numbers["rows"] == 1
    assert fitting_rows(call.stage.token, ((3,),)) is None


def test_other_errors_are_not_taken_for_lack_of_memory(monkeypatch):
    operator = Small(8, "the shapes differ")
    call = call_of(operator, monkeypatch, Batching(ROWS, is_divisible=True))
    with pytest.raises(RunError):
        run_stage(call, X)
    assert operator.runs == []


@pytest.mark.parametrize(
    ("reason", "is_fault"),
    [
        ("MemoryError: ", True),
        ("_ArrayMemoryError: Unable to allocate 1.0 TiB for an array", True),
        ("RuntimeException: std::bad_alloc", True),
        ("RuntimeException: bad allocation", True),
        ("Fail: Failed to allocate memory for requested buffer of size 4000000000", True),
        ("InvalidArgument: Got invalid dimensions for input", False),
        ("", False),
    ],
)
def test_allocations_that_fail_are_recognised(reason, is_fault):
    assert is_memory_fault(RunError("failed", reason=reason)) is is_fault


def test_a_larger_worker_does_not_go_by_what_a_smaller_one_noted(monkeypatch):
    monkeypatch.setattr(tuning, "memory_limit", lambda: 10**9)
    assert tuning.note_fitting_rows("stage", ((3,),), 8)
    assert not tuning.note_fitting_rows("stage", ((3,),), 16)
    assert fitting_rows("stage", ((3,),)) == 8
    monkeypatch.setattr(tuning, "memory_limit", lambda: 2 * 10**9)
    assert fitting_rows("stage", ((3,),)) is None


def test_the_inputs_do_not_travel_with_the_results(monkeypatch):
    call = call_of(Small(ROWS), monkeypatch, Batching(16))
    computed = compute_rows(call, call.stage, [X])
    assert computed.split.feeds == []
    assert len(computed.results) == 4
