"""Models, frames and checks for tests of streams."""

from __future__ import annotations

import time

import numpy as np
from builders import make_model, node, value, weights


def recurrent_model(factor=0.5):
    """Return x (1, 4) and state (1, 4) -> y (1, 4) and next (1, 4): y depends on all frames."""
    return make_model(
        [
            node("MatMul", "x W", "h", "project"),
            node("Mul", "state f", "s", "decay"),
            node("Add", "h s", "a", "sum"),
            node("Tanh", "a", "next", "squash"),
            node("MatMul", "next V", "y", "read"),
        ],
        [value("x", [1, 4]), value("state", [1, 4])],
        [value("y", [1, 4]), value("next", [1, 4])],
        {"W": weights(4, 4), "V": weights(4, 4, seed=1), "f": np.float32([factor])},
        name="recurrent",
    )


def by_hand(model, frames, state=None):
    """Return the outputs of a recurrent model, frame by frame, in this process."""
    state = np.zeros((1, 4), np.float32) if state is None else state
    found = []
    for frame in frames:
        result = model({"x": frame, "state": state})
        state = result["next"]
        found.append(result["y"])
    return found


def frames_of(count, width=8, seed=0):
    """Return frames of shape (1, width)."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, width), dtype=np.float32) for _ in range(count)]


def tasks_left(client, seconds=60.0):
    """Return the keys on the scheduler once there are none, or after some seconds."""

    def keys(dask_scheduler):
        return sorted(map(str, dask_scheduler.tasks))

    until = time.monotonic() + seconds
    while (left := client.run_on_scheduler(keys)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


FRAMES = frames_of(12)


def indices(found):
    return [index for index, _ in found]


def assert_results(found, model, frames=FRAMES):
    assert indices(found) == list(range(len(frames)))
    for index, result in found:
        np.testing.assert_allclose(result, model(frames[index]), rtol=1e-5, atol=1e-6)
