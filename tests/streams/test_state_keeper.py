"""State between frames: chains, copies, and going back after a failure. No cluster."""

from __future__ import annotations

import numpy as np
import pytest

import dask_onnx as dx
from dask_onnx.collections.frame_tasks import TaskValue
from dask_onnx.collections.linked_requests import LinkedStart
from dask_onnx.collections.request_steps import Step
from dask_onnx.core.specs import TensorSpec
from dask_onnx.streams.state_keeper import StateKeeper, initial_state

ZERO = np.zeros((1, 4), np.float32)


def keeper(every=3):
    return StateKeeper({"next": "state"}, every, {"state": ZERO})


def start(state, index):
    linked = LinkedStart(Step((), tuple), {"next": (f"key-{index}", 1)}, (f"future-{index}",))
    state.started(index, linked)


def value(index):
    return TaskValue(f"key-{index}", 1, (1, 4), np.dtype(np.float32))


def test_each_frame_reads_the_state_where_the_one_before_left_it():
    state = keeper()
    assert state.current == {"state": ZERO}
    start(state, 0)
    assert state.current == {"state": value(0)} and not state.is_due
    start(state, 1)
    assert state.current == {"state": value(1)} and state.is_due


def test_the_state_is_copied_every_so_many_frames_and_the_next_frame_waits_for_the_copy():
    state = keeper()
    for index in range(3):
        assert not state.is_waiting
        start(state, index)
    assert state.is_waiting
    for index in range(2):
        state.finished(index, {})
    copy = np.ones((1, 4), np.float32)
    state.finished(2, {"next": copy})
    assert not state.is_waiting and state.checkpoints == 1
    assert state.current["state"] is copy


def test_after_a_failure_the_state_is_that_of_the_frame_before():
    state = keeper(every=10)
    for index in range(4):
        start(state, index)
    state.finished(0, {})
    state.rewind(2)
    assert state.current == {"state": value(1)}
    start(state, 3)
    state.rewind(3)
    assert state.current == {"state": value(1)}


def test_a_failure_of_the_first_frame_goes_back_to_the_initial_state():
    state = keeper(every=1)
    start(state, 0)
    assert state.is_waiting
    state.rewind(0)
    assert state.current["state"] is ZERO and not state.is_waiting


def spec(*shape):
    return {"state": TensorSpec("state", np.dtype(np.float32), shape)}


@pytest.mark.parametrize(
    ("initial", "shape", "field"),
    [
        ({"state": np.zeros((1, 5), np.float32)}, (1, 4), "state"),
        ({"state": np.zeros(4, np.float32)}, (1, 4), "state"),
        ({"stat": ZERO}, (1, 4), "stat"),
        ({}, (1, "N"), "state"),
        ({"state": np.array([["a"]])}, (1, 1), "state"),
    ],
)
def test_an_initial_state_that_does_not_fit_names_its_input(initial, shape, field):
    with pytest.raises(dx.InputError) as caught:
        initial_state({"next": "state"}, initial, spec(*shape))
    assert caught.value.input == field


def test_a_state_of_fixed_shape_begins_with_zeros():
    found = initial_state({"next": "state"}, {}, spec(1, 4))
    assert found["state"].shape == (1, 4) and found["state"].dtype == np.float32
