"""Streams of composites: all models at once, and each as it is ready."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
from builders import dense_model, make_model, node, value

import dask_onnx as dx
from dask_onnx.composites import each_stream

pytestmark = pytest.mark.cluster
FRAMES = list(np.random.default_rng(5).standard_normal((12, 1, 8)).astype(np.float32))


MAY_GO_ON = threading.Event()


def slow(x):
    """Kernel that waits for the test, whose process runs the workers."""
    assert MAY_GO_ON.wait(60)
    return x * 2


def slow_model():
    made = make_model(
        [node("Slow", "x", "y", "slow", domain="test")],
        [value("x", ["N", 8])],
        [value("y", ["N", 8])],
        domains={"test": 1},
    )
    return dx.load(made, replace={"test::Slow": slow})


@pytest.mark.parametrize("merge", [True, False])
def test_results_of_all_models_come_in_order(client, models, merge):
    found = list(dx.compose(models, merge=merge).stream(FRAMES, client))
    assert [index for index, _ in found] == list(range(12))
    for index, result in found:
        for name, model in models.items():
            wanted = model(FRAMES[index])
            np.testing.assert_allclose(result[f"{name}/y"], wanted, rtol=1e-5, atol=1e-6)


def test_each_model_gives_all_frames_in_order(client, models):
    found = list(dx.compose(models).stream(iter(FRAMES), client, wait="each"))
    for name, model in models.items():
        own = [(index, result) for index, each, result in found if each == name]
        assert [index for index, _ in own] == list(range(12))
        for index, result in own:
            wanted = model(FRAMES[index])
            np.testing.assert_allclose(result[f"{name}/y"], wanted, rtol=1e-5, atol=1e-6)


def test_a_slow_model_does_not_hold_up_the_others(client, models):
    composite = dx.compose(slow=slow_model(), fast=models["a"])
    assert not composite.merging.is_merged
    MAY_GO_ON.clear()
    frames = FRAMES * 20  # more than would wait by number
    stream = composite.stream(frames, client, wait="each", priority=0)
    found = [next(stream) for _ in frames]
    assert [name for _, name, _ in found] == ["fast"] * len(frames)
    MAY_GO_ON.set()
    assert [(index, name) for index, name, _ in stream] == [(k, "slow") for k in range(len(frames))]


def test_a_thread_is_kept_for_a_model_whose_stream_starts_later(client, models, monkeypatch):
    collect = each_stream._collect

    def late(name, *arguments):
        if name == "fast":
            time.sleep(0.5)  # a loaded machine
        collect(name, *arguments)

    monkeypatch.setattr(each_stream, "_collect", late)
    composite = dx.compose(slow=slow_model(), fast=models["a"])
    MAY_GO_ON.clear()
    with composite.stream(FRAMES, client, wait="each", priority=0) as stream:
        found = [next(stream) for _ in FRAMES]
        assert [name for _, name, _ in found] == ["fast"] * len(FRAMES)
        MAY_GO_ON.set()
        assert len(list(stream)) == len(FRAMES)


def test_a_model_that_lags_too_far_behind_holds_up_the_source(client, models):
    read = []

    def source():
        for frame in FRAMES:
            read.append(len(read))
            yield frame

    composite = dx.compose(slow=slow_model(), fast=models["a"])
    MAY_GO_ON.clear()
    options = {"wait": "each", "window": 1, "lag": 2}
    with composite.stream(source(), client, **options) as stream:
        next(stream)
        assert len(read) <= 5
        MAY_GO_ON.set()
        assert len(list(stream)) == 2 * len(FRAMES) - 1


def test_a_loop_that_is_left_and_a_stream_that_is_let_go_end(client, models):
    read = []

    def source():
        while True:
            read.append(len(read))
            yield FRAMES[0]

    for index, _, _ in dx.compose(models).stream(source(), client, wait="each", lag=2):
        if index == 3:
            break
    stream = dx.compose(models).stream(source(), client, wait="each", lag=2)
    next(stream)
    del stream
    gc.collect()
    count = len(read)
    for thread in threading.enumerate():
        if thread.name == "dask-onnx-frames":
            thread.join(30)
            assert not thread.is_alive()
    assert len(read) <= count + 2


def test_a_bad_frame_is_a_dead_letter_of_every_model(client, models):
    frames = [FRAMES[0], {"z": FRAMES[1]}, FRAMES[2]]
    composite = dx.compose(models)
    found = list(composite.stream(frames, client, wait="each", on_error="dead_letter"))
    for name in models:
        own = [result for _, each, result in found if each == name]
        assert [isinstance(result, dx.DeadLetter) for result in own] == [False, True, False]
        assert own[1].error.numbers["frame"] == 1


def test_a_source_that_ends_early_is_an_error_after_its_results(client, models):
    class Truncated:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(FRAMES[:3])

    found = []
    with pytest.raises(dx.InputError) as caught:
        found.extend(dx.compose(models).stream(Truncated(), client, wait="each"))
    assert caught.value.numbers == {"frames": 3, "expected_frames": 5}


def test_whatever_a_source_raises_ends_the_stream(client, models):
    def broken():
        yield FRAMES[0]
        raise SystemExit(3)

    for options in ({}, {"wait": "each"}):
        with pytest.raises(SystemExit):
            list(dx.compose(models).stream(broken(), client, **options))


def test_each_takes_async_sources_and_consumers(client, models):
    async def source():
        for frame in FRAMES:
            await asyncio.sleep(0)
            yield frame

    async def consume():
        stream = dx.compose(models).stream(source(), client, wait="each")
        return [found async for found in stream]

    assert len(asyncio.run(consume())) == 36


def test_closing_each_stops_reading_an_endless_source(client, models):
    read = []

    def source():
        while True:
            read.append(len(read))
            yield FRAMES[0]

    with dx.compose(models).stream(source(), client, wait="each", window=2, lag=2) as stream:
        next(stream)
    count = len(read)
    assert count < 100
    assert list(stream) == []
    assert len(read) <= count + 1


def test_an_error_of_the_source_and_a_bad_frame_end_each(client, models):
    def broken():
        yield FRAMES[0]
        raise OSError("camera gone")

    with pytest.raises(OSError, match="camera gone"):
        list(dx.compose(models).stream(broken(), client, wait="each"))
    frames = [FRAMES[0], {"z": FRAMES[1]}]
    with pytest.raises(dx.InputError) as caught:
        list(dx.compose(models).stream(frames, client, wait="each"))
    assert caught.value.numbers["frame"] == 1


@pytest.mark.parametrize("merge", [True, False])
def test_a_swap_loses_no_frame_and_tells_both_tokens(client, models, merge):
    composite = dx.compose(models, merge=merge)
    new = dx.load(dense_model(hidden=8))
    swapped = composite.swap(b=new)
    with composite.stream(FRAMES, client, window=2) as stream:
        found = [next(stream)]
        swap = stream.swap(swapped)
        found += list(stream)
    assert swap.old_token != swap.new_token
    assert [index for index, _ in found] == list(range(12))
    for index, result in found:
        model = models["b"] if index < swap.frame else new
        np.testing.assert_allclose(result["b/y"], model(FRAMES[index]), rtol=1e-5, atol=1e-6)


def test_a_swap_of_each_loses_no_frame_and_tells_both_tokens(client, models):
    new = dx.load(dense_model(hidden=8))
    with dx.compose(models).stream(FRAMES, client, wait="each", window=2) as stream:
        found = [next(stream)]
        swaps = stream.swap(b=new)
        with pytest.raises(dx.InputError) as caught:
            stream.swap(d=new)
        found += list(stream)
    assert caught.value.option == "d"
    swap = swaps["b"]
    assert list(swaps) == ["b"]
    assert swap.old_token != swap.new_token
    own = [(index, result["b/y"]) for index, name, result in found if name == "b"]
    assert [index for index, _ in own] == list(range(12))
    for index, result in own:
        model = models["b"] if index < swap.frame else new
        np.testing.assert_allclose(result, model(FRAMES[index]), rtol=1e-5, atol=1e-6)


def test_options_of_each_that_do_not_fit_are_refused(client, models):
    composite = dx.compose(models)
    for options, option in (
        ({"lag": 0}, "lag"),
        ({"state": {"a/y": "x"}}, "state"),
        ({"feeds": {"z": 1}}, "feeds"),
        ({"plan": 3}, "plan"),
        ({"window": {"d": 1}}, "window"),
    ):
        with pytest.raises(dx.InputError) as caught:
            composite.stream(FRAMES, client, wait="each", **options)
        assert caught.value.option == option
