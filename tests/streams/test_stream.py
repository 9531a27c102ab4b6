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
from stream_models import FRAMES, assert_results, frames_of, indices, tasks_left

import dask_onnx as dx
from dask_onnx.streams.stream_run import StreamRun

pytestmark = pytest.mark.cluster


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


MAY_GO_ON = threading.Event()


def held(x):
    """Kernel that waits for the test, whose process runs the workers."""
    assert MAY_GO_ON.wait(60)
    return np.maximum(x, 0)


def test_a_live_source_is_read_on_and_overtaken_frames_are_told(client):
    def camera():
        yield from FRAMES * 4
        MAY_GO_ON.set()

    MAY_GO_ON.clear()
    model = dx.load(dense_model(), replace={"Relu": held})
    stream = dx.stream(model, camera(), client, late="latest", window=1)
    found = list(stream)
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


def test_a_masked_value_of_a_frame_is_not_finite(client, model):
    frames = [FRAMES[0], np.ma.masked_array(FRAMES[1], mask=np.arange(8) == 3)]
    (_, first), (_, second) = dx.stream(model, frames, client)
    assert np.isfinite(first).all() and np.isnan(np.ma.getdata(second)).any()
    stream = dx.stream(model, frames, client, on_error="dead_letter", require_finite=True)
    letter = list(stream)[1][1]
    assert isinstance(letter, dx.DeadLetter) and letter.error.numbers["bad_values"] == 1


def test_a_masked_value_of_an_input_that_all_frames_share_is_missing(client):
    adder = dx.load(
        make_model(
            [node("Add", "x k", "y")],
            [value("x", ["N", 8]), value("k", [8])],
            [value("y", ["N", 8])],
        )
    )
    shared = np.ma.masked_array(np.full(8, -9999.0), mask=np.arange(8) == 3)
    ((_, found),) = dx.stream(adder, [{"x": FRAMES[0]}], client, feeds={"k": shared})
    assert np.isnan(found[0]).tolist() == (np.arange(8) == 3).tolist()


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
    until = time.monotonic() + 60
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


def test_a_failed_future_of_a_queue_is_a_bad_frame(client, model):
    items = Queue("bad-futures", client=client)
    for item in (FRAMES[0], client.submit(lambda: 1 / 0, retries=0), FRAMES[2], None):
        items.put(item)
    found = dict(dx.stream(model, items, client, on_error="dead_letter"))
    assert [isinstance(found[index], dx.DeadLetter) for index in range(3)] == [False, True, False]
    assert isinstance(found[1].error, ZeroDivisionError)


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


def test_a_file_that_is_no_frame_can_be_set_aside(client, model, tmp_path):
    np.save(tmp_path / "a.npy", FRAMES[0])
    (tmp_path / "b.npy").write_bytes(b"damaged")
    np.save(tmp_path / "c.npy", FRAMES[1])
    source = dx.io.watch(tmp_path, timeout=0.2, poll=0.02)
    found = dict(dx.stream(model, source, client, on_error="dead_letter"))
    assert [isinstance(found[index], dx.DeadLetter) for index in range(3)] == [False, True, False]
    assert found[1].error.numbers["frame"] == 1


def test_a_bad_first_frame_is_not_the_one_that_others_must_be_like(client, model):
    frames = [np.zeros((1, 3), np.float32), *FRAMES[:2]]
    options = {"uniform": True, "on_error": "dead_letter"}
    found = dict(dx.stream(model, frames, client, **options))
    assert [isinstance(found[index], dx.DeadLetter) for index in range(3)] == [True, False, False]


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


def test_without_a_client_all_models_of_a_composite_share_threads_of_their_own(model):
    with dx.compose(a=model, b=model).stream(FRAMES[:2], wait="each") as stream:
        (client,) = {each._requests.client for each in stream._streams.values()}
        assert len(list(stream)) == 4
    assert client.status == "closed"


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
