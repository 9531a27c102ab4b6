"""Models whose batch is declared open, while a constant inside names a number of rows."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import make_model, node, run_onnx, value

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
HALVES = X[:, :3] + X[:, 3:]
WAYS = [{}, {"batch_size": None}, {"batch_size": 1}, {"batch_size": 2}, {"batch_size": 3}]


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


def halves(number, *more, open_sizes=("N", "N")):
    """Return the sum of the halves of each row; the Reshape names the number of rows."""
    last = "s" if more else "y"
    nodes = [
        node("Reshape", "x halves", "h", "cut"),
        node("ReduceSum", "h one", last, keepdims=0),
        *more,
    ]
    constants = {"halves": np.array([number, 2, 3]), "one": np.array([1])}
    first, second = open_sizes
    return make_model(nodes, [value("x", [first, 6])], [value("y", [second, 3])], constants)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_any_number_of_rows_is_run_as_exported(number, options, count):
    found = dx.load(halves(number)).predict(X[:count], **options)
    np.testing.assert_allclose(found, HALVES[:count], rtol=1e-6)


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_every_collection_is_run_as_exported(strategy):
    model = dx.load(halves(2))
    plan = model.plan(strategy)
    lazy = model.predict(da.from_array(X, chunks=((1, 4, 2), -1)), plan=plan)
    assert lazy.chunks[0] == (1, 4, 2)
    np.testing.assert_allclose(lazy.compute(), HALVES, rtol=1e-6)
    found = model.predict(dask.delayed(X), plan=plan).compute()
    np.testing.assert_allclose(found, HALVES, rtol=1e-6)


def test_tables_and_bags_are_run_as_exported():
    model = dx.load(halves(2))
    frame = pd.DataFrame(X)
    np.testing.assert_allclose(model.predict(frame).to_numpy(), HALVES, rtol=1e-6)
    lazy = model.predict(dd.from_pandas(frame, npartitions=3))
    np.testing.assert_allclose(lazy.compute().to_numpy(), HALVES, rtol=1e-6)
    rows = model.predict(db.from_sequence(list(X), npartitions=3)).compute()
    np.testing.assert_allclose(np.stack(rows), HALVES, rtol=1e-6)
    assert "2, as the graph was exported" in model.plan().explain()


def test_a_number_of_rows_that_the_graph_takes_is_one_run():
    """A table of two rows broadcasts to one row: ONNX Runtime gives two, and so does `predict`."""
    table = np.repeat(np.float32([[1, 2, 3]]), 2, axis=0)
    model = dx.load(
        make_model(
            [node("Add", "x table", "y")],
            [value("x", ["N", 3])],
            [value("y", ["N", 3])],
            {"table": table},
        )
    )
    assert model.predict(X[:1, :3]).shape == (2, 3)
    np.testing.assert_allclose(model.predict(X[:, :3]), X[:, :3] + table[0])
    np.testing.assert_allclose(model.predict(X[:1, :3], batch_size=1), X[:1, :3] + table[:1])


@pytest.fixture
def mixing():
    return halves(2, node("Softmax", "s", "y", "across", axis=0))


@pytest.mark.parametrize("options", WAYS[:2])
@pytest.mark.parametrize("x", [X, X[:1], da.from_array(X)], ids=["numpy", "one row", "array"])
def test_rows_that_meet_are_refused_at_other_numbers(mixing, options, x):
    with pytest.raises(dx.InputError) as caught:
        dx.load(mixing).predict(x, **options)
    error = caught.value
    assert (error.option, error.input, error.node) == ("rows", "x", "cut")
    assert error.numbers == {"exported_rows": 2, "rows": len(x)}
    assert dx.Suggestion("rows", "independent") in error.suggestions


def test_rows_that_meet_run_at_the_exported_number(mixing):
    shifted = np.exp(HALVES[:2] - HALVES[:2].max(0))
    found = dx.load(mixing).predict(X[:2])
    np.testing.assert_allclose(found, shifted / shifted.sum(0), rtol=1e-5)


def test_rows_declared_independent_are_run_as_exported(mixing):
    found = dx.load(mixing, rows="independent").predict(X[:6])
    for start in (0, 2, 4):
        part = np.exp(HALVES[start : start + 2])
        np.testing.assert_allclose(found[start : start + 2], part / part.sum(0), rtol=1e-5)


def test_sizes_that_no_run_accepts_are_refused_before_any_work():
    nodes = [
        node("Reshape", "x pairs", "a", "pair"),
        node("Softmax", "a", "b"),
        node("Reshape", "b back", "y"),
    ]
    constants = {"pairs": np.array([2, -1, 2, 3]), "back": np.array([2, -1, 6])}
    shape = ["N", "T", 6]
    model = dx.load(make_model(nodes, [value("x", shape)], [value("y", shape)], constants))
    assert model.predict(np.zeros((2, 5, 6), np.float32)).shape == (2, 5, 6)
    with pytest.raises(dx.InputError) as caught:
        model.predict(np.zeros((3, 5, 6), np.float32))
    assert (caught.value.node, caught.value.input) == ("pair", "x")


def test_rows_proven_at_one_size_of_another_axis_are_not_cut_at_other_sizes():
    """Time is independent where the batch is 2, as the Reshape names it, and nowhere else."""
    nodes = [
        node("Reshape", "x pairs", "a", "pair"),
        node("Softmax", "a", "b"),
        node("Reshape", "b back", "y"),
    ]
    constants = {"pairs": np.array([2, -1, 2, 3]), "back": np.array([2, -1, 6])}
    shape = ["N", "T", 6]
    source = make_model(nodes, [value("x", shape)], [value("y", shape)], constants)
    model, rng = dx.load(source), np.random.default_rng(0)
    for count in (2, 3, 2, 4):
        x = rng.standard_normal((count, 8, 6)).astype(np.float32)
        np.testing.assert_allclose(model.predict(x), run_onnx(source, {"x": x})[0], rtol=1e-5)
