"""Masks, key points and turned boxes of detectors, in the pixels of each picture."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import make_model, node, value
from image_models import with_metadata
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.drawing import drawn
from dask_onnx.collections.images.geometry import Geometry

CELLS = 84  # of the grids of 64 x 64 pixels: 64 + 16 + 4
WIDE = np.zeros((100, 200, 3), np.uint8)
NAMES = {"stride": "32", "imgsz": "[64, 64]", "names": "{0: 'a', 1: 'b'}"}


def detector(metadata=None, size=(64, 64), **outputs):
    """Return a detector of constant outputs, whose input has a size in pixels."""
    nodes = [node("ReduceMax", "x", "most", keepdims=0), node("Mul", "most zero", "nothing")]
    nodes += [node("Add", f"{name}_ nothing", name) for name in outputs]
    weights = {f"{name}_": np.asarray(array, np.float32) for name, array in outputs.items()}
    proto = make_model(
        nodes,
        [value("x", (1, 3, *size))],
        [value(name, np.shape(array)) for name, array in outputs.items()],
        {**weights, "zero": np.array(0, np.float32)},
    )
    return dx.load(with_metadata(proto, metadata or {}))


def yolo8(columns, *objects):
    """Return a table (1, columns, cells) with the columns of some objects."""
    table = np.zeros((1, columns, CELLS), np.float32)
    for place, column in enumerate(objects):
        table[0, :, 7 * place] = column
    return table


def prototypes():
    """Return maps of 16 x 16 cells: columns below 8, and rows below 8, as 1 and -1."""
    maps = np.full((1, 2, 16, 16), -1, np.float32)
    maps[0, 0, :, :8] = 1
    maps[0, 1, :8, :] = 1
    return maps


@pytest.mark.parametrize(
    ("metadata", "table", "options"),
    [
        ({"task": "segment"}, yolo8(8, [32, 32, 40, 20, 0, 0.9, 1, 0]), {}),
        (None, yolo8(8, [32, 32, 40, 20, 0, 0.9, 1, 0]), {"preset": "yolo"}),
        (None, yolo8(8, [32, 32, 40, 20, 0, 0.9, 1, 0]), {"preset": "raw", "format": "yolo8-seg"}),
        (
            None,
            np.pad([[[32, 32, 40, 20, 0.9, 0, 1, 1, 0]]], [(0, 0), (0, 3 * CELLS - 1), (0, 0)]),
            {"preset": "yolo"},
        ),
        ({"task": "segment"}, [[[12, 22, 52, 42, 0.9, 1, 1, 0], [0] * 8]], {}),
        (None, [[[12, 22, 52, 42, 0.9, 1, 1, 0]]], {"preset": "yolo", "format": "xyxysc-seg"}),
    ],
)
def test_masks_are_sums_of_maps_inside_their_boxes(metadata, table, options):
    model = detector(metadata and {**metadata, **NAMES}, output0=table, output1=prototypes())
    square = options.get("preset") == "raw"
    image = dx.ImageModel(model, **options, **({"resize": "letterbox=64"} if square else {}))
    found = image.predict(WIDE)
    assert "masks" in repr(found) and len(found.boxes) == 1
    # 64 pixels of the tensor are 200 of the picture, which begins in row 16.
    np.testing.assert_allclose(found.boxes.boxes, [[37.5, 18.75, 162.5, 81.25]], rtol=1e-6)
    (mask,) = found.masks
    whole = mask.full((100, 200))
    expected = np.zeros((100, 200), bool)
    expected[19:82, 38:100] = True  # the left half of the picture, inside the box
    assert np.array_equal(whole, expected)


def test_coefficients_of_masks_are_no_classes_where_boxes_alone_are_read():
    table = yolo8(8, [32, 32, 40, 20, 0, 0.6, 0.9, 0.95])
    model = detector(output0=table, output1=prototypes())
    found = dx.ImageModel(model, preset="yolo", format="yolo8").predict(WIDE)
    assert found.masks is None and found.boxes.labels.tolist() == [1]
    np.testing.assert_allclose(found.boxes.scores, [0.6], rtol=1e-6)
    sliced = dx.detect_sliced(model, np.zeros((64, 64, 3), np.float32), format="yolo8")
    assert sliced.labels.tolist() == [1]


def test_a_part_of_a_map_equals_the_whole_map():
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(20, 24)).astype(np.float32)
    places = [
        Geometry((300, 500), (58, 96), (19, 0), (96, 96)),
        Geometry((30, 50), (58, 96), (-10, 4), (48, 96)),
        Geometry((64, 64), (64, 64), (0, 0), (64, 64)),
    ]
    for geometry in places:
        whole = geometry.mask_to_image(grid)
        for _ in range(20):
            y0, y1 = sorted(rng.integers(0, geometry.picture[0], 2))
            x0, x1 = sorted(rng.integers(0, geometry.picture[1], 2))
            part = geometry.part_to_image(grid, range(y0, y1), range(x0, x1))
            np.testing.assert_allclose(part, whole[y0:y1, x0:x1], atol=1e-4)


def test_run_lengths_are_those_of_coco():
    model = detector({"task": "segment", **NAMES}, output0=yolo8(8), output1=prototypes())
    assert dx.ImageModel(model).predict(WIDE).masks == ()
    from dask_onnx.collections.images.object_details import BoxMask

    mask = BoxMask(1, 0, np.array([[True, False, True], [True, True, True]]))
    # Columns of a picture of 3 x 4: 0 1 1, 0 0 1, 0 1 1, 0 0 0.
    assert mask.run_lengths((3, 4)).tolist() == [1, 2, 2, 1, 1, 2, 3]
    full = BoxMask(0, 0, np.ones((3, 4), bool))
    assert full.run_lengths((3, 4)).tolist() == [0, 12]


@pytest.mark.parametrize("numbers", [2, 3])
def test_key_points_come_back_in_pixels_of_the_picture(numbers):
    points = [[32, 32, 0.9], [0, 16, 0.1]]
    column = [32, 32, 40, 20, 0.1, 0.8, *(x for point in points for x in point[:numbers])]
    metadata = {"task": "pose", "kpt_shape": f"[2, {numbers}]", **NAMES}
    table = yolo8(len(column), column, [*np.multiply(column[:4], 1.02), 0, 0.5, *column[6:]])
    given = [
        dx.ImageModel(detector(metadata, output0=table)),
        dx.ImageModel(
            detector(output0=table), preset="yolo", format="yolo8-pose", keypoints=(2, numbers)
        ),
        dx.ImageModel(
            detector(metadata, output0=[[[12, 22, 52, 42, 0.8, 1, *column[6:]]] * 2]),
            iou_threshold=0.4,
        ),
    ]
    for model, count in zip(given, (1, 1, 2), strict=True):
        found = model.predict(WIDE)
        assert len(found.boxes) == count  # duplicates are removed where the model leaves them
        expected = [[100, 50, 0.9], [0, 0, 0.1]]
        np.testing.assert_allclose(
            found.points[0], [point[:numbers] for point in expected], atol=1e-4
        )


def test_turned_boxes_have_corners_and_lose_duplicates_by_their_own_shape():
    # Two long boxes that cross: their upright boxes overlap wholly, they themselves little.
    angle = np.pi / 4
    objects = [
        [32, 32, 30, 4, 0.1, 0.9, angle],
        [32, 32, 30, 4, 0.1, 0.8, -angle],
        [32, 32.5, 30, 4, 0.1, 0.7, angle],
    ]
    model = detector({"task": "obb", **NAMES}, output0=yolo8(7, *objects))
    found = dx.ImageModel(model).predict(WIDE)
    np.testing.assert_allclose(found.boxes.scores, [0.9, 0.8], rtol=1e-6)
    along, across = np.array([15, 15]) / np.sqrt(2), np.array([-2, 2]) / np.sqrt(2)
    corners = [along + across, along - across, -along - across, -along + across]
    expected = np.add(corners, [32, 16]) * (200 / 64)
    np.testing.assert_allclose(found.corners[0], expected, atol=1e-3)
    low, high = expected.min(axis=0), expected.max(axis=0)
    np.testing.assert_allclose(found.boxes.boxes[0], [*low, *high], atol=1e-3)


def test_yolox_boxes_are_relative_to_the_cells_of_their_grid():
    table = np.zeros((1, CELLS, 7), np.float32)
    table[0, 8 + 3, :] = [0.5, 0.25, np.log(2), np.log(4), 0.8, 0.1, 0.5]  # row 1, column 3 by 8
    table[0, 64 + 2, :] = [0, 0, 0, np.log(2), 0.9, 1, 0]  # row 0, column 2 by 16
    model = detector(output0=table)
    image = dx.ImageModel(model, preset="raw", format="yolox", resize="letterbox=64")
    found = image.predict(np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_allclose(found.boxes.boxes, [[24, 0, 40, 16], [20, 0, 36, 26]], rtol=1e-5)
    np.testing.assert_allclose(found.boxes.scores, [0.9, 0.4], rtol=1e-6)
    assert found.boxes.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("outputs", "metadata", "options", "option"),
    [
        ({"output0": yolo8(7)}, None, {"format": "yolo8-pose"}, "keypoints"),
        ({"output0": yolo8(7)}, None, {"format": "yolo8-seg"}, "format"),
        ({"output0": yolo8(9)}, {"task": "obb", **NAMES}, {}, "format"),
        (
            {"output0": yolo8(9)},
            {"task": "pose", "kpt_shape": "[1, 2]", **NAMES},
            {},
            "format",
        ),
        ({"output0": yolo8(7)}, {"task": "pose", **NAMES}, {}, "keypoints"),
        ({"output0": np.zeros((1, CELLS, 7))}, None, {"task": "boxes"}, "format"),
        ({"output0": yolo8(7)}, None, {"keypoints": (2, 4)}, "keypoints"),
    ],
)
def test_forms_that_nothing_tells_are_refused_with_the_option_to_pass(
    outputs, metadata, options, option
):
    with pytest.raises(dx.InputError) as caught:
        dx.ImageModel(detector(metadata, **outputs), preset="yolo", **options)
    assert caught.value.option == option and caught.value.suggestions


def test_a_wrong_number_of_columns_is_an_error_rather_than_other_boxes():
    model = dx.ImageModel(
        detector(output0=yolo8(12)), preset="yolo", format="yolo8-pose", keypoints=(3, 3)
    )
    with pytest.raises(dx.InputError) as caught:
        model.predict(WIDE)
    assert caught.value.numbers["expected_columns"] == 14


def test_detect_sliced_takes_formats_of_boxes_alone():
    with pytest.raises(dx.InputError) as caught:
        dx.detect_sliced(detector(output0=yolo8(7)), WIDE, format="yolo8-obb")
    assert caught.value.option == "format"


def test_details_are_columns_of_tables_and_drawn(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(WIDE).save(path)
    paths = pd.Series([str(path), str(path)])
    column = [32, 32, 40, 20, 0, 0.9]
    models = {
        "mask": detector(
            {"task": "segment", **NAMES}, output0=yolo8(8, [*column, 1, 0]), output1=prototypes()
        ),
        "points": detector(
            {"task": "pose", "kpt_shape": "[1, 2]", **NAMES}, output0=yolo8(8, [*column, 32, 32])
        ),
        "corners": detector({"task": "obb", **NAMES}, output0=yolo8(7, [*column, 0.5])),
    }
    for name, model in models.items():
        image = dx.ImageModel(model)
        whole = image.predict(paths)
        lazy = image.predict(dd.from_pandas(paths, npartitions=2))
        assert list(lazy._meta.dtypes) == list(whole.dtypes)
        pd.testing.assert_frame_equal(lazy.compute(scheduler="sync"), whole)
        assert len(whole) == 2 and len(whole[name].iloc[0]) > 1
        missing = image.predict(pd.Series([str(path), "nowhere.png"]), on_error="null")
        assert missing[name].isna().tolist() == [False, True]
        picture = drawn(Image.fromarray(WIDE), image.predict(str(path)))
        assert np.asarray(picture).any()
    whole = dx.ImageModel(models["mask"]).predict(paths)
    assert whole["mask_size"].iloc[0] == [100, 200] and sum(whole["mask"].iloc[0]) == 20000
