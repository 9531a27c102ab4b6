"""Plans that do not fit the workers are refused before anything is sent."""

from __future__ import annotations

import time
from contextlib import contextmanager

import dask
import dask.array as da
import dask.bag as db
import decoder_models
import numpy as np
import pytest
from builders import layers_model
from distributed import Client, LocalCluster

import dask_onnx as dx

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((4096, 64), dtype=np.float32)


@pytest.fixture(autouse=True)
def check_small_models(monkeypatch):
    """Ask even for small models, on workers with some megabytes of room."""
    monkeypatch.setattr("dask_onnx.cluster.capacity._WORTH_ASKING_BYTES", 0)
    monkeypatch.setattr("dask_onnx.cluster.placement.PROCESS_BYTES", 196e6)


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


def values_of(error):
    return {each.option: each.value for each in error.suggestions}


@pytest.fixture
def model():
    return dx.load(layers_model([3000] * 6, width=64))


def test_a_model_that_does_not_fit_is_refused_before_anything_is_sent(model):
    with small_workers(3, 250_000_000) as client:
        x = da.from_array(ROWS[:64], chunks=(16, -1))
        with pytest.raises(dx.PlanError) as caught:
            model.predict(x)
        assert caught.value.stage == "made"
        numbers, options = caught.value.numbers, values_of(caught.value)
        assert numbers["room_bytes"] == 4e6 < numbers["weight_bytes"] < numbers["needed_bytes"]
        assert options == {"strategy": "auto", "n_stages": 3, "memory_limit": 4_000_000}
        del options["strategy"]
        assert len(model.plan("pipeline", **options).stages) == 3
        with pytest.raises(dx.PlanError) as caught:
            model.plan("pipeline", n_stages=2, memory_limit=4_000_000)
        assert values_of(caught.value)["n_stages"] == 3
        plan = model.plan("auto", shapes={"x": (16, 64)})
        assert plan.verdict.chosen.startswith("pipeline of") and len(plan.stages) >= 3
        assert plan.recipe.options["memory_limit"] == 4_000_000
        client.cluster.scale(0)
        while client.scheduler_info(n_workers=-1)["workers"]:
            time.sleep(0.1)
        model.predict(x)  # workers may join later


def test_too_many_rows_are_refused_with_the_number_that_fits():
    model = dx.load(layers_model([3000], width=64))  # 1.5 MB, and 24 kB of activations a row
    x = da.from_array(ROWS, chunks=(2048, -1))
    with small_workers(1, 270_000_000):
        with pytest.raises(dx.PlanError) as caught:
            model.predict(x, batch_size=None)
        assert caught.value.option == "batch_size" and caught.value.numbers["rows"] == 2048
        assert caught.value.numbers["working_bytes"] > caught.value.numbers["room_bytes"] == 20e6
        rows = values_of(caught.value)["batch_size"]
        assert 500 < rows < 1000
        model.predict(x, batch_size=rows)
        model.predict(x)  # chooses its rows, and checks the memory
        model.predict(x.rechunk((rows, -1)), batch_size=None)
        with (
            dask.config.set({"onnx.plan.memory-check": "warn"}),
            pytest.warns(UserWarning, match="of activations"),
        ):
            model.predict(x, batch_size=None)


def test_more_stages_than_workers_are_not_suggested(model):
    with small_workers(2, 250_000_000):
        x = da.from_array(ROWS[:64], chunks=(16, -1))
        # 8.8 MiB take three stages of 3.8 MiB, and there are two workers.
        with pytest.raises(dx.PlanError) as caught:
            model.predict(x)
        assert caught.value.numbers["fewest_stages"] == 3 > caught.value.numbers["workers"]
        assert not caught.value.suggestions
        plan = model.plan("pipeline", n_stages=3, memory_limit=4_000_000)
        with pytest.raises(dx.PlanError) as caught:
            model.predict(x, plan=plan)
        assert caught.value.numbers["room_bytes"] < 4e6  # another stage is on that worker


def test_too_many_micro_batches_in_flight_are_warned_of():
    model = dx.load(layers_model([16, 16], width=64))
    plan = model.plan(dx.at_values(["y0"])).with_placement(dx.Placement((0, 1)))
    x = da.from_array(ROWS, chunks=(2048, -1))  # 0.5 MiB between the stages
    with small_workers(2, 250_000_000):
        with pytest.warns(UserWarning, match=r"(?s)9 micro-batches in flight .* in_flight=\d") as w:
            model.predict(x, plan=plan.with_schedule(in_flight=9), batch_size=None)
        fits = int(str(w[0].message).rpartition("in_flight=")[2].partition(")")[0])
        model.predict(x, plan=plan.with_schedule(in_flight=fits), batch_size=None)


def test_a_decoder_that_does_not_fit_is_refused_with_the_stages_that_do(monkeypatch):
    sizes = {"LAYERS": 6, "HEAD_SIZE": 256, "WIDTH": 512}
    for name, size in sizes.items():
        monkeypatch.setattr(decoder_models, name, size)
    model = dx.load(decoder_models.gpt2_like.__wrapped__())
    size = sum(stage.cost.parameter_bytes for stage in model.plan().stages)
    prompts = db.from_sequence(decoder_models.prompts(4), npartitions=2)
    with small_workers(2, int((196e6 + 0.75 * size) / 0.8)):
        with pytest.raises(dx.PlanError, match="of weights; a worker has room for") as caught:
            dx.Generator(model).generate(prompts, max_new_tokens=3)
        assert caught.value.option == "n_stages" and values_of(caught.value) == {"n_stages": 2}
        assert "dx.Generator(model, n_stages=2)" in caught.value.next_step
        dx.Generator(model, n_stages=2).generate(prompts, max_new_tokens=3)
