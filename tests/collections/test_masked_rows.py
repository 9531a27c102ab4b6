"""Masked arrays: what is masked is missing, and rows that are masked wholly stay masked."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from builders import make_model, node, value
from dask import delayed

import dask_onnx as dx


@pytest.fixture(scope="module")
def model():
    return dx.load(
        make_model(
            [
                node("Add", "x shift", "moved"),
                node("ReduceSum", "moved one", "total", keepdims=0),
                node("ReduceMax", "shift", "most", keepdims=0),
            ],
            [value("x", ("N", 3)), value("shift", ("N", 1))],
            [value("moved", ("N", 3)), value("total", ("N",)), value("most", ())],
            {"one": np.array([1])},
        )
    )


def masked():
    x = np.ma.masked_array(np.arange(15.0).reshape(5, 3), mask=False)
    x.mask[1] = True
    x.mask[2, 1] = True
    x.data[x.mask] = -9999
    return x


def shift():
    return np.ma.masked_array([[0.0], [0], [0], [1], [1]], mask=[[0], [0], [0], [0], [1]])


EXPECTED = [[0, 1, 2], None, [6, np.nan, 8], [10, 11, 12], None]


def as_lists(found):
    rows = zip(np.ma.getdata(found).tolist(), np.ma.getmaskarray(found), strict=True)
    return [None if np.all(hidden) else row for row, hidden in rows]


def check(found):
    for name, expected in (("moved", EXPECTED), ("total", [3, None, np.nan, 33, None])):
        assert isinstance(found[name], np.ma.MaskedArray)
        rows = as_lists(found[name])
        assert [row is None for row in rows] == [row is None for row in expected]
        for row, own in zip(rows, expected, strict=True):
            if own is not None:
                np.testing.assert_array_equal(row, own)
    assert not isinstance(found["most"], np.ma.MaskedArray)  # it has no rows


@pytest.mark.parametrize("batch_size", ["auto", None, 2])
def test_rows_of_numpy_that_are_masked_wholly_come_back_masked(model, batch_size):
    feeds = {"x": masked(), "shift": shift()}
    options = {"batch_size": batch_size, "outputs": ["moved", "total"]}
    check({**model(feeds, **options), "most": 0})
    check({**model.predict(feeds, **options), "most": 0})
    found = model.predict(feeds, batch_size=None)
    check(found)


@pytest.mark.parametrize("chunks", [5, 2, (1, 3, 1)])
def test_rows_of_dask_that_are_masked_wholly_come_back_masked(model, chunks):
    x = da.from_array(masked(), chunks=(chunks, 3))
    lazy = model.predict({"x": x, "shift": shift()}, outputs=["moved", "total"])
    assert isinstance(lazy["moved"]._meta, np.ma.MaskedArray)
    found = {name: value.compute(scheduler="sync") for name, value in lazy.items()}
    check({**found, "most": 0})
    part = lazy["total"][1:3].compute(scheduler="sync")
    assert as_lists(part)[0] is None and np.isnan(part.data[1])


def test_a_masked_array_without_masked_places_stays_one(model):
    x = np.ma.masked_array(np.ones((2, 3)))
    found = model({"x": x, "shift": np.zeros((2, 1))}, outputs="moved")
    assert isinstance(found, np.ma.MaskedArray) and not np.ma.getmaskarray(found).any()


def test_rows_on_another_axis_stay_masked():
    turned = dx.load(
        make_model(
            [node("Mul", "x two", "y")],
            [value("x", (3, "N"))],
            [value("y", (3, "N"))],
            {"two": np.array(2, np.float32)},
        ),
        rows={"x": 1},
    )
    x = np.ma.masked_array(np.ones((3, 4)), mask=False)
    x.mask[:, 2] = True
    x.mask[0, :] = True
    found = turned.predict(x)
    assert np.ma.getmaskarray(found).tolist() == [[False, False, True, False]] * 3
    lazy = turned.predict(da.from_array(x, chunks=(3, 2))).compute(scheduler="sync")
    assert np.ma.getmaskarray(lazy).tolist() == np.ma.getmaskarray(found).tolist()


def test_masks_of_dask_arrays_reach_the_model_through_delayed(model):
    x = da.from_array(masked(), chunks=(2, 3))
    both = {"x": x, "shift": delayed(shift())}
    for lazy in (
        model.delayed({"x": x, "shift": shift()}, outputs="moved"),
        model.predict(both, outputs="moved"),
    ):
        found = lazy.compute(scheduler="sync")
        assert np.isnan(found[1]).all() and np.isnan(found[2, 1])
        np.testing.assert_array_equal(found[[0, 3]], [EXPECTED[0], EXPECTED[3]])


def test_an_optional_input_may_be_fed_beside_a_masked_array():
    added = dx.load(
        make_model(
            [node("Add", "x b", "y")],
            [value("x", ("N", 3)), value("b", (3,))],
            [value("y", ("N", 3))],
            {"b": np.ones(3, np.float32)},
        )
    )
    found = added.predict({"x": masked(), "b": np.zeros(3, np.float32)})
    assert as_lists(found)[1] is None
    np.testing.assert_array_equal(found[3], [9, 10, 11])


@pytest.mark.parametrize("chunks", [None, (2, 3)], ids=["numpy", "dask"])
def test_masks_survive_a_checkpoint(model, tmp_path, chunks):
    x = masked() if chunks is None else da.from_array(masked(), chunks=chunks)
    for _ in range(2):  # computed, then read
        found = model.predict(
            {"x": x, "shift": shift()}, outputs=["moved", "total"], checkpoint=tmp_path / "kept"
        )
        if chunks is not None:
            assert isinstance(found["moved"]._meta, np.ma.MaskedArray)
            found = {name: lazy.compute(scheduler="sync") for name, lazy in found.items()}
        check({**found, "most": 0})


def test_masked_integers_are_refused_whether_whole_rows_or_not():
    counts = dx.load(
        make_model([node("Neg", "x", "y")], [value("x", ("N", 2), 7)], [value("y", ("N", 2), 7)])
    )
    x = np.ma.masked_array(np.ones((2, 2), np.int64), mask=[[1, 1], [0, 0]])
    with pytest.raises(dx.InputError) as caught:
        counts.predict(x)
    assert caught.value.numbers["bad_values"] == 2
