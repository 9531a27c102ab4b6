"""Tensor-parallel plans on workers of several hosts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, run_onnx, value, weights
from distributed import Client, Nanny, Scheduler, SpecCluster
from transformer_models import encoder_layer, scaled

import dask_onnx as dx
from dask_onnx.sharding.tensor_plan import TensorPlan

pytestmark = pytest.mark.filterwarnings("ignore:Sending large graph")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, store_directory: str) -> Iterator[Any]:
    """Two workers, each with a store of its own."""
    root = tmp_path_factory.mktemp("hosts")

    def worker(store: Path) -> dict[str, Any]:
        config = {"onnx.store.directory": str(store)}
        return {"cls": Nanny, "options": {"nthreads": 1, "config": config}}

    spec = {name: worker(root / name) for name in ("a", "b")}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with (
        SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        yield client


def plan_of(model: dx.Model, n: int) -> TensorPlan:
    plan = model.plan(dx.Sharded(axis="heads", n=n))
    assert isinstance(plan, TensorPlan)
    return plan


def test_weights_of_submodels_that_run_once_reach_hosts(hosts):
    """Two submodels before and after the shards have weights that are stored as files."""
    made, x = whole_beside_shards(), weights(3, 512)
    with hosts.as_current():
        plan = plan_of(dx.load(made.SerializeToString()), 2)
        y = plan.predict(x)
    assert [part.group for part in plan.partition().submodels] == [None, 0, 0, None]
    np.testing.assert_allclose(y, run_onnx(made, {"x": x})[0], rtol=1e-3, atol=1e-3)


def whole_beside_shards() -> onnx.ModelProto:
    constants = {"W1": scaled(512, 64, seed=1), "W2": scaled(64, 512, seed=2)}
    constants |= {"a": weights(512, seed=3), "b": weights(512, seed=4)}
    nodes = [
        node("Mul", "x a", "h", "before"),
        node("MatMul", "h W1", "u", "up"),
        node("Relu", "u", "r"),
        node("MatMul", "r W2", "d", "down"),
        node("Mul", "d b", "y", "behind"),
    ]
    shape = ["N", 512]
    return make_model(nodes, [value("x", shape)], [value("y", shape)], constants)


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_shards_reach_hosts_that_see_neither_store_nor_file(hosts, tmp_path, kind):
    made, x = encoder_layer(), weights(4, 5, 32)
    path = tmp_path / "encoder.onnx"
    onnx.save(made, path)
    model = dx.load(made.SerializeToString() if kind == "bytes" else path)
    expected = run_onnx(made, {"x": x})[0]
    with hosts.as_current():
        plan = plan_of(model, 2)
        lazy = plan.predict(da.from_array(x, chunks=(2, 5, 32)))
        np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(plan.predict(x), expected, rtol=1e-4, atol=1e-4)


def test_no_host_is_sent_more_than_the_shards_that_it_runs(hosts):
    made, x = dense_model(hidden=4096), weights(3, 8)
    plan = plan_of(dx.load(made.SerializeToString()), 2)
    with hosts.as_current():
        lazy = plan.predict(da.from_array(x, chunks=-1))
        graph = dict(lazy.__dask_graph__())
    sent = [task for key, task in graph.items() if str(key).startswith("weights-")]
    sizes = [sum(s.length for s in task.args[1].ranges) for task in sent]
    assert sum(sizes) == pytest.approx(4 * (8 * 4096 + 4096 + 4096 * 4), rel=0.01)
    assert len(sent) == 2
