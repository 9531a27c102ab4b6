"""Videos are written and read back, and bad ones are refused."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest

import dask_onnx as dx
from dask_onnx.io.video_files import VideoWriter


def gradient(number, height=48, width=64):
    """Return a smooth picture that survives compression, and differs from frame to frame."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 3, columns * 3, np.full_like(rows, 20 * number)], -1).astype(np.uint8)


def write(path, count=6, **options):
    with VideoWriter(str(path), rate=10, **options) as writer:
        for number in range(count):
            writer.write(gradient(number))
    return path


def test_frames_come_back_in_their_order(tmp_path):
    video = dx.io.video(write(tmp_path / "a.mp4"))
    frames = list(video)
    assert video.frames == len(frames) == 6 and video.rate == pytest.approx(10)
    for number, frame in enumerate(frames):
        assert frame.dtype == np.uint8 and frame.shape == (48, 64, 3)
        assert np.abs(frame.astype(int) - gradient(number)).mean() < 6


TURNED = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0), 0: (1, 0, 0, 1)}
"""Clockwise rotation in degrees to the upper left part of the matrix in an MP4's track header."""


@pytest.mark.parametrize("degrees", TURNED)
def test_frames_are_turned_as_the_container_asks(tmp_path, degrees):
    data = write(tmp_path / "a.mp4").read_bytes()
    # The header of version 0 has 44 bytes from its name to the matrix of nine numbers, 16.16.
    start = data.index(b"tkhd") + 44
    a, b, c, d = (each * 2**16 for each in TURNED[degrees])
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    (tmp_path / "turned.mp4").write_bytes(data[:start] + matrix + data[start + len(matrix) :])
    frame = next(iter(dx.io.video(tmp_path / "turned.mp4")))
    expected = np.rot90(gradient(0), -degrees // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 6


def test_odd_sizes_lose_a_row_or_column(tmp_path):
    with VideoWriter(str(tmp_path / "odd.mp4")) as writer:
        writer.write(gradient(1, 49, 65))
    assert next(iter(dx.io.video(tmp_path / "odd.mp4"))).shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_a_file_that_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(dx.InputError) as caught:
        _ = dx.io.video(path).frames
    assert caught.value.option == "source" and caught.value.reason


def test_a_video_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(dx.InputError):
        next(iter(dx.io.video(tmp_path / "missing.mp4")))


def test_a_video_that_was_cut_off_is_an_error_after_its_frames(tmp_path):
    data = write(tmp_path / "whole.mkv", count=60).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) // 2])
    frames = []
    with pytest.raises(dx.InputError) as caught:
        frames.extend(dx.io.video(cut))
    assert caught.value.numbers["frames"] == len(frames) > 0


def test_a_container_may_count_a_few_frames_more_than_can_be_decoded(tmp_path):
    video = dx.io.video(write(tmp_path / "a.mp4", count=30))
    assert (video.frames, video.least_frames) == (30, 28)
    assert dx.io.video("rtsp://camera.invalid/live").least_frames is None
    assert dx.io.video(tmp_path / "a.mp4", format="mp4").least_frames is None


def test_an_error_while_writing_is_not_hidden_by_the_end_of_the_file(tmp_path):
    def write_half():
        with VideoWriter(str(tmp_path / "a.mp4")) as writer:
            writer.write(gradient(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()


def test_a_file_that_cannot_be_closed_is_an_output_error(tmp_path, monkeypatch):
    writer = VideoWriter(str(tmp_path / "a.mp4"))
    writer.write(gradient(1))

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(writer, "_stream", SimpleNamespace(encode=fail))
    with pytest.raises(dx.OutputError) as caught:
        writer.close()
    assert "no space" in caught.value.reason
    writer.close()


def test_an_ending_without_a_container_is_an_output_error(tmp_path):
    with pytest.raises(dx.OutputError):
        write(tmp_path / "a.nothing")
