"""Sources of frames: folders, pipelines that push, and the window before the consumer."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from PIL import Image

import dask_onnx as dx
from dask_onnx.streams.frame_readers import Gate, SourceReader
from dask_onnx.streams.frame_sources import open_source


class Pipeline:
    """Methods of `streamz.Stream` that a source uses."""

    __module__ = "streamz.core"

    def __init__(self):
        self.push, self.is_destroyed = None, False

    def sink(self, push):
        self.push = push
        return self

    def destroy(self):
        self.is_destroyed = True


def test_a_pipeline_that_pushes_waits_until_its_frames_are_read():
    pipeline = Pipeline()
    source = open_source(pipeline)
    threading.Timer(0.01, lambda: pipeline.push("first")).start()
    assert next(source.iterator) == "first"
    pushed = []

    def emit():
        for number in range(3):
            pipeline.push(number)
            pushed.append(number)

    thread = threading.Thread(target=emit)
    thread.start()
    until = time.monotonic() + 60
    while not pushed and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)  # time in which it could push a frame that nobody has asked for
    assert len(pushed) == 1
    assert [next(source.iterator) for _ in range(3)] == [0, 1, 2]
    thread.join(60)
    source.stopped.set()
    assert list(source.iterator) == [] and pipeline.is_destroyed


def test_pictures_and_arrays_of_a_folder_are_frames_in_the_order_of_their_names(tmp_path):
    np.save(tmp_path / "b.npy", np.arange(3))
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / "a.png")
    frames = list(dx.io.watch(tmp_path, timeout=0.2, poll=0.02))
    assert [frame.shape for frame in frames] == [(4, 5, 3), (3,)]


def test_a_file_that_grows_is_read_once_its_size_stays_the_same(tmp_path):
    folder, seen, sizes = dx.io.watch(tmp_path), set(), {}
    path = tmp_path / "slow"
    path.write_bytes(b"x")
    assert folder._complete(seen, sizes) == []
    path.write_bytes(b"xx")
    assert folder._complete(seen, sizes) == []
    assert folder._complete(seen, sizes) == [path]
    seen.add(path)
    assert folder._complete(seen, sizes) == []
    path.unlink()
    assert folder._complete(seen, sizes) == []
    path.write_bytes(b"new")
    assert [folder._complete(seen, sizes) for _ in range(2)] == [[], [path]]


def test_files_of_one_name_in_several_folders_are_frames_of_their_own(tmp_path):
    for place in range(2):
        (tmp_path / str(place)).mkdir()
        np.save(tmp_path / str(place) / "a.npy", np.full(2, place))
    frames = list(dx.io.watch(tmp_path, "*/a.npy", timeout=0.2, poll=0.02))
    assert [list(frame) for frame in frames] == [[0, 0], [1, 1]]


def test_an_address_is_a_video_and_is_not_opened_for_its_length(monkeypatch):
    pytest.importorskip("av")
    source = open_source("rtsp://camera.invalid:554/stream")
    assert source.frames is None
    opened = []

    def refuse(address, **options):
        opened.append(address)
        raise OSError("no route")

    monkeypatch.setattr("av.open", refuse)
    with pytest.raises(dx.InputError):
        next(source.iterator)
    assert opened == ["rtsp://camera.invalid:554/stream"]


@pytest.mark.parametrize(("name", "content"), [("a.npy", b"damaged"), ("a.bin", b"unknown")])
def test_a_file_that_is_no_frame_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(dx.InputError):
        list(dx.io.watch(tmp_path, timeout=0.2, poll=0.02))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(dx.InputError) as caught:
        dx.io.watch(tmp_path / "missing")
    assert caught.value.option == "folder"


def test_a_gate_lets_in_as_many_frames_as_have_left():
    gate = Gate(2)
    assert [gate.try_enter() for _ in range(3)] == [True, True, False]
    gate.leave()
    assert gate.enter() and not gate.try_enter()
    gate.stop()
    assert not gate.enter()


def test_a_source_with_a_length_that_ends_before_is_an_error():
    class Truncated:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(range(3))

    frames, ends = [], []
    reader = SourceReader(open_source(Truncated()), Gate(None), frames.append, ends.append)
    reader.read_until(lambda: False)
    assert frames == [0, 1, 2]
    assert [end.numbers for end in ends] == [{"frames": 3, "expected_frames": 5}]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("place", ["frame", "end"])
def test_whatever_a_source_raises_in_a_thread_is_told(is_async, place):
    def frames():
        try:
            yield 1
            if place == "frame":
                raise SystemExit(3)
        finally:
            if place == "end":
                raise RuntimeError("cannot be closed")

    async def frames_later():
        for frame in frames():
            yield frame

    found, ends, has_ended = [], [], threading.Event()

    def end(error):
        ends.append(error)
        has_ended.set()

    source = open_source(frames_later() if is_async else frames())
    SourceReader(source, Gate(None), found.append, end).start_thread("test")
    assert has_ended.wait(60)
    assert found == [1]
    assert [type(each) for each in ends] == [SystemExit if place == "frame" else RuntimeError]
