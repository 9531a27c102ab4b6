from __future__ import annotations

import sys

import dask.array as da
import dask.config
import numpy as np
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights

import dask_onnx as dx
from dask_onnx.runtime import tuning
from dask_onnx.runtime.tuning import Trial, find_tuning, measurement_name, run_sizes
from dask_onnx.store.weight_store import Store

X = np.random.default_rng(2).standard_normal((3000, 8)).astype(np.float32)


def trial(per_row: dict[int, float]) -> Trial:
    """Return a trial that has run each size often enough."""
    return Trial({size: [size * seconds] * 3 for size, seconds in per_row.items()})


def test_sizes_grow_after_enough_runs():
    found = Trial()
    sizes = []
    for _ in range(12):
        size = found.next_size(8)
        if size is None:
            break
        sizes.append(size)
        found.seconds.setdefault(size, []).append(size * 1e-2)
    assert sizes == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert found.next_size(8) is None
    assert found.settled_rows(8) == 8  # a task with more rows may go on


def test_short_runs_are_repeated_more_often():
    found = Trial({1: [1e-5] * 15})
    assert found.next_size(1) == 1
    found.seconds[1].append(1e-5)
    assert found.next_size(1) is None


def test_slow_sizes_are_tried_once():
    found = Trial({1: [2.0]})
    assert found.next_size(8) == 2


def test_two_worse_sizes_end_the_search():
    found = trial({1: 1.0, 2: 1.3, 4: 1.5})
    assert found.settled_rows(8) == sys.maxsize
    assert found.best() == 1


def test_worse_short_runs_do_not_end_the_search():
    found = Trial({1: [1e-4] * 16, 2: [3e-4] * 16, 4: [9e-4] * 16})
    assert found.next_size(1000) == 8


def test_one_worse_size_does_not_end_the_search():
    assert trial({1: 1.0, 2: 1.3}).next_size(1000) == 4


def test_the_smallest_size_that_is_as_good_as_the_best_is_taken():
    assert trial({1: 1.0, 2: 0.804, 4: 0.8, 8: 0.798}).best() == 2


def test_memory_sets_a_ceiling():
    found = trial({1: 1.0, 2: 0.5})
    found.ceiling = 2
    assert found.settled_rows(8) == sys.maxsize


@pytest.fixture
def own_store(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own")}):
        yield Store()


def test_outcomes_are_kept_for_the_host(own_store, monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(clock))
    shapes = ((3, 32, 32),)
    sizes = list(run_sizes("stage", 1, shapes, 20_000))
    assert sum(sizes) == 20_000
    found = find_tuning("stage", 1, shapes)
    assert found.rows == 4096  # each run took as long, whatever its rows
    tuning.clear_tunings()
    assert find_tuning("stage", 1, shapes) == found
    assert list(run_sizes("stage", 1, shapes, 10_000)) == [4096, 4096, 1808]
    assert [t.rows for t in tuning.stage_tunings("stage")] == [4096]


def test_threads_and_shapes_make_another_measurement():
    names = {
        measurement_name("s", 1, ((3, 4),)),
        measurement_name("s", 2, ((3, 4),)),
        measurement_name("s", 1, ((3, 5),)),
    }
    assert len(names) == 3


def test_tasks_of_a_few_rows_do_not_settle_larger_sizes():
    shapes = ((7,),)
    for _ in range(30):
        assert sum(run_sizes("few", 1, shapes, 3)) == 3
    assert find_tuning("few", 1, shapes).settled_rows == 3
    assert max(run_sizes("few", 1, shapes, 100)) > 2  # larger sizes may be better still


def test_rows_of_another_shape_use_the_nearest_outcome(own_store, monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(clock))
    list(run_sizes("texts", 1, ((32,),), 20_000))
    assert find_tuning("texts", 1, ((32,),)).rows == 4096
    assert list(run_sizes("texts", 1, ((256,),), 1200)) == [512, 512, 176]
    assert list(run_sizes("texts", 1, ((16,),), 4400)) == [4096, 304]
    assert next(run_sizes("texts", 2, ((256,),), 300)) == 1  # other threads are another matter
    assert next(run_sizes("texts", 1, ((4, 64),), 300)) == 1


def test_memory_is_counted_from_before_the_first_trial(own_store, monkeypatch):
    resident = iter([1000, *[1000] * 3, *[1600] * 500])
    monkeypatch.setattr(tuning, "resident_bytes", lambda: next(resident))
    monkeypatch.setattr(tuning, "_memory_for_a_run", lambda: 1000)
    monkeypatch.setattr(tuning, "_MIN_TIMES", 1)
    monkeypatch.setattr(tuning, "_MAX_TIMES", 1)
    assert list(run_sizes("a", 1, ((2, 2),), 31)) == [1, 2, 4, 8, 8, 8]
    # What the arena has kept does not make room for more.
    assert max(run_sizes("b", 1, ((3, 3),), 31)) == 1


def test_auto_gives_what_one_run_gives(own_store):
    source = dense_model(hidden=64)
    model = dx.load(source)
    expected = run_onnx(source, {"x": X})[0]
    for _ in range(2):
        np.testing.assert_allclose(model.predict(X), expected, rtol=1e-4, atol=1e-5)
        lazy = model.predict(da.from_array(X, chunks=(700, 8)))
        np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model(X), expected, rtol=1e-4, atol=1e-5)


def test_the_plan_shows_the_measured_rows_of_a_run(own_store):
    model = dx.load(dense_model(hidden=65))
    assert "not measured on this host yet" in model.plan().explain()
    model.predict(np.concatenate([X] * 80))
    text = model.plan().explain()
    assert "rows of a run: " in text and "measured on this host" in text
    assert "rows/s by rows of a run: 1: " in text


def test_a_plan_of_several_stages_uses_the_predicted_work_of_a_row():
    plan = dx.load(dense_model(hidden=66)).plan("per_node")
    assert f"rows of a run: {plan.rows_per_run}, by the work" in plan.explain()
    assert plan.rows_per_run == 256


def mixing_model():
    """Return a model that subtracts the mean over all rows."""
    return make_model(
        [node("ReduceMean", "x", "m", "mean", axes=[0], keepdims=1), node("Sub", "x m", "y")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )


def test_rows_that_depend_on_each_other_stay_together(own_store):
    model = dx.load(mixing_model())
    np.testing.assert_allclose(model.predict(X), X - X.mean(axis=0), atol=1e-5)
    assert "is reduced at node 'mean'" in model.plan().explain()


def test_rows_that_are_added_to_a_table_stay_together(own_store):
    table = weights(600, 8)
    model = make_model(
        [node("Add", "x B", "y")], [value("x", ["N", 8])], [value("y", ["N", 8])], {"B": table}
    )
    np.testing.assert_allclose(dx.load(model).predict(X[:600]), X[:600] + table, rtol=1e-6)


def test_the_callers_number_wins(own_store):
    model = dx.load(dense_model(hidden=67))
    model.predict(X, batch_size=100)
    model.predict(X, batch_size=None)
    assert not list(own_store.root.glob("measured/*"))


@pytest.mark.parametrize("size", [0, -1, "many", 2.5, True])
def test_an_invalid_batch_size_is_refused(size):
    with pytest.raises(dx.InputError, match="batch_size is"):
        dx.load(dense_model()).predict(X, batch_size=size)
