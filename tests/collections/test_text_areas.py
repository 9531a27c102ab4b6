"""Areas of text in maps of probabilities: turned boxes, their scores, what is noise."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pandas as pd
import pytest
from image_models import classifier, red_map
from PIL import Image, ImageDraw

import dask_onnx as dx
from dask_onnx.collections.images.text_areas import read_text_map

SIZE = (96, 128)


def drawn(*polygons, size=SIZE):
    """Return a map with polygons of x and y, each with its probability."""
    image = Image.new("F", size[::-1])
    for points, probability in polygons:
        ImageDraw.Draw(image).polygon(points, fill=probability)
    return np.asarray(image)


def upright(x0, y0, x1, y1):
    """Return the corners of a rectangle; its last pixels are x1 and y1."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def grown(width, height):
    """Return the pixels that each side moves outwards."""
    return 1.5 * width * height / (2 * (width + height))


def test_an_area_is_the_rectangle_around_its_pixels_and_grows():
    found = read_text_map(drawn((upright(20, 30, 80, 40), 0.9)), "y", SIZE)
    d = grown(60, 10)
    expected = [20.5 - d, 30.5 - d, 80.5 + d, 40.5 + d]
    np.testing.assert_allclose(found.boxes, [expected], atol=1e-3)
    np.testing.assert_allclose(found.scores, [0.9], atol=1e-6)
    np.testing.assert_allclose(found.details, [[0]], atol=1e-6)
    assert found.labels.tolist() == [0]


@pytest.mark.parametrize("degrees", [-40, -10, 5, 30, 44])
def test_turned_lines_have_the_angle_of_their_length(degrees):
    angle = np.deg2rad(degrees)
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    corners = [
        (64, 48) + a * 30 * along + b * 6 * across for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
    ]
    found = read_text_map(drawn(([tuple(c) for c in corners], 0.8)), "y", SIZE)
    assert np.rad2deg(found.details[0, 0]) == pytest.approx(degrees, abs=2)
    low, high = found.boxes[0, :2], found.boxes[0, 2:]
    np.testing.assert_allclose((low + high) / 2, [64.5, 48.5], atol=1)
    np.testing.assert_allclose(high - low, [60 + 2 * grown(60, 12), 12 + 2 * grown(60, 12)], atol=3)


def test_noise_and_faint_areas_are_left_out_by_their_size_and_mean():
    areas = [
        (upright(10, 10, 11, 30), 0.9),
        (upright(40, 10, 70, 20), 0.4),
        (upright(40, 50, 70, 60), 0.7),
    ]
    found = read_text_map(drawn(*areas), "y", SIZE)
    np.testing.assert_allclose(np.sort(found.scores), [0.4, 0.7], atol=1e-5)
    assert len(read_text_map(np.zeros((1, 8, 8), "f4"), "y", SIZE).scores) == 0


def test_an_area_inside_the_hole_of_another_is_one_of_its_own():
    frame = drawn(
        (upright(5, 5, 120, 90), 0.9), (upright(15, 15, 110, 80), 0), (upright(40, 40, 80, 50), 0.8)
    )
    found = read_text_map(frame, "y", SIZE)
    assert len(found.scores) == 2
    assert found.scores.max() == pytest.approx(0.8, abs=1e-6)


def test_maps_of_another_resolution_and_of_a_resized_picture_are_in_its_pixels():
    grid = drawn((upright(20, 30, 80, 40), 0.9))
    large = read_text_map(grid, "y", (192, 512)).boxes
    np.testing.assert_allclose(large, read_text_map(grid, "y", SIZE).boxes * [4, 2, 4, 2])
    picture = np.zeros((192, 256, 3), np.uint8)
    picture[60:82, 40:162, 0] = 230
    image = dx.ImageModel(dx.load(red_map()), preset="unit", format="dbnet", resize="none")
    found = image.predict(picture)
    half = dx.ImageModel(dx.load(red_map()), preset="unit", format="dbnet", resize=(96, 128))
    np.testing.assert_allclose(half.predict(picture).corners, found.corners, atol=2)
    assert found.names == ("text",) and found.corners.shape == (1, 4, 2)


def test_the_preset_of_paddleocr_finds_text_unless_the_map_is_asked_for():
    model = dx.load(red_map())
    assert dx.ImageModel(model, preset="paddleocr-det").task == "boxes"
    assert dx.ImageModel(model, preset="paddleocr-det", task="boxes").task == "boxes"
    assert dx.ImageModel(model, preset="paddleocr-det", task="mask").task == "mask"
    assert dx.ImageModel(model, preset="unit").task == "mask"


def test_areas_are_rows_of_a_table():
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[30:41, 20:81, 0] = 230
    picture[60:71, 20:61, 0] = 250
    image = dx.ImageModel(dx.load(red_map()), preset="unit", format="dbnet", resize="none")
    files = pd.Series([np.ascontiguousarray(picture)], dtype=object).map(encoded)
    table = image.predict(files)
    assert list(table) == ["class", "class_id", "score", "x0", "y0", "x1", "y1", "corners"]
    assert list(table["class"]) == ["text", "text"] and table["score"].is_monotonic_decreasing


def encoded(picture):
    held = io.BytesIO()
    Image.fromarray(picture).save(held, "PNG")
    return held.getvalue()


@pytest.mark.parametrize(
    "value",
    [
        np.full((8, 8), 3.0),
        np.full((8, 8), -1.0),
        np.full((8, 8), np.nan),
        np.ones((2, 8, 8)),
        np.ones((0, 4)),
    ],
)
def test_other_outputs_are_no_maps_of_text(value):
    with pytest.raises(dx.InputError) as caught:
        read_text_map(value.astype("f4"), "y", SIZE)
    assert caught.value.option == "format" and caught.value.input == "y"


def test_without_opencv_the_map_is_offered(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name)
    )
    with pytest.raises(dx.InputError, match="task='mask'"):
        dx.ImageModel(dx.load(red_map()), preset="paddleocr-det")


def test_models_without_a_map_have_no_text_areas():
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(classifier()), preset="unit", format="dbnet")
    assert caught.value.option == "task"


@pytest.mark.real
def test_lines_of_a_page_are_found(asset):
    image = dx.ImageModel(dx.load(asset("det.onnx")), preset="paddleocr")
    found = image.predict(asset("page.png"))
    page = np.asarray(Image.open(asset("page.png")).convert("L"))
    assert len(found.boxes) >= 3 and (found.boxes.scores > 0.6).all()
    inside = np.zeros(page.shape, bool)
    for x0, y0, x1, y1 in found.boxes.boxes.round().astype(int):
        inside[y0:y1, x0:x1] = True
    assert page[inside].mean() < page[~inside].mean() - 5
