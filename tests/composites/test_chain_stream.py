"""Chains on streams: a frame is a task on the cluster."""

from __future__ import annotations

import numpy as np
import pytest

import dask_onnx as dx

pytestmark = pytest.mark.cluster
FRAMES = [np.full((1, 8), count, np.float32) for count in range(6)]


def parts(scores, frame):
    """Return as many rows as the frame says, of shape (8,)."""
    return [frame[0] + place for place in range(int(frame[0, 0]))]


def failing(scores, frame):
    if frame[0, 0] == 4:
        raise ValueError("no boxes here")
    return scores


def assert_items(found, model):
    assert [len(found[index]) for index in range(6)] == list(range(6))
    for index, items in found.items():
        for place, item in enumerate(items):
            wanted = model(FRAMES[index] + place)[0]
            np.testing.assert_allclose(item, wanted, rtol=1e-4, atol=1e-4)


def test_a_stream_and_a_batch_give_what_the_models_give(client, models):
    chain = dx.chain(models["a"], parts, models["b"])
    assert_items(dict(chain.stream(FRAMES, client)), models["b"])
    assert_items(dict(enumerate(chain.predict(FRAMES, frames_per_task=2))), models["b"])


def test_an_error_in_a_stream_names_function_and_frame(client, models):
    stream = dx.chain(models["a"], failing).stream(
        FRAMES, client, retries=0, on_error="dead_letter"
    )
    found = dict(stream)
    assert [index for index, each in found.items() if isinstance(each, dx.DeadLetter)] == [4]
    error = found[4].error
    assert (error.stage, error.numbers["frame"]) == ("failing", 4)


def test_a_stream_swaps_to_another_chain_without_losing_a_frame(client, models):
    with dx.chain(models["a"], parts, models["b"]).stream(FRAMES, client, window=1) as stream:
        found = [next(stream)]
        swap = stream.swap(dx.chain(models["a"], parts, models["a"]))
        found += list(stream)
    assert swap.old_token != swap.new_token
    assert [index for index, _ in found] == list(range(6))
