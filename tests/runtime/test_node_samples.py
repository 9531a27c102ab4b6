from __future__ import annotations

import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value, weights
from onnx.reference.op_run import OpRun

import dask_onnx as dx
from dask_onnx.core.meters import begin_recording, end_recording
from dask_onnx.runtime import node_samples
from dask_onnx.runtime.node_samples import replay_samples


@pytest.fixture(params=["sample", "all"])
def recording(request):
    recording = begin_recording("nodes", nodes=request.param)
    yield recording
    end_recording(recording)


def conv_model() -> onnx.ModelProto:
    """Return x (N, 16, 32, 32) -> Conv -> Relu -> Conv -> Sigmoid -> y."""
    return make_model(
        [
            node("Conv", "x W1", "a", "conv_one", pads=[1, 1, 1, 1]),
            node("Relu", "a", "b", "activate"),
            node("Conv", "b W2", "c", "conv_two", pads=[1, 1, 1, 1]),
            node("Sigmoid", "c", "y", "squash"),
        ],
        [value("x", ["N", 16, 32, 32])],
        [value("y", ["N", 16, 32, 32])],
        {"W1": weights(16, 16, 3, 3), "W2": weights(16, 16, 3, 3)},
    )


def test_nodes_are_timed_as_they_run_with_the_names_of_the_model(recording):
    model = dx.load(conv_model())
    x = np.random.default_rng(0).standard_normal((8, 16, 32, 32)).astype("f4")
    expected = model.predict(x, batch_size=4)
    again = model.predict(x, batch_size=4)
    np.testing.assert_array_equal(again, expected)
    tokens = list(recording.samples)
    (stage,) = replay_samples("nodes", "", tokens)
    assert stage.tasks == (0 if recording.nodes == "all" else 2)
    found = {each.name: each for each in stage.nodes}
    assert {"conv_one", "conv_two"} <= set(found)
    conv = found["conv_one"]
    assert conv.node == 0
    # Two multiply-adds for each of 9 x 16 weights, 16 x 32 x 32 results and 4 rows; the fused
    # activation adds one operation for each result.
    flops = conv.flops / conv.calls / 4
    products = 2 * 9 * 16 * 16 * 32 * 32
    assert products <= flops <= products * 1.01
    assert 0 < sum(each.seconds for each in stage.nodes) <= stage.seconds
    assert stage.predicted_seconds > 0
    assert all(each.moved_bytes > 0 for each in stage.nodes)


def test_kernels_in_python_are_timed_too(recording):
    class Twice(OpRun):
        op_domain = "example"

        def _run(self, x):
            return (x * 2,)

    proto = make_model(
        [
            node("Relu", "x", "a", "first"),
            node("Twice", "a", "y", "own", domain="example"),
        ],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        domains={"example": 1},
    )
    model = dx.load(proto, custom_ops=[Twice])
    x = np.ones((3, 4), np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(model.predict(x), x * 2)
    stages = replay_samples("nodes", "", list(recording.samples))
    names = {each.name: each for stage in stages for each in stage.nodes}
    assert names["own"].calls >= 1
    assert names["own"].moved_bytes >= 2 * x.nbytes
    assert names["own"].op_type == "Twice"


def test_each_task_has_the_same_chance_and_memory_is_bounded(monkeypatch):
    recording = begin_recording("bounded", nodes="sample")
    try:
        monkeypatch.setattr(node_samples, "_KEPT_BYTES", 100)
        model = dx.load(dense_model())
        for rows in (2, 3, 4):  # 64 to 128 bytes
            model.predict(np.ones((rows, 8), np.float32))
        (kept,) = recording.samples.values()
        assert sum(task.nbytes for task in kept) <= 100
        assert list(recording.seen.values()) == [3]
    finally:
        end_recording(recording)


def test_no_input_is_kept_where_nodes_are_not_timed():
    recording = begin_recording("none", nodes="none")
    try:
        dx.load(dense_model()).predict(np.ones((2, 8), np.float32))
        assert recording.samples == {}
        assert len(recording.stages) == 1
        assert recording.stages[0].rows == 2
    finally:
        end_recording(recording)


def test_a_stage_that_was_not_recorded_is_not_replayed():
    assert replay_samples("unknown", "", ["token"]) == []
