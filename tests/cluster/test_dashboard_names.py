"""Names on the dashboard: an uncut model is found under its own, whatever Dask fuses with it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from builders import layers_model

import dask_onnx as dx
from dask_onnx.collections import prediction_progress


def names_of(client):
    """Return the number of tasks of each name that the dashboard shows, with their states."""

    def read(dask_scheduler):
        return {
            name: (len(prefix), {k: n for k, n in prefix.states.items() if n})
            for name, prefix in dask_scheduler.task_prefixes.items()
        }

    return client.run_on_scheduler(read)


@pytest.mark.cluster
def test_a_model_that_dask_fuses_with_what_follows_keeps_its_name(client):
    model = dx.load(layers_model([8] * 3), name="invoices")
    x = np.random.default_rng(0).random((40, 8), np.float32)
    lazy = model.predict(da.from_array(x, chunks=(10, 8))).sum()
    future = client.compute(lazy)
    np.testing.assert_allclose(future.result(), model(x).sum(), rtol=1e-4)
    names = names_of(client)
    found = {name: sizes for name, sizes in names.items() if "invoices" in name}
    assert sum(count for count, _ in found.values()) == 4
    assert all(not name.startswith("sum") for name in found)
    # What is counted is what there is: no state below zero, and nothing left once it is forgotten.
    assert all(count >= 0 for _, states in names.values() for count in states.values())
    again = client.compute(lazy + 1)
    assert again.result() == pytest.approx(future.result() + 1)
    future.release()
    again.release()


@pytest.mark.cluster
def test_groups_of_renamed_tasks_are_forgotten_with_them(own_client):
    model = dx.load(layers_model([8] * 3), name="receipts")
    x = da.from_array(np.ones((40, 8), np.float32), chunks=(10, 8))
    for _ in range(2):
        model.predict(x).sum().compute()

    def groups(dask_scheduler):
        return [name for name in dask_scheduler.task_groups if "receipts" in name]

    until = 50
    while own_client.run_on_scheduler(groups) and (until := until - 1):
        own_client.submit(bool, until).result()
    assert own_client.run_on_scheduler(groups) == []


@pytest.mark.cluster
def test_rows_of_a_prediction_on_a_cluster_are_counted(client, monkeypatch):
    shown = []

    class Display:
        def show(self, done, total):
            shown.append((done, total))

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(prediction_progress, "_display", lambda name: Display())
    model = dx.load(layers_model([8] * 3))
    x = np.random.default_rng(0).random((40, 8), np.float32)
    found = model.predict(x, batch_size=5, progress=True)
    np.testing.assert_allclose(found, model(x), rtol=1e-5)
    assert shown[0] == (0, 40) and shown[-2:] == [(40, 40), "closed"]
