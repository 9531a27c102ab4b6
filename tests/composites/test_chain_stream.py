"""Chains on streams: a frame is a task on the cluster."""

from __future__ import annotations

from collections import Counter

import distributed
import numpy as np
import pytest
from builders import make_model, node, value
from stream_models import tasks_left

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
    assert tasks_left(client) == []  # although the error is kept here
    error = found[4].error
    assert (error.stage, error.numbers["frame"]) == ("failing", 4)


def test_a_stream_swaps_to_another_chain_without_losing_a_frame(client, models):
    with dx.chain(models["a"], parts, models["b"]).stream(FRAMES, client, window=1) as stream:
        found = [next(stream)]
        swap = stream.swap(dx.chain(models["a"], parts, models["a"]))
        found += list(stream)
    assert swap.old_token != swap.new_token
    assert [index for index, _ in found] == list(range(6))


TASKS = []


def noting(frame):
    """Return the frame, and note the key of its task in this process, which runs the workers."""
    TASKS.append(distributed.get_worker().get_current_task())
    return frame


def test_frames_of_all_shapes_share_tasks_of_a_chain(client, models):
    frames = [np.full((1 + count % 3, 8), count, np.float32) for count in range(8)]
    TASKS.clear()
    chain = dx.chain(noting, models["a"])
    found = list(chain.stream(frames, client, micro_batch=4, max_delay=30.0, window=8))
    assert sorted(Counter(TASKS).values()) == [4, 4]
    assert [index for index, _ in found] == list(range(8))
    for index, result in found:
        wanted = models["a"](frames[index])
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


def test_a_bad_frame_among_those_of_a_task_leaves_the_others(client, models):
    chain = dx.chain(models["a"], failing)
    options = {"micro_batch": 3, "window": 6, "retries": 0, "on_error": "dead_letter"}
    found = dict(chain.stream(FRAMES, client, **options))
    assert [index for index, each in found.items() if isinstance(each, dx.DeadLetter)] == [4]
    assert (found[4].error.stage, found[4].error.numbers["frame"]) == ("failing", 4)


def test_options_and_chains_that_do_not_fit_are_refused(client, models):
    chain = dx.chain(models["a"], parts)
    for options, option in (({"plan": 3}, "plan"), ({"outputs": "y"}, "outputs")):
        with pytest.raises(dx.InputError) as caught:
            chain.stream(FRAMES, client, **options)
        assert caught.value.option == option
    narrow = make_model(
        [node("Relu", "x", "y", "relu")], [value("x", ["N", 7])], [value("y", ["N", 7])]
    )
    other = dx.chain(dx.load(narrow))
    with chain.stream(FRAMES, client, window=1) as stream:
        next(stream)
        with pytest.raises(dx.InputError) as caught:
            stream.swap(other)
        assert (caught.value.option, caught.value.input) == ("model", "x")
        assert len(list(stream)) == len(FRAMES) - 1


def test_chains_of_equal_graphs_with_other_kernels_have_other_tokens():
    made = make_model(
        [node("Scale", "x", "y", "scale", domain="test")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"test": 1},
    )
    kernels = (np.negative, np.abs, np.negative)
    tokens = [dx.chain(dx.load(made, replace={"test::Scale": each})).token for each in kernels]
    assert tokens[0] == tokens[2] != tokens[1]
