"""Runs over rasters, pictures and texts go on, with all that they write beside the results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile
from builders import make_model, node, value, weights
from job_steps import Interrupted, digests, interrupting, predict
from onnx import TensorProto
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

RNG = np.random.default_rng(0)
BLOCKS = 12


@pytest.fixture
def client(one_thread):
    return one_thread


@pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif"])
def test_a_raster_goes_on_with_its_tiles(client, tmp_path, suffix):
    tifffile.imwrite(
        tmp_path / "x.tif", RNG.integers(0, 255, (90, 70)).astype(np.float32), tile=(16, 16)
    )
    model = make_model(
        [node("Conv", "x W", "y", "conv", pads=[1, 1, 1, 1])],
        [value("x", ["N", 1, "H", "W"])],
        [value("y", ["N", 1, "H", "W"])],
        {"W": weights(1, 1, 3, 3)},
    )
    options = {"block_rows": None, "batch_size": "auto", "model": model, "tile": 16}
    whole = predict(tmp_path / "x.tif", tmp_path / f"whole{suffix}", client, **options)
    target = tmp_path / f"y{suffix}"
    with pytest.raises(Interrupted):
        predict(tmp_path / "x.tif", target, client, progress=interrupting(after=4), **options)
    found = predict(tmp_path / "x.tif", target, client, resume=True, **options)
    assert 4 <= found.resumed_blocks < found.blocks == whole.blocks
    assert digests(target) == digests(tmp_path / f"whole{suffix}")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"x.tif", f"whole{suffix}", f"y{suffix}"}


def test_pictures_go_on(client, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(BLOCKS):
        Image.fromarray(RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    model = make_model(
        [node("ReduceMean", "x", "y", "mean", axes=[2, 3], keepdims=0)],
        [value("x", ["N", 3, 8, 8])],
        [value("y", ["N", 3])],
    )
    options = {"block_rows": 1, "batch_size": "auto", "model": model, "image": {"preset": "unit"}}
    predict(folder, tmp_path / "whole.parquet", client, **options)
    target = tmp_path / "y.parquet"
    with pytest.raises(Interrupted):
        predict(folder, target, client, progress=interrupting(after=4), **options)
    found = predict(folder, target, client, resume=True, **options)
    assert found.resumed_blocks >= 4 and found.pictures == BLOCKS and found.rows == BLOCKS
    assert digests(target) == digests(tmp_path / "whole.parquet")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(BLOCKS):
        pixels = RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "03.png").write_bytes(b"no picture")
    return folder


def test_masks_drawings_and_a_quarantine_go_on(client, pictures, tmp_path):
    model = make_model(
        [node("Conv", "x W", "y", "conv")],
        [value("x", ["N", 3, 8, 8])],
        [value("y", ["N", 2, 8, 8])],
        {"W": weights(2, 3, 1, 1)},
    )
    options = {"block_rows": 1, "batch_size": "auto", "model": model}
    options |= {"image": {"preset": "unit", "task": "mask"}}

    def run(name, **others):
        places = {
            "draw": tmp_path / f"{name}-drawn",
            "quarantine": tmp_path / f"{name}-bad.parquet",
        }
        return predict(pictures, tmp_path / name, client, **options, **places, **others)

    run("whole")
    with pytest.raises(Interrupted):
        run("cut", progress=interrupting(after=6))
    found = run("cut", resume=True)
    assert found.resumed_blocks >= 6 and (found.rows, found.bad_rows) == (BLOCKS - 1, 1)
    for end in ("", "-drawn", "-bad.parquet"):
        assert digests(tmp_path / f"cut{end}") == digests(tmp_path / f"whole{end}")
    assert run("cut", resume=True).was_complete
    hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hidden == []


def test_several_outputs_go_on(client, tmp_path):
    model = make_model(
        [node("Relu", "x", "a", "relu"), node("Neg", "x", "b", "neg")],
        [value("x", ["N", 8])],
        [value("a", ["N", 8]), value("b", ["N", 8])],
    )
    np.save(tmp_path / "x.npy", RNG.standard_normal((60, 8)).astype(np.float32))
    for suffix in (".zarr", ".parquet"):
        whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        predict(tmp_path / "x.npy", whole, client, model=model)
        with pytest.raises(Interrupted):
            predict(tmp_path / "x.npy", cut, client, model=model, progress=interrupting(after=20))
        assert (
            predict(tmp_path / "x.npy", cut, client, model=model, resume=True).resumed_blocks >= 4
        )
        assert digests(cut) == digests(whole)


def test_texts_with_columns_that_are_kept_go_on(client, tmp_path):
    words = {"[UNK]": 0, "red": 1, "green": 2, "blue": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = make_model(
        [node("Gather", "E input_ids", "last_hidden_state", "embed")],
        [value("input_ids", ["N", "L"], TensorProto.INT64)],
        [value("last_hidden_state", ["N", "L", 6])],
        {"E": weights(4, 6)},
    )
    (tmp_path / "x").mkdir()
    for part in range(BLOCKS):
        texts = [" ".join(RNG.choice(["red", "green", "blue"], 1 + i)) for i in range(5)]
        frame = pd.DataFrame({"text": texts, "id": range(part * 5, part * 5 + 5)})
        frame.to_parquet(tmp_path / "x" / f"{part:02d}.parquet")
    options = {"block_rows": None, "batch_size": "auto", "model": model, "text": "text"}
    options |= {"tokenizer": tmp_path / "tokenizer.json", "append": ["id"]}
    predict(tmp_path / "x", tmp_path / "whole.parquet", client, **options)
    cut = tmp_path / "cut.parquet"
    with pytest.raises(Interrupted):
        predict(tmp_path / "x", cut, client, progress=interrupting(after=4), **options)
    found = predict(tmp_path / "x", cut, client, resume=True, **options)
    assert found.resumed_blocks >= 4 and found.rows == 60
    assert digests(cut) == digests(tmp_path / "whole.parquet")
    assert list(pd.read_parquet(cut).columns) == ["id", "embedding"]
