"""Runs that are halved where memory is short."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, value

import dask_onnx as dx
from dask_onnx.core.errors import RunError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import StageTask
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime import tuning
from dask_onnx.runtime.batching import Batching, MicroBatches
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.memory_faults import is_memory_fault
from dask_onnx.runtime.row_runs import compute_rows
from dask_onnx.runtime.stage_calls import RunAxes, StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.transfer import unwrap
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

    def __init__(
        self, most, words="Failed to allocate memory for requested buffer of size 1", axis=0
    ):
        self.most, self.words, self.axis = most, words, axis
        self.runs, self.tries = [], 0

    def __call__(self, x):
        self.tries += 1
        if x.shape[self.axis] > self.most:
            raise RuntimeError(self.words)
        self.runs.append(x.shape[self.axis])
        return x + np.float32(1)


def call_of(operator, monkeypatch, batching, shape=("N", 3), **changes):
    model = dx.load(
        make_model(
            [node("Step", "x", "y", "step", domain="own")],
            [value("x", shape)],
            [value("y", shape)],
            domains={"own": 1},
        ),
        replace={"own::Step": step},
    )
    monkeypatch.setattr(Current, "operator", operator)
    (stage,) = model.plan("whole").stages
    ref = stage_ref(model._published().ref, stage, model._facts.custom)
    options = StageOptions(SessionSpec(intra_op_num_threads=1), batching)
    return StageCall(ref, options, ((0, None),), **{"row_axes": (0,), "join_axes": (0,)} | changes)


def delayed_calls(model, **options):
    """Return the calls of a request in one stage for each node, in their order."""
    lazy = model.predict(da.from_array(X, chunks=(16, 3)), plan=model.plan("per_node"), **options)
    tasks = {task for task in lazy.dask.values() if isinstance(task, StageTask)}
    calls = {task.args[0].stage.token: task.args[0] for task in tasks}
    return sorted(calls.values(), key=lambda call: call.stage.nodes)


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


@pytest.mark.parametrize("axis", [0, 1], ids=["rows first", "rows second"])
@pytest.mark.parametrize("count", [1, 4], ids=["one micro-batch", "several"])
def test_between_stages_each_micro_batch_stays_one_though_its_runs_are_halved(
    monkeypatch, axis, count
):
    operator = Small(5, axis=axis)
    axes = RunAxes((axis,), (axis,))
    changes = {"row_axes": (None,), "join_axes": ("split",), "run_axes": axes}
    batching = Batching(ROWS // count, is_divisible=True)
    call = call_of(operator, monkeypatch, batching, ("N", 3)[:: 1 - 2 * axis], **changes)
    x = X if axis == 0 else X.T
    pieces = np.split(x, count, axis=axis)
    given = pieces[0] if count == 1 else MicroBatches(tuple(pieces), ROWS, is_padded=False)
    with pytest.warns(UserWarning, match="memory was short"):
        found = unwrap(run_stage(call, given))
    results = [found] if count == 1 else found.pieces
    assert len(results) == count
    for result, piece in zip(results, pieces, strict=True):
        np.testing.assert_array_equal(result, piece + 1)
    assert max(operator.runs) == fitting_rows(call.stage.token, ((3,),)) <= 5
    operator.runs.clear()
    operator.tries = 0
    run_stage(call, given)
    assert operator.tries == len(operator.runs)  # no run of too many rows again


def test_the_first_stage_keeps_its_micro_batches_though_runs_are_halved(monkeypatch):
    changes = {"join_axes": ("split",), "run_axes": RunAxes((0,), (0,))}
    call = call_of(Small(5), monkeypatch, Batching(16, is_divisible=True), **changes)
    with pytest.warns(UserWarning, match="memory was short"):
        found = unwrap(run_stage(call, X))
    assert [len(piece) for piece in found.pieces] == [16] * 4
    np.testing.assert_array_equal(np.concatenate(found.pieces), X + 1)


def test_plans_tell_where_the_rows_of_values_between_stages_are():
    model = dx.load(
        make_model(
            [
                node("Transpose", "x", "t", "turn", perm=[1, 0]),
                node("Sqrt", "t", "s", "root"),
                node("Transpose", "s", "y", "back", perm=[1, 0]),
            ],
            [value("x", ["N", 3])],
            [value("y", ["N", 3])],
        )
    )
    made = delayed_calls(model, batch_size="auto")
    assert [call.run_axes for call in made] == [
        RunAxes((0,), (1,)),
        RunAxes((1,), (1,)),
        RunAxes((1,), (0,)),
    ]


def test_values_whose_rows_meet_between_stages_are_not_cut():
    """The rows of the output are independent: what meets is subtracted again."""
    model = dx.load(
        make_model(
            [
                node("CumSum", "x first", "c", "sums"),
                node("Mul", "c nothing", "z", "none"),
                node("Add", "x z", "y", "add"),
            ],
            [value("x", ["N", 3])],
            [value("y", ["N", 3])],
            {"first": np.array(0), "nothing": np.zeros(1, np.float32)},
        ),
        rows="independent",
    )
    assert [call.run_axes for call in delayed_calls(model, batch_size=8)] == [None] * 3


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
