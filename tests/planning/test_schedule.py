"""Micro-batches in flight and barriers: in the tasks, in the results and in the predicted time."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from builders import branching_model, layers_model
from dask.task_spec import Task
from hypothesis import given
from hypothesis import strategies as st

import dask_onnx as dx
from dask_onnx.analysis.cost import CostTable
from dask_onnx.diagnostics.stage_tables import timetable
from dask_onnx.planning.resources import Cluster, Overhead
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import Edge, Stage, StageCost, StageGraph
from dask_onnx.planning.timeline import Scenario, predicted_seconds, timeline

ROWS = np.random.default_rng(0).standard_normal((40, 8)).astype("f4")
MODES = ("async", "sync", "hybrid")


def chain(seconds):
    return graph_of(seconds, [(i, i + 1) for i in range(len(seconds) - 1)])


def graph_of(seconds, edges):
    stages = tuple(
        Stage(f"s{i}", (i,), (), (), StageCost(0, each, 0, 0)) for i, each in enumerate(seconds)
    )
    return StageGraph(stages, tuple(Edge(f"v{a}", a, b, 1000) for a, b in edges), (), ())


@st.composite
def scenarios(draw):
    count = draw(st.integers(2, 5))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True))
    graph = graph_of(draw(st.lists(st.floats(0.001, 1), min_size=count, max_size=count)), edges)
    workers = draw(st.integers(1, 3))
    worker_groups = tuple(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    schedule = Schedule(draw(st.sampled_from(MODES)), draw(st.integers(1, 5)))
    chunks = draw(st.integers(1, 12))
    return graph, Scenario(
        chunks, workers, CostTable(), worker_groups if draw(st.booleans()) else None, schedule
    )


@given(scenarios())
def test_a_timeline_keeps_to_the_schedule(drawn):
    graph, scenario = drawn
    found = timeline(graph, scenario)
    spans = {(span.stage, span.chunk): span for span in found.spans}
    assert len(spans) == len(found.spans) == len(graph.stages) * scenario.chunks
    for worker in range(scenario.workers):
        own = sorted((s for s in found.spans if s.worker == worker), key=lambda s: s.start)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(own))
    for edge in graph.edges:
        for chunk in range(scenario.chunks):
            assert spans[edge.producer, chunk].stop <= spans[edge.consumer, chunk].start
    by_chunk = [[s for s in found.spans if s.chunk == c] for c in range(scenario.chunks)]
    starts = [min(span.start for span in each) for each in by_chunk]
    stops = [max(span.stop for span in each) for each in by_chunk]
    limit = scenario.schedule.in_flight
    for late in range(limit, scenario.chunks):
        if scenario.schedule.mode == "async":
            assert stops[late - limit] <= starts[late]
        else:
            assert max(stops[: late // limit * limit]) <= starts[late]
    assert 0 <= found.bubble < 1
    work = sum(stage.cost.seconds for stage in graph.stages) * scenario.chunks
    assert found.seconds >= work / scenario.workers * (1 - 1e-9)
    assert len(timetable(found)) == scenario.workers


@given(scenarios())
def test_a_stage_is_slowed_only_by_stages_that_run_at_the_same_time(drawn):
    graph, scenario = drawn
    found = timeline(graph, replace(scenario, slowdowns=(1.0, 1.5, 2.0)))
    assert len(found.spans) == len(graph.stages) * scenario.chunks
    for span in found.spans:
        beside = sum(
            max(min(span.stop, other.stop) - max(span.start, other.start), 0.0)
            for other in found.spans
            if other != span
        )
        # With k beside it, work goes on at 1 / (1 + k / 2) of its speed.
        seconds, took = graph.stages[span.stage].cost.seconds, span.stop - span.start
        assert seconds * (1 - 1e-9) <= took <= seconds + beside / 2 + 1e-9
        if not beside or scenario.workers == 1:
            assert took == pytest.approx(seconds)


def test_stages_take_longer_the_more_of_them_run():
    graph = chain([1.0, 1.0])
    scenario = Scenario(3, 2, CostTable(), (0, 1), slowdowns=(1.0, 1.5))
    spans = {(s.stage, s.chunk): s.stop - s.start for s in timeline(graph, scenario).spans}
    by_stage = [[spans[stage, chunk] for chunk in range(3)] for stage in range(2)]
    assert by_stage[0] == pytest.approx([1.0, 1.5, 1.5], abs=0.02)  # one fills the pipeline,
    assert by_stage[1] == pytest.approx([1.5, 1.5, 1.0], abs=0.02)  # and one drains it
    assert Cluster(2, 1, math.inf, overhead=Overhead(1.0, 1.5)).slowdowns(2) == (1.0, 1.5)
    assert Cluster(1, 4, math.inf, overhead=Overhead(2.0, 5.0)).slowdowns(5) == (
        2.0,
        3.0,
        4.0,
        5.0,
        5.0,
    )
    assert Cluster(1, 1, math.inf, overhead=Overhead(2.0, 2.0)).slowdowns(1) == (2.0,)


def test_a_run_has_the_threads_that_other_runs_leave():
    found = Cluster(1, 4, math.inf, overhead=Overhead(1.0, 1.5)).slowdowns(4, threads_of_task=4)
    assert found == pytest.approx((4**-0.7, 2**-0.7, (4 / 3) ** -0.7, 1.5))
    apart = Cluster(2, 2, math.inf).slowdowns(4, threads_of_task=2)
    assert apart == pytest.approx((2**-0.7, 2**-0.7, 1.0, 1.0))


def test_barriers_add_their_waiting_time():
    graph, costs = chain([1.0, 1.0]), CostTable(seconds_per_task=0, seconds_per_hop=0)
    seconds = {
        mode: timeline(graph, Scenario(8, 2, costs, (0, 1), Schedule(mode, 4))).seconds
        for mode in MODES
    }
    assert seconds["async"] == pytest.approx(9, rel=0.01)
    assert seconds["hybrid"] == pytest.approx(10, rel=0.01)
    assert seconds["sync"] == pytest.approx(16, rel=0.01)


def ancestors(graph, key):
    found, left = set(), [key]
    while left:
        for each in graph[left.pop()].dependencies:
            if each in graph and each not in found:
                found.add(each)
                left.append(each)
    return found


def stage_keys(graph, plan):
    """For each stage the keys of its tasks, by chunk."""
    labels = [stage.label for stage in plan.stages]
    found = [{} for _ in labels]
    for key, task in graph.items():
        label = str(key[0]).partition("-")[0]
        if isinstance(task, Task) and label in labels:
            found[labels.index(label)][sum(key[1:])] = key
    return found


@pytest.mark.parametrize("mode", MODES)
def test_tasks_wait_as_the_schedule_says_and_results_are_the_same(mode):
    model = dx.load(layers_model([16] * 6))
    plan = model.plan("pipeline", n_stages=3).with_schedule(mode, in_flight=4)
    lazy = model.predict(da.from_array(ROWS, chunks=(4, -1)), plan=plan)
    expected = model(ROWS, batch_size=None)
    np.testing.assert_array_equal(lazy.compute(), expected)
    np.testing.assert_array_equal(model.predict(ROWS, plan=plan, batch_size=4), expected)
    graph = dask.optimize(lazy)[0].__dask_graph__()
    stages = stage_keys(graph, plan)
    assert [len(stage) for stage in stages] == [10, 10, 10]
    for late in range(4, 10):
        before = ancestors(graph, stages[0][late])
        last = late - 4 if mode == "async" else late // 4 * 4 - 1
        assert {stages[2][c] for c in range(last + 1)} >= before & set(stages[2].values())
        assert stages[2][last] in before
    between = ancestors(graph, stages[1][0])
    assert (stages[0][3] in between) == (mode == "sync")
    assert stages[0][4] not in between


@pytest.mark.parametrize("mode", MODES)
def test_only_requested_micro_batches_are_computed(mode):
    model = dx.load(layers_model([16] * 6))
    plan = model.plan("pipeline", n_stages=3).with_schedule(mode, in_flight=2)
    lazy = model.predict(da.from_array(ROWS, chunks=(4, -1)), plan=plan)[33:]
    graph = dask.optimize(lazy)[0].__dask_graph__()
    assert [sorted(stage) for stage in stage_keys(graph, plan)] == [[8, 9]] * 3
    np.testing.assert_array_equal(lazy.compute(), model(ROWS[33:], batch_size=None))


@pytest.mark.parametrize("mode", MODES)
def test_schedules_work_with_branches_and_intermediate_outputs(mode):
    model = dx.load(branching_model())
    plan = model.plan("per_node").with_schedule(mode, in_flight=2)
    x = ROWS[:, :4].copy()
    chunked = da.from_array(x, chunks=(4, -1))
    expected = model(x, outputs=["y", "m"], batch_size=None)
    found = model.predict(chunked, outputs=["y", "m"], plan=plan)
    for name, array in dask.compute(found)[0].items():
        np.testing.assert_array_equal(array, expected[name])
    np.testing.assert_array_equal(found["m"][-3:].compute(), expected["m"][-3:])
    both = da.concatenate([found["y"], found["m"]], axis=1).compute()
    np.testing.assert_array_equal(both, np.concatenate([expected["y"], expected["m"]], axis=1))


def test_only_stages_with_a_placement_are_bounded_by_default():
    model = dx.load(layers_model([16] * 6))
    plan = model.plan("pipeline", n_stages=2)
    chunked = da.from_array(ROWS, chunks=(2, -1))
    assert len(model.predict(chunked, plan=plan).__dask_graph__()) == 20 + 40
    placed = plan.with_placement(dx.Placement((0, 1)))
    assert len(model.predict(chunked, plan=placed).__dask_graph__()) == 20 + 40 + 16
    wide = placed.with_schedule(in_flight=20)
    assert len(model.predict(chunked, plan=wide).__dask_graph__()) == 20 + 40


def test_an_unknown_schedule_is_refused():
    plan = dx.load(layers_model([16] * 2)).plan("pipeline", n_stages=2)
    with pytest.raises(dx.PlanError) as caught:
        plan.with_schedule("eager")
    assert caught.value.option == "mode"
    assert [each.value for each in caught.value.suggestions] == list(MODES)
    with pytest.raises(dx.PlanError) as caught:
        plan.with_schedule(in_flight=0)
    assert caught.value.numbers == {"in_flight": 0, "least": 1}
    assert plan.with_schedule("sync").with_schedule(None).effective_schedule is None


def test_many_micro_batches_are_extrapolated_from_those_simulated():
    plan = dx.load(layers_model([64] * 6)).plan("pipeline", n_stages=3, shapes={"x": (4096, 8)})
    scenario = Scenario(3000, 2, CostTable(), (0, 1, 0), Schedule())
    exact = timeline(plan.stage_graph, scenario).seconds
    assert predicted_seconds(plan.stage_graph, scenario) == pytest.approx(exact, rel=0.01)
