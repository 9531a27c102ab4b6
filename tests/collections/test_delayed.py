"""Lazy predictions for Delayed values."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pytest
from builders import branching_model, dense_model, run_onnx, scaled_model
from dask.delayed import Delayed
from dask.task_spec import Task
from dask.utils import key_split

import dask_onnx as dx

X = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
B = X[:, :4].copy()


@pytest.fixture(autouse=True)
def sync():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_delayed_in_delayed_out(strategy, batch_size):
    source = dense_model()
    model = dx.load(source)
    y = model.predict(dask.delayed(X), plan=model.plan(strategy), batch_size=batch_size)
    assert isinstance(y, Delayed)
    np.testing.assert_allclose(y.compute(), run_onnx(source, {"x": X})[0], rtol=1e-6)


def test_a_stage_is_a_task_with_its_retries():
    model = dx.load(dense_model())
    plan = model.plan("per_node")
    y = model.predict(dask.delayed(X), plan=plan, retries=5)
    graph = y.__dask_graph__()
    stages = [layer for name, layer in graph.layers.items() if key_split(name) in {"first", "bias"}]
    assert [layer.annotations for layer in stages] == [{"retries": 5}] * 2
    default = model.predict(dask.delayed(X)).__dask_graph__()
    assert [layer.annotations for layer in default.layers.values()][-1] == {"retries": 3}


def test_several_outputs_are_a_delayed_each():
    model = dx.load(branching_model())
    found = model.predict(dask.delayed(B), plan=model.plan("per_node"), batch_size=3)
    y, m = dask.compute(found["y"], found["m"])
    np.testing.assert_allclose(y, model.predict(B)["y"], rtol=1e-6)
    np.testing.assert_array_equal(m, model.predict(B)["m"])


def test_inputs_of_several_kinds_may_be_mixed():
    model = dx.load(scaled_model())
    x = B[:, :3].copy()
    y = model.predict({"x": dask.delayed(x), "s": np.float32(2)})
    np.testing.assert_array_equal(y.compute(), x * 2)


def test_the_value_of_a_delayed_is_checked_in_its_task():
    model = dx.load(dense_model())
    with pytest.raises(dx.InputError, match="dtype complex64; the model takes float32") as caught:
        model.predict(dask.delayed(X.astype("c8"))).compute()
    assert caught.value.input == "x"


def test_a_model_called_inside_a_task_runs_there():
    model = dx.load(dense_model())
    y = dask.delayed(lambda m, x: m(x))(model, X)
    np.testing.assert_array_equal(y.compute(), model(X))


@pytest.mark.parametrize("strategy", ["whole", "per_node"])
def test_a_plan_gives_its_dask_graph(strategy):
    model = dx.load(branching_model())
    plan = model.plan(strategy)
    graph = plan.graph(B)
    labels = [key_split(key) for key, task in graph.items() if isinstance(task, Task)]
    assert {stage.label for stage in plan.stages} <= set(labels)
    np.testing.assert_allclose(dask.get(graph, "y"), model.predict(B)["y"], rtol=1e-6)
    assert set(plan.graph(B)) == set(graph)
    assert set(plan.graph(B + 1)) != set(graph)


def test_the_dask_graph_of_a_single_output_has_one_task_for_each_stage():
    model = dx.load(dense_model())
    plan = model.plan("fused", n_stages=2)
    tasks = [task for task in plan.graph(X).values() if isinstance(task, Task)]
    assert len(tasks) == 2
    with pytest.raises(dx.InputError, match="dtype complex64"):
        plan.graph(X.astype("c8"))


def test_models_and_plans_survive_pickling():
    model = dx.load(dense_model(hidden=5000))
    plan = model.plan("fused", n_stages=2)
    data = pickle.dumps((model, plan))
    assert len(data) < 20_000
    model2, plan2 = pickle.loads(data)
    assert model2.token == model.token
    np.testing.assert_array_equal(model2.predict(X, plan=plan2), model.predict(X, plan=plan))


def test_delayed_is_lazy_whatever_comes_in():
    model = dx.load(dense_model())
    lazy = [model.delayed(part) for part in (X[:4], X[4:].tolist(), dask.delayed(X))]
    assert all(isinstance(part, Delayed) for part in lazy)
    first, second, whole = dask.compute(*lazy)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=1e-5)
    by_name = model.delayed({"x": X}, outputs=["y"])
    np.testing.assert_allclose(by_name["y"].compute(), whole, rtol=1e-5)
