"""Facts of a plan that has run: times of its stages, error of the prediction, memory."""

from __future__ import annotations

import itertools
import json

import dask.array as da
import numpy as np
import pytest
from builders import branching_model, layers_model, make_model, node, value, weights

import dask_onnx as dx
from dask_onnx.core.stage_runs import StageRun, peak_bytes, runs_from_message, runs_to_message
from dask_onnx.planning.measured_stages import measured
from dask_onnx.planning.resources import thread_gain
from dask_onnx.planning.worker_memory import project

ROWS = np.random.default_rng(0).standard_normal((64, 32)).astype("f4")
_CHANNELS = itertools.count(20)
_WIDTHS = itertools.count(200)


@pytest.fixture
def model():
    # Sizes of its own give stages that no other test of this process has run.
    return dx.load(layers_model([next(_WIDTHS) for _ in range(4)], 32))


def test_a_plan_that_has_not_run_has_no_measurements(model):
    plan = model.plan("pipeline", n_stages=2)
    assert plan.measured() is None
    assert "measured" not in plan.explain()


def test_measured_times_of_stages_are_shown_beside_predicted_ones(model):
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (16, 32)})
    model.predict(da.from_array(ROWS, chunks=(32, -1)), plan=plan, batch_size=8).compute()
    found = plan.measured()
    assert [times.runs for times in found.stages] == [8, 8]
    assert found.rows == 8 and found.runs == 16
    assert all(0 < times.seconds < 60 and times.workers == ("",) for times in found.stages)
    assert found.peaks[""] == pytest.approx(peak_bytes(), rel=0.1)
    text = plan.explain()
    total, stage = found.error()
    assert "measured in this process, 16 runs of 8 rows" in text
    assert f"off by {total:+.0%}, a stage by {stage:.0%} (median)" in text
    (stages,) = (each for each in plan.sections() if each.name == "stages")
    heads = [column.head for column in stages.table.columns]
    assert heads[4:6] == ["predicted", "measured"]
    assert "measured" in plan._repr_html_()


def test_measured_seconds_are_scaled_to_the_rows_of_the_plan():
    runs = [StageRun("a", 0.0, seconds, 4, 32) for seconds in (0.4, 0.8, 40.0)]
    found = measured(["a", "b"], {"w": runs, "v": []}, {"w": 7, "v": 8}, rows=16)
    assert found.stages[0].seconds == pytest.approx(0.8 / 32 * 16)
    assert found.stages[0].runs == 12 and found.stages[0].workers == ("w",)
    assert found.stages[1] is None and found.peaks == {"w": 7} and found.rows == 8
    # A run whose rows are not known has as many as the others.
    unknown = StageRun("b", 0.0, 0.6, 1, None)
    found = measured(["a", "b"], {"w": [*runs, unknown]}, {"w": 7}, rows=16)
    assert found.stages[1].seconds == pytest.approx(0.6 / 8 * 16)
    bare = measured(["a"], {"w": [StageRun("a", 0.0, 0.6, 2, None)]}, {"w": 7}, rows=16)
    assert bare.stages[0].seconds == pytest.approx(0.3) and bare.rows is None
    assert measured(["a"], {"w": []}, {"w": 7}, rows=None) is None


def test_a_model_without_rows_is_measured_by_runs():
    model = dx.load(
        make_model([node("ReduceSum", "x", "y", "sum", keepdims=0)], [value("x", [3])],
                   [value("y", [])])
    )  # fmt: skip
    model(np.ones(3, "f4"), batch_size=None)
    assert "measured in this process, 1 run" in model.plan().explain()


def test_memory_is_projected_for_each_worker(model):
    plan = model.plan("pipeline", n_stages=3, shapes={"x": (16, 32)})
    anywhere = list(project(plan.stage_graph, None, 6, 100.0))
    assert len(anywhere) == 1 and anywhere[0].stages == (0, 1, 2)
    assert anywhere[0].weights == sum(stage.cost.parameter_bytes for stage in plan.stages)
    first, second = project(plan.stage_graph, (0, 1, 0), 6, 100.0)
    assert first.stages == (0, 2) and second.stages == (1,)
    assert first.weights + second.weights == anywhere[0].weights
    sent = {edge.consumer: edge.bytes for edge in plan.stage_graph.edges}
    assert second.waiting == 6 * max(sent[1], sent[2])
    assert second.working >= 16 * 400 * 4 / 2
    assert second.total == 100 + second.weights + second.working + second.waiting
    placed = plan.with_placement(dx.Placement((0, 1, 0))).explain()
    assert "worker 0  projected" in placed and "worker 1  projected" in placed
    preferred = dx.Placement((0, 1, 0), allow_other_workers=True)
    text = plan.with_placement(preferred).explain()
    assert "any worker  projected" in text and "stages prefer these workers" in text


def test_the_schedule_is_shown_with_its_bubble(model):
    plan = model.plan("pipeline", n_stages=2, shapes={"x": (2**20, 32)})
    plan = plan.with_placement(dx.Placement((0, 1)))
    text = plan.with_schedule("sync", in_flight=4).explain(batches=8)
    assert "schedule of 8 micro-batches on 2 workers: sync, a barrier after each stage of 4" in text
    bubbles = {
        mode: float(
            plan.with_schedule(mode, in_flight=4)
            .explain()
            .partition("% of it bubble")[0]
            .split()[-1]
        )
        for mode in ("async", "hybrid", "sync")
    }
    assert bubbles["async"] < bubbles["hybrid"] < bubbles["sync"]
    assert "left to Dask" in model.plan("pipeline", n_stages=2).explain()
    assert "schedule" not in model.plan().explain()


def test_the_critical_path_is_shown():
    model = dx.load(branching_model())
    plan = model.plan("per_node")
    path = [plan.stages[i].label for i in plan.stage_graph.critical_path]
    assert path[0] == "stem" and path[-1] == "join" and path[1:3] == ["left", "left_end"]
    span = sum(plan.stages[i].cost.seconds for i in plan.stage_graph.critical_path)
    assert max(plan.stage_graph.seconds_left) == pytest.approx(span)
    text = plan.explain()
    ratio = plan.stage_graph.seconds / span
    assert "critical path of a micro-batch: 0 -> 1 -> 2 -> " in text
    assert f"work over span {ratio:.2f}" in text and ratio > 1.2
    # A plan of one stage shows the critical path of its nodes.
    assert "critical path: 4 nodes of 6, " in model.plan().explain()


@pytest.fixture
def pictures():
    """Model from pictures (N, 3, h, w), in which a convolution is most of the work."""
    channels = next(_CHANNELS)  # stages that no other test of this process has run
    return dx.load(
        make_model(
            [
                node("Conv", "x W", "c", "conv", pads=[1, 1, 1, 1]),
                node("Relu", "c", "r", "relu"),
                node("Conv", "r V", "y", "last", pads=[1, 1, 1, 1]),
            ],
            [value("x", ["N", 3, "h", "w"])],
            [value("y", ["N", 2, "h", "w"])],
            {"W": weights(channels, 3, 3, 3), "V": weights(2, channels, 3, 3)},
        )
    )


def picture(rows, size):
    return np.zeros((rows, 3, size, size), np.float32)


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("strategy", ["whole", "pipeline"])
def test_runs_of_other_shapes_are_held_against_a_prediction_for_those(
    pictures, strategy, batch_size
):
    options = {} if strategy == "whole" else {"n_stages": 2}
    plan = pictures.plan(strategy, **options)  # for an assumed size of 64 x 64
    large = pictures.plan(strategy, shapes={"x": (1, 3, 200, 200)}, **options)
    for _ in range(3):
        pictures.predict(picture(1, 200), plan=plan, batch_size=batch_size)
    found = plan.measured()
    assert found.shapes == {"x": (1, 3, 200, 200)} and not found.is_planned
    assert found.predicted == pytest.approx(
        [stage.cost.seconds / thread_gain(found.threads) for stage in large.stages], rel=1e-6
    )
    # A prediction for 64 x 64 is a tenth of this.
    assert sum(found.predicted) > 5 * plan.stage_graph.seconds / thread_gain(found.threads)
    (table,) = (each.table for each in plan.sections() if each.name == "stages")
    heads = [column.head for column in table.columns]
    assert heads[4:7] == ["predicted", "predicted as run", "measured"]
    assert "3x200x200" in plan.explain()


def test_the_shapes_of_most_runs_are_compared_and_others_counted(pictures):
    plan = pictures.plan("pipeline", n_stages=2)
    for rows, size in [(1, 64), (2, 96), (4, 96), (1, 96), (1, 80)]:
        pictures.predict(picture(rows, size), plan=plan, batch_size=None)
    found = plan.measured()
    assert found.shapes == {"x": (1, 3, 96, 96)}
    assert [times.runs for times in found.stages] == [3, 3] and found.other_runs == 4


def test_runs_of_the_planned_shapes_are_compared_as_they_are(pictures):
    plan = pictures.plan("pipeline", n_stages=2, shapes={"x": (2, 3, 48, 48)})
    x = da.from_array(picture(5, 48), chunks=(2, -1, -1, -1))
    pictures.predict(x, plan=plan, batch_size=None).compute()
    found = plan.measured()
    assert found.is_planned and found.shapes == {"x": (2, 3, 48, 48)} and found.other_runs == 0
    assert found.predicted == tuple(stage.cost.seconds for stage in plan.stages)


def test_a_run_that_was_sent_by_a_closing_worker_is_like_any_other():
    run = StageRun("a", 1.0, 0.5, 2, 8, ((8, 3, 4), ()), 2)
    worker, (found, peak) = runs_from_message(
        json.loads(json.dumps(runs_to_message("w", [run], 7))), {"a"}
    )
    assert (worker, found, peak) == ("w", [run], 7)


def test_sizes_that_were_tried_are_known_before_the_best_is_settled(pictures):
    assert "not measured" in pictures.plan().summary().rows.words
    pictures.predict(picture(3, 8))
    assert "not settled yet, 1" in pictures.plan().summary().rows.words
