"""Sliced detection, compared with true boxes and the same detector on the whole image."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from builders import make_model, node, run_onnx, value
from dask.delayed import Delayed
from dask.utils import key_split
from distributed import Client
from tiles.detectors import finder

import dask_onnx as dx
from dask_onnx.collections.images.boxes import Boxes
from dask_onnx.collections.images.merging import nms
from dask_onnx.tiles.detect import detect_sliced

HEIGHT, WIDTH = 500, 700
# x1, y1, x2, y2, score. Slices of 64 x 64 start at 0, 51, 102, ..., so that the columns 51 to 64,
# 102 to 115, ... are in two slices.
SPOTS = np.array(
    [
        (0, 0, 10, 10, 0.95),
        (690, 490, 700, 500, 0.94),
        (40, 20, 62, 42, 0.93),  # over a seam
        (100, 100, 117, 117, 0.92),  # over four seams
        (51, 200, 64, 213, 0.91),  # the overlap of two slices
        (64, 300, 80, 316, 0.90),
        (204, 204, 215, 215, 0.89),
        (300, 20, 350, 60, 0.88),  # larger than the overlap, whole in no slice
        (400, 100, 600, 110, 0.87),  # over many slices
        (450, 200, 460, 480, 0.86),
        (520, 200, 650, 330, 0.85),
        (630, 440, 640, 450, 0.84),
        (642, 440, 652, 450, 0.83),  # near the one before
    ],
    np.float64,
)


def image_of(spots=SPOTS, size=(HEIGHT, WIDTH)):
    pixels = np.zeros((1, *size), np.float32)
    for x1, y1, x2, y2, score in spots:
        pixels[0, int(y1) : int(y2), int(x1) : int(x2)] = score
    return pixels


IMAGE = image_of()


@pytest.fixture(scope="module")
def model():
    return dx.load(finder())


@pytest.fixture(autouse=True)
def sync():
    with dask.config.set(scheduler="sync"):
        yield


def forbidden(*args, **kwargs):
    raise AssertionError("computed")


def assert_spots(found, spots=SPOTS, label=0):
    assert isinstance(found, Boxes)
    order = np.argsort(-spots[:, 4], kind="stable")
    np.testing.assert_array_equal(found.boxes, spots[order, :4])
    np.testing.assert_allclose(found.scores, spots[order, 4], rtol=1e-6)
    assert found.labels.tolist() == [label] * len(spots)
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int64


def assert_same(one, other):
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("kind", ["yolo8", "yolo5", "xyxysc", "named", "dets"])
def test_every_spot_is_found_once_with_every_format(kind):
    found = detect_sliced(dx.load(finder(kind=kind)), IMAGE, normalized=kind == "dets")
    assert_spots(found, label=int(kind == "yolo5"))


def test_the_result_equals_that_of_the_same_graph_on_the_whole_image(model):
    # Spots that fit in a slice, so that fewer steps suffice for the whole image.
    whole = finder(HEIGHT, WIDTH, kind="named", steps=32)
    spots = SPOTS[:7]
    feeds = {"image": image_of(spots)[None]}
    boxes, labels, scores = run_onnx(whole, feeds)
    expected = nms(Boxes.of(boxes, scores, labels), 0.5)
    assert len(expected) == len(spots)
    assert_same(detect_sliced(model, image_of(spots)), expected)


def test_building_runs_nothing(model):
    def touch(block):
        raise AssertionError("read")

    lazy = da.from_array(IMAGE, chunks=(1, 200, 300)).map_blocks(touch, dtype=np.float32)
    with dask.config.set(scheduler=forbidden):
        for options in ({}, {"full_picture": True}, {"merge": "nmm", "overlap": 0.5}):
            assert isinstance(detect_sliced(model, lazy, **options), Delayed)
    with pytest.raises(AssertionError, match="read"):
        detect_sliced(model, lazy).compute()


@pytest.mark.parametrize(
    "chunks", [(1, 64, 64), (1, 500, 700), (1, (7, 493), (1, 350, 349)), (1, 33, 700)]
)
def test_chunks_do_not_change_the_result(model, chunks):
    lazy = detect_sliced(model, da.from_array(IMAGE, chunks=chunks))
    assert_spots(lazy.compute())
    assert lazy.key == detect_sliced(model, da.from_array(IMAGE, chunks=chunks)).key


def test_every_option_that_changes_the_result_changes_the_keys(model):
    image = da.from_array(IMAGE, chunks=(1, 250, 350))
    others = (
        {"overlap": 0.3},
        {"score_threshold": 0.3},
        {"iou_threshold": 0.6},
        {"merge": "nms"},
        {"merge": "nms", "metric": "iou"},
        {"class_agnostic": True},
        {"normalized": True},
        {"full_picture": True},
        {"preprocess": abs},
        {"decode": len},
        {"batch_size": None, "score_threshold": 0.5},
    )
    keys = [detect_sliced(model, image, **options).key for options in ({}, *others)]
    keys.append(detect_sliced(model, image + 1).key)
    keys.append(detect_sliced(dx.load(finder(steps=70)), image).key)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_images_and_models_have_channels_first_or_last(order, layout):
    model = dx.load(finder(channels=3, layout=layout))
    pixels = np.concatenate([IMAGE * 0.5, IMAGE, IMAGE * 0.1])
    assert_spots(detect_sliced(model, pixels.transpose(order)))
    assert_spots(detect_sliced(model, pixels.transpose(order)[None]))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_the_axes_of_a_dataarray_are_found_by_name(model, is_lazy):
    data = IMAGE[0].T
    image = xr.DataArray(da.from_array(data, chunks=99) if is_lazy else data, dims=["x", "y"])
    found = detect_sliced(model, image)
    assert isinstance(found, Delayed) is is_lazy
    assert_spots(found.compute() if is_lazy else found)


def layers_of(lazy):
    """Return the number of tasks by name."""
    names = [key_split(key) for key in dict(lazy.__dask_graph__())]
    return {name: names.count(name) for name in set(names)}


@pytest.mark.parametrize(
    ("batch", "batch_size", "tasks"),
    [
        (1, "auto", 10 * 14),
        (4, "auto", 10 * 4),
        ("N", "auto", 10 * 2),
        ("N", 5, 10 * 3),
        ("N", None, 10 * 2),
    ],
)
def test_a_task_has_as_many_slices_of_a_row_as_the_model_takes(batch, batch_size, tasks):
    model = dx.load(finder(batch=batch))
    lazy = detect_sliced(model, da.from_array(IMAGE, chunks=(1, 250, 350)), batch_size=batch_size)
    layers = layers_of(lazy)
    assert (layers["finder"], layers["merge_boxes"]) == (tasks, 1)
    assert "transpose" not in layers  # the axes are in the order of the model
    assert_spots(lazy.compute())


def test_slices_run_alone_if_their_results_depend_on_each_other():
    model = dx.load(
        make_model(
            [
                node("DynamicQuantizeLinear", "image", "q scale zero"),
                node("DequantizeLinear", "q scale zero", "d"),
                node("Reshape", "d shape", "y"),
            ],
            [value("image", ["N", 1, 64, 64])],
            [value("y", ["N", 512, 8])],
            {"shape": np.array([0, 512, 8])},
        )
    )
    image = da.from_array(IMAGE)
    assert layers_of(detect_sliced(model, image))["made"] == 140
    assert layers_of(detect_sliced(model, image, batch_size=7))["made"] == 20  # as asked for


def test_a_task_reads_its_part_of_the_image_only(model):
    lazy = detect_sliced(model, da.from_array(IMAGE, chunks=(1, 250, 350)))
    graph = dict(lazy.__dask_graph__())
    pieces = [task for key, task in graph.items() if key_split(key) == "cut_slices"]
    regions = [task.args[1] for task in pieces]
    assert all(part.stop - part.start <= 64 for region in regions for part in region)
    readers = {
        key_split(d)
        for key, t in graph.items()
        if key_split(key) == "finder"
        for d in t.dependencies
    }
    assert readers == {"cut_slices"}


def test_tasks_are_retried_as_configured(model):
    with dask.config.set({"onnx.retries": 7}):
        lazy = detect_sliced(model, da.from_array(IMAGE))
    annotations = [layer.annotations for layer in lazy.__dask_graph__().layers.values()]
    assert {"retries": 7} in annotations


@pytest.mark.parametrize("size", [(40, 50), (40, 300), (300, 40), (64, 64), (1, 1)])
def test_an_image_smaller_than_a_slice_is_padded(model, size):
    spots = np.array([(0, 0, size[1], size[0], 0.9)], np.float64)
    assert_spots(detect_sliced(model, image_of(spots, size)), spots)


def test_boxes_are_clipped_to_the_image(model):
    def decode(outputs):
        return [[-9, 10, 20, 90], [45, 3, 60, 9]], [0.9, 0.8], [0, 1]

    found = detect_sliced(model, IMAGE[:, :50, :40], decode=decode)
    assert found.boxes.tolist() == [[0, 10, 20, 50]]  # the other box is in the padding


def to_unit(piece):
    assert piece.dtype == np.uint8 and piece.shape[-1] == 1
    return (piece.transpose(2, 0, 1) / 255).astype(np.float32)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (50, 60)])
def test_preprocess_receives_slices_of_the_image_unchanged(model, size):
    spots = SPOTS if size == (HEIGHT, WIDTH) else SPOTS[:1]
    image = np.round(image_of(spots, size) * 255).astype(np.uint8).transpose(1, 2, 0)
    for given in (image, da.from_array(image, chunks=(99, 99, 1))):
        found = detect_sliced(model, given, preprocess=to_unit)
        found = found if given is image else found.compute()
        np.testing.assert_array_equal(found.boxes, spots[:, :4])
        np.testing.assert_allclose(found.scores, spots[:, 4], atol=0.002)


def test_boxes_of_resized_slices_are_scaled_back(model):
    spots = np.array([(90, 20, 130, 60, 0.9), (300, 300, 340, 390, 0.8)])
    found = detect_sliced(
        model, image_of(spots), slice_size=128, preprocess=lambda piece: piece[:, ::2, ::2]
    )
    assert_spots(found, spots)
    wide = detect_sliced(
        model, image_of(spots), slice_size=(64, 128), preprocess=lambda piece: piece[:, :, ::2]
    )
    assert_spots(wide, spots)


def test_an_open_input_takes_slices_of_any_size():
    model = dx.load(open_finder())
    pixels = np.array([(5, 7, 6, 8, 0.9), (100, 90, 101, 91, 0.8), (699, 499, 700, 500, 0.7)])
    for size in (64, (80, 96), (500, 70)):
        spots = pixels if size != (500, 70) else pixels[::2]  # one for each slice
        assert_spots(detect_sliced(model, image_of(spots), slice_size=size), spots)
    with pytest.raises(dx.InputError) as caught:
        detect_sliced(model, IMAGE)
    assert (caught.value.option, caught.value.input) == ("slice_size", "image")


def open_finder():
    """Return a model that finds the brightest pixel of an image of any size, as one box."""
    return make_model(
        [
            node("Shape", "image", "shape"),
            node("Gather", "shape three", "width"),
            node("Reshape", "image flat", "pixels"),
            node("ReduceMax", "pixels", "score", axes=[1], keepdims=1),
            node("ArgMax", "pixels", "place", axis=1),
            node("Div", "place width", "row"),
            node("Mul", "row width", "before"),
            node("Sub", "place before", "column"),
            node("Concat", "column row column row", "corners", axis=1),
            node("Add", "corners sides", "whole"),
            node("Cast", "whole", "box", to=1),
            node("Concat", "box score zero", "table", axis=1),
            node("Unsqueeze", "table one", "y"),
        ],
        [value("image", [1, 1, "h", "w"])],
        [value("y", [1, 1, 6])],
        {
            "three": np.array([3]),
            "flat": np.array([1, -1]),
            "sides": np.array([[0, 0, 1, 1]]),
            "zero": np.zeros((1, 1), np.float32),
            "one": np.array([1]),
        },
        name="brightest",
    )


def test_the_full_picture_joins_parts_that_do_not_overlap(model):
    spots = np.array([(24, 24, 176, 160, 0.9), (200, 200, 216, 232, 0.8)])
    pixels = image_of(spots, (256, 256))
    cut = detect_sliced(model, pixels, overlap=0.0)
    assert len(cut) > 4
    lazy = detect_sliced(model, da.from_array(pixels, chunks=90), overlap=0.0, full_picture=True)
    assert_spots(lazy.compute(), spots)
    assert layers_of(lazy)["finder"] == 16 + 1
    small = detect_sliced(model, da.from_array(pixels[:, :60, :60]), full_picture=True)
    assert layers_of(small)["finder"] == 1


@pytest.mark.parametrize("metric", [None, "iou", "ios"])
@pytest.mark.parametrize("merge", ["nms", "nmm", "weighted"])
def test_the_other_ways_to_merge_can_be_chosen(model, merge, metric):
    # Whole in each slice that shows them.
    spots = np.array([(0, 0, 9, 9, 0.9), (51, 20, 64, 33, 0.8), (70, 70, 90, 90, 0.7)])
    assert_spots(detect_sliced(model, image_of(spots), merge=merge, metric=metric), spots)
    seam = np.array([(36, 20, 58, 42, 0.9)])  # the next slice shows columns 51 to 58
    found = detect_sliced(model, image_of(seam), merge=merge, metric=metric)
    is_one = metric == "ios" or (metric is None and merge != "weighted")
    assert (len(found) == 1) is is_one
    if merge == "nmm" and is_one:
        assert_spots(found, seam)


def test_thresholds_are_applied(model):
    found = detect_sliced(model, IMAGE, score_threshold=0.88)
    assert_spots(found, SPOTS[:8])
    with_ties = detect_sliced(model, IMAGE, score_threshold=float(np.float32(0.95)))
    assert len(with_ties) == 1


def test_several_slices_are_refused_if_outputs_have_no_batch_axis():
    model = dx.load(finder(kind="named"))
    lazy = detect_sliced(model, da.from_array(IMAGE), batch_size=1)
    assert layers_of(lazy)["finder"] == 140
    with pytest.raises(dx.InputError) as caught:
        detect_sliced(model, IMAGE, batch_size=4)
    assert caught.value.option == "batch_size"
    assert caught.value.numbers == {"slices": 4}


def test_decode_reads_any_output(model):
    def decode(outputs):
        ((name, table),) = outputs.items()
        assert name == "y" and table.shape == (5, 4096)
        place = table[4].argmax()
        x, y, width, height = table[:4, place]
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        return [box], [table[4, place]], [7]

    assert_spots(detect_sliced(model, image_of(SPOTS[1:4]), decode=decode), SPOTS[1:4], label=7)


def test_decode_receives_one_slice_even_if_no_batch_axis_is_proven():
    shapes = []

    def decode(outputs):
        shapes.append((outputs["dets"].ndim, outputs["labels"].ndim))
        return outputs["dets"][:, :4], outputs["dets"][:, 4], outputs["labels"]

    found = detect_sliced(dx.load(finder(kind="dets")), IMAGE, decode=decode, normalized=True)
    assert_spots(found)
    assert set(shapes) == {(2, 1)}


def test_a_fixed_batch_whose_outputs_cannot_be_split_is_refused():
    model = dx.load(
        make_model(
            [node("Reshape", "image shape", "y")],
            [value("image", [4, 1, 8, 8])],
            [value("y", [1, 32, 6])],
            {"shape": np.array([1, -1, 6])},
        )
    )
    with pytest.raises(dx.InputError) as caught:
        detect_sliced(model, IMAGE)
    assert (caught.value.option, caught.value.input) == ("model", "image")
    assert caught.value.numbers == {"slices": 4}


def test_other_inputs_receive_their_value_for_each_slice():
    source = finder(kind="yolo8", batch="N")
    source.graph.node[-1].output[0] = "unscaled"
    source.graph.node.append(node("Mul", "unscaled factor_rows", "y"))
    source.graph.node.insert(0, node("Unsqueeze", "factor all_axes", "factor_rows"))
    source.graph.initializer.append(make_constant("all_axes", np.array([2])))
    source.graph.input.append(value("factor", ["N", 5]))
    model = dx.load(source)
    factor = np.array([1, 1, 1, 1, 0.5], np.float32)
    found = detect_sliced(model, IMAGE, feeds={"factor": factor}, score_threshold=0.1)
    assert_spots(found, SPOTS * [1, 1, 1, 1, 0.5])
    for feeds, fields in (
        ({}, {"option": "feeds", "numbers": {"inputs_left": 2}}),
        ({"factor": factor, "image": 1}, {"option": "feeds", "numbers": {"inputs_left": 0}}),
        ({"factor": factor, "other": 1}, {"option": "feeds", "input": "other"}),
        ([factor], {"option": "feeds"}),
    ):
        with pytest.raises(dx.InputError) as caught:
            detect_sliced(model, IMAGE, feeds=feeds)
        assert caught.value.fields == fields
    for wrong in (factor[:3], factor.astype(complex)):
        with pytest.raises(dx.InputError, match="factor"):
            detect_sliced(model, IMAGE, feeds={"factor": wrong})


def make_constant(name, array):
    return make_model([], [], [], {name: array}).graph.initializer[0]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"overlap": "half"}, "overlap"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"score_threshold": True}, "score_threshold"),
        ({"iou_threshold": 0}, "iou_threshold"),
        ({"iou_threshold": float("nan")}, "iou_threshold"),
        ({"merge": "best"}, "merge"),
        ({"metric": "giou", "merge": "nms"}, "metric"),
        ({"metric": "iou"}, "metric"),
        ({"format": "coco"}, "format"),
        ({"format": "xyxysc"}, "format"),
        ({"format": "yolo8", "decode": len}, "format"),
        ({"decode": 3}, "decode"),
        ({"preprocess": "scale"}, "preprocess"),
        ({"normalized": "yes"}, "normalized"),
        ({"class_agnostic": 1}, "class_agnostic"),
        ({"full_picture": None}, "full_picture"),
        ({"slice_size": 0}, "slice_size"),
        ({"slice_size": (64, 64, 64)}, "slice_size"),
        ({"slice_size": 64.0}, "slice_size"),
        ({"slice_size": 128}, "slice_size"),
        ({"slice_size": (64, 32)}, "slice_size"),
    ],
)
def test_invalid_options_are_refused_before_any_work(model, options, option):
    with dask.config.set(scheduler=forbidden):
        with pytest.raises(dx.InputError) as caught:
            detect_sliced(model, IMAGE, **options)
        assert caught.value.option == option
        assert caught.value.next_step
        for image in (IMAGE.astype("i8"), np.zeros((3, 90, 90), np.float32), "image.tif"):
            with pytest.raises(dx.InputError) as caught:
                detect_sliced(model, image)
            assert caught.value.option == "image"
    with pytest.raises(dx.InputError) as caught:
        detect_sliced("model.onnx", IMAGE)
    assert caught.value.option == "model"


@pytest.mark.parametrize("batch_size", [0, "all", 3])  # the model takes one slice
def test_a_batch_size_that_does_not_fit_is_refused_before_any_work(model, batch_size):
    with dask.config.set(scheduler=forbidden), pytest.raises(dx.InputError, match="batch_size"):
        detect_sliced(model, IMAGE, batch_size=batch_size)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"preprocess": lambda piece: piece.astype("c8")}, {"input": "image"}),
        ({"preprocess": lambda piece: piece[:, :60]}, {"option": "preprocess"}),
        ({"preprocess": lambda piece: piece[0]}, {"option": "preprocess"}),
        (
            {"decode": lambda outputs: ([[1, 2, 3, np.nan]], [0.5], [0])},
            {"numbers": {"invalid_boxes": 1, "boxes": 1}},
        ),
        ({"decode": lambda outputs: ([[1, 2, 3]], [0.5], [0])}, {"option": "decode"}),
        (
            {"decode": lambda outputs: ([[1, 2, 3, 4]], [2.5], [0])},
            {"option": "decode", "numbers": {"highest_score": 2.5}},
        ),
    ],
)
def test_results_of_the_callers_functions_are_checked_in_the_task(model, options, fields):
    with pytest.raises(dx.InputError) as caught:
        detect_sliced(model, IMAGE, **options)
    assert fields.items() <= caught.value.fields.items()


def test_detection_inside_a_task_runs_inline(model):
    lazy = dask.delayed(detect_sliced)(model, IMAGE)
    with dask.config.set(scheduler="threads"):
        assert_spots(lazy.compute())


@pytest.mark.cluster
def test_a_cluster_gives_the_same():
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        dx.configure(client)
        model = dx.load(finder(batch="N"))
        with dask.config.set(scheduler=None):
            lazy = detect_sliced(
                model,
                da.from_array(IMAGE, chunks=(1, 200, 200)),
                preprocess=abs,
                full_picture=True,
            )
            assert_spots(client.compute(lazy).result())
            assert_spots(detect_sliced(model, IMAGE))


@pytest.mark.parametrize("lazy", [False, True])
def test_masked_pixels_are_missing_to_the_detector(model, lazy):
    hidden = np.zeros(IMAGE.shape, bool)
    hidden[:, :150, :150] = True
    image = np.ma.masked_array(IMAGE, mask=hidden)
    if lazy:
        parts = [da.from_array(part, chunks=(1, 200, 300)) for part in (IMAGE, hidden)]
        image = da.ma.masked_array(parts[0], mask=parts[1])
    (found,) = dask.compute(detect_sliced(model, image))
    assert_same(found, detect_sliced(model, np.where(hidden, np.float32(np.nan), IMAGE)))
    assert len(found) < len(SPOTS)
    (found,) = dask.compute(detect_sliced(model, image.astype(np.float64)))
    assert len(found) < len(SPOTS)


def test_masked_pixels_of_integers_and_numbers_beyond_the_range_are_refused(model):
    pixels = np.ma.masked_array((IMAGE * 100).astype(np.uint8), mask=IMAGE > 0.9)
    with pytest.raises(dx.InputError) as raised:
        detect_sliced(model, pixels, preprocess=lambda piece: piece.astype(np.float32) / 100)
    assert raised.value.option == "image"
    with pytest.raises(dx.InputError) as raised:
        detect_sliced(model, np.where(IMAGE > 0.9, 1e39, IMAGE.astype(np.float64)))
    assert raised.value.numbers["bad_values"] > 0
    with pytest.raises(dx.InputError) as raised:
        detect_sliced(model, IMAGE, preprocess=lambda p: np.ma.masked_array(p.astype(int), p > 0))
    assert raised.value.option == "preprocess"
