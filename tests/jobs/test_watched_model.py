"""Model files that change while a job runs: blocks go over to the new model, and none is lost."""

from __future__ import annotations

import numpy as np
import onnx
import pandas as pd
import pytest
from builders import dense_model, make_model, node, value
from PIL import Image

import dask_onnx as dx
from dask_onnx.jobs import watched_model
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.watched_model import ModelWatch

BLOCKS = 120


def scaled_model(factor):
    """Return x (N, 4) -> y = x * factor (N, 4)."""
    return make_model(
        [node("Mul", "x f", "y", "scale")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        {"f": np.float32([factor])},
        name="scaled",
    )


def put(model, path):
    """Replace a model file at once, as its users should."""
    onnx.save(model, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


class Replacing(JobProgress):
    """Progress that replaces the model's file after the first results."""

    def __init__(self, model, path):
        self.left, self.path = [model], path

    def advanced(self, done, total, unit):
        if done and self.left:
            put(self.left.pop(), self.path)


@pytest.fixture
def path(tmp_path, monkeypatch, store_directory):
    monkeypatch.setattr(watched_model, "_LOOK_SECONDS", 0.0)
    return tmp_path / "model.onnx"


def watch_of(path, said=None):
    return ModelWatch(
        dx.load(path), str(path), lambda: dx.load(path), said.append if said is not None else print
    )


def test_a_new_model_runs_the_blocks_after_the_second_look_at_its_file(path):
    put(scaled_model(2.0), path)
    watch = watch_of(path)
    old = watch.at(0)
    put(scaled_model(3.0), path)
    assert watch.at(4) is old  # it may still be written
    new = watch.at(8)
    assert new.token == dx.load(path).token != old.token
    assert watch.at(12) is new
    (swap,) = watch.swaps
    assert (swap.block, swap.old_token, swap.new_token) == (8, old.token, new.token)


def test_a_file_that_is_damaged_gone_or_the_same_leaves_the_model(path):
    put(scaled_model(2.0), path)
    said = []
    watch = watch_of(path, said)
    old = watch.at(0)
    path.write_bytes(b"damaged")
    assert [watch.at(block) for block in range(3)] == [old] * 3
    assert len(said) == 1 and str(path) in said[0]
    path.unlink()
    assert [watch.at(block) for block in range(3)] == [old] * 3
    put(scaled_model(2.0), path)
    assert [watch.at(block) for block in range(3)] == [old] * 3
    assert watch.swaps == []


def test_a_new_model_with_other_inputs_is_an_error(path):
    put(scaled_model(2.0), path)
    watch = watch_of(path)
    put(dense_model(), path)
    watch.at(0)
    with pytest.raises(dx.InputError) as caught:
        watch.at(1)
    assert caught.value.option == "watch_model"


def expected(rows, swaps):
    """Return rows times 2, and from the block of the one swap on times 3."""
    (swap,) = swaps
    assert 0 < swap.block < BLOCKS
    return rows * np.where(np.arange(BLOCKS) < swap.block, 2.0, 3.0)[:, None]


@pytest.mark.cluster
def test_blocks_of_arrays_go_over_to_the_new_model_and_none_is_lost(path, tmp_path, one_thread):
    put(scaled_model(2.0), path)
    rows = np.arange(BLOCKS * 4, dtype=np.float32).reshape(BLOCKS, 4)
    np.save(tmp_path / "in.npy", rows)
    options = {"scheduler": one_thread, "block_rows": 1, "watch_model": True}
    places = path, tmp_path / "in.npy", tmp_path / "out.npy"
    found = dx.predict_files(*places, **options, progress=Replacing(scaled_model(3.0), path))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected(rows, found.swaps))
    assert dx.predict_files(*places, **options, resume=True).was_complete


@pytest.mark.cluster
def test_parts_of_tables_go_over_to_the_new_model_and_none_is_lost(path, tmp_path, one_thread):
    put(scaled_model(2.0), path)
    rows = np.arange(BLOCKS * 4, dtype=np.float32).reshape(BLOCKS, 4)
    (tmp_path / "in").mkdir()
    for place, row in enumerate(rows):
        table = pd.DataFrame(row[None], columns=list("abcd"))
        table.to_parquet(tmp_path / "in" / f"{place:03d}.parquet")
    found = dx.predict_files(
        path,
        tmp_path / "in",
        tmp_path / "out.parquet",
        scheduler=one_thread,
        columns=list("abcd"),
        watch_model={"rows": "independent"},
        progress=Replacing(scaled_model(3.0), path),
    )
    read = pd.read_parquet(tmp_path / "out.parquet").to_numpy()
    np.testing.assert_array_equal(read, expected(rows, found.swaps))


def scaled_means(factor):
    """Return x (N, 3, 8, 8) -> logits (N, 3): the mean of each channel times a factor."""
    return make_model(
        [
            node("ReduceMean", "x", "m", "mean", axes=[2, 3], keepdims=0),
            node("Mul", "m f", "logits", "scale"),
        ],
        [value("x", ["N", 3, 8, 8])],
        [value("logits", ["N", 3])],
        {"f": np.float32([factor])},
        name="means",
    )


@pytest.mark.cluster
def test_pictures_go_over_to_the_new_model_and_none_is_lost(path, tmp_path, one_thread):
    put(scaled_means(1.0), path)
    (tmp_path / "in").mkdir()
    for place in range(BLOCKS):
        pixels = np.full((8, 8, 3), (10, 200, 30), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{place:03d}.png")
    found = dx.predict_files(
        path,
        tmp_path / "in",
        tmp_path / "out.parquet",
        scheduler=one_thread,
        block_rows=1,
        image={"preset": "unit", "top": 1},
        watch_model=True,
        progress=Replacing(scaled_means(-1.0), path),
    )
    read = pd.read_parquet(tmp_path / "out.parquet")
    (swap,) = found.swaps
    assert 0 < swap.block < BLOCKS
    assert list(read["file"]) == [f"{place:03d}.png" for place in range(BLOCKS)]
    assert list(read["class"]) == [1] * swap.block + [0] * (BLOCKS - swap.block)


def test_only_models_that_are_given_by_path_and_run_whole_are_watched(path, tmp_path):
    put(scaled_model(2.0), path)
    np.save(tmp_path / "in.npy", np.ones((2, 4), np.float32))
    for model, options in (
        (dx.load(path), {}),
        (path, {"strategy": "pipeline", "n_stages": 2}),
        (path, {"tile": 8}),
        (path, {"watch_model": "yes"}),
    ):
        given = {"watch_model": True, **options}
        with pytest.raises(dx.InputError) as caught:
            dx.predict_files(model, tmp_path / "in.npy", tmp_path / "out.npy", **given)
        assert caught.value.option == "watch_model"
