"""The command `top`, one look at a time."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client

import dask_onnx as dx


@pytest.mark.cluster
def test_a_look_at_a_cluster_shows_its_models_and_workers(run, scheduler, model):
    with Client(scheduler) as client:
        dx.configure(client)
        found = dx.load(str(model), name="invoices")
        found.predict(np.ones((8, 4), np.float32), outputs=["y"], batch_size=2)
        printed = run("top", "--scheduler", scheduler)
        data = run("top", "--scheduler", scheduler, "--json").json()
    assert printed.code == 0, printed.err
    assert "invoices" in printed.out and printed.out.count("running") == 2
    (stage,) = (each for each in data["stages"] if each["model"] == "invoices")
    assert stage["name"] == "invoices" and stage["completed"] >= 1
    assert len(data["workers"]) == 2


def test_a_cluster_has_to_be_named(run):
    assert run("top").code == 2
    assert run("top", "--scheduler", "tcp://127.0.0.1:1").code == 2
