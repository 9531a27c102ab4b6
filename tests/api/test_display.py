"""Printing, explaining and drawing, and building lazy graphs, run nothing on a cluster."""

from __future__ import annotations

import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import dense_model, layers_model
from distributed import Client, LocalCluster

import dask_onnx as dx

pytestmark = pytest.mark.cluster

X = np.ones((8, 8), np.float32)


def transitions(dask_scheduler):
    return len(dask_scheduler.transition_log)


@pytest.fixture
def blocked_client(monkeypatch):
    """Client that raises when something is submitted to its cluster."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        # The first request of a model asks the workers which files they can read.
        for model in (dx.load(dense_model()), dx.load(layers_model([100] * 4, 8))):
            model.predict(da.from_array(X, chunks=(4, 8)))

        def refuse(*args, **kwargs):
            raise AssertionError("something ran on the cluster")

        for name in ("run", "submit", "map", "get", "compute", "persist", "scatter"):
            monkeypatch.setattr(client, name, refuse)
        yield client


def test_printing_explaining_and_drawing_plans_run_nothing(blocked_client, tmp_path):
    before = blocked_client.run_on_scheduler(transitions)
    model = dx.load(layers_model([100] * 4, 8))
    repr(model), model._repr_html_(), model.analysis
    model.axes()
    plans = [
        model.plan("whole"),
        model.plan("per_node"),
        model.plan("auto", client=blocked_client, shapes={"x": (64, 8)}),
        model.plan(dx.Pipeline(n_stages=2)).with_placement(dx.Placement((0, 1))),
        model.plan("pipeline"),
    ]
    for number, plan in enumerate(plans):
        assert "\n" not in repr(plan)
        assert plan.explain() and plan._repr_html_()
        plan.visualize(tmp_path / f"{number}.svg")
        plan.visualize(tmp_path / f"{number}.html")
        assert plan.diff(plans[0])
        plan.summary(), plan.timeline(), plan.memory(), plan.judge()
        assert plan.graph(da.from_array(X, chunks=(4, 8)))
    assert blocked_client.run_on_scheduler(transitions) == before


def test_building_lazy_graphs_runs_nothing(blocked_client):
    before = blocked_client.run_on_scheduler(transitions)
    model = dx.load(dense_model())
    assert model.predict(da.from_array(X, chunks=(4, 8))).chunks[0] == (4, 4)
    assert model.delayed(X).key
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcdefgh")), npartitions=2)
    assert len(model.predict(frame).columns) > 0
    assert model.predict(db.from_sequence(list(X), npartitions=2)).npartitions == 2
    model.check(X)
    model.check(frame)
    assert blocked_client.run_on_scheduler(transitions) == before
