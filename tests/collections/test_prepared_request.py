"""Requests that are prepared once and started many times."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from builders import branching_model, dense_model, layers_model, scaled_model
from distributed import Client, LocalCluster

import dask_onnx as dx
from dask_onnx.collections import prepared_request, request_steps
from dask_onnx.collections.linked_requests import start_together
from dask_onnx.collections.request_steps import finish_step, start_in_background

pytestmark = pytest.mark.cluster
ROWS = np.random.default_rng(0).standard_normal((5, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def client(store_directory):
    with (
        LocalCluster(
            processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.load(dense_model())


def test_a_prepared_request_gives_what_predict_gives(client, model):
    request = model.prepare(client)
    for rows in (1, 3, 5, 1):
        np.testing.assert_array_equal(request(ROWS[:rows]), model(ROWS[:rows], batch_size=None))


def test_a_request_is_built_once_for_each_shape(client, model, monkeypatch):
    built = []
    build = prepared_request.build_request

    def counted(*arguments, **options):
        built.append(arguments)
        return build(*arguments, **options)

    monkeypatch.setattr(prepared_request, "build_request", counted)
    request = model.prepare(client)
    for rows in (1, 1, 2, 1, 2):
        request(ROWS[:rows])
    assert len(built) == 2


def test_several_requests_run_at_a_time_and_can_be_awaited(client, model):
    request = model.prepare(client)

    async def together():
        return await asyncio.gather(
            *(asyncio.wrap_future(request.submit(ROWS[i : i + 1])) for i in range(5))
        )

    np.testing.assert_allclose(np.concatenate(asyncio.run(together())), model(ROWS), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["whole", "per_node", "branches"])
@pytest.mark.parametrize("outputs", [None, "m", ["y"], ["m", "a2", "y"]])
def test_every_plan_and_choice_of_outputs_gives_what_predict_gives(client, strategy, outputs):
    model = dx.load(branching_model())
    plan = model.plan(strategy)
    x = ROWS[:2, :4]
    found = model.prepare(client, plan=plan, outputs=outputs)(x)
    wanted = model(x, outputs=outputs)
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
    else:
        found, wanted = {"": found}, {"": wanted}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_stages_stay_on_the_workers_of_their_groups(client):
    model = dx.load(layers_model([64, 64]))
    plan = model.plan("pipeline", n_stages=2).with_placement(dx.Placement((0, 1)))
    dx.configure(client)
    request = model.prepare(client, plan=plan)
    x = ROWS[:1]
    np.testing.assert_allclose(request(x), model(x), rtol=1e-4)


def test_values_are_converted_and_checked_for_every_input(client, model):
    request = model.prepare(client)
    x = np.arange(8).reshape(1, 8)
    np.testing.assert_array_equal(request(x), model(x))
    np.testing.assert_array_equal(request(x.tolist()), model(x))
    text = np.array([["a"] * 8])
    for _ in range(2):
        with pytest.raises(dx.InputError) as caught:
            request(text)
        assert caught.value.input == "x"


def test_rows_that_are_masked_wholly_come_back_masked(client, model):
    request = model.prepare(client)
    x = np.ma.masked_array(ROWS[:3].copy(), mask=False)
    x[1] = np.ma.masked
    other = x.copy()
    other[2] = np.ma.masked
    together = start_together(request, [x, other])
    cut = start_in_background(client, finish_step(client, together)).result()
    for found, given in ((request(x), x), (request({"x": x}), x), (cut[0], x), (cut[1], other)):
        expected = model.predict(given)
        np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(expected))
        np.testing.assert_allclose(found.filled(0), expected.filled(0), rtol=1e-5)


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 9), "f4"), np.zeros(8, "f4"), {"z": ROWS}, {"x": ROWS, "z": ROWS}]
)
def test_an_input_that_does_not_fit_is_refused_before_anything_is_sent(client, model, bad):
    request = model.prepare(client)
    for _ in range(2):
        with pytest.raises(dx.InputError):
            request.start(bad)


def test_inputs_without_rows_are_fed_by_name(client):
    model = dx.load(scaled_model())
    request = model.prepare(client)
    feeds = {"x": ROWS[:, :3], "s": np.float32(3)}
    np.testing.assert_array_equal(request(feeds), feeds["x"] * 3)
    feeds["s"] = np.asarray(np.float32(4))
    np.testing.assert_array_equal(request(feeds), feeds["x"] * 4)


def test_an_input_without_rows_has_a_result_without_rows(client, model):
    assert model.prepare(client)(ROWS[:0]).shape == (0, 4)


def test_a_plan_of_another_model_is_refused(client, model):
    plan = dx.load(dense_model(hidden=8)).plan()
    with pytest.raises(dx.PlanError) as caught:
        model.prepare(client, plan=plan)
    assert caught.value.option == "plan"


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "2"}, {"outputs": "z"}, {"retries": -1}], ids=str
)
def test_wrong_options_are_refused_before_the_first_input(client, model, options):
    with pytest.raises(dx.InputError) as caught:
        model.prepare(client, **options)
    assert [caught.value.option] == list(options)


def test_without_a_cluster_nothing_can_be_prepared(model, monkeypatch):
    monkeypatch.setattr(request_steps, "current_client", lambda: None)
    with pytest.raises(dx.InputError) as caught:
        model.prepare()
    assert caught.value.option == "client"


def test_lazy_inputs_are_refused(client, model):
    da = pytest.importorskip("dask.array")
    with pytest.raises(dx.InputError) as caught:
        model.prepare(client)(da.from_array(ROWS))
    assert caught.value.option == "frame"
