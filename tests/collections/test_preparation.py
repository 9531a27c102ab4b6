"""Tensors of pictures, against values computed by hand and the rules of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
from image_models import echo, u_net, with_metadata
from onnx import TensorProto
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.resampling import opencv_linear

PIXELS = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def tensor(shape, picture=PIXELS, elem_type=TensorProto.FLOAT, **options):
    return dx.ImageModel(dx.load(echo(shape, elem_type)), **options).preprocess(picture)


def test_imagenet_is_torchvisions_resize_crop_and_normalise():
    found = tensor(("N", 3, 224, 224), preset="imagenet")
    resized = Image.fromarray(PIXELS).resize((384, 256), Image.Resampling.BILINEAR)
    # CenterCrop(224) of 256 x 384: 16 rows and 80 columns are left out on each side.
    cropped = np.asarray(resized)[16:240, 80:304].astype(np.float32)
    expected = ((cropped / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(found, expected)


def test_clip_is_bicubic():
    found = tensor(("N", 3, 32, 32), preset="clip")
    resized = Image.fromarray(PIXELS).resize((48, 32), Image.Resampling.BICUBIC)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = (np.asarray(resized)[:, 8:40] / 255 - mean) / std
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


def test_yolo_is_a_letterbox_of_grey_and_values_from_0_to_1():
    found = tensor(("N", 3, 60, 60), preset="yolo")
    expected = np.full((60, 60, 3), 114, np.uint8)
    expected[10:50] = PIXELS
    np.testing.assert_array_equal(
        found[0], (expected.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)
    )


def test_paddleocr_detection_is_bgr_with_the_means_of_imagenet():
    picture = PIXELS[:32, :32]
    found = tensor(("N", 3, "H", "W"), picture, preset="paddleocr")
    expected = (picture[..., ::-1].astype(np.float32) / 255 - MEAN) / STD
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), rtol=1e-6)


def test_paddleocr_orientation_pads_with_zeros_on_the_right():
    picture = np.full((24, 30, 3), 255, np.uint8)
    found = tensor((1, 3, 48, 192), picture, preset="paddleocr-cls")
    assert found.shape == (1, 3, 48, 192)
    np.testing.assert_array_equal(found[..., :60], 1)
    np.testing.assert_array_equal(found[..., 60:], 0)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        (("N", 3, "H", "W"), {"scale": 1}, PIXELS.transpose(2, 0, 1)),
        (("N", "H", "W", 3), {"scale": 1}, PIXELS),
        ((3, "H", "W"), {"scale": 1}, PIXELS.transpose(2, 0, 1)),
        (("N", 3, "H", "W"), {"scale": 1, "color": "BGR"}, PIXELS[..., ::-1].transpose(2, 0, 1)),
        (
            ("N", 3, "H", "W"),
            {"scale": 2, "mean": [1, 2, 3], "std": 4},
            ((PIXELS * 2.0 - [1, 2, 3]) / 4).transpose(2, 0, 1),
        ),
        (
            ("N", 1, "H", "W"),
            {"scale": 1},
            np.asarray(Image.fromarray(PIXELS).convert("L"))[None],
        ),
    ],
)
def test_layout_colour_and_scale(shape, options, expected):
    found = tensor(shape, **options)
    found = found[0] if len(shape) == 4 else found
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("elem_type", "dtype"),
    [
        (TensorProto.UINT8, np.uint8),
        (TensorProto.INT32, np.int32),
        (TensorProto.UINT16, np.uint16),
    ],
)
def test_integer_inputs_take_pixel_values_as_they_are(elem_type, dtype):
    found = tensor(("N", "H", "W", 3), elem_type=elem_type)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], PIXELS)


def test_int8_takes_values_that_fit_only():
    with pytest.raises(dx.InputError) as caught:
        tensor(("N", "H", "W", 3), elem_type=TensorProto.INT8)
    assert caught.value.option == "preset"
    found = tensor(("N", "H", "W", 3), elem_type=TensorProto.INT8, scale=1, mean=128)
    np.testing.assert_array_equal(found[0], PIXELS.astype(int) - 128)
    with pytest.raises(dx.InputError) as caught:
        tensor(("N", "H", "W", 3), elem_type=TensorProto.INT8, scale=1)
    assert caught.value.numbers == {"lowest": 0, "highest": 255}


def test_float16_inputs_get_float16():
    found = tensor((1, 3, 40, 60), elem_type=TensorProto.FLOAT16, preset="unit")
    assert found.dtype == np.float16
    expected = (PIXELS.astype(np.float32) / 255).astype(np.float16).transpose(2, 0, 1)
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("size", [(3, 5), (40, 5)])
def test_a_crop_beyond_the_picture_pads_with_black(size):
    picture = np.full((*size, 3), 200, np.uint8)
    found = tensor(("N", 3, 8, 8), picture, scale=1, resize="none", crop=8)
    top, left = max(8 - size[0], 0) // 2, (8 - size[1]) // 2
    expected = np.zeros((8, 8))
    expected[top : top + size[0], left : left + 5] = 200
    np.testing.assert_array_equal(found[0, 0], expected)


def test_opencvs_linear_interpolation_by_hand():
    row = np.array([[[0], [100], [200], [50]]], np.uint8)
    # Centres lie at 0.833 and 2.5, without averaging: 0 + 83.3, and (200 + 50) / 2.
    np.testing.assert_array_equal(opencv_linear(row, (1, 3))[0, :, 0], [17, 150, 75])
    # Two halved sides are averaged over squares.
    square = np.array([[0, 1], [2, 3]], np.uint8)[..., None]
    assert opencv_linear(square, (1, 1)).item() == 2
    # A picture that grows keeps its border.
    np.testing.assert_array_equal(
        opencv_linear(np.array([[[0], [80]]], np.uint8), (1, 4))[0, :, 0], [0, 20, 60, 80]
    )


def test_a_model_of_any_size_gets_the_multiple_that_its_graph_takes():
    model = dx.load(u_net(3))
    prepared = dx.ImageModel(model, scale=1 / 255)
    assert prepared.preprocess(PIXELS).shape == (1, 1, 40, 64)
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(model, scale=1 / 255, resize="none").preprocess(PIXELS)
    assert caught.value.numbers["multiple_pixels"] == 8
    assert caught.value.suggestions[0] == dx.Suggestion("resize", "multiple=8")


@pytest.mark.parametrize("rule", ["64", "letterbox=64x32"])
def test_a_size_that_the_model_does_not_take_is_refused_at_once(rule):
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(echo(("N", 3, 32, 32))), scale=1, resize=rule)
    assert caught.value.option == "resize"
    assert caught.value.input == "x"


def test_a_size_that_follows_from_the_picture_is_refused_with_its_name(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(PIXELS).save(path)
    model = dx.ImageModel(dx.load(echo(("N", 3, 32, 32))), scale=1, resize="shorter=32")
    with pytest.raises(dx.InputError) as caught:
        model.preprocess(path)
    assert str(path) in caught.value.cause
    assert caught.value.numbers == {"height_pixels": 32, "width_pixels": 48}


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({}, "preset"),
        ({"mean": [0.5] * 3}, "scale"),
        ({"std": 0.5}, "scale"),
        ({"preset": "imagenets"}, "preset"),
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": "a"}, "scale"),
        ({"scale": 1, "mean": [1, 2]}, "mean"),
        ({"scale": 1, "std": [1, 0, 1]}, "std"),
        ({"scale": 1, "mean": "red"}, "mean"),
        ({"scale": 1, "color": "gray"}, "color"),
        ({"scale": 1, "color": "CMYK"}, "color"),
        ({"scale": 1, "layout": "NCWH"}, "layout"),
        ({"scale": 1, "interpolation": "cubic"}, "interpolation"),
        ({"scale": 1, "crop": "a"}, "crop"),
        ({"scale": 1, "top": 0}, "top"),
        ({"scale": 1, "score_threshold": 2}, "score_threshold"),
        ({"scale": 1, "max_pixels": 10**12}, "max_pixels"),
        ({"scale": 1, "outputs": "z"}, "outputs"),
        ({"scale": 1, "feeds": {"z": 1}}, "feeds"),
        ({"scale": 1, "input": "z"}, "input"),
        ({"scale": 1, "task": "boxs"}, "task"),
        ({"scale": 1, "format": "yolo"}, "format"),
        ({"scale": 1, "labels": []}, "labels"),
        ({"scale": 1, "labels": "no such file"}, "labels"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, option):
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(echo(("N", 3, "H", "W"))), **options)
    assert caught.value.option == option


def test_presets_are_suggested_where_nothing_tells_the_scaling():
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(dx.load(echo(("N", 3, 224, 224))))
    found = [each.value for each in caught.value.suggestions if each.option == "preset"]
    assert found == ["imagenet", "yolo", "paddleocr"]


@pytest.mark.parametrize("shape", [("N", 4), ("N", 28, 28), (1, 5, 32, 32)])
def test_models_without_pictures_are_refused(shape):
    with pytest.raises(dx.InputError):
        dx.ImageModel(dx.load(echo(shape)), scale=1)


def test_metadata_of_ultralytics_gives_size_scale_and_names():
    entries = {"task": "detect", "imgsz": "[32, 64]", "stride": "32", "names": "{0: 'cat'}"}
    model = dx.ImageModel(dx.load(with_metadata(echo(("N", 3, "H", "W")), entries)))
    assert model.labels == {0: "cat"}
    found = model.preprocess(PIXELS)
    assert found.shape == (1, 3, 32, 64)
    assert found[0, 0, 0, 0] == PIXELS.dtype.type(0) or 0 <= found.max() <= 1
    assert "metadata" in repr(model)
