"""Forms of results of pictures: what is recognised, what is read, and what stays as it is."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from builders import make_model, node, value
from image_models import brightness, classifier, echo, fixed_boxes, red_map, with_metadata
from onnx import TensorProto, helper
from PIL import Image

import dask_onnx as dx
from dask_onnx.collections.images.formats import find_reader
from dask_onnx.core.specs import TensorSpec

WHITE = np.full((64, 64, 3), 255, np.uint8)


def specs(**shapes):
    return [
        TensorSpec(name.replace("__", ":"), np.dtype("float32"), shape)
        for name, shape in shapes.items()
    ]


def image_model(proto, **options):
    return dx.ImageModel(dx.load(proto), **{"scale": 1 / 255, **options})


def outputs_model(**outputs):
    """Return a model of constant outputs, given by name."""
    nodes = [node("ReduceMax", "x", "most", keepdims=0), node("Mul", "most zero", "nothing")]
    nodes += [node("Add", f"{name}_ nothing", name) for name in outputs]
    weights = {f"{name}_": np.asarray(array, np.float32) for name, array in outputs.items()}
    return make_model(
        nodes,
        [value("x", (1, 3, 64, 64))],
        [value(name, np.shape(array)) for name, array in outputs.items()],
        {**weights, "zero": np.array(0, np.float32)},
    )


@pytest.mark.parametrize(
    ("proto", "task"),
    [
        (classifier(), "labels"),
        (classifier(activation="Sigmoid"), "labels"),
        (classifier(activation=None), "labels"),
        (brightness(), "raw"),
        (brightness(output="probabilities"), "labels"),
        (red_map(), "mask"),
        (echo(("N", 3, "H", "W")), "raw"),
        (echo((1, 3, 64, 64)), "raw"),
        (echo(("N", "H", "W", 1)), "mask"),
        (fixed_boxes([[1, 2, 3, 4]], [0.5], [7]), "boxes"),
        (outputs_model(hidden=np.zeros((1, 50, 300))), "raw"),
        (outputs_model(tokens=np.zeros((1, 300, 6))), "raw"),
        (outputs_model(table=np.zeros((1, 6, 84))), "boxes"),
    ],
)
def test_a_form_is_recognised_only_where_the_outputs_show_it(proto, task):
    # 84 = 64 + 16 + 4 cells of a YOLO of 64 x 64.
    assert image_model(proto).task == task


def test_logits_get_a_softmax_and_probabilities_do_not():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 1] = 255
    expected = np.exp([10, 0, 0]) / np.exp([10, 0, 0]).sum()
    for activation in ("Softmax", None):
        found = image_model(classifier(activation=activation), top=3).predict(picture)
        assert found.labels.tolist() == [1, 0, 2]
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    found = image_model(classifier(activation="Sigmoid"), top=1).predict(picture)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-10)), rtol=1e-5)


def test_names_of_classes_make_scores_of_features():
    model = image_model(brightness(), labels=["red", "green", "blue"], resize="none")
    found = model.predict(np.full((4, 5, 3), [0, 9, 3], np.uint8))
    assert model.task == "labels" and found.names == ("green",)


def test_more_names_than_scores_are_refused():
    with pytest.raises(dx.InputError) as caught:
        image_model(classifier(), labels=[*"abcd"])
    assert caught.value.option == "labels"
    assert caught.value.numbers == {"labels": 4, "scores": 3}


@pytest.mark.parametrize("task", ["boxes", "mask"])
def test_a_form_that_outputs_do_not_have_is_refused(task):
    with pytest.raises(dx.InputError):
        image_model(classifier(), task=task)


def test_boxes_of_a_fixed_size_come_back_in_pixels_of_the_picture():
    model = image_model(
        fixed_boxes([[16, 20, 32, 44], [0, 0, 64, 64]], [0.9, 0.1], [1, 0]), resize="letterbox=64"
    )
    found = model.predict(np.zeros((200, 400, 3), np.uint8))
    # 32 rows of the tensor show the picture, from row 16 on; 6.25 pixels each.
    np.testing.assert_allclose(found.boxes.boxes, [[100, 25, 200, 175]])
    assert found.boxes.labels.tolist() == [1]
    np.testing.assert_allclose(found.boxes.scores, [0.9])


def test_one_box_without_a_batch_axis_is_not_taken_for_a_batch():
    found = image_model(fixed_boxes([[0, 0, 32, 64]], [0.5], [2])).predict(WHITE)
    np.testing.assert_allclose(found.boxes.boxes, [[0, 0, 32, 64]])


def test_tensorflows_boxes_are_y_first_and_from_0_to_1():
    proto = outputs_model(
        detection_boxes=[[[0.25, 0.5, 0.75, 1.0], [0, 0, 1, 1]]],
        detection_scores=[[0.8, 0.7]],
        detection_classes=[[3, 4]],
        num_detections=[1],
    )
    found = image_model(proto, resize=64).predict(np.zeros((100, 200, 3), np.uint8))
    np.testing.assert_allclose(found.boxes.boxes, [[100, 25, 200, 75]])
    assert found.boxes.labels.tolist() == [3]


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        # Two names and three logits: the last is "no object".
        (["a", "b"], "detr", [(1, np.exp(3) / (1 + np.exp(3) + 1))]),
        # As many names as logits: sigmoids.
        (["a", "b", "c"], "rtdetr", [(1, 1 / (1 + np.exp(-3))), (0, 0.5)]),
    ],
)
def test_detr_is_read_by_the_number_of_its_classes(labels, kind, expected):
    proto = outputs_model(
        logits=[[[0, 3, 0], [-9, -9, 9 if kind == "detr" else -9]]],
        pred_boxes=[[[0.5, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]]],
    )
    model = image_model(proto, resize=64, labels=labels)
    assert kind in repr(model)
    found = model.predict(np.zeros((100, 200, 3), np.uint8))
    np.testing.assert_allclose(found.boxes.boxes[0], [50, 0, 150, 100])
    got = list(zip(found.boxes.labels.tolist(), found.boxes.scores.tolist(), strict=True))
    assert [label for label, _ in got] == [label for label, _ in expected]
    np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=1e-5)


def test_detr_without_names_of_classes_stays_as_it_is():
    proto = outputs_model(logits=np.zeros((1, 2, 3)), pred_boxes=np.zeros((1, 2, 4)))
    assert image_model(proto).task == "raw"
    assert image_model(proto, format="detr").task == "boxes"


def test_paddles_table_starts_with_the_class():
    proto = outputs_model(table=[[2, 0.9, 0, 16, 32, 48], [-1, -1, 0, 0, 0, 0]])
    model = image_model(proto, resize=64, format="paddle")
    found = model.predict(np.zeros((64, 128, 3), np.uint8))
    np.testing.assert_allclose(found.boxes.boxes, [[0, 16, 64, 48]])
    assert found.boxes.labels.tolist() == [2]


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_columns_behind_the_classes_of_a_yolo_are_no_classes(task):
    table = np.zeros((1, 4 + 2 + 32, 84), np.float32)
    table[0, :4, 5] = [32, 32, 16, 8]
    table[0, 4:6, 5] = [0.1, 0.7]
    table[0, 6:, 5] = 9  # coefficients of masks, whose maps are no output
    metadata = {"task": task, "imgsz": "[64, 64]", "stride": "32", "names": "{0: 'a', 1: 'b'}"}
    proto = with_metadata(outputs_model(output0=table), metadata)
    found = dx.ImageModel(dx.load(proto)).predict(WHITE)
    np.testing.assert_allclose(found.boxes.boxes, [[24, 28, 40, 36]])
    assert found.names == ("b",)


def test_wrong_formats_are_errors_rather_than_boxes():
    proto = outputs_model(output0=np.full((1, 6, 84), 7))
    with pytest.raises(dx.InputError) as caught:
        image_model(proto, format="yolo8").predict(WHITE)
    assert caught.value.numbers["highest_score"] == 7


def test_a_map_at_half_the_resolution_comes_back_at_the_size_of_the_picture():
    model = image_model(red_map(halvings=1), resize="letterbox=64")
    picture = np.zeros((32, 128, 3), np.uint8)
    picture[:, 64:, 0] = 255
    found = model.predict(picture)
    assert found.mask.shape == (32, 128) and found.mask.dtype == np.float32
    np.testing.assert_allclose(found.mask[:, :56], 0, atol=1e-6)
    np.testing.assert_allclose(found.mask[:, 72:], 1, atol=1e-6)


def test_several_channels_become_classes_if_their_number_is_that_of_the_names():
    proto = echo(("N", 3, "H", "W"))
    assert image_model(proto).task == "raw"
    model = image_model(proto, labels=["r", "g", "b"], resize="none")
    picture = np.zeros((5, 6, 3), np.uint8)
    picture[:, 3:, 2] = 200
    found = model.predict(picture)
    np.testing.assert_array_equal(found.mask, [[0, 0, 0, 2, 2, 2]] * 5)
    assert found.mask.dtype == np.uint8


def test_class_numbers_from_the_graph_are_a_mask():
    proto = make_model(
        [node("ArgMax", "x", "y", axis=1, keepdims=0)],
        [value("x", ("N", 3, 8, 8))],
        [value("y", ("N", 8, 8), TensorProto.INT64)],
    )
    model = image_model(proto)
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[4:, :, 1] = 255
    found = model.predict(picture)
    assert model.task == "mask"
    np.testing.assert_array_equal(found.mask, np.repeat([0, 1], 4)[:, None].repeat(8, axis=1))


def test_raw_results_carry_their_geometry():
    found = image_model(echo((1, 3, 64, 64)), resize="letterbox=64").predict(
        np.zeros((10, 20, 3), np.uint8)
    )
    assert found.outputs["y"].shape == (3, 64, 64)
    assert found.geometry == dx.Geometry((10, 20), (32, 64), (16, 0), (64, 64))


@pytest.mark.parametrize(
    ("numbers", "shape", "expected"),
    [
        (np.array([[2**40 + 1, -3]]), (1, 2), [2**40 + 1, -3]),
        (np.array([2**53 + 1]), (1,), 2**53 + 1),
        (np.array([[1 / 3]]), (1, 1), [1 / 3]),
        (np.array([True]), (1,), True),
    ],
)
def test_numbers_of_raw_outputs_are_exact_in_columns(tmp_path, numbers, shape, expected):
    proto = make_model(
        [
            node("ReduceMax", "x", "most", keepdims=0),
            node("Cast", "most", "any", to=TensorProto.BOOL),
            node("Where", "any numbers numbers", "y"),
        ],
        [value("x", (1, 3, 8, 8))],
        [value("y", shape, helper.np_dtype_to_tensor_dtype(numbers.dtype))],
        {"numbers": numbers},
    )
    model = image_model(proto, task="raw")
    files = [str(tmp_path / f"{name}.png") for name in "ab"]
    for file in files:
        Image.new("RGB", (8, 8)).save(file)
    found = model.predict(pd.Series(files))
    assert found["y"].tolist() == [expected, expected]
    lazy = model.predict(dd.from_pandas(pd.Series(files), npartitions=2))
    pd.testing.assert_frame_equal(lazy.compute(scheduler="threads"), found)
    assert (lazy.dtypes == found.dtypes).all()


def test_values_of_other_inputs_are_converted_like_any_input():
    proto = make_model(
        [node("Cast", "number", "scale", to=TensorProto.FLOAT), node("Mul", "x scale", "y")],
        [value("x", (1, 3, 8, 8)), value("number", (), TensorProto.INT64)],
        [value("y", (1, 3, 8, 8))],
    )
    model = image_model(proto, scale=1, task="raw", feeds={"number": 3.0})
    picture = np.full((8, 8, 3), 5, np.uint8)
    assert (model.predict(picture).outputs["y"] == 15).all()
    for wrong in (0.5, "three", None):
        with pytest.raises(dx.InputError) as caught:
            image_model(proto, feeds={"number": wrong})
        assert caught.value.input == "number"
    for option, other in (("feeds", [3]), ("labels", b"a"), ("labels", 3)):
        with pytest.raises(dx.InputError) as caught:
            image_model(proto, **{"feeds": {"number": 3}, option: other})
        assert caught.value.option == option


def test_readers_know_tensorflows_names_with_suffixes():
    found = find_reader(
        specs(
            detection_boxes__0=(1, 9, 4), detection_scores__0=(1, 9), detection_classes__0=(1, 9)
        ),
        "auto",
        None,
        (64, 64),
    )
    assert found.format == "tf" and found.is_normalized
