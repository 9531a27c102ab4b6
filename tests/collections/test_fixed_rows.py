"""Models that were exported with a fixed number of rows."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, make_model, node, run_onnx, value

import dask_onnx as dx

ROWS = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def model():
    return dx.load(dense_model(rows=4))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 10])
def test_any_number_of_rows_is_split_and_padded(model, count):
    np.testing.assert_allclose(model.predict(ROWS[:count]), EXPECTED[:count], rtol=1e-5)


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_chunks_need_not_be_multiples_of_the_batch(model, strategy):
    x = da.from_array(ROWS, chunks=((3, 5, 2), -1))
    lazy = model.predict(x, plan=model.plan(strategy))
    assert lazy.chunks[0] == (3, 5, 2)
    np.testing.assert_allclose(lazy.compute(), EXPECTED, rtol=1e-5)


def test_tables_and_bags_are_split_and_padded(model):
    frame = pd.DataFrame(ROWS)
    found = model.predict(dd.from_pandas(frame, npartitions=3)).compute()
    np.testing.assert_allclose(found.to_numpy(), EXPECTED, rtol=1e-5)
    rows = model.predict(db.from_sequence(list(ROWS), npartitions=3)).compute()
    np.testing.assert_allclose(np.stack(rows), EXPECTED, rtol=1e-5)


def test_another_batch_size_is_refused(model):
    with pytest.raises(dx.InputError) as caught:
        model.predict(ROWS, batch_size=3)
    assert (caught.value.option, caught.value.numbers) == ("batch_size", {"fixed_rows": 4})
    assert "4, as the graph was exported" in model.plan().explain()


def test_unproven_rows_are_neither_split_nor_padded():
    model = dx.load(
        make_model(
            [node("Softmax", "x", "y", "across", axis=0)],
            [value("x", [4, 8])],
            [value("y", [4, 8])],
        )
    )
    said = "exactly 4 on axis 0, as the graph was exported: nothing is cut or padded"
    assert said in model.plan().explain() and "node 'across' may mix them" in model.analysis.rows
    assert model.predict(ROWS[:4]).shape == (4, 8)
    for count in (3, 8):
        with pytest.raises(dx.InputError, match=r"\(4, 8\)"):
            model.predict(ROWS[:count])
