"""Measured times of nodes on the kernels that run them."""

from __future__ import annotations

import time

import dask.config
import numpy as np
import pytest
from builders import dense_model, layers_model, make_model, node, value, weights
from onnx import TensorProto
from onnx.reference.op_run import OpRun

import dask_onnx as dx
from dask_onnx.analysis.cost import CostTable
from dask_onnx.facts import node_times
from dask_onnx.runtime import profile
from dask_onnx.runtime.profile import saved_node_times, saved_speed
from dask_onnx.store.weight_store import Store

SLOW_SECONDS = 0.02


@pytest.fixture(autouse=True)
def own_store(tmp_path):
    with dask.config.set({"onnx.store.directory": str(tmp_path / "own")}):
        yield


def slow_softmax(x, axis):
    time.sleep(SLOW_SECONDS)
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


def quick_softmax(x, axis):
    return np.exp(x) / np.exp(x).sum(axis, keepdims=True)


# The kernels declare axis 0 as independent; nothing is assumed about kernels that declare none.
slow_softmax.axes = quick_softmax.axes = (0,)


class Upper(OpRun):
    op_domain = "mine"

    def _run(self, x):
        assert x.dtype == object
        return (np.array([text.upper() for text in x], object),)


def softmax_model():
    """Return a model of Relu, Softmax over columns and Mul."""
    return make_model(
        [
            node("Relu", "x", "h", "before"),
            node("Softmax", "h", "s", "soft", axis=-1),
            node("Mul", "s h", "y", "after"),
        ],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
    )


def times_of(model, shape):
    (found,) = (t for t in model._facts.saved_node_times() if t.shapes["x"] == shape)
    return found


def rows(count, width=8):
    return np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)


def test_a_slow_custom_kernel_is_measured():
    model = dx.load(softmax_model(), replace={"Softmax": slow_softmax})
    plan = model.plan(measure=rows(16))
    times = times_of(model, (16, 8))
    assert SLOW_SECONDS <= times.seconds[1] < 60
    assert times.seconds[0] + times.seconds[2] < times.seconds[1]
    assert times.whole == pytest.approx(sum(times.seconds.values()))
    assert [stage.cost.seconds for stage in plan.stages] == pytest.approx(
        [times.seconds[i] for i in range(3)]
    )
    assert "on this host at these shapes" in plan.explain()
    assert times_of(model, (1, 8)).seconds[1] >= SLOW_SECONDS


def test_models_with_different_kernels_do_not_share_times():
    slow = dx.load(softmax_model(), replace={"Softmax": slow_softmax})
    slow.plan(measure=rows(16))
    slow_times = times_of(slow, (16, 8)).seconds
    for other in (
        dx.load(softmax_model()),
        dx.load(softmax_model(), replace={"Softmax": quick_softmax}),
    ):
        assert "that other models had on this host" in other.plan().explain()
        other.plan(measure=rows(16))
        assert times_of(other, (16, 8)).seconds[1] < slow_times[1]
    assert slow.plan(shapes={"x": (16, 8)}).stage_graph.seconds >= SLOW_SECONDS
    again = dx.load(softmax_model(), replace={"Softmax": slow_softmax})
    assert "on this host at these shapes" in again.plan(shapes={"x": (16, 8)}).explain()


def test_a_model_that_onnxruntime_cannot_run_alone_is_measured_stage_by_stage():
    model = dx.load(
        make_model(
            [
                node("Relu", "x", "h", "before"),
                node("Cast", "h", "small", "narrow", to=TensorProto.INT4),
                node("Cast", "small", "wide", "widen", to=TensorProto.FLOAT),
                node("Mul", "wide h", "y", "after"),
            ],
            [value("x", ["N", 8])],
            [value("y", ["N", 8])],
            opset=21,
            ir_version=10,
        )
    )
    plan = model.plan(measure=rows(64))
    assert [stage.kernel for stage in plan.stages] == ["onnxruntime", "reference", "onnxruntime"]
    assert "on this host at these shapes" in plan.explain()
    times = times_of(model, (64, 8))
    assert sorted(times.seconds) == [0, 1, 2, 3]
    assert min(times.seconds.values()) > 0
    assert plan.stage_graph.seconds == pytest.approx(times.whole)


def test_the_time_of_a_stage_in_python_is_divided_by_predicted_cost():
    model = dx.load(
        make_model(
            [node("MatMul", "x W", "h", "large"), node("MatMul", "h V", "y", "small")],
            [value("x", ["N", 8])],
            [value("y", ["N", 1])],
            {"W": weights(8, 4096), "V": weights(4096, 1)},
        ),
        replace={"MatMul": np.matmul},
    )
    plan = model.plan(measure=rows(64))
    assert [stage.kernel for stage in plan.stages] == ["custom"]
    seconds, costs = times_of(model, (64, 8)).seconds, model._facts._costs_at({"x": (64, 8)})
    predicted = [CostTable().seconds(cost, "custom") for cost in costs]
    assert seconds[0] / seconds[1] == pytest.approx(predicted[0] / predicted[1])
    assert saved_speed() is None  # nothing ran on ONNX Runtime


@pytest.mark.parametrize("replaced", [{}, {"Softmax": quick_softmax}])
def test_known_shapes_do_not_run_again(monkeypatch, replaced):
    model = dx.load(softmax_model(), replace=replaced)
    first = model.plan(measure=rows(16)).stage_graph.seconds
    with monkeypatch.context() as patch:
        patch.setattr(profile, "build_session", None)
        patch.setattr(profile, "build_reference", None)
        assert model.plan(measure=rows(16)).stage_graph.seconds == first
        assert dx.load(softmax_model(), replace=replaced).plan(
            measure=rows(1)
        ).stage_graph.seconds == pytest.approx(times_of(model, (1, 8)).whole)


def test_only_unknown_shapes_run(monkeypatch):
    ran = []

    def spy(*arguments, **options):
        ran.append([feeds["x"].shape[0] for feeds in arguments[3]])
        return profile.profile_stage(*arguments, **options)

    monkeypatch.setattr(node_times, "profile_stage", spy)
    model = dx.load(layers_model([16]))
    model.plan(measure=rows(16))
    model.plan(measure=rows(32))
    model.plan(measure=rows(32), session=dx.SessionSpec(intra_op_num_threads=4))
    assert ran == [[16, 1], [32]]
    model.plan(measure=rows(32), session=dx.SessionSpec(optimization="disable"))
    assert ran == [[16, 1], [32], [32, 1]]
    Store().remove_measurements()
    model.plan(measure=rows(32))
    assert ran == [[16, 1], [32], [32, 1], [32, 1]]


def test_other_models_are_predicted_by_onnxruntimes_nodes_alone():
    model = dx.load(softmax_model(), replace={"Softmax": slow_softmax})
    model.plan(measure=rows(16))
    seconds, costs = times_of(model, (16, 8)).seconds, model._facts._costs_at({"x": (16, 8)})
    predicted = sum(CostTable().seconds(costs[i]) for i in (0, 2))
    assert saved_speed() == pytest.approx(predicted / (seconds[0] + seconds[2]))


def test_dead_nodes_keep_their_prediction():
    proto = dense_model()
    proto.graph.node.insert(1, node("Sigmoid", "h1", "unread", "dead"))
    model = dx.load(proto)
    names = [each.name for each in model.facts.nodes]
    plan = model.plan(measure=rows(16))
    times = times_of(model, (16, 8))
    assert {names[i] for i in times.seconds} == {"first", "bias", "activate", "second"}
    assert plan.stage_graph.seconds == pytest.approx(times.whole)
    wanted = model.plan(outputs=["unread"], shapes={"x": (16, 8)}).stage_graph.seconds
    assert wanted > times.seconds[names.index("first")]


NESTED = """<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 4] x, bool yes) => (float[N, 4] y, float[N, 2] b) {
  a, b = Split <num_outputs: int = 2, axis: int = 1> (x)
  s = SequenceConstruct (a, b)
  c = If (yes) <
    then_branch = t () => (float[N, 4] p) { p = ConcatFromSequence <axis: int = 1> (s) },
    else_branch = e () => (float[N, 4] q) { q = Gelu (x) }
  >
  y = Add (c, x)
}"""


def test_bodies_sequences_and_several_outputs_are_measured():
    model = dx.load(NESTED, replace={"Gelu": lambda x, approximate: x})
    feeds = {"x": rows(16, 4), "yes": np.array(True)}
    plan = model.plan(measure=feeds)
    assert [stage.kernel for stage in plan.stages] == ["onnxruntime", "custom", "onnxruntime"]
    times = times_of(model, (16, 4))
    assert sorted(times.seconds) == [0, 1, 2, 3]
    assert plan.stage_graph.seconds == pytest.approx(times.whole)
    np.testing.assert_array_equal(
        model.predict(feeds, plan=plan, outputs="y", batch_size=None), 2 * feeds["x"]
    )


TEXTS = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
g (string[N] x) => (string[N] y) {
  u = mine.Upper (x)  z = StringConcat (u, x)  y = Identity (z)
}"""


@pytest.mark.parametrize("dtype", [object, str])
def test_text_and_types_known_only_at_run_time_are_measured(dtype):
    model = dx.load(TEXTS, custom_ops=[Upper])
    words = np.array(["ab", "c"], dtype)
    plan = model.plan(measure=words)
    assert {stage.kernel for stage in plan.stages} >= {"onnxruntime", "custom"}
    assert sorted(times_of(model, (2,)).seconds) == [0, 1, 2]
    assert "on this host at these shapes" in plan.explain()


def test_a_request_with_a_sequence_always_runs(monkeypatch):
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (seq(float[N]) s, float[N] x) => (float[N] y) {
      zero = Constant <value: tensor = int64 {0}> ()
      first = SequenceAt (s, zero)
      y = Add (first, x)
    }"""
    model, calls = dx.load(text), []

    def spy(*arguments, **options):
        calls.append(arguments)
        return profile.profile_stage(*arguments, **options)

    monkeypatch.setattr(node_times, "profile_stage", spy)
    x = rows(1, 4)[0]
    for count in (1, 3):
        plan = model.plan(measure={"s": [x] * count, "x": x})
        assert "on this host at these shapes" in plan.explain()
    assert len(calls) == 2


def test_a_failing_kernel_is_an_error_with_its_stage():
    def refuse(x, axis):
        raise ValueError("these rows are wrong")

    model = dx.load(softmax_model(), replace={"Softmax": refuse})
    with pytest.raises(dx.StageError, match=r"cannot be run by stage soft: these rows are wrong"):
        model.plan(measure=rows(16))
    assert not list(saved_node_times(model._facts.times_token))


def test_an_empty_profile_is_divided_evenly():
    assert profile._distributed(4.0, {0: 0.0, 3: 0.0}, []).seconds == {0: 2.0, 3: 2.0}
    assert profile._distributed(4.0, {}, []).seconds == {}


def test_a_very_slow_kernel_runs_once(monkeypatch):
    monkeypatch.setattr(profile, "PROFILE_SECONDS", SLOW_SECONDS / 2)
    runs = []

    class Session:
        inputs = ("x",)

        def run(self, arrays):
            runs.append(arrays)
            time.sleep(SLOW_SECONDS)
            return [arrays[0]]

    results, seconds = profile._time_runs(Session(), {"x": 3}, "s", 1.0, counts_first=True)
    assert (len(runs), len(seconds), results) == (1, 1, [3])
