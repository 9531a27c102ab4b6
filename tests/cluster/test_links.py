"""Cost of a hop on a cluster: measured once, and only while the cluster is idle."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from builders import layers_model
from distributed import Event

import dask_onnx as dx
from dask_onnx.cluster import links
from dask_onnx.cluster.links import known_link, measure_link
from dask_onnx.planning.resources import Link

pytestmark = pytest.mark.cluster


def test_hops_are_measured_once_and_plans_use_them(own_client, monkeypatch):
    assert known_link(own_client) is None
    found = measure_link(own_client)
    assert 1e-6 < found.seconds_per_hop < 60
    assert 1e4 < found.bytes_per_second < 1e13
    monkeypatch.setattr(links, "_measure", None)
    assert known_link(own_client) is found
    plan = dx.load(layers_model([100] * 4, 64)).plan("pipeline", n_stages=2)
    assert plan.recipe.link == found
    costs = plan.facts.cut_inputs(plan.recipe, ("y",)).costs
    assert costs.seconds_per_hop == found.seconds_per_hop
    assert costs.link_bytes_per_second == found.bytes_per_second
    assert "between two of the workers, as measured" in plan.explain()
    assert "as measured" not in dx.load(layers_model([100])).plan("per_node").explain()


def wait_for_end():
    return Event("end").wait(timeout=120)


def test_a_busy_cluster_is_not_measured(own_client):
    future = own_client.submit(wait_for_end)
    while not any(own_client.processing().values()):
        time.sleep(0.01)
    assert measure_link(own_client) is None
    Event("end", client=own_client).set()
    future.result()
    assert measure_link(own_client) is not None


def test_one_worker_has_no_link(own_client):
    own_client.cluster.scale(1)
    while len(own_client.scheduler_info(n_workers=-1)["workers"]) > 1:
        time.sleep(0.05)
    assert measure_link(own_client) is None


def test_nothing_is_measured_without_a_synchronous_client():
    for client in (None, SimpleNamespace(asynchronous=True, id="a")):
        for ask in (known_link, measure_link):
            assert ask(client) is None


def test_a_known_link_is_returned_without_asking_anybody(monkeypatch):
    client = SimpleNamespace(id="known-to-this-test", asynchronous=False)
    links._known.put(client.id, Link(1e-3, 1e9))
    monkeypatch.setattr(links, "_measure", None)
    assert known_link(client) == Link(1e-3, 1e9)


def test_workers_on_two_hosts_are_the_pair():
    def worker(host):
        return {"host": host}

    near = {"a": worker("h"), "b": worker("h"), "c": worker("g")}
    assert links._farthest_pair(near) == ("a", "c")
    assert links._farthest_pair({"a": worker("h"), "b": worker("h")}) == ("a", "b")
    assert links._farthest_pair({"a": worker("h")}) is None


def test_plans_use_the_defaults_where_a_cluster_does_not_answer(own_client, monkeypatch):
    def late(*_):
        raise TimeoutError

    monkeypatch.setattr(links, "_chain", late)
    assert measure_link(own_client) is None
    plan = dx.load(layers_model([100] * 4, 64)).plan("pipeline", n_stages=2)
    assert plan.recipe.link is None


def test_slow_links_move_cuts_to_where_fewer_bytes_travel():
    model = dx.load(layers_model([2000, 2000, 2000, 2000], width=256))
    facts = model._facts
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (4096, 256)})
    slow = dx.Plan(plan.facts, plan.recipe.__class__(
        "pipeline", plan.recipe.shapes, plan.recipe.session, plan.recipe.options, Link(1.0, 1e3)
    ), plan.stage_graph)  # fmt: skip
    sent = [sum(e.bytes for e in facts.cut(p.recipe, ("y",)).edges) for p in (plan, slow)]
    assert sent[1] <= sent[0]
