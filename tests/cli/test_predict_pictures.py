"""``dask-onnx predict`` on files of pictures, without the caller's code."""

from __future__ import annotations

import numpy as np
import onnx
import pandas as pd
import pytest
from image_models import classifier, echo, fixed_boxes, red_map, with_metadata
from onnx import TensorProto
from PIL import Image

pytestmark = pytest.mark.cluster

SIZES = {"a.png": (8, 8), "b.JPG": (20, 10), "c d.gif": (6, 30), "sub/ü.webp": (9, 9)}
COLORS = {"a.png": (255, 0, 0), "b.JPG": (0, 255, 0), "c d.gif": (0, 0, 255)}
NAMES = {"names": "{0: 'red', 1: 'green', 2: 'blue'}"}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, (height, width) in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), COLORS.get(name, (255, 255, 255)), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def saved(proto, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


def table(path, kind="csv"):
    read = {"csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True)}[kind]
    parts = [read(part) for part in sorted(path.glob(f"part-*.{kind}"))]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_classes_of_a_folder_of_mixed_pictures(run, pictures, scheduler, tmp_path, suffix):
    model = saved(with_metadata(classifier(), NAMES), tmp_path)
    out = tmp_path / f"classes.{suffix}"
    arguments = ["--preset", "unit", "--top", 2, "--scheduler", scheduler]
    result = run("predict", model, pictures, out, *arguments)
    assert result.code == 0, result.err
    # What was left open is said, and what was left out.
    assert "preset unit" in result.err and "notes.txt" in result.err
    assert "3 pictures" in result.out
    found = table(out, suffix)
    assert found["file"].tolist() == ["a.png", "a.png", "b.JPG", "b.JPG", "c d.gif", "c d.gif"]
    assert found["rank"].tolist() == [1, 2] * 3
    assert found.loc[found["rank"] == 1, "class"].tolist() == ["red", "green", "blue"]


def test_boxes_are_in_pixels_of_each_picture_and_drawn(run, pictures, scheduler, tmp_path):
    model = saved(fixed_boxes([[0, 0, 32, 64]], [0.5], [1]), tmp_path)
    out, drawn = tmp_path / "boxes.parquet", tmp_path / "drawn"
    arguments = ["--scale", "1/255", "--draw", drawn, "--scheduler", scheduler]
    result = run("predict", model, f"{pictures}/**/*", out, *arguments, "--on-error", "null")
    assert result.code == 0, result.err
    found = pd.read_parquet(out).set_index("file")
    for name, (height, width) in SIZES.items():
        assert found.loc[name, ["x0", "y0", "x1", "y1"]].tolist() == [0, 0, width / 2, height]
        png = (drawn / name).with_suffix(".png")
        assert pixels(png).shape == (height, width, 3)
    assert pd.isna(found.loc["notes.txt", "score"])
    assert "not a picture" in found.loc["notes.txt", "error"]


def test_masks_go_to_a_folder_in_the_size_of_each_picture(run, pictures, scheduler, tmp_path):
    model = saved(red_map(("N", 3, 16, 16)), tmp_path)
    out = tmp_path / "masks"
    arguments = ["--preset", "unit", "--scheduler", scheduler]
    result = run("predict", model, pictures, out, *arguments)
    assert result.code == 0, result.err
    values = {}
    for name, (height, width) in list(SIZES.items())[:3]:
        mask = pixels((out / name).with_suffix(".png"))
        assert mask.shape == (height, width) and mask.dtype == np.uint8
        values[name] = np.unique(mask).tolist()
    assert values["a.png"] == [255] and values["c d.gif"] == [0]
    again = run("predict", model, pictures, out, *arguments, "--json")
    assert again.code == 2 and again.error()["fields"]["option"] == "overwrite"
    assert run("predict", model, pictures, out, *arguments, "--overwrite").code == 0


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_tensors_of_one_size_go_to_one_array(run, pictures, scheduler, tmp_path, suffix):
    model = saved(echo(("N", 3, 4, 4)), tmp_path)
    out = tmp_path / f"y.{suffix}"
    arguments = ["--preset", "raw", "--layout", "NCHW", "--scheduler", scheduler]
    result = run("predict", model, f"{pictures}/*.*", out, *arguments, "--on-error", "null")
    assert result.code == 0, result.err
    import zarr

    found = np.load(out) if suffix == "npy" else zarr.open_array(str(out))[:]
    assert found.shape == (4, 3, 4, 4)
    assert np.isnan(found[3]).all()  # notes.txt is no picture
    np.testing.assert_allclose(found[0].mean(axis=(1, 2)), COLORS["a.png"])
    np.testing.assert_allclose(found[2].mean(axis=(1, 2)), COLORS["c d.gif"])


def test_arrays_of_several_sizes_are_refused_with_the_name_of_the_picture(
    run, pictures, scheduler, tmp_path
):
    model = saved(echo(("N", "H", "W", 3), TensorProto.UINT8), tmp_path)
    out = tmp_path / "y.npy"
    result = run("predict", model, pictures, out, "--scheduler", scheduler, "--json")
    assert result.code == 2 and result.error()["fields"]["option"] == "resize"
    # The array has the shape of the first picture; either of the others may come first.
    assert any(name in result.error()["cause"] for name in ("b.JPG", "c d.gif"))
    assert not out.exists()


def test_bad_pictures_are_errors_or_a_table_of_their_own(run, pictures, scheduler, tmp_path):
    model = saved(with_metadata(classifier(), NAMES), tmp_path)
    (pictures / "b2.png").write_bytes((pictures / "a.png").read_bytes()[:40])
    (pictures / "empty.png").write_bytes(b"")
    out, bad = tmp_path / "out.csv", tmp_path / "bad.csv"
    arguments = ["predict", model, pictures, out, "--preset", "unit", "--scheduler", scheduler]
    result = run(*arguments, "--json")
    assert result.code == 2
    assert any(name in result.error()["cause"] for name in ("b2.png", "empty.png"))
    assert not out.exists()
    result = run(*arguments, "--quarantine", bad, "--overwrite", "--json")
    assert result.code == 0, result.out
    assert result.json()["bad_rows"] == 2
    assert table(bad)["file"].tolist() == ["b2.png", "empty.png"]
    assert table(out)["file"].tolist() == ["a.png", "b.JPG", "c d.gif"]


@pytest.mark.parametrize(
    ("target", "arguments", "option"),
    [
        ("out.csv", [], "preset"),
        ("out.npy", ["--preset", "unit"], "path"),
        ("out", ["--preset", "unit"], "path"),
        ("out.csv", ["--scale", "1/0"], "scale"),
        ("out.csv", ["--scale", "1/255", "--mean", "a,b"], "mean"),
        ("out.csv", ["--mean", "0.5"], "scale"),
        ("out.csv", ["--preset", "unit", "--resize", "big"], "resize"),
        ("out.csv", ["--preset", "unit", "--labels", "none.txt"], "labels"),
        ("out.csv", ["--preset", "unit", "--strategy", "per_node"], "strategy"),
        ("out.csv", ["--preset", "unit", "--columns", "a"], "columns"),
        ("out.csv", ["--preset", "unit", "--tile", "auto"], "path"),
        ("out.csv", ["--preset", "unit", "--draw", "no/such/folder"], "draw"),
    ],
)
def test_options_are_refused_before_a_cluster_starts(
    run, pictures, tmp_path, target, arguments, option
):
    model = saved(classifier(), tmp_path)
    result = run("predict", model, pictures, tmp_path / target, *arguments, "--json")
    assert result.code == 2, result.out
    assert result.error()["fields"]["option"] == option


def test_options_of_pictures_are_refused_for_other_inputs(run, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.float32))
    model = saved(classifier(), tmp_path)
    result = run(
        "predict", model, tmp_path / "x.npy", tmp_path / "y.npy", "--preset", "unit", "--json"
    )
    assert result.code == 2 and result.error()["fields"]["option"] == "preset"


@pytest.mark.real
def test_text_is_found_in_a_page_by_the_detector_of_paddleocr(run, asset, scheduler, tmp_path):
    out = tmp_path / "text"
    arguments = ["--preset", "paddleocr", "--scheduler", scheduler]
    result = run("predict", asset("det.onnx"), asset("page.png"), out, *arguments)
    assert result.code == 0, result.err
    mask, page = pixels(out / "page.png") / 255, pixels(asset("page.png"))
    assert mask.shape == page.shape
    # Lines of text are darker than the page around them.
    assert 0.05 < (mask > 0.3).mean() < 0.5
    assert page[mask > 0.3].mean() < page[mask <= 0.3].mean() - 10


@pytest.mark.real
def test_areas_of_text_are_rows_of_a_table(run, asset, scheduler, tmp_path):
    out = tmp_path / "text.parquet"
    arguments = ["--preset", "paddleocr", "--scheduler", scheduler, "--draw", tmp_path / "drawn"]
    result = run("predict", asset("det.onnx"), asset("page.png"), out, *arguments)
    assert result.code == 0, result.err
    table = pd.read_parquet(out)
    assert set(table["class"]) == {"text"} and table["score"].min() >= 0.6 and len(table) >= 3
    assert np.stack(table["corners"].to_list()).shape == (len(table), 8)  # x and y of each
    assert pixels(tmp_path / "drawn" / "page.png").shape[:2] == pixels(asset("page.png")).shape[:2]
