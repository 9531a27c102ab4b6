"""What a hop costs on a cluster: asked once, and only of a cluster that has time."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from builders import layers_model

import dask_onnx as dx
from dask_onnx.cluster import links
from dask_onnx.cluster.links import link_of
from dask_onnx.planning.resources import Link

pytestmark = pytest.mark.cluster


def test_hops_are_measured_once_and_plans_go_by_them(own_client, monkeypatch):
    found = link_of(own_client)
    assert 5e-4 < found.seconds_per_hop < 0.2
    assert 1e7 < found.bytes_per_second < 1e11
    monkeypatch.setattr(links, "_measure", None)
    assert link_of(own_client) is found
    plan = dx.load(layers_model([100] * 4, 64)).plan("pipeline", n_stages=2)
    assert plan.recipe.link == found
    costs = plan.model._facts.cut_inputs(plan.recipe, ("y",)).costs
    assert costs.seconds_per_hop == found.seconds_per_hop
    assert costs.link_bytes_per_second == found.bytes_per_second
    assert "between two of the workers, as measured" in plan.explain()
    assert "as measured" not in dx.load(layers_model([100])).plan("per_node").explain()


def test_a_busy_cluster_is_not_asked(own_client):
    future = own_client.submit(time.sleep, 2)
    while not any(own_client.processing().values()):
        time.sleep(0.01)
    assert link_of(own_client) is None
    future.result()
    assert link_of(own_client) is not None


def test_one_worker_has_no_link(own_client):
    own_client.cluster.scale(1)
    while len(own_client.scheduler_info(n_workers=-1)["workers"]) > 1:
        time.sleep(0.05)
    assert link_of(own_client) is None


def test_nobody_is_asked_without_a_client_or_from_a_coroutine():
    assert link_of(None) is None
    assert link_of(SimpleNamespace(asynchronous=True)) is None


def test_workers_on_two_hosts_are_the_pair():
    def worker(host):
        return {"host": host}

    near = {"a": worker("h"), "b": worker("h"), "c": worker("g")}
    assert links._pair(near) == ("a", "c")
    assert links._pair({"a": worker("h"), "b": worker("h")}) == ("a", "b")
    assert links._pair({"a": worker("h")}) is None


def test_a_cluster_that_does_not_answer_is_taken_for_what_is_usual(own_client, monkeypatch):
    def late(*_):
        raise TimeoutError

    monkeypatch.setattr(links, "_chain", late)
    assert link_of(own_client) is None
    plan = dx.load(layers_model([100] * 4, 64)).plan("pipeline", n_stages=2)
    assert plan.recipe.link is None


def test_slow_links_make_cuts_where_less_has_to_travel():
    model = dx.load(layers_model([2000, 2000, 2000, 2000], width=256))
    facts = model._facts
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (4096, 256)})
    slow = dx.Plan(plan.model, plan.recipe.__class__(
        "pipeline", plan.recipe.shapes, plan.recipe.session, plan.recipe.options, Link(1.0, 1e3)
    ), plan.stage_graph)  # fmt: skip
    sent = [sum(e.bytes for e in facts.cut(p.recipe, ("y",)).edges) for p in (plan, slow)]
    assert sent[1] <= sent[0]
