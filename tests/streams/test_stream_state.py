"""Streams whose frames hand a state on: equal to a loop by hand, also after a worker's death."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest
from distributed import Client, LocalCluster
from stream_models import by_hand, frames_of, recurrent_model, tasks_left

import dask_onnx as dx
from dask_onnx.streams import state_keeper

pytestmark = pytest.mark.cluster
FRAMES = frames_of(20, width=4)
STATE = {"next": "state"}


def assert_bit_equal(found, wanted):
    assert [index for index, _ in found] == list(range(len(wanted)))
    for (index, result), want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(result, want, err_msg=f"frame {index}")


@pytest.mark.parametrize("checkpoint", [1, 3, 100])
@pytest.mark.parametrize("small_bytes", [0, 2**16], ids=["large state", "small state"])
def test_the_state_goes_from_frame_to_frame(
    client, recurrent, checkpoint, small_bytes, monkeypatch
):
    monkeypatch.setattr(state_keeper, "SMALL_BYTES", small_bytes)
    stream = dx.stream(recurrent, FRAMES, client, state=STATE, checkpoint_every=checkpoint)
    assert_bit_equal(list(stream), by_hand(recurrent, FRAMES))
    assert tasks_left(client) == []


def test_the_first_frame_gets_the_initial_state(client, recurrent):
    state = np.float32([[1, -2, 3, 0.5]])
    stream = dx.stream(recurrent, FRAMES, client, state=STATE, initial={"state": state})
    assert_bit_equal(list(stream), by_hand(recurrent, FRAMES, state))


def test_the_state_crosses_the_stages_of_a_plan(client, recurrent):
    plan = recurrent.plan("per_node")
    stream = dx.stream(recurrent, FRAMES, client, plan=plan, state=STATE, checkpoint_every=4)
    for (_, result), want in zip(stream, by_hand(recurrent, FRAMES), strict=True):
        np.testing.assert_allclose(result, want, rtol=1e-5)


def test_a_caller_may_ask_for_the_state_too(client, recurrent):
    outputs = ["y", "next"]
    found = list(dx.stream(recurrent, FRAMES[:3], client, state=STATE, outputs=outputs))
    assert [list(each) for _, each in found] == [outputs] * 3
    again = dx.stream(
        recurrent, FRAMES[3:], client, state=STATE, initial={"state": found[-1][1]["next"]}
    )
    wanted = by_hand(recurrent, FRAMES)
    assert_bit_equal(list(again), wanted[3:])


def test_recordings_run_side_by_side_without_touching_each_other(client, recurrent):
    recordings = [frames_of(6, width=4, seed=seed) for seed in range(8)]

    async def one(frames):
        stream = dx.stream(recurrent, frames, client, state=STATE, checkpoint_every=2)
        return [pair async for pair in stream]

    async def all_of_them():
        return await asyncio.gather(*map(one, recordings))

    for frames, found in zip(recordings, asyncio.run(all_of_them()), strict=True):
        assert_bit_equal(found, by_hand(recurrent, frames))


@pytest.mark.parametrize("place", [0, 5, 19])
def test_the_state_goes_on_from_the_frame_before_one_that_fails(client, recurrent, place):
    frames = list(FRAMES)
    frames[place] = np.zeros((1, 5), np.float32)
    stream = dx.stream(
        recurrent, frames, client, state=STATE, on_error="dead_letter", checkpoint_every=4
    )
    found = list(stream)
    index, letter = found.pop(place)
    assert isinstance(letter, dx.DeadLetter) and letter.error.numbers["frame"] == index == place
    wanted = by_hand(recurrent, [*FRAMES[:place], *FRAMES[place + 1 :]])
    for (_, result), want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(result, want)


def test_a_frame_must_not_have_a_state_of_its_own(client, recurrent):
    frames = [{"x": FRAMES[0], "state": np.ones((1, 4), np.float32)}]
    with pytest.raises(dx.InputError) as caught:
        list(dx.stream(recurrent, frames, client, state=STATE))
    assert caught.value.input == "state" and caught.value.numbers["frame"] == 0


def test_a_swap_keeps_the_state(client, recurrent):
    other = dx.load(recurrent_model(factor=0.25))
    stream = dx.stream(recurrent, FRAMES, client, state=STATE, window=2)
    found = [next(stream) for _ in range(5)]
    swap = stream.swap(other)
    found += list(stream)
    state = by_hand_state(recurrent, FRAMES[: swap.frame])
    wanted = by_hand(recurrent, FRAMES[: swap.frame]) + by_hand(other, FRAMES[swap.frame :], state)
    assert_bit_equal(found, wanted)


def by_hand_state(model, frames):
    state = np.zeros((1, 4), np.float32)
    for frame in frames:
        state = model({"x": frame, "state": state})["next"]
    return state


@pytest.mark.parametrize(
    ("options", "field", "name"),
    [
        ({"state": {"nxt": "state"}}, "option", "outputs"),
        ({"state": {"next": "stat"}}, "input", "stat"),
        ({"state": {"next": "state", "y": "state"}}, "option", "state"),
        ({"state": STATE, "initial": {"state": np.zeros((1, 5))}}, "input", "state"),
        ({"state": STATE, "checkpoint_every": 0}, "option", "checkpoint_every"),
        ({"state": STATE, "micro_batch": 2}, "option", "micro_batch"),
        ({"state": {"next": ("state", np.zeros((1, 4)))}}, "option", "state"),
        ({"state": "next"}, "option", "state"),
        ({"state": ["next", "state"]}, "option", "state"),
        ({"state": STATE, "initial": np.zeros((1, 4))}, "option", "initial"),
        ({"state": STATE, "feeds": [1]}, "option", "feeds"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_is_read(
    client, recurrent, options, field, name
):
    with pytest.raises(dx.InputError) as caught:
        dx.stream(recurrent, FRAMES, client, **options)
    assert getattr(caught.value, field) == name


@pytest.mark.slow
def test_recordings_of_a_trained_model_survive_the_death_of_a_worker_bit_for_bit(
    store_directory, asset
):
    model = dx.load(asset("silero_vad.onnx"))
    rng = np.random.default_rng(0)
    recordings = rng.standard_normal((8, 40, 1, 576), dtype=np.float32) * 0.1
    rate, start = np.array(16000), np.zeros((2, 1, 128), np.float32)

    def alone(frames):
        state, found = start, []
        for frame in frames:
            result = model({"input": frame, "state": state, "sr": rate})
            state = result["stateN"]
            found.append(result["output"])
        return found

    async def one(client, frames, done):
        options = {"state": {"stateN": "state"}, "initial": {"state": start}, "checkpoint_every": 8}
        found = []
        async for pair in dx.stream(model, frames, client, feeds={"sr": rate}, **options):
            found.append(pair)
            done.append(pair)
            if len(done) == 100:
                pid = next(iter((await asyncio.to_thread(client.run, os.getpid)).values()))
                os.kill(pid, signal.SIGKILL)
        return found

    async def all_of_them(client):
        done = []
        return await asyncio.gather(*(one(client, frames, done) for frames in recordings))

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        found = asyncio.run(all_of_them(client))
        assert tasks_left(client) == []
    for frames, own in zip(recordings, found, strict=True):
        assert_bit_equal(own, alone(frames))
