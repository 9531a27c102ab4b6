"""Rows on another axis than the first, as in (time, batch, features), for every collection."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import onnx
import pandas as pd
import pytest
from builders import make_model, node, run_onnx, value, weights

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((4, 7, 2)).astype(np.float32)
WEIGHTS = {"w": weights(1, 3, 2), "r": weights(1, 3, 3), "one": np.array([1])}


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def recurrent(time, batch) -> onnx.ModelProto:
    nodes = [node("RNN", "x w r", "s", hidden_size=3), node("Squeeze", "s one", "y")]
    return make_model(
        nodes, [value("x", [time, batch, 2])], [value("y", [time, batch, 3])], WEIGHTS
    )


EXPECTED = run_onnx(recurrent("T", "N"), {"x": X})[0]
FOUND = [(("T", "N"), None), ((4, "N"), None), ((4, 3), None)]
NAMED = [(sizes, {"x": 1}) for sizes, _ in FOUND]


@pytest.fixture(params=[*FOUND, *NAMED], ids=str)
def model(request):
    sizes, rows = request.param
    return dx.load(recurrent(*sizes), rows=rows)


def test_arrays_in_memory_are_cut_along_them(model):
    np.testing.assert_allclose(model.predict(X), EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(model(X), EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(model.predict(X.tolist()), EXPECTED, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_chunks_are_cut_along_them(model, strategy):
    lazy = model.predict(da.from_array(X, chunks=(4, (1, 4, 2), 2)), plan=model.plan(strategy))
    assert lazy.chunks[1] == (1, 4, 2)
    np.testing.assert_allclose(lazy.compute(), EXPECTED, rtol=1e-5)
    found = model.predict(dask.delayed(X), plan=model.plan(strategy)).compute()
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "rows"), [FOUND[1], FOUND[2], *NAMED])
def test_items_of_a_bag_lie_along_them(sizes, rows):
    model = dx.load(recurrent(*sizes), rows=rows)
    items = [X[:, row] for row in range(7)]
    found = model.predict(db.from_sequence(items, npartitions=3)).compute()
    np.testing.assert_allclose(np.stack(found, 1), EXPECTED, rtol=1e-5)
    good, bad = model.predict_checked(db.from_sequence([items[0], items[0][:, :1]], npartitions=1))
    np.testing.assert_allclose(good.compute()[0], EXPECTED[:, 0], rtol=1e-5)
    assert len(bad.compute()) == 1


def test_items_of_a_bag_need_an_axis_where_two_are_open():
    with pytest.raises(dx.InputError) as caught:
        dx.load(recurrent("T", "N")).predict(db.from_sequence([X[:, 0]] * 4, npartitions=2))
    assert caught.value.option == "rows"


@pytest.mark.parametrize("partitions", [0, 2])
def test_rows_of_a_table_lie_along_the_named_axis(partitions):
    """A square table does not show by its shape that rows and columns are exchanged."""
    mixed = weights(2, 4)
    source = make_model(
        [node("MatMul", "m x", "y")], [value("x", [4, "N"])], [value("y", [2, "N"])], {"m": mixed}
    )
    model = dx.load(source, rows={"x": 1})
    table = pd.DataFrame(X[:, :4, 0])
    given = dd.from_pandas(table, npartitions=partitions) if partitions else table
    found = model.predict(given)
    found = found.compute() if partitions else found
    np.testing.assert_allclose(found.to_numpy(), (mixed @ X[:, :4, 0].T).T, rtol=1e-5)
    with pytest.raises(dx.InputError) as caught:
        model.predict(pd.DataFrame(X[0]))
    assert caught.value.numbers


def test_states_are_chunked_along_their_own_axis():
    nodes = [
        node("Gather", "h zero", "g"),
        node("ReduceMean", "x", "m", axes=[1, 2], keepdims=0),
        node("Unsqueeze", "m one", "u"),
        node("Add", "g u", "y"),
        node("Tanh", "h", "hn"),
    ]
    source = make_model(
        nodes,
        [value("x", ["N", "T", 2]), value("h", [2, "N", 5])],
        [value("y", ["N", 5]), value("hn", [2, "N", 5])],
        {"zero": np.array(0), "one": np.array([1])},
    )
    x, h = weights(6, 3, 2), weights(2, 6, 5, seed=1)
    expected = dict(zip(("y", "hn"), run_onnx(source, {"x": x, "h": h}), strict=True))
    lazy = dx.load(source).predict(
        {
            "x": da.from_array(x, chunks=((1, 5), 3, 2)),
            "h": da.from_array(h, chunks=(2, (4, 2), 5)),
        }
    )
    for name, array in expected.items():
        np.testing.assert_allclose(lazy[name].compute(), array, rtol=1e-5)


def test_files_are_refused_since_they_are_read_along_their_first_axis(tmp_path):
    model, given = tmp_path / "model.onnx", tmp_path / "x.npy"
    onnx.save(recurrent(4, "N"), model)
    np.save(given, X)
    with pytest.raises(dx.InputError) as caught:
        dx.predict_files(str(model), str(given), str(tmp_path / "y.npy"), workers=1)
    assert (caught.value.input, caught.value.axis) == ("x", 1)
