"""Several streams on one cluster: shared runs and shares by weight; and swaps of their models."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest
from builders import dense_model, make_model, node, scaled_model, value
from stream_models import FRAMES, assert_results, indices, tasks_left

import dask_onnx as dx
from dask_onnx.core.stream_records import STREAMS_TOPIC, stream_records

pytestmark = pytest.mark.cluster
MAY_RUN = threading.Event()


def test_frames_that_share_a_run_have_their_own_results(client, model):
    stream = dx.stream(model, FRAMES, client, micro_batch=5, max_delay=0.05, window=12)
    assert_results(list(stream), model)


def test_a_bad_frame_fails_alone_among_those_of_its_run(client, model):
    frames = [*FRAMES[:4], np.full((1, 8), np.nan, np.float32), *FRAMES[5:]]
    found = list(
        dx.stream(model, frames, client, micro_batch=6, on_error="dead_letter", require_finite=True)
    )
    letter = found.pop(4)[1]
    assert isinstance(letter, dx.DeadLetter) and letter.error.numbers["frame"] == 4
    for index, result in found:
        np.testing.assert_allclose(result, model(frames[index]), rtol=1e-5, atol=1e-6)


def test_frames_whose_rows_are_not_independent_cannot_share_a_run(client):
    nodes = [node("ReduceMax", "x", "most", keepdims=0), node("Sub", "x most", "y")]
    coupled = dx.load(make_model(nodes, [value("x", ["N", 8])], [value("y", ["N", 8])]))
    assert len(list(dx.stream(coupled, FRAMES[:2], client))) == 2
    with pytest.raises(dx.InputError) as caught:
        list(dx.stream(coupled, FRAMES, client, micro_batch=2))
    assert caught.value.option == "micro_batch"


def test_streams_of_one_model_share_runs(client, model):
    streams = [
        dx.stream(model, FRAMES, client, micro_batch=4, max_delay=0.2, window=8) for _ in range(2)
    ]

    async def all_of_them():
        async def one(stream):
            return [pair async for pair in stream]

        return await asyncio.gather(*map(one, streams))

    for found in asyncio.run(all_of_them()):
        assert_results(found, model)


def test_a_swap_loses_no_frame_and_tells_both_tokens(client, model):
    other = dx.load(dense_model(hidden=16))
    stream = dx.stream(model, FRAMES * 3, client, window=4)
    found = []
    for index, result in stream:
        found.append((index, result))
        if index == 9:
            swap = stream.swap(other)
    assert (swap.old_token, swap.new_token) == (model.token, other.token)
    assert 10 <= swap.frame <= 15 and stream.swaps == (swap,)
    assert indices(found) == list(range(36))
    for index, result in found:
        runs = model if index < swap.frame else other
        np.testing.assert_allclose(result, runs((FRAMES * 3)[index]), rtol=1e-5, atol=1e-6)


def scaled_by(kernel):
    made = make_model(
        [node("Scale", "x", "y", "scale", domain="test")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"test": 1},
    )
    return dx.load(made, replace={"test::Scale": kernel}, rows="independent")


def doubled(x):
    """Kernel that waits for the test, whose process runs the workers."""
    assert MAY_RUN.wait(60)
    if np.isnan(x).any():
        raise ValueError("not a number")
    return x * np.float32(2)


def tripled(x):
    return x * np.float32(3)


def test_a_frame_that_starts_again_has_the_model_that_it_had(client):
    frames = [FRAMES[0], np.full((1, 8), np.nan, np.float32), *FRAMES[2:6]]
    MAY_RUN.set()
    old, new = scaled_by(doubled), scaled_by(tripled)
    options = {"micro_batch": 3, "window": 6, "on_error": "dead_letter", "retries": 0}
    MAY_RUN.clear()
    with dx.stream(old, frames, client, max_delay=30.0, **options) as stream:
        taking = threading.Thread(target=lambda: found.extend(stream))
        found = []
        taking.start()
        until = time.monotonic() + 60
        while stream.statistics.running < 3 and time.monotonic() < until:
            time.sleep(0.01)
        swap = stream.swap(new)
        MAY_RUN.set()
        taking.join(60)
    assert swap.frame >= 3
    assert [index for index, _ in found] == list(range(6))
    for index, result in found:
        if index != 1:
            factor = 2 if index < swap.frame else 3
            np.testing.assert_array_equal(result, frames[index] * np.float32(factor))
    assert isinstance(found[1][1], dx.DeadLetter)


def test_streams_of_models_with_other_kernels_share_no_runs(client):
    found = {}

    def consume(factor):
        model = scaled_by(lambda x: x * factor)
        found[factor] = list(dx.stream(model, FRAMES, client, micro_batch=4, max_delay=0.2))

    threads = [threading.Thread(target=consume, args=(np.float32(f),)) for f in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for factor, own in found.items():
        for index, result in own:
            np.testing.assert_array_equal(result, FRAMES[index] * factor)


def test_a_swap_to_a_model_with_other_inputs_is_refused_and_the_stream_goes_on(client, model):
    stream = dx.stream(model, FRAMES, client)
    found = [next(stream)]
    with pytest.raises(dx.InputError) as caught:
        stream.swap(dx.load(scaled_model()))
    assert caught.value.option == "model"
    assert_results([*found, *stream], model)
    with pytest.raises(dx.InputError):
        stream.swap(dx.load(dense_model(hidden=16)))


def test_streams_share_a_cluster_by_their_weights(client, model):
    counts = {1.0: 0, 3.0: 0}

    async def one(weight):
        stream = dx.stream(model, itertools.cycle(FRAMES), client, weight=weight, window=16)
        async for _ in stream:
            counts[weight] += 1
            if sum(counts.values()) > 240:
                return

    async def both():
        await asyncio.gather(*map(one, counts))

    asyncio.run(both())
    assert 1.5 < counts[3.0] / counts[1.0] < 6.0


def pausing_model(seconds):
    made = make_model(
        [node("Pause", "x", "y", "pause", domain="test")],
        [value("x", [1, 8])],
        [value("y", [1, 8])],
        domains={"test": 1},
        name=f"pause{round(1000 * seconds)}",
    )

    def pause(x):
        time.sleep(seconds)
        return x

    return dx.load(made, replace={"test::Pause": pause})


def test_streams_of_equal_weight_share_seconds_where_their_frames_cost_more(client):
    counts = {}

    def consume(seconds):
        stream = dx.stream(pausing_model(seconds), itertools.repeat(FRAMES[0]), client, window=12)
        began = time.monotonic()
        with stream:
            for index, _ in stream:
                if time.monotonic() > began + 3.0:
                    first = counts.setdefault((seconds, "first"), index)
                    counts[seconds] = index - first
                if time.monotonic() > began + 5.0:
                    return

    threads = [threading.Thread(target=consume, args=(each,)) for each in (0.01, 0.05)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1.7 < counts[0.01] / counts[0.05] < 9  # by frames it is 1, by seconds 5
    assert tasks_left(client) == []


def test_streams_are_told_to_the_scheduler_and_kept_in_this_process(client, model):
    frames = [FRAMES[0], np.zeros((1, 3), np.float32), FRAMES[2]]
    found = dx.stream(model, frames, client, on_error="dead_letter", name="told")
    list(found)
    (record,) = [each for each in stream_records() if each.name == "told"]
    kept = record.as_dict()
    assert (kept["read"], kept["done"], kept["failed"]) == (3, 2, 1)
    assert [letter["frame"] for letter in kept["letters"]] == [1]
    assert kept["letters"][0]["error"] == "InputError"
    assert record.started <= record.ended
    until = time.monotonic() + 60
    told = {}
    while told.get("ended") is None and time.monotonic() < until:
        events = client.get_events(STREAMS_TOPIC)
        told = next(
            (
                report
                for _, reports in reversed(events)
                for report in reports
                if report["stream"] == "told"
            ),
            {},
        )
    assert told == kept
