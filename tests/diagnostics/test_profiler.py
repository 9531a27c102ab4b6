from __future__ import annotations

import threading

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, layers_model

import dask_onnx as dx
from dask_onnx.core.meters import is_recording
from dask_onnx.diagnostics.profiling.run_profile import THIS_PROCESS

X = np.random.default_rng(0).standard_normal((64, 8)).astype("f4")


def balanced(prof):
    summary = prof.summary()
    return sum(summary.shares.values()) == pytest.approx(summary.slot_seconds)


def test_threads_of_this_process_are_profiled():
    model = dx.load(dense_model())
    x = da.from_array(X, chunks=(8, 8))
    with dx.profile() as prof:
        found = model.predict(x).compute(scheduler="threads")
    np.testing.assert_allclose(found, model.predict(X), rtol=1e-5)
    result = prof.result
    stages = [task for task in result.tasks if task.stage]
    assert len(stages) == 8
    assert sum(task.rows for task in stages) == 64
    assert {task.block for task in stages} == set(range(8))
    assert all(0 <= t.start <= t.stop <= result.wall for t in result.tasks)
    assert all(phase.stage for task in stages for phase in task.phases)
    (worker,) = result.workers
    assert worker.name == THIS_PROCESS
    assert balanced(prof)
    assert {node.name for node in result.nodes} >= {"first"}
    assert 0 < result.stages[0].sampled_share <= 1
    assert not is_recording()


def test_several_stages_and_lanes_do_not_overlap():
    model = dx.load(layers_model([16, 16, 16]))
    plan = model.plan("fused", n_stages=3)
    with dx.profile(nodes="none") as prof:
        model.predict(da.from_array(X, chunks=(8, 8)), plan=plan).compute()
    tasks = [task for task in prof.result.tasks if task.stage]
    assert len(tasks) == 24
    assert len({task.stage for task in tasks}) == 3
    lanes = {}
    for task in sorted(prof.result.tasks, key=lambda each: each.start):
        assert lanes.get(task.lane, 0.0) <= task.start + 1e-6
        lanes[task.lane] = task.stop
    assert prof.result.nodes == ()
    assert prof.rows("stage")[0]["predicted_run"] is None


def test_arrays_in_memory_and_tables_are_profiled():
    model = dx.load(dense_model())
    table = dd.from_pandas(pd.DataFrame(X, columns=list("abcdefgh")), npartitions=4)
    with dx.profile(nodes="none") as prof:
        model.predict(X)
        model.predict(table).compute()
    assert sum(task.rows or 0 for task in prof.result.tasks) == 128
    assert balanced(prof)


def test_errors_are_counted_by_kind_and_the_block_raises_them():
    model = dx.load(dense_model())
    bad = dask.delayed(np.ones)((2, 7), np.float32)
    with pytest.raises(dx.DaskOnnxError), dx.profile(nodes="none") as prof:
        model.predict(bad).compute()
    (error,) = prof.rows("error")
    assert error["kind"] in ("RunError", "InputError", "StageError")
    assert error["count"] >= 1
    assert error["message"]


def test_the_synchronous_scheduler_is_profiled_on_one_lane():
    model = dx.load(dense_model())
    with dask.config.set(scheduler="sync"), dx.profile(nodes="none") as prof:
        model.predict(da.from_array(X, chunks=(16, 8))).compute()
    assert {task.lane for task in prof.result.tasks} == {0}
    assert sum(task.rows or 0 for task in prof.result.tasks) == 64


def test_a_profile_is_used_once():
    prof = dx.profile(nodes="none")
    with prof:
        pass
    assert prof.result.tasks == ()
    assert str(prof.summary())
    with pytest.raises(dx.InputError), prof:
        pass


@pytest.mark.parametrize("options", [{"nodes": "some"}, {"client": "tcp://nowhere:1"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(dx.InputError) as caught:
        dx.profile(**options)
    assert caught.value.option in options


def test_profiles_of_two_threads_both_end():
    model = dx.load(dense_model())
    found = []

    def run():
        with dx.profile(nodes="none") as prof:
            model.predict(da.from_array(X, chunks=(32, 8))).compute()
        found.append(prof)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(sum(t.rows or 0 for t in prof.result.tasks) >= 64 for prof in found)
