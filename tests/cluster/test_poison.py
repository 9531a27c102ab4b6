"""Rows that end the worker that runs them: found, told or set aside, and no worker spent twice.

Each takes half a minute. What needs no cluster is in tests/runtime/test_guarded_runs.py and
tests/collections/test_crashed_rows.py; all kinds of requests are in benchmarks/poison.py.
"""

from __future__ import annotations

import os
import signal

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import poison_models
import pytest
from builders import dense_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.core.errors import StageError

pytestmark = pytest.mark.cluster
cloudpickle.register_pickle_by_value(poison_models)
ROWS, BAD = 400, 321
X = np.random.default_rng(0).standard_normal((ROWS, 4), dtype=np.float32)
X[BAD, 2] = poison_models.MARK
GOOD = np.delete(np.arange(ROWS), BAD)
EXPECTED = -(X + 1)
COLUMNS = {"x": list("abcd")}


@pytest.fixture(scope="module")
def client(store_directory):
    # A slow machine may take longer than Dask's 15 s to bring a worker back.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


@pytest.fixture
def lost(client):
    """Function that returns the number of workers lost since the test began."""

    def count():
        return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler._workers_removed_total)

    client.wait_for_workers(2)
    before = count()
    return lambda: count() - before


@pytest.fixture(scope="module")
def table():
    return dd.from_pandas(pd.DataFrame(X, columns=list("abcd")), npartitions=8)


def model_of(function):
    return dx.load(poison_models.marked_model(), replace={"poison::Step": function})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_an_array_the_row_is_named_and_work_beside_it_is_not_blamed(client, lost):
    model, other = model_of(poison_models.segfault_on_mark), dx.load(dense_model())
    rows = np.ones((64, 8), np.float32)
    innocent = client.compute(other.predict(da.from_array(rows, chunks=(4, 8))))
    with pytest.raises(dx.CrashError) as caught:
        model.predict(da.from_array(X, chunks=(50, 4))).compute()
    error = caught.value
    assert error.rows == (BAD % 50,)
    assert error.numbers["block"] == BAD // 50
    assert error.numbers["signal"] == signal.SIGSEGV
    assert error.stage
    assert lost() == 1
    np.testing.assert_allclose(innocent.result(timeout=120), other(rows), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_a_table_the_row_is_null_and_then_set_aside_with_the_reason(client, lost, table):
    model = model_of(poison_models.abort_on_mark)
    found = model.predict(table, columns=COLUMNS, on_error="null").compute()
    np.testing.assert_array_equal(found.to_numpy()[GOOD], EXPECTED[GOOD])
    assert found.iloc[BAD].isna().all()
    assert lost() == 1
    good, bad = dask.compute(*model.predict_checked(table, columns=COLUMNS))
    np.testing.assert_array_equal(good.to_numpy(), EXPECTED[GOOD])
    assert list(bad.index) == [BAD]
    assert "SIGABRT" in bad["error"].iloc[0]
    assert lost() <= 2
    # The second crash has made the host careful: nothing of this model ends a worker any more.
    seen = lost()
    with pytest.raises(dx.CrashError) as caught:
        model.predict(table, columns=COLUMNS).compute()
    assert caught.value.numbers["row"] == BAD % 50
    with pytest.raises(dx.CrashError) as caught:
        model.predict(X, batch_size=50)
    assert caught.value.rows == (BAD,)
    assert caught.value.numbers["rows"] == ROWS
    bag = db.from_sequence(list(X), npartitions=4)
    results, dead = dask.compute(*model.predict_checked(bag))
    np.testing.assert_array_equal(results, EXPECTED[GOOD])
    np.testing.assert_array_equal(dead[0]["row"], X[BAD])
    assert len(dead) == 1
    assert lost() == seen


def ender():
    """Return a function that ends its process on the marked block, and travels by value."""
    mark = poison_models.MARK

    def end_on_mark(block):
        if (block == mark).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    return end_on_mark


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_code_of_the_caller_that_ends_workers_is_an_error_with_the_block(client):
    x = da.from_array(X, chunks=(50, 4))
    guilty = x.map_blocks(ender(), dtype=x.dtype, meta=np.empty((0, 0), np.float32))
    with pytest.raises(StageError) as caught:
        dx.load(poison_models.plain_model()).predict(guilty).compute()
    assert caught.value.numbers == {"workers": 4, "block": BAD // 50}
