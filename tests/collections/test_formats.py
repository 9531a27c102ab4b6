"""Output formats of detectors, recognized by names and shapes."""

from __future__ import annotations

import numpy as np
import pytest

import dask_onnx as dx
from dask_onnx.collections.images.formats import Reader, find_reader
from dask_onnx.core.specs import TensorSpec

SIZE = (640, 640)


def specs(**shapes):
    """Return outputs by name; a shape may start with a dtype other than float32."""
    return [
        TensorSpec(name, np.dtype(shape[0]), tuple(shape[1:]))
        if isinstance(shape[0], str) and shape[0] in ("int64", "float16")
        else TensorSpec(name, np.dtype("float32"), tuple(shape))
        for name, shape in shapes.items()
    ]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (specs(output0=(1, 84, 8400)), "yolo8"),
        (specs(output0=("N", 84, "anchors")), "yolo8"),
        (specs(output0=(1, 6, 8400)), "yolo8"),
        (specs(output0=("float16", 1, 5, 8400)), "yolo8"),
        (specs(output=(1, 25200, 85)), "yolo5"),
        (specs(output=("N", None, 85)), "yolo5"),
        (specs(output=(1, 25200, 6)), "yolo5"),
        (specs(output0=(1, 300, 6)), "xyxysc"),
        (specs(output0=("N", 300, 6)), "xyxysc"),
    ],
)
def test_the_format_of_a_single_output_is_recognized(outputs, expected):
    reader = find_reader(outputs, "auto", None, SIZE)
    assert (reader.format, reader.outputs) == (expected, (outputs[0].name,))
    assert reader.has_duplicates is (expected != "xyxysc")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (
            specs(boxes=("k", 4), labels=("int64", "k"), scores=("k",)),
            ("boxes", "scores", "labels"),
        ),
        (
            specs(labels=("N", 300), boxes=("N", 300, 4), scores=("N", 300)),
            ("boxes", "scores", "labels"),
        ),
        (specs(dets=("N", "k", 5), labels=("int64", "N", "k")), ("dets", "labels")),
        (
            specs(num=("int64", 1), bboxes=(1, 9, 4), box_scores=(1, 9), class_ids=(1, 9)),
            ("bboxes", "box_scores", "class_ids"),
        ),
    ],
)
def test_boxes_scores_and_labels_are_found_by_name(outputs, expected):
    assert find_reader(outputs, "auto", None, SIZE) == Reader("boxes", expected)
    assert find_reader(outputs, "boxes", None, SIZE) == Reader("boxes", expected)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (specs(a=("int64", 1, 9), b=(1, 9, 4), c=(1, 9)), ("b", "c", "a")),
        (specs(a=(1, 9, 4), b=(1, 9), c=(1, 9)), ("a", "b", "c")),
        (specs(a=("int64", 1, 9), b=(1, 9, 5)), ("b", "a")),
    ],
)
def test_boxes_scores_and_labels_are_found_by_order_on_request(outputs, expected):
    assert find_reader(outputs, "boxes", None, SIZE) == Reader("boxes", expected)
    with pytest.raises(dx.InputError):
        find_reader(outputs, "auto", None, SIZE)


@pytest.mark.parametrize(
    "outputs",
    [
        specs(output=(1, 8400, 85)),  # YOLOX, decoded or not
        specs(output=("N", "k", 6)),  # xyxysc, or yolo5 with one class
        specs(output=(1, 2535, 6)),  # YOLO with unknown grids: too many rows to be selected ones
        specs(output=("N", "a", "b")),
        specs(output=(1, 90, 90)),
        specs(output=(1, 8400, 4)),
        specs(output=(1, 32, 160, 160)),
        specs(output=("int64", 1, 300, 6)),
        specs(output0=(1, 116, 8400), output1=(1, 32, 160, 160)),
        specs(logits=(1, 100, 92), pred_boxes=(1, 100, 4)),
        [TensorSpec("output", np.dtype("float32"), None)],
    ],
)
def test_ambiguous_outputs_are_refused(outputs):
    with pytest.raises(dx.InputError) as caught:
        find_reader(outputs, "auto", None, SIZE)
    assert all(str(spec) in caught.value.cause for spec in outputs)
    assert caught.value.option == "format"
    assert "decode" in [suggestion.option for suggestion in caught.value.suggestions]


@pytest.mark.parametrize(
    ("wanted", "outputs"),
    [
        ("xyxysc", specs(y=(1, 300, 7))),
        ("yolo5", specs(y=(1, 25200, 5))),
        ("yolo8", specs(y=(1, 4, 8400))),
        ("yolo8", specs(y=("int64", 1, 84, 8400))),
        ("boxes", specs(y=(1, 300, 4), z=(1, 300))),
        ("boxes", specs(y=(1, 300, 5))),
    ],
)
def test_outputs_that_do_not_fit_the_given_format_are_refused(wanted, outputs):
    with pytest.raises(dx.InputError) as caught:
        find_reader(outputs, wanted, None, SIZE)
    assert caught.value.option == "format"


def test_the_first_fitting_table_is_read_if_a_format_is_given():
    outputs = specs(proto=(1, 32, 160, 160), table=(1, 25200, 85), other=(1, 300, 85))
    assert find_reader(outputs, "yolo5", None, SIZE).outputs == ("table",)


def read(format_name, *arrays):
    names = tuple("abc"[: len(arrays)])
    values = [np.array(array, np.float32) for array in arrays]
    found = Reader(format_name, names).read(dict(zip(names, values, strict=True)))
    return [part.tolist() for part in found]


def test_each_format_is_read():
    assert read("yolo5", [[10, 20, 4, 6, 0.5, 0.25, 0.5], [9, 9, 2, 2, 1, 0.75, 0.5]]) == [
        [[8, 17, 12, 23], [8, 8, 10, 10]],
        [0.25, 0.75],
        [1, 0],
    ]
    assert read("yolo8", [[10], [20], [4], [6], [0.25], [0.5]]) == [[[8, 17, 12, 23]], [0.5], [1]]
    assert read("xyxysc", [[1, 2, 3, 4, 0.5, 7]]) == [[[1, 2, 3, 4]], [0.5], [7]]
    assert read("boxes", [[1, 2, 3, 4]], [0.5], [7]) == [[[1, 2, 3, 4]], [0.5], [7]]
    assert read("boxes", [[1, 2, 3, 4, 0.5]], [7]) == [[[1, 2, 3, 4]], [0.5], [7]]
    assert read("boxes", [[[1, 2, 3, 4]]], [[0.5]], [[7]]) == [[[1, 2, 3, 4]], [0.5], [7]]
    assert read("xyxysc", np.zeros((0, 6))) == [[], [], []]


def test_scores_above_one_are_refused():
    with pytest.raises(dx.InputError) as caught:
        read("yolo8", [[10], [20], [4], [6], [0.25], [312]])
    assert caught.value.option == "format"
    assert caught.value.numbers == {"highest_score": 312}
    with pytest.raises(dx.InputError) as caught:
        read("xyxysc", [[1, 2, 3, 4, np.nan, 7]])
    assert np.isnan(caught.value.numbers["highest_score"])


def test_shapes_that_do_not_fit_the_format_are_refused():
    with pytest.raises(dx.InputError) as caught:
        read("xyxysc", np.zeros((2, 7)))
    assert (caught.value.option, caught.value.input) == ("format", "a")
    with pytest.raises(dx.InputError) as caught:
        read("boxes", np.zeros((2, 4)), np.zeros(3), np.zeros(2))
    assert caught.value.option == "format"


def test_the_result_of_decode_is_checked():
    def reader(result):
        return Reader("decode", ("y",), lambda outputs: result)

    found = reader([[[1, 2, 3, 4]], [0.5], [7]]).read({"y": np.zeros(1)})
    assert [part.tolist() for part in found] == [[[1, 2, 3, 4]], [0.5], [7]]
    nothing = reader(([], [], [])).read({"y": np.zeros(1)})
    assert [part.shape for part in nothing] == [(0, 4), (0,), (0,)]
    for wrong in (None, ([[1, 2, 3, 4]], [0.5]), ([[1, 2, 3]], [0.5], [7]), ([], [0.5], [7])):
        with pytest.raises(dx.InputError) as caught:
            reader(wrong).read({"y": np.zeros(1)})
        assert caught.value.option == "decode"
