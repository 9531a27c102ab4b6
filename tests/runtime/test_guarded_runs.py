"""Tasks that end their process: found row by row in a subprocess, and told."""

from __future__ import annotations

import pickle
import signal

import cloudpickle
import dask
import numpy as np
import poison_models
import pytest

import dask_onnx as dx
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime import guarded_runs
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.run_records import RunningTask, run_records
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_options import StageOptions

cloudpickle.register_pickle_by_value(poison_models)
ROWS = 40
AUTO = Batching(is_auto=True)


@pytest.fixture(scope="module", autouse=True)
def guard():
    yield
    guarded_runs.end_guard()


@pytest.fixture
def own_store(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path)}):
        yield


@pytest.fixture
def suspect(own_store, monkeypatch):
    """Let this thread seem to run a task that two workers died with."""
    task = RunningTask(("step-0123", 3, 0), deaths=2)
    monkeypatch.setattr(guarded_runs, "running_task", lambda: task)
    guarded_runs._verdicts.clear()
    return task


def call_of(function, batching=AUTO, **changes) -> StageCall:
    model = dx.load(poison_models.step_model(), replace={"poison::Step": function})
    (stage,) = model.plan("whole").stages
    ref = stage_ref(model._published().ref, stage, model._facts.custom)
    options = StageOptions(SessionSpec(intra_op_num_threads=1), batching)
    return StageCall(ref, options, ((0, None),), **{"row_axes": (0,), "join_axes": (0,)} | changes)


def rows_with(*marked: int) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((ROWS, 4), dtype=np.float32)
    x[list(marked), 1] = poison_models.MARK
    return x


@pytest.mark.parametrize("seconds", [600, None])
def test_a_suspect_that_is_innocent_gives_its_result(suspect, seconds):
    x, call = rows_with(), call_of(poison_models.abort_on_mark)
    with dask.config.set({"onnx.guard.seconds": seconds}):
        np.testing.assert_array_equal(run_stage(call, x), x + 1)
    assert guarded_runs._guard._process is not None


@pytest.mark.parametrize(
    ("function", "number"),
    [
        (poison_models.abort_on_mark, signal.SIGABRT),
        (poison_models.segfault_on_mark, signal.SIGSEGV),
    ],
    ids=["abort", "segfault"],
)
@pytest.mark.parametrize("marked", [(0,), (ROWS - 1,), (7, 8, 30)], ids=str)
def test_the_rows_that_end_the_process_are_found(suspect, function, number, marked):
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call_of(function), rows_with(*marked))
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.rows == marked
    assert error.numbers["signal"] == number
    assert error.numbers["block"] == 3
    assert error.numbers["row"] == marked[0]
    assert error.numbers["bad_rows"] == len(marked)
    assert error.stage


def test_a_repeated_task_is_not_searched_again_but_other_inputs_are(suspect):
    call = call_of(poison_models.abort_on_mark)
    errors = []
    for x in (rows_with(5), rows_with(5), rows_with(6)):
        with pytest.raises(dx.CrashError) as caught:
            run_stage(call, x)
        errors.append(caught.value)
    assert errors[0] is errors[1]
    assert errors[2].rows == (6,)


@pytest.mark.parametrize(
    ("batching", "changes", "rows"),
    [
        (Batching(16), {}, (21,)),
        (Batching(16, is_divisible=True), {}, (21,)),
        (Batching(8, is_fixed=True), {}, (21,)),
        (Batching(), {"row_axes": (None,), "join_axes": (None,)}, ()),
    ],
    ids=["given", "divisible", "fixed", "without rows"],
)
def test_rows_are_found_whatever_the_batches_unless_there_are_none(
    suspect, batching, changes, rows
):
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call_of(poison_models.abort_on_mark, batching, **changes), rows_with(21))
    assert caught.value.rows == rows


def test_the_search_ends_after_so_many_crashes(suspect):
    with (
        dask.config.set({"onnx.guard.max-crashes": 8}),
        pytest.raises(dx.CrashError) as caught,
    ):
        run_stage(call_of(poison_models.abort_on_mark), rows_with(*range(ROWS)))
    assert caught.value.rows
    assert set(caught.value.rows) < set(range(ROWS))


def test_an_error_that_ends_nothing_is_that_of_the_worker(suspect):
    def refuse(x):
        raise ValueError("no")

    refuse.axes = "independent"
    with pytest.raises(dx.RunError) as caught:
        run_stage(call_of(refuse), rows_with())
    assert type(caught.value) is dx.RunError
    assert "no" in caught.value.reason


def test_a_run_without_end_is_ended_and_not_searched(suspect):
    def hang(x):
        while True:
            pass

    hang.axes = "independent"
    with dask.config.set({"onnx.guard.seconds": 0.5}), pytest.raises(dx.CrashError) as caught:
        run_stage(call_of(hang), rows_with())
    assert caught.value.rows == ()


def test_crashes_are_noted_for_the_host(suspect):
    call = call_of(poison_models.abort_on_mark)
    with pytest.raises(dx.CrashError):
        run_stage(call, rows_with(2))
    names = [path.name for path in run_records().folder.glob("crashed-*")]
    assert names == [f"crashed-{call.stage.token}-{suspect.digest.hex()}"]


def test_lack_of_memory_in_the_subprocess_halves_runs_and_is_remembered(suspect, monkeypatch):
    def hungry(x):
        return x + np.ones((len(x), 2**20), np.float32)[:, :1]  # 4 MiB for each row

    hungry.axes = "independent"
    monkeypatch.setattr(guarded_runs, "bytes_for_a_run", lambda: 64 * 2**20)
    call = call_of(hungry, Batching(ROWS, is_divisible=True))
    x = rows_with()
    with pytest.warns(UserWarning, match="at most 10 rows"):
        np.testing.assert_array_equal(run_stage(call, x), x + 1)
    # Once is enough, for all processes of the host.
    np.testing.assert_array_equal(run_stage(call, x), x + 1)
    assert guarded_runs.fitting_rows(call.stage.token, ((4,),)) == 10


def test_outside_of_tasks_nothing_is_recorded(own_store):
    x = rows_with()
    np.testing.assert_array_equal(run_stage(call_of(poison_models.abort_on_mark), x), x + 1)
    assert not run_records().folder.exists() or len(list(run_records().folder.iterdir())) == 1
