"""Tables, bags and text on worker processes."""

from __future__ import annotations

import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, run_onnx

import dask_onnx as dx

pytestmark = pytest.mark.cluster

ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
TABLE = pd.DataFrame(ROWS, columns=list("abcdefgh"))
EXPECTED = run_onnx(dense_model(), {"x": ROWS})[0]


def test_tables_run_on_the_workers(client):
    model = dx.load(dense_model())
    lazy = model.predict(dd.from_pandas(TABLE, npartitions=4), append=True)
    found = lazy.compute()
    assert (found.dtypes == lazy.dtypes).all()
    np.testing.assert_allclose(found.to_numpy()[:, 8:], EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(model.predict(TABLE).to_numpy(), EXPECTED, rtol=1e-5)


def test_bags_run_on_the_workers(client):
    model = dx.load(dense_model())
    found = model.predict(db.from_sequence(list(ROWS), npartitions=4)).compute()
    np.testing.assert_allclose(np.stack(found), EXPECTED, rtol=1e-5)


def test_bad_values_raise_an_input_error(client):
    model = dx.load(dense_model())
    table = TABLE.assign(a=[[1, 2]] * len(TABLE))
    with pytest.raises(dx.InputError, match="'a' is"):
        model.predict(table, columns=list("abcdefgh"))


@pytest.mark.real
def test_text_runs_on_the_workers(client, asset):
    model = dx.TextModel(dx.load(asset("minilm.onnx")), asset("minilm_tokenizer.json"))
    texts = pd.Series(["one", "two words", "and now three"] * 4, name="t")
    lazy = model.predict(dd.from_pandas(texts.to_frame(), npartitions=3)["t"])
    found = np.stack(lazy.compute().to_numpy())
    np.testing.assert_allclose(found, model.predict(list(texts)), atol=2e-5)
