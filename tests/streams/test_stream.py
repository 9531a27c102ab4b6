"""Streams on a cluster of threads: sources, modes, order, drops, errors, ends, swaps."""

from __future__ import annotations

import _thread
import asyncio
import gc
import signal
import threading
import time

import numpy as np
import pytest
from builders import dense_model, make_model, node, scaled_model, value
from distributed import Client, Queue
from stream_models import frames_of, tasks_left

import dask_onnx as dx
from dask_onnx.streams.stream_run import StreamRun

pytestmark = pytest.mark.cluster
FRAMES = frames_of(12)


def indices(found):
    return [index for index, _ in found]


def assert_results(found, model, frames=FRAMES):
    assert indices(found) == list(range(len(frames)))
    for index, result in found:
        np.testing.assert_allclose(result, model(frames[index]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["async", "hybrid", "sync"])
def test_results_come_in_the_order_of_the_frames(client, model, mode):
    assert_results(list(dx.stream(model, FRAMES, client, mode=mode)), model)
    assert tasks_left(client) == []


def test_unordered_results_have_the_numbers_of_their_frames(client, model):
    found = dx.stream(model, iter(FRAMES), client, ordered=False)
    assert_results(sorted(found, key=lambda pair: pair[0]), model)


def test_frames_go_through_all_stages_of_a_plan(client, model):
    plan = model.plan("pipeline", n_stages=2)
    assert_results(list(dx.stream(model, FRAMES, client, plan=plan)), model)


def test_an_asynchronous_source_and_consumer_share_an_event_loop(client, model):
    loops = []

    async def source():
        for frame in FRAMES:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            yield frame

    async def consume():
        found = [pair async for pair in dx.stream(model, source(), client)]
        return found, asyncio.get_running_loop()

    found, loop = asyncio.run(consume())
    assert_results(found, model)
    assert set(loops) == {loop}


@pytest.mark.parametrize("mode", ["async", "hybrid"])
def test_a_plain_loop_reads_an_asynchronous_source(client, model, mode):
    async def source():
        for frame in FRAMES:
            await asyncio.sleep(0)
            yield frame

    assert_results(list(dx.stream(model, source(), client, mode=mode)), model)


def test_the_source_is_not_read_ahead_of_the_window(client, model):
    read = []

    def source():
        for frame in FRAMES:
            read.append(frame)
            yield frame

    taken = 0
    for _ in dx.stream(model, source(), client, window=3):
        taken += 1
        time.sleep(0.02)
        assert len(read) <= taken + 3
    assert taken == len(FRAMES)


def test_the_synchronous_mode_reads_a_frame_after_handing_the_last_one_over(client, model):
    events = []

    def source():
        for number, frame in enumerate(FRAMES[:4]):
            events.append(("read", number))
            yield frame

    for index, _ in dx.stream(model, source(), client, mode="sync"):
        events.append(("taken", index))
    assert events == [(what, n) for n in range(4) for what in ("read", "taken")]


def test_a_live_source_is_read_on_and_overtaken_frames_are_told(client, model):
    def camera():
        for frame in FRAMES * 4:
            time.sleep(0.002)
            yield frame

    stream = dx.stream(model, camera(), client, late="latest", window=1)
    found = []
    for pair in stream:
        found.append(pair)
        time.sleep(0.01)
    assert indices(found) == list(range(48))
    dropped = [each for _, each in found if isinstance(each, dx.Dropped)]
    assert dropped and {each.reason for each in dropped} == {"newer"}
    assert stream.statistics.dropped_for_newer == len(dropped)
    assert stream.statistics.done == 48 - len(dropped) > 0


def test_frames_past_their_deadline_are_dropped_with_their_index(client, model):
    stream = dx.stream(model, FRAMES, client, deadline=1e-6, late="drop")
    found = list(stream)
    assert all(isinstance(each, dx.Dropped) and each.index == i for i, each in found)
    assert stream.statistics.dropped_late == len(FRAMES)
    assert tasks_left(client) == []


def test_late_frames_that_are_kept_are_counted(client, model):
    stream = dx.stream(model, FRAMES, client, deadline=1e-6)
    assert_results(list(stream), model)
    assert stream.statistics.late == len(FRAMES)


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


BAD = {
    "size": (np.zeros((1, 9), np.float32), "x"),
    "rank": (np.zeros(8, np.float32), "x"),
    "dtype": (np.array([["a"] * 8]), "x"),
    "name": ({"z": FRAMES[0]}, "x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_frame_ends_the_stream_with_its_number(client, model, kind):
    bad, name = BAD[kind]
    found = []
    with pytest.raises(dx.InputError) as caught:
        found.extend(dx.stream(model, [*FRAMES[:3], bad, *FRAMES], client))
    assert caught.value.numbers["frame"] == 3 and caught.value.input == name
    assert tasks_left(client) == []


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_frame_can_be_set_aside(client, model, kind):
    bad, _ = BAD[kind]
    stream = dx.stream(model, [*FRAMES[:3], bad, *FRAMES], client, on_error="dead_letter")
    found = list(stream)
    letters = [each for _, each in found if isinstance(each, dx.DeadLetter)]
    assert [each.index for each in letters] == [3]
    assert len(found) == 16 and stream.statistics.failed == 1


def test_frames_must_be_alike_where_that_is_asked_for(client, model):
    frames = [FRAMES[0], np.concatenate(FRAMES[:2])]
    assert [len(y) for _, y in dx.stream(model, frames, client)] == [1, 2]
    with pytest.raises(dx.InputError) as caught:
        list(dx.stream(model, frames, client, uniform=True))
    assert caught.value.option == "uniform" and caught.value.numbers["frame"] == 1


def test_a_source_that_ends_early_is_an_error_after_its_results(client, model):
    found = []
    with pytest.raises(dx.InputError) as caught:
        found.extend(dx.stream(model, iter(FRAMES), client, frames=20))
    assert_results(found, model)
    assert caught.value.numbers == {"frames": 12, "expected_frames": 20}


def test_so_many_frames_are_read_of_a_source_without_end(client, model):
    def source():
        while True:
            yield from FRAMES

    assert indices(dx.stream(model, source(), client, frames=15)) == list(range(15))


@pytest.mark.parametrize("mode", ["async", "hybrid"])
def test_an_error_of_the_source_is_raised_after_the_results_before_it(client, model, mode):
    closed = []

    def source():
        try:
            yield from FRAMES[:3]
            raise KeyError("camera")
        finally:
            closed.append(True)

    found = []
    with pytest.raises(KeyError):
        found.extend(dx.stream(model, source(), client, mode=mode))
    assert_results(found, model, FRAMES[:3])
    assert closed and tasks_left(client) == []


def endless(closed):
    try:
        while True:
            yield from FRAMES
    finally:
        closed.append(True)


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_a_consumer_that_stops_leaves_no_task_and_a_closed_source(client, model):
    closed = []
    for index, _ in dx.stream(model, endless(closed), client):
        if index == 5:
            break
    wait_for(lambda: closed)
    assert tasks_left(client) == []


def test_an_exception_of_the_consumer_leaves_no_task(client, model):
    def consume():
        for index, _ in dx.stream(model, endless([]), client):
            1 // (index - 3)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert tasks_left(client) == []


@pytest.fixture
def interruptible():
    """Interrupts raise, also in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_the_consumer_waits_leaves_no_task(client, model):
    def stuck():
        yield FRAMES[0]
        _thread.interrupt_main()
        release.wait(10)

    release = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        for _ in dx.stream(model, stuck(), client):
            pass
    release.set()
    assert tasks_left(client) == []


def test_a_stream_that_is_let_go_leaves_no_task_and_no_reader(client, model):
    closed = []
    stream = dx.stream(model, endless(closed), client)
    next(stream)
    del stream
    gc.collect()
    wait_for(lambda: closed)
    assert tasks_left(client) == []


def test_a_cancelled_task_of_an_event_loop_leaves_no_task(client, model):
    async def consume():
        async for index, _ in dx.stream(model, endless([]), client):
            if index == 2:
                asyncio.current_task().cancel()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(consume())
    assert tasks_left(client) == []


def test_nothing_is_read_before_the_first_result_is_asked_for(client, model):
    read = []

    def source():
        read.append(True)
        yield FRAMES[0]

    stream = dx.stream(model, source(), client)
    time.sleep(0.05)
    assert not read and stream.statistics.read == 0
    assert len(list(stream)) == 1


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


def test_a_swap_to_a_model_with_other_inputs_is_refused_and_the_stream_goes_on(client, model):
    stream = dx.stream(model, FRAMES, client)
    found = [next(stream)]
    with pytest.raises(dx.InputError) as caught:
        stream.swap(dx.load(scaled_model()))
    assert caught.value.option == "model"
    assert_results([*found, *stream], model)
    with pytest.raises(dx.InputError):
        stream.swap(dx.load(dense_model(hidden=16)))


def test_inputs_that_are_the_same_for_every_frame_are_given_once(client):
    scaled = dx.load(scaled_model())
    frames = frames_of(5, width=3)
    found = dx.stream(scaled, frames, client, feeds={"s": np.float32(2)})
    for index, result in found:
        np.testing.assert_array_equal(result, frames[index] * 2)


def test_a_queue_of_dask_is_a_source_until_none_comes(client, model):
    queue = Queue(client=client)
    for frame in [*FRAMES[:3], None]:
        queue.put(frame)
    assert_results(list(dx.stream(model, queue, client)), model, FRAMES[:3])


def test_a_folder_is_watched_for_new_files(client, model, tmp_path):
    np.save(tmp_path / "0.npy", FRAMES[0])
    (tmp_path / ".1.npy").write_bytes(b"not ready")
    stream = dx.stream(model, tmp_path, client)
    found = [next(stream)]
    np.save(tmp_path / "part", FRAMES[1])
    found.append(next(stream))
    stream.close()
    assert_results(found, model, FRAMES[:2])


def test_a_source_may_reuse_the_memory_of_its_frames(client, model):
    def camera():
        buffer = np.empty((1, 8), np.float32)
        for frame in FRAMES:
            buffer[:] = frame
            yield buffer
            buffer[:] = np.nan

    assert_results(list(dx.stream(model, camera(), client)), model)


def test_streams_share_a_cluster_by_their_weights(client, model):
    counts = {1.0: 0, 3.0: 0}

    async def one(weight):
        stream = dx.stream(model, endless([]), client, weight=weight, window=16)
        async for _ in stream:
            counts[weight] += 1
            if sum(counts.values()) > 240:
                return

    async def both():
        await asyncio.gather(*map(one, counts))

    asyncio.run(both())
    assert 1.5 < counts[3.0] / counts[1.0] < 6.0


def test_a_client_that_is_closed_ends_the_stream_with_an_error(threads_cluster, model):
    def consume(stream, own):
        for index, _ in stream:
            if index == 3:
                own.close()

    own = Client(threads_cluster, set_as_default=False)
    with pytest.raises(dx.ClusterError):
        consume(dx.stream(model, endless([]), own), own)


def test_a_fault_of_the_dispatcher_reaches_the_consumer(client, model, monkeypatch):
    def broken(run, now):
        raise ZeroDivisionError

    monkeypatch.setattr(StreamRun, "expire", broken)
    with pytest.raises(ZeroDivisionError):
        list(dx.stream(model, FRAMES, client))


def test_inside_a_task_a_stream_is_refused(client, model):
    future = client.submit(lambda: dx.stream(model, FRAMES), pure=False)
    with pytest.raises(dx.InputError):
        future.result()


def test_without_a_client_a_stream_has_threads_of_its_own(model):
    assert_results(list(dx.stream(model, FRAMES)), model)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"mode": "fast"}, "mode"),
        ({"late": "drop"}, "deadline"),
        ({"late": "never"}, "late"),
        ({"window": 0}, "window"),
        ({"window": 4, "mode": "sync"}, "window"),
        ({"late": "latest", "mode": "hybrid"}, "mode"),
        ({"micro_batch": 9, "window": 8}, "micro_batch"),
        ({"deadline": float("nan")}, "deadline"),
        ({"weight": 0}, "weight"),
        ({"priority": 0.5}, "priority"),
        ({"on_error": "null"}, "on_error"),
        ({"feeds": {"z": 1}}, "feeds"),
        ({"outputs": "z"}, "outputs"),
        ({"initial": {"x": 0}}, "initial"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_is_read(
    client, model, options, option
):
    with pytest.raises(dx.InputError) as caught:
        dx.stream(model, FRAMES, client, **options)
    assert caught.value.option == option


@pytest.mark.parametrize("source", [5, "missing.npy", object()])
def test_a_source_without_frames_is_refused(client, model, source):
    with pytest.raises(dx.InputError) as caught:
        dx.stream(model, source, client)
    assert caught.value.option == "source"
