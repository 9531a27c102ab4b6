"""Every alternative is charged for the same things: a request, each task, and each hop."""

from __future__ import annotations

import pytest
from builders import branching_model, layers_model

import dask_onnx as dx
from dask_onnx.planning.alternatives import Work, whole_model
from dask_onnx.planning.choice import choose
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.planning.timeline import Scenario, predicted_seconds, timeline

CLUSTERS = [
    Cluster(workers=1, threads=2, memory_limit=1e10, is_local=True),
    Cluster(workers=2, threads=1, memory_limit=1e10),
    Cluster(2, 2, 1e10, overhead=Overhead(1.1, 1.4, 2e-3, 5e-3)),
]


def cut_of(model):
    plan = model.plan()
    outputs = tuple(spec.name for spec in plan.stage_graph.outputs)
    return plan.facts.cut_inputs(plan.recipe, outputs), plan.stage_graph


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("batches", [1, 2, 7, 40])
def test_an_uncut_model_costs_what_the_simulation_of_one_stage_says(cluster, batches):
    cut, graph = cut_of(dx.load(layers_model([64] * 6)))
    at_a_time = min(cluster.slots, batches)
    scenario = Scenario(
        batches, cluster.slots, cluster.costs(cut.costs), slowdowns=cluster.slowdowns(at_a_time)
    )
    whole = whole_model(cut, graph, cluster, Work(batches))
    # Turns that are not full run a little faster than the formula of whole turns says.
    assert predicted_seconds(graph, scenario) == pytest.approx(whole.seconds, rel=0.25)
    if batches % at_a_time == 0 or at_a_time == 1:
        assert predicted_seconds(graph, scenario) == pytest.approx(whole.seconds, rel=1e-6)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_chain_pays_for_each_of_its_tasks_the_last_one_too(cluster):
    model = dx.load(layers_model([64] * 6))
    cut, _ = cut_of(model)
    graph = model.plan("fused", n_stages=3).stage_graph
    costs = cluster.costs(cut.costs)
    found = timeline(graph, Scenario(1, 1, costs))
    expected = costs.seconds_per_request + 3 * costs.seconds_per_task + graph.seconds
    assert found.seconds == pytest.approx(expected)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("proto", [branching_model(), layers_model([64] * 6)])
def test_a_model_of_a_millisecond_is_not_cut_for_latency(cluster, proto):
    cut, graph = cut_of(dx.load(proto))
    assert graph.seconds < 2e-3
    _, verdict = choose(cut, cluster, Work(1, rows=1))
    assert verdict.chosen == "whole"
