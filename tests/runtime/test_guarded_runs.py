"""Tasks that end their process: found row by row in a subprocess, and told."""

from __future__ import annotations

import os
import pickle
import signal

import cloudpickle
import dask
import numpy as np
import poison_models
import pytest

import dask_onnx as dx
from dask_onnx.core.guard_process import GuardProcess, ProcessDiedError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime import guarded_runs
from dask_onnx.runtime.batching import Batching, MicroBatches
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.run_records import RunningTask, run_records
from dask_onnx.runtime.stage_calls import RunAxes, StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.transfer import unwrap

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
    for row, seconds in ((5, 600), (5, 0.001), (6, 600)):  # no run is over so soon
        with (
            dask.config.set({"onnx.guard.seconds": seconds}),
            pytest.raises(dx.CrashError) as caught,
        ):
            run_stage(call, rows_with(row))
        errors.append(caught.value)
    assert [error.rows for error in errors] == [(5,), (5,), (6,)]
    assert errors[0].fields == errors[1].fields
    assert errors[0].__traceback__ is not errors[1].__traceback__


def test_the_process_that_gets_a_task_after_a_crash_finds_the_row(own_store, monkeypatch):
    """A worker died in the middle of a task; those that it had only queued are innocent."""
    key, call = ("step-4567", 2, 0), call_of(poison_models.abort_on_mark)
    worker, store = GuardProcess(("poison_models",)), dask.config.get("onnx.store.directory")
    try:
        with pytest.raises(ProcessDiedError) as died:
            worker.run(poison_models.run_as_task, call, key, rows_with(11), store, seconds=120)
    finally:
        worker.close()
    assert died.value.signal == signal.SIGABRT
    monkeypatch.setattr(guarded_runs, "running_task", lambda: RunningTask(key, deaths=1))
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call, rows_with(11))
    assert caught.value.rows == (11,)
    assert caught.value.numbers["block"] == 2
    queued = RunningTask(("step-4567", 3, 0), deaths=1)
    assert not run_records().is_suspect(queued, call.stage.token)


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


@pytest.mark.parametrize("marked", [(0,), (17, 21), (ROWS - 1,)], ids=str)
def test_between_stages_the_micro_batches_are_found(suspect, marked):
    """Nothing tells on which axis the rows of such a value lie."""
    x = rows_with(*marked)
    batches = MicroBatches(tuple(x[i : i + 16] for i in range(0, ROWS, 16)), ROWS, False)
    call = call_of(
        poison_models.abort_on_mark, Batching(16), row_axes=(None,), join_axes=("split",)
    )
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call, batches)
    error = caught.value
    first = marked[0] // 16 * 16
    assert error.rows == ()
    assert error.numbers["row"] == first
    assert error.numbers["micro_batch_rows"] == min(16, ROWS - first)
    assert error.numbers["rows"] == ROWS
    assert error.numbers["block"] == 3


@pytest.mark.parametrize("marked", [(0,), (17, 21), (ROWS - 1,)], ids=str)
@pytest.mark.parametrize("size", [16, None], ids=["micro-batches", "one"])
def test_between_stages_rows_are_found_where_their_axis_is_known(suspect, marked, size):
    x = rows_with(*marked)
    pieces = tuple(x[i : i + size] for i in range(0, ROWS, size)) if size else ()
    call = call_of(
        poison_models.abort_on_mark,
        Batching(size, is_divisible=True),
        row_axes=(None,),
        join_axes=("split",),
        run_axes=RunAxes((0,), (0,)),
    )
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call, MicroBatches(pieces, ROWS, False) if size else x)
    assert caught.value.rows == marked
    assert caught.value.numbers["rows"] == ROWS


def test_a_whole_array_beside_micro_batches_is_cut_with_them(suspect):
    x = rows_with(37)
    batches = MicroBatches((x[:16], x[16:32], x[32:]), ROWS, False)
    search = guarded_runs._Search(
        call_of(poison_models.abort_on_mark, Batching(16)),
        None,
        [batches, x, x[0]],
        None,
        suspect,
        None,
        guarded_runs._limits(),
        unit=16,
    )
    part, rows, whole = search._part(search.values, (None, 0, None), 16, 24)
    assert [len(piece) for piece in part.pieces] == [16, 8]
    assert part.rows == 24
    np.testing.assert_array_equal(rows, x[16:])
    np.testing.assert_array_equal(whole, x[0])


def test_in_micro_batches_of_one_row_the_row_is_found(suspect):
    x = rows_with(9)
    batches = MicroBatches(tuple(x[i : i + 1] for i in range(ROWS)), ROWS, False)
    call = call_of(poison_models.abort_on_mark, Batching(1), row_axes=(None,), join_axes=("split",))
    with pytest.raises(dx.CrashError) as caught:
        run_stage(call, batches)
    assert caught.value.rows == (9,)


def test_a_crash_of_several_rows_together_is_no_row(suspect):
    def abort_on_two(x):
        if len(x) > 1 and (x == poison_models.MARK).any():
            os.abort()
        return x + np.float32(1)

    abort_on_two.axes = "independent"
    x = rows_with(9)
    np.testing.assert_array_equal(run_stage(call_of(abort_on_two), x), x + 1)


def test_a_setting_that_is_no_limit_is_told_and_the_worker_is_spared(suspect):
    for key, value in (
        ("seconds", "soon"),
        ("seconds", 0),
        ("max-crashes", 0),
        ("max-crashes", "x"),
    ):
        with (
            dask.config.set({f"onnx.guard.{key}": value}),
            pytest.raises(dx.InputError) as caught,
        ):
            run_stage(call_of(poison_models.abort_on_mark), rows_with(3))
        assert caught.value.option == f"onnx.guard.{key}"


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
    assert caught.value.option == "onnx.guard.seconds"
    assert caught.value.numbers["seconds"] == 0.5


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


@pytest.mark.parametrize("stage", ["first", "later", "later, one micro-batch"])
def test_between_stages_lack_of_memory_halves_runs_and_keeps_micro_batches(
    suspect, monkeypatch, stage
):
    def hungry(x):
        return x + np.ones((len(x), 2**20), np.float32)[:, :1]  # 4 MiB for each row

    hungry.axes = "independent"
    monkeypatch.setattr(guarded_runs, "bytes_for_a_run", lambda: 64 * 2**20)
    x, size = rows_with(), 20
    changes = {"row_axes": (0 if stage == "first" else None,), "run_axes": RunAxes((0,), (0,))}
    call = call_of(hungry, Batching(size, is_divisible=True), join_axes=("split",), **changes)
    if stage == "later":
        given = MicroBatches((x[:20], x[20:]), ROWS, False)
    else:
        given = x if stage == "first" else x[:20]
    with pytest.warns(UserWarning, match="at most 10 rows"):
        found = unwrap(run_stage(call, given))
    results = found.pieces if isinstance(found, MicroBatches) else (found,)
    assert [len(each) for each in results] == ([20] if "one" in stage else [20, 20])
    np.testing.assert_array_equal(np.concatenate(results), x[: 20 * len(results)] + 1)


def test_outside_of_tasks_nothing_is_recorded(own_store):
    x = rows_with()
    np.testing.assert_array_equal(run_stage(call_of(poison_models.abort_on_mark), x), x + 1)
    assert not run_records().folder.exists() or len(list(run_records().folder.iterdir())) == 1
