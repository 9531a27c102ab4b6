"""Rows that a caller's own operator relates: never cut without a word by the caller."""

from __future__ import annotations

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import onnx.parser
import pandas as pd
import pytest
from onnx.reference.op_run import OpRun

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
CENTERED = X - X.mean(0)
MODEL = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 18, "mine": 1]>\n'
    "g (float[N,2] x) => (float[N,2] y) { y = mine.Center(x) }"
)


class Center(OpRun):
    op_domain = "mine"

    def _run(self, x):
        return (center(x),)


class CenterOfEach(Center):
    """An operator of which its author says that rows are independent."""

    axes = "independent"


CenterOfEach.__name__ = "Center"


def center(x):
    if (np.abs(x) > 1e6).any():
        raise ValueError("too large")
    return x - x.mean(0, keepdims=True)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture(params=["custom_ops", "replace"])
def model(request):
    if request.param == "replace":
        return dx.load(MODEL, replace={"mine::Center": center})
    return dx.load(MODEL, custom_ops=[Center])


def test_rows_in_one_piece_run_together(model):
    frame = pd.DataFrame(X)
    for found in (
        model.predict(X),
        model.predict(X, batch_size=None),
        model(X),
        model.predict(da.from_array(X, chunks=-1)).compute(),
        model.predict(dask.delayed(X)).compute(),
        model.predict(frame).to_numpy(),
        model.predict(dd.from_pandas(frame, npartitions=1)).compute().to_numpy(),
        np.stack(model.predict(db.from_sequence(list(X), npartitions=1)).compute()),
    ):
        np.testing.assert_allclose(found, CENTERED, atol=1e-6)


PIECES = {
    "batch size": lambda m: m.predict(X, batch_size=2),
    "chunks": lambda m: m.predict(da.from_array(X, chunks=(4, 2))),
    "delayed batches": lambda m: m.predict(dask.delayed(X), batch_size=2),
    "partitions": lambda m: m.predict(dd.from_pandas(pd.DataFrame(X), npartitions=2)),
    "checked": lambda m: m.predict_checked(dd.from_pandas(pd.DataFrame(X), npartitions=2)),
    "bag": lambda m: m.predict(db.from_sequence(list(X), npartitions=2)),
    "table with a batch size": lambda m: m.predict(pd.DataFrame(X), batch_size=2),
}


@pytest.mark.parametrize("pieces", PIECES)
def test_rows_in_pieces_are_refused_before_any_work(model, pieces):
    with pytest.raises(dx.InputError) as caught:
        PIECES[pieces](model)
    assert (caught.value.option, caught.value.input, caught.value.node) == ("rows", "x", "Center_0")
    assert dx.Suggestion("rows", "independent") in caught.value.suggestions


@pytest.mark.parametrize("how", ["the operator", "the model"])
def test_a_declaration_lets_rows_be_cut(how):
    if how == "the operator":
        model = dx.load(MODEL, custom_ops=[CenterOfEach])
    else:
        model = dx.load(MODEL, custom_ops=[Center], rows="independent")
    np.testing.assert_array_equal(model.predict(X, batch_size=1), np.zeros_like(X))
    assert model.predict(da.from_array(X, chunks=(4, 2))).compute().shape == X.shape


def test_good_rows_run_together_after_bad_ones_were_found(model):
    bad = X.copy()
    bad[4] = 1e7
    others = np.delete(X, 4, 0)
    expected = others - others.mean(0)
    good, wrong = model.predict_checked(pd.DataFrame(bad))
    np.testing.assert_allclose(good.to_numpy(), expected, atol=1e-6)
    assert len(wrong) == 1
    items = db.from_sequence(list(bad), npartitions=1)
    found, errors = model.predict_checked(items)
    np.testing.assert_allclose(np.stack(found.compute()), expected, atol=1e-6)
    assert len(errors.compute()) == 1


def test_rows_of_several_shapes_are_not_run_apart():
    source = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18, "mine": 1]>\n'
        "g (float[N,M] x) => (float[N,M] y) { y = mine.Center(x) }"
    )
    items = db.from_sequence([X[0], X[1], X[2][:1]], npartitions=1)
    with pytest.raises(dx.InputError) as caught:
        dx.load(source, custom_ops=[Center]).predict(items).compute()
    assert caught.value.numbers == {"shapes": 2}
    assert (
        len(dx.load(source, custom_ops=[Center], rows="independent").predict(items).compute()) == 3
    )
