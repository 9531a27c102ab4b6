from __future__ import annotations

import math

import dask.array as da
import numpy as np
import onnx
import pytest
from builders import dense_model, make_model, node, value, weights
from onnx.reference.op_run import OpRun

import dask_onnx as dx
from dask_onnx.core.meters import begin_recording, end_recording
from dask_onnx.runtime import node_samples
from dask_onnx.runtime.node_samples import replay_samples
from dask_onnx.runtime.onnxruntime_internals import KernelCall
from dask_onnx.runtime.tuning import sizes_tried


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
            node("Relu", "a", "node_3.b", "activate"),
            node("Conv", "node_3.b W2", "c", "conv_two", pads=[1, 1, 1, 1]),
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


def test_operations_are_those_of_the_rows_that_ran(recording):
    model = dx.load(conv_model())
    x = np.random.default_rng(0).standard_normal((7, 16, 32, 32)).astype("f4")
    lazy = model.predict(da.from_array(x, chunks=x.shape), batch_size=4)  # runs of 4 and 3 rows
    for _ in range(2):
        lazy.compute(scheduler="sync")
    (stage,) = replay_samples("nodes", "", list(recording.samples))
    (conv,) = [each for each in stage.nodes if each.name == "conv_one"]
    products = 2 * 9 * 16 * 16 * 32 * 32
    rows_of_a_run = conv.flops / conv.calls / products
    assert rows_of_a_run == pytest.approx(3.5, rel=0.01)


@pytest.mark.parametrize("recording", ["sample"], indirect=True)
def test_a_replay_repeats_the_runs_and_threads_of_its_task(recording):
    model = dx.load(conv_model())
    x = np.random.default_rng(0).standard_normal((9, 16, 32, 32)).astype("f4")
    lazy = model.predict(da.from_array(x, chunks=x.shape), batch_size="auto")
    for _ in range(2):
        lazy.compute(scheduler="sync")
    ran = [note.runs for note in recording.stages]
    tried = sizes_tried(recording.stages[0].token)
    kept = [task for tasks in recording.samples.values() for task in tasks]
    assert [sum(task.sizes) for task in kept] == [9] * len(kept)
    assert {task.threads for task in kept} == {note.threads for note in recording.stages}
    (stage,) = replay_samples("nodes", "", list(recording.samples))
    assert sizes_tried(recording.stages[0].token) == tried
    (conv,) = [each for each in stage.nodes if each.name == "conv_one"]
    assert conv.calls == sum(ran) * stage.repeats


def branching_model() -> onnx.ModelProto:
    """Return x (N, 64) -> If (MatMul twice, or nothing) -> Relu -> y, with names like numbers."""
    body = onnx.helper.make_graph(
        [
            node("MatMul", "x W", "t_node_2", "node_1"),
            node("MatMul", "t_node_2 W", "then", "node_2"),
        ],
        "then",
        [],
        [value("then", ["N", 64])],
    )
    other = onnx.helper.make_graph(
        [node("Identity", "x", "else", "node_0")], "else", [], [value("else", ["N", 64])]
    )
    return make_model(
        [
            node("ReduceSum", "x", "total", "add", keepdims=0),
            node("Greater", "total zero", "positive", "compare"),
            node("If", "positive", "a", "choose", then_branch=body, else_branch=other),
            node("Relu", "a", "y", "node_1"),
        ],
        [value("x", ["N", 64])],
        [value("y", ["N", 64])],
        {"W": weights(64, 64), "zero": np.float32(0.0)},
    )


def test_nodes_inside_a_branch_are_timed_once(recording):
    model = dx.load(branching_model())
    x = np.ones((512, 64), np.float32)
    for _ in range(2):
        model.predict(x, batch_size=None)
    (stage,) = replay_samples("nodes", "", list(recording.samples))
    assert sum(each.seconds for each in stage.nodes) <= stage.seconds * 1.001
    found = {each.name: each for each in stage.nodes if each.node is not None}
    assert found["choose"].flops == 0
    assert found["choose"].moved_bytes == 0  # its body was found inside it
    assert found["node_1"].op_type == "Relu"
    products = [each for each in stage.nodes if each.op_type == "MatMul"]
    assert {each.node for each in products} == {None}


def test_the_seconds_of_calls_are_those_of_the_fastest_with_the_same_data():
    # Two runs, of which the first has a loop of two iterations, three times.
    seconds = [1.0, 4.0, 3.0, 1.1, 4.2, 3.1, 9.0, 4.1, 3.2]
    runs = [0, 0, 1, 2, 2, 3, 4, 4, 5]
    calls = [
        KernelCall(0, "n", "Conv", each, 100, run=run)
        for each, run in zip(seconds, runs, strict=True)
    ]
    assert node_samples._total(calls, 2) == pytest.approx(3 * (1.0 + 4.0 + 3.0))
    assert 0 < node_samples._relative_error(calls, 2) < 0.1
    assert node_samples._relative_error(calls[:3], 2) == math.inf
    # Where nothing is repeated, calls scatter with their data.
    assert 0.1 < node_samples._relative_error(calls, 0) < 1
