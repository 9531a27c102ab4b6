"""What cannot fit the workers is said before anything is sent, with what would."""

from __future__ import annotations

import time
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest
from builders import layers_model
from distributed import Client, LocalCluster

import dask_onnx as dx

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)


@pytest.fixture(autouse=True)
def little_counts(monkeypatch):
    """Workers so small that a process leaves them some megabytes."""
    monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING", 0)
    monkeypatch.setattr("dask_onnx.cluster.placement.LOADED", 196e6)


@contextmanager
def small_workers(count, memory_limit):
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=memory_limit,
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


@pytest.fixture
def model():
    return dx.load(layers_model([3000] * 6, width=64))


def test_what_cannot_fit_is_refused_before_anything_is_sent(model):
    with small_workers(3, 250_000_000) as client:
        x = da.from_array(ROWS[:64], chunks=(16, -1))
        with pytest.raises(
            dx.PlanError, match=r"(?s)has 8.8 MiB of weights.*room for 3.8 MiB"
        ) as e:
            model.predict(x)
        assert "n_stages=3, memory_limit=4000000" in e.value.next_step
        assert len(model.plan("pipeline", n_stages=3, memory_limit=4_000_000).stages) == 3
        with pytest.raises(dx.PlanError, match="smallest n_stages that keeps within it is 3"):
            model.plan("pipeline", n_stages=2, memory_limit=4_000_000)
        plan = model.plan("auto", shapes={"x": (16, 64)})
        assert plan.verdict.chosen.startswith("pipeline of") and len(plan.stages) >= 3
        assert plan.recipe.options["memory_limit"] == 4_000_000
        client.cluster.scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.1)
        model.predict(x)  # workers may come yet


def test_activations_that_cannot_fit_are_refused_with_the_rows_that_would():
    model = dx.load(layers_model([3000], width=64))  # 1.5 MB, and 24 kB of activations a row
    x = da.from_array(ROWS, chunks=(2048, -1))
    with small_workers(1, 270_000_000):
        with pytest.raises(
            dx.PlanError, match=r"1.5 MiB of weights, and about .* in a run of 2,048 rows.*19.1 MiB"
        ) as error:
            model.predict(x, batch_size=None)
        rows = int(error.value.next_step.partition("batch_size=")[2].partition(",")[0])
        assert 500 < rows < 1000
        model.predict(x, batch_size=rows)
        model.predict(x)  # finds its own rows, and watches the memory
        model.predict(x.rechunk((rows, -1)), batch_size=None)
        with (
            dask.config.set({"onnx.plan.memory-check": "warn"}),
            pytest.warns(UserWarning, match="of activations"),
        ):
            model.predict(x, batch_size=None)


def test_advice_that_is_followed_is_not_refused_again(model):
    with small_workers(2, 250_000_000):
        x = da.from_array(ROWS[:64], chunks=(16, -1))
        # 8.8 MiB take three stages of 3.8 MiB, and there are two workers.
        with pytest.raises(dx.PlanError, match=r"(?s)add workers: it takes 3 .* there are 2"):
            model.predict(x)
        plan = model.plan("pipeline", n_stages=3, memory_limit=4_000_000)
        with pytest.raises(dx.PlanError, match=r"(?s)of which other stages have .*add workers"):
            model.predict(x, plan=plan)


def test_more_in_flight_than_fit_is_said_with_what_would():
    model = dx.load(layers_model([16, 16], width=64))
    plan = model.plan(dx.at_values(["y0"])).with_placement(dx.Placement((0, 1)))
    x = da.from_array(ROWS, chunks=(2048, -1))  # 0.5 MiB between the stages
    with small_workers(2, 250_000_000):
        with pytest.warns(UserWarning, match=r"(?s)9 micro-batches in flight .* in_flight=\d") as w:
            model.predict(x, plan=plan.with_schedule(in_flight=9), batch_size=None)
        fits = int(str(w[0].message).rpartition("in_flight=")[2].partition(")")[0])
        model.predict(x, plan=plan.with_schedule(in_flight=fits), batch_size=None)
