"""Arrays are not copied where that can be avoided: ORT reads the caller's memory, and the caller
ORT's."""

from __future__ import annotations

import itertools

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.runtime.session import Session

X = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)


@pytest.fixture
def runs(monkeypatch):
    """Inputs and outputs of every run of a session."""
    seen: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    real = Session.run

    def run(self, arrays):
        results = real(self, arrays)
        seen.append((list(arrays), list(results)))
        return results

    monkeypatch.setattr(Session, "run", run)
    return seen


def test_one_run_reads_the_callers_memory_and_returns_its_own(runs):
    y = dx.load(dense_model()).predict(X, batch_size=None)
    ((fed,), (given,)) = runs[0]
    assert fed is X or np.shares_memory(fed, X)
    assert y is given


def test_runs_of_some_rows_are_views_of_the_callers_memory(runs):
    dx.load(dense_model()).predict(X, batch_size=16)
    assert len(runs) == 4
    assert all(np.shares_memory(fed[0], X) for fed, _ in runs)


def test_a_chunk_of_a_dask_array_is_not_copied(runs):
    chunk = dask.delayed(lambda: X, pure=True)()
    lazy = da.from_delayed(chunk, X.shape, X.dtype)
    with dask.config.set(scheduler="sync"):
        # An array of one chunk is copied by Dask when it is computed; the chunk is not.
        y = dx.load(dense_model()).predict(lazy, batch_size=None).to_delayed()[0, 0].compute()
    ((fed,), (given,)) = runs[0]
    assert np.shares_memory(fed, X)
    assert np.shares_memory(y, given)


def test_an_output_is_the_input_of_the_next_stage(runs):
    model = dx.load(dense_model())
    model.predict(X, plan=model.plan("per_node"), batch_size=None)
    assert len(runs) == 4
    for (_, given), (fed, _) in itertools.pairwise(runs):
        assert any(array is given[0] for array in fed)


def test_a_mapped_file_is_not_copied(runs, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    dx.load(dense_model()).predict(mapped, batch_size=None)
    assert np.shares_memory(runs[0][0][0], mapped)


def test_results_may_be_written_to_and_outlive_their_session():
    model = dx.load(dense_model())
    y = model.predict(X)
    before = y.copy()
    model.predict(X * 2)
    np.testing.assert_array_equal(y, before)
    y[...] = 0


def test_many_requests_leave_memory_as_it_was():
    wide = make_model(
        [node("Relu", "x", "h"), node("Neg", "h", "y")],
        [value("x", ["N", 1000])],
        [value("y", ["N", 1000])],
    )
    model, x = dx.load(wide), np.zeros((500, 1000), "f4")
    plan = model.plan("per_node")
    process = psutil.Process()

    def predict(times):
        for i in range(times):
            model.predict(x + i, plan=plan)
        return process.memory_info().rss

    first = predict(50)
    # Each request moves 6 MB: if they stayed, 1.5 GB.
    assert predict(250) - first < 150 * 2**20
