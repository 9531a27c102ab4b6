"""A video through a detector into a video with its boxes, by function and by command."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster
from image_models import fixed_boxes

import dask_onnx as dx
from dask_onnx.cli import main
from dask_onnx.io.video_files import VideoWriter
from dask_onnx.jobs.video_job import annotate_video, overlay

pytestmark = pytest.mark.cluster
BOX = (8, 8, 40, 48)


def detector():
    return fixed_boxes([BOX], [0.9], [1])


@pytest.fixture(scope="module")
def client(store_directory):
    with (
        LocalCluster(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(store_directory):
    return dx.ImageModel(dx.load(detector()), preset="unit", resize="none", score_threshold=0.5)


@pytest.fixture
def black(tmp_path):
    path = tmp_path / "in.mp4"
    with VideoWriter(str(path), rate=10) as writer:
        for _ in range(5):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    return path


def lit(frame):
    """Return whether the edge of the box is drawn, and its middle left alone."""
    left, top, right, bottom = BOX
    edge = frame[(top + bottom) // 2, left - 1 : left + 2].max()
    middle = frame[(top + bottom) // 2 + 8, (left + right) // 2 + 8].max()
    return edge > 100 and middle < 60


def test_pictures_of_a_stream_give_what_predict_gives(client, model):
    frames = [np.full((64, 64, 3), level, np.uint8) for level in range(4)]
    found = list(dx.stream(model, frames, client))
    assert [index for index, _ in found] == list(range(4))
    for index, result in found:
        np.testing.assert_array_equal(result.boxes.boxes, model.predict(frames[index]).boxes.boxes)


def test_a_bad_picture_is_told_with_its_number(client, model):
    frames = [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 7), np.uint8)]
    with pytest.raises(dx.InputError) as caught:
        list(dx.stream(model, frames, client))
    assert caught.value.numbers["frame"] == 1


def test_boxes_are_drawn_into_every_frame(client, model, black, tmp_path):
    found = annotate_video(model, black, tmp_path / "out.mp4", client)
    frames = list(dx.io.video(found.output))
    assert found.frames == len(frames) == found.boxes == 5
    assert all(map(lit, frames))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_frames_without_a_result_are_left_as_they_are():
    frame = np.zeros((64, 64, 3), np.uint8)
    assert not overlay(frame, [dx.Dropped(0, "deadline", 1.0)]).any()


def test_an_output_that_exists_is_kept(client, model, black, tmp_path):
    with pytest.raises(dx.InputError) as caught:
        annotate_video(model, black, black, client)
    assert caught.value.option == "output"
    with pytest.raises(dx.InputError):
        annotate_video(model, black, tmp_path / "out.txt", client)


def test_a_bad_model_leaves_no_output(client, black, tmp_path):
    model = dx.ImageModel(
        dx.load(fixed_boxes([BOX], [0.9], [1], size=(32, 32))), preset="unit", resize="none"
    )
    with pytest.raises(dx.InputError):
        annotate_video(model, black, tmp_path / "out.mp4", client)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_command_writes_the_video_and_tells_the_latencies(client, black, tmp_path):
    onnx.save(detector(), tmp_path / "model.onnx")
    paths = [str(tmp_path / name) for name in ("model.onnx", "in.mp4", "out.mp4")]
    options = ["--draw", "boxes", "--preset", "unit", "--resize", "none", "--json"]
    # Without a scheduler or the shape of a cluster, the current client's is used.
    done = CliRunner().invoke(main, ["stream", *paths, *options])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["frames"], told["boxes"]) == (5, 5) and told["statistics"]["p50"] > 0
    assert all(map(lit, dx.io.video(paths[2])))
