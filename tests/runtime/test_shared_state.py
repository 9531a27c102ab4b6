"""State that the threads of a process share, while they take turns after every few instructions."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
from builders import dense_model, layers_model

import dask_onnx as dx
from dask_onnx.core.files import OpenFiles, stat_file
from dask_onnx.core.process_caches import KeptResults
from dask_onnx.facts import model_facts
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.runtime.tuning import Trial, run_sizes

THREADS = 8


@pytest.fixture(autouse=True)
def frequent_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work, count):
    """Call a function of a number for all numbers up to a count, on several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(count)))


def test_runs_are_added_to_a_trial_while_others_choose_by_it():
    trial = Trial()

    def work(number):
        trial.add(number + 1, 1e-3 * (number % 7 + 1))
        trial.lower_ceiling(4096 - number % 3)
        assert trial.best() >= 1 and trial.rates()
        return trial.settled_rows(8)

    in_threads(work, 1000)
    assert sum(map(len, trial.seconds.values())) == 1000 and trial.ceiling == 4094


def test_tasks_of_one_stage_share_their_trials():
    def work(number):
        return sum(run_sizes("shared", 1, ((3 + number % 3,),), 500))

    assert in_threads(work, 40) == [500] * 40


def test_facts_at_more_shapes_than_are_kept_are_found_by_all_threads(monkeypatch):
    monkeypatch.setattr(model_facts, "_MAX_SHAPES", 3)
    facts = dx.load(layers_model([8, 8]))._facts

    def work(number):
        shapes = {"x": (2, 8 + number % 7)}
        is_proven = facts.batch_at(facts.graph.outputs, shapes).is_proven
        return number % 7, is_proven, str(facts.conflict_at(shapes))

    assert len(set(in_threads(work, 60))) == 7  # one answer for each shape
    assert len(facts._batches) == 3 and len(facts._conflicts) == 3


def test_results_that_are_kept_are_made_once_and_bounded():
    kept, made = KeptResults(50), []

    def make(key):
        made.append(key)
        return key

    found = in_threads(
        lambda number: kept.get_or_make(number % 50, lambda: make(number % 50)), 2000
    )
    assert found == [number % 50 for number in range(2000)] and sorted(made) == list(range(50))
    in_threads(lambda number: kept.put(number, number), 500)
    assert len(kept) == 50


def test_a_file_is_opened_once_for_all_threads(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"1")
    source, files = stat_file(str(path)), OpenFiles()
    opened = []
    really_open = dx.core.files.os.open

    def counted(*arguments):
        opened.append(arguments)
        return really_open(*arguments)

    monkeypatch.setattr("dask_onnx.core.files.os.open", counted)
    in_threads(lambda _: files.open(source), 200)
    assert len(opened) == 1


def test_predictions_on_many_threads_are_those_of_one():
    """Sessions are built, shared and dropped, and batch sizes tuned, while others run."""
    models = [dx.load(dense_model(hidden=16 + number)) for number in range(4)]
    plans = [model.plan("pipeline", n_stages=2) for model in models]
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    expected = [model(x, batch_size=None) for model in models]

    def work(number):
        model, rows = models[number % 4], 1 + number % 60
        plan = plans[number % 4] if number % 3 == 0 else None
        found = model.predict(x[:rows], plan=plan, batch_size=("auto", None, 7)[number % 3])
        np.testing.assert_allclose(found, expected[number % 4][:rows], rtol=1e-4, atol=1e-5)

    SESSION_CACHE.clear()
    with dask.config.set({"onnx.session.cache-bytes": 1, "scheduler": "sync"}):
        in_threads(work, 120)
