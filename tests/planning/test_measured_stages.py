"""Plans that use measured times."""

from __future__ import annotations

import dask.config
import numpy as np
import pytest
from builders import dense_model, layers_model, make_model, node, run_onnx, value
from onnx import helper, numpy_helper

import dask_onnx as dx
from dask_onnx.analysis.cost import CostTable, NodeCost
from dask_onnx.analysis.growth import MeasuredTimes, nearest_measurements, seconds_at
from dask_onnx.runtime.calibration import calibrate, saved_calibration
from dask_onnx.runtime.profile import saved_node_times, saved_speed


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own")}):
        yield


def by_size(times):
    return times.shapes["x"][0]


def times_at(model, shape):
    return next(times for times in saved_node_times(model.token) if times.shapes["x"] == shape)


def rows(count, width=64):
    return np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)


def test_measured_seconds_are_kept_and_known_to_later_plans():
    model = dx.load(layers_model([2000, 100, 100], width=64))
    guessed = model.plan(shapes={"x": (256, 64)})
    assert "at the speed of a common CPU" in guessed.explain()
    plan = model.plan("pipeline", n_stages=2, measure=rows(256))
    times = times_at(model, (256, 64))
    assert times.whole == pytest.approx(sum(times.seconds.values()))
    assert plan.stage_graph.seconds == pytest.approx(times.whole)
    assert "on this host at these shapes" in plan.explain()
    again = dx.load(layers_model([2000, 100, 100], width=64)).plan(shapes={"x": (256, 64)})
    assert again.stage_graph.seconds == pytest.approx(times.whole)
    assert len(plan.stages[0].nodes) <= 3  # the first layer is most of the work
    x = rows(5)
    np.testing.assert_array_equal(model.predict(x, plan=plan), model.predict(x))


def test_other_shapes_are_scaled():
    model = dx.load(layers_model([500, 500], width=64))
    model.plan(measure=rows(64))
    times = times_at(model, (64, 64))
    double = model.plan(shapes={"x": (128, 64)})
    assert times.whole < double.stage_graph.seconds < 3 * times.whole
    assert "on this host at other shapes" in double.explain()


def test_the_time_of_a_body_grows_with_its_input():
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", 1, ["N", 64])],
        [weight],
    )
    model = dx.load(
        make_model(
            [node("If", "yes", "y", "choice", then_branch=body, else_branch=body)],
            [value("x", ["N", 64])],
            [value("y", ["N", 64])],
            {"yes": np.array(True)},
        )
    )
    model.plan(measure=rows(64))
    times, one = times_at(model, (64, 64)), times_at(model, (1, 64))
    slope = (times.whole - one.whole) / 63
    fourfold = model.plan(shapes={"x": (256, 64)})
    assert fourfold.stage_graph.seconds == pytest.approx(times.whole + 192 * slope, rel=0.01)


def test_one_row_is_measured_too_where_rows_are_independent():
    model = dx.load(layers_model([500, 500], width=64))
    model.plan(measure=rows(1024))  # so much more than one row that no interruption hides it
    assert [times.shapes for times in sorted(saved_node_times(model.token), key=by_size)] == [
        {"x": (1, 64)},
        {"x": (1024, 64)},
    ]
    one, all_ = times_at(model, (1, 64)), times_at(model, (1024, 64))
    assert 0 < one.whole < all_.whole
    plan = model.plan(shapes={"x": (1, 64)})
    assert plan.stage_graph.seconds == pytest.approx(one.whole)
    half = model.plan(shapes={"x": (512, 64)}).stage_graph.seconds
    assert one.whole < half < all_.whole


def test_rows_that_depend_on_each_other_are_measured_together():
    model = dx.load(
        make_model(
            [node("ReduceMean", "x", "m", "mean", keepdims=1), node("Sub", "x m", "y", "minus")],
            [value("x", ["N", 64])],
            [value("y", ["N", 64])],
        )
    )
    model.plan(measure=rows(64))
    (times,) = saved_node_times(model.token)
    assert times.shapes == {"x": (64, 64)}


# Without dispatch, a node of as many seconds as it moves bytes.
BARE = CostTable(bytes_per_second=1, flops_per_second=1e30, seconds_per_node=0)


def seen(count, seconds):
    return MeasuredTimes({0: seconds}, [NodeCost(0, 0, count)])


@pytest.mark.parametrize(
    ("measured", "wanted", "expected"),
    [
        ({100: 10.0}, 50, 5.0),
        ({100: 10.0}, 200, 20.0),
        # What it takes for no rows at all stays the same.
        ({1: 5.05, 100: 10.0}, 200, 15.0),
        ({1: 5.05, 100: 10.0}, 51, 7.55),
        ({10: 5.5, 100: 10.0}, 1, 5.05),
        # The line goes through the measurements on either side, not through the nearest two.
        ({1: 1.0, 100: 100.0, 200: 400.0}, 110, 130.0),
        # More work that took less time, or just as much work, says nothing of the growth.
        ({1: 20.0, 100: 10.0}, 200, 20.0),
        ({99: 20.0, 100: 10.0}, 200, 20.0),
        # Slower with more work: by the line a tenth would take less than nothing.
        ({100: 1.0, 200: 4.0}, 50, 0.5),
    ],
)
def test_times_at_other_sizes_follow_from_measured_ones(measured, wanted, expected):
    counts = list(measured)
    told = [seen(counts[i], measured[counts[i]]) for i in nearest_measurements(counts, wanted)]
    found = seconds_at([NodeCost(0, 0, wanted)], told, BARE, lambda index: False)
    assert found[0] == pytest.approx(expected)


def test_other_models_use_the_speed_of_this_host():
    model, other = dx.load(layers_model([500, 500], width=64)), dx.load(dense_model())
    before = other.plan().stage_graph.seconds
    assert saved_speed() is None
    model.plan(measure=rows(512))
    assert saved_speed() > 0
    assert "that other models had on this host" in other.plan().explain()
    assert other.plan().stage_graph.seconds != before


def test_unsuitable_rows_are_refused_before_anything_runs():
    model = dx.load(dense_model())
    with pytest.raises(dx.InputError):
        model.plan(measure=np.ones((2, 3), np.float32))


def test_casts_of_weights_are_in_the_stage_that_reads_them():
    proto = layers_model([16] * 4)
    casts = []
    for i in range(4):
        casts.append(node("Identity", f"A{i}", f"W{i}", f"cast{i}"))
        for each in proto.graph.node:
            if each.name == f"up{i}":
                each.input[1] = f"W{i}"
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = dx.load(proto)
    plan = model.plan("pipeline", n_stages=4, shapes={"x": (4096, 8)})
    assert [sum(e.bytes for e in plan.stage_graph.edges if e.consumer == i) for i in range(4)] == [
        0,
        *[4096 * 8 * 4] * 3,
    ]
    x = np.ones((3, 8), np.float32)
    np.testing.assert_allclose(model.predict(x, plan=plan), run_onnx(proto, {"x": x})[0], rtol=1e-5)


def test_a_cpu_is_calibrated_once_when_a_plan_first_weighs_nodes(monkeypatch):
    with dask.config.set({"onnx.plan.calibrate": True}):
        model = dx.load(layers_model([500, 500], width=64))
        model.plan(shapes={"x": (64, 64)})
        assert saved_calibration() is None  # nothing is weighed
        plan = model.plan("pipeline", n_stages=2, shapes={"x": (64, 64)})
        table = saved_calibration()
        # In units per second, of any CPU under any load.
        assert 1e7 < table.flops_per_second < 1e14 and 1e7 < table.bytes_per_second < 1e14
        assert 1e7 < table.conv_flops_per_second < 1e14
        assert 1e-9 < table.seconds_per_node < 1e-2
        assert "that this host's CPU was found to have" in plan.explain() and plan.is_measured
        assert plan.stage_graph.seconds == pytest.approx(
            sum(map(table.seconds, plan.facts._costs_at({"x": (64, 64)}))), rel=1e-6
        )
        monkeypatch.setattr("dask_onnx.api.planner.calibrate", None)
        dx.load(dense_model()).plan("auto")


def test_measured_times_correct_the_calibration():
    calibrate()
    model, other = dx.load(layers_model([500, 500], width=64)), dx.load(layers_model([4000]))
    shapes = {"x": (4096, 8)}  # so much work that dispatching nodes, which stays, is nothing
    base = other.plan(shapes=shapes).stage_graph.seconds
    model.plan(measure=rows(512))
    factor = saved_speed(is_calibrated=True)
    assert other.plan(shapes=shapes).stage_graph.seconds == pytest.approx(base / factor, rel=0.5)
    assert other._facts.costs.flops_per_second == pytest.approx(
        saved_calibration().flops_per_second * factor
    )


def test_convolutions_have_a_speed_of_their_own():
    table = CostTable(flops_per_second=1e9, conv_flops_per_second=4e9, seconds_per_node=0)
    assert table.seconds(NodeCost(4000, 0, 0, 4000)) == pytest.approx(1e-6)
    assert table.seconds(NodeCost(4000, 0, 0)) == pytest.approx(4e-6)
    model = dx.load(
        make_model(
            [node("Conv", "x w", "y", "conv")],
            [value("x", [1, 3, 8, 8])],
            [value("y", [1, 4, 6, 6])],
            {"w": np.ones((4, 3, 3, 3), np.float32)},
        )
    )
    (cost,) = model._facts._costs_at({})
    assert cost.conv_flops == cost.flops == 2 * 4 * 36 * 27
