"""A second request analyses nothing anew, whatever collection it is for."""

from __future__ import annotations

import sys

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import dense_model, layers_model

import dask_onnx as dx
from dask_onnx.modelio.onnx_model import OnnxModel

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
TABLE = pd.DataFrame(X, columns=list("abcdefgh"))
LAZY = da.from_array(X, chunks=(3, 8))

REQUESTS = {
    "numpy": lambda model: model.predict(X),
    "delayed value": lambda model: model.predict(dask.delayed(X)),
    "delayed": lambda model: model.delayed(X),
    "array": lambda model: model.predict(LAZY),
    "array, batches": lambda model: model.predict(LAZY, batch_size=2),
    "table": lambda model: model.predict(TABLE, columns=list(TABLE)),
    "lazy table": lambda model: model.predict(
        dd.from_pandas(TABLE, npartitions=2), columns=list(TABLE)
    ),
    "checked table": lambda model: model.predict_checked(
        dd.from_pandas(TABLE, npartitions=2), columns=list(TABLE)
    ),
    "bag": lambda model: model.predict(db.from_sequence(list(X), npartitions=2)),
    "xarray": lambda model: model.predict(xr.DataArray(LAZY, dims=("row", "column"))),
    "inline": lambda model: model(X),
    "check": lambda model: model.check(X),
}
ANALYSES = (
    "infer_shapes",
    "find_batch",
    "node_costs",
    "find_kernels",
    "stage_graph_of",
    "propagate",
)


def refuse_analysis(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the model is analysed again")

    for name, module in list(sys.modules.items()):
        if name.startswith("dask_onnx."):
            for function in ANALYSES:
                if callable(getattr(module, function, None)):
                    monkeypatch.setattr(module, function, refuse)
    monkeypatch.setattr(OnnxModel, "parse", refuse)


@pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS)
def test_a_second_request_analyses_nothing(monkeypatch, request_of):
    model = dx.load(dense_model())
    with dask.config.set(scheduler="sync"):
        request_of(model)
        refuse_analysis(monkeypatch)
        request_of(model)


@pytest.mark.parametrize("kind", ["delayed value", "array", "array, batches", "xarray"])
def test_a_second_request_of_a_plan_analyses_nothing(monkeypatch, kind):
    model = dx.load(layers_model([8, 8]))
    plan = model.plan("pipeline", n_stages=2)
    options = {"batch_size": 2} if kind == "array, batches" else {}
    x = {
        "delayed value": dask.delayed(X),
        "xarray": xr.DataArray(LAZY, dims=("row", "column")),
    }.get(kind, LAZY)
    model.predict(x, plan=plan, **options)
    refuse_analysis(monkeypatch)
    model.predict(x, plan=plan, **options)
