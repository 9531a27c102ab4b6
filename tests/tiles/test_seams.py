"""Merging of boxes across seams: one box for each object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.collections.images.boxes import Boxes, join_boxes, overlaps
from dask_onnx.collections.images.merging import greedy_nmm, nms, weighted_boxes_fusion
from dask_onnx.tiles.seams import Views, merge_seams
from dask_onnx.tiles.slices import cut_strips

SIDE = 64


def views_of(width, height, *, overlap=0.25, side=SIDE, coarse=False):
    windows = [
        (s.x + offset, s.y, min(s.x + offset + side, width), s.y + s.height)
        for s in cut_strips((height, width), (side, side), overlap, 4)
        for offset in s.offsets
    ]
    windows += [(0, 0, width, height)] * coarse
    scales = np.where(np.arange(len(windows)) >= len(windows) - coarse, 4, 1)
    return Views(np.array(windows, np.float64), scales, (width, height))


def seen(views, objects, *, least=4, jitter=0, seed=0):
    """Return what an ideal detector finds: the visible part of each object, for each slice."""
    random = np.random.default_rng(seed)
    parts, view_ids = [], []
    for number, window in enumerate(views.windows):
        for x1, y1, x2, y2, score, label in objects:
            low = np.maximum((x1, y1), window[:2])
            high = np.minimum((x2, y2), window[2:])
            if ((high - low) >= np.minimum(least, (x2 - x1, y2 - y1))).all():
                box = np.concatenate([low, high]) + random.uniform(-jitter, jitter, 4)
                parts.append(Boxes.of(box, score * random.uniform(0.6, 1), label))
                view_ids.append(number)
    return join_boxes(parts), np.array(view_ids, np.int64)


def merged(views, found, view_ids, **options):
    result = merge_seams(found, view_ids, views, 0.5, **options)
    assert (np.diff(result.scores) <= 0).all()
    return result


def corners(found):
    return sorted(map(tuple, found.boxes.round().astype(int).tolist()))


@st.composite
def scattered(draw):
    """Draw objects that do not touch: at most one in each cell of a grid, of any size in it."""
    objects = []
    for x in range(0, 300, 50):
        for y in range(0, 200, 50):
            low, high = draw(st.integers(2, 20)), draw(st.integers(28, 47))
            left, right = draw(st.integers(2, 20)), draw(st.integers(28, 47))
            if draw(st.booleans()):
                objects.append(
                    (x + left, y + low, x + right, y + high, 0.9, draw(st.integers(0, 1)))
                )
    return objects


@given(objects=scattered(), jitter=st.sampled_from([0, 0.4]), agnostic=st.booleans())
def test_every_object_is_found_once(objects, jitter, agnostic):
    views = views_of(300, 200)
    result = merged(views, *seen(views, objects, jitter=jitter), class_agnostic=agnostic)
    centres = (result.boxes[:, :2] + result.boxes[:, 2:]) // 100
    order = np.lexsort(centres.T[::-1])  # by cell, as the objects are
    expected = np.reshape(objects, (-1, 6))
    assert len(result) == len(objects)
    np.testing.assert_allclose(result.boxes[order], expected[:, :4], atol=2 * jitter)
    np.testing.assert_array_equal(result.labels[order], expected[:, 5])


@pytest.mark.parametrize(
    "box", [(10, 20, 290, 40), (30, 5, 50, 195), (20, 20, 280, 180), (0, 0, 300, 200)]
)
def test_an_object_larger_than_slices_is_assembled(box):
    views = views_of(300, 200)
    found, view_ids = seen(views, [(*box, 0.9, 1)])
    assert len(found) > 2
    result = merged(views, found, view_ids)
    assert corners(result) == [box] and result.labels.tolist() == [1]
    assert result.scores == pytest.approx(found.scores.max())


def test_the_visible_part_of_an_object_may_be_far_smaller_than_its_box():
    views = views_of(112, 64)  # two slices, from 0 and from 48
    whole, arm = (10, 5, 60, 60), (48, 30, 60, 36)
    found = Boxes.of([whole, arm], [0.6, 0.9], [0, 0])
    result = merged(views, found, np.array([0, 1]))
    assert corners(result) == [whole] and result.scores == pytest.approx(0.6)


def test_objects_that_one_slice_separates_stay_separate():
    views = views_of(112, 64)
    large, small = (50, 5, 62, 60), (52, 20, 60, 40)
    found = Boxes.of([large, small, large, small], [0.9, 0.8, 0.7, 0.6], [0] * 4)
    # By "ios" the small one would become part of the large one, in both slices.
    assert corners(merged(views, found, np.array([0, 0, 1, 1]))) == sorted([large, small])


def test_a_cropped_box_in_a_crowd_joins_the_right_object():
    views = views_of(112, 64)
    left, right = (10, 0, 58, 60), (30, 10, 62, 64)
    found = Boxes.of(
        [left, right, (48, 0, 58, 60), (48, 10, 62, 64)], [0.9, 0.8, 0.95, 0.7], [0] * 4
    )
    result = merged(views, found, np.array([0, 0, 1, 1]))
    assert corners(result) == sorted([left, right])


def test_a_box_is_cropped_only_by_edges_beyond_which_the_other_slice_extends():
    views = views_of(160, 64)  # three slices, from 0, 48 and 96
    # The first box is cropped at 48, outside of the last slice, in which it would end at 96.
    long, other = (48, 5, 104, 60), (98, 6, 104, 58)
    found = Boxes.of([long, other], [0.9, 0.8], [0, 0])
    assert corners(merged(views, found, np.array([1, 2]))) == [long, other]


def test_a_second_part_of_an_object_that_was_seen_whole_is_dropped():
    views = views_of(112, 64)
    whole, upper, lower = (40, 5, 62, 60), (48, 5, 62, 25), (48, 40, 62, 60)
    found = Boxes.of([whole, upper, lower], [0.5, 0.9, 0.8], [0] * 3)
    assert corners(merged(views, found, np.array([0, 1, 1]))) == [whole]


def test_classes_are_merged_separately_by_default():
    views = views_of(112, 64)
    found = Boxes.of([(40, 5, 60, 60), (48, 5, 60, 60)], [0.5, 0.9], [3, 4])
    assert sorted(merged(views, found, np.array([0, 1])).labels) == [3, 4]
    assert merged(views, found, np.array([0, 1]), class_agnostic=True).labels.tolist() == [3]


def test_the_shrunk_image_counts_only_for_what_no_slice_holds():
    views = views_of(112, 64, coarse=True)
    found = Boxes.of([(20, 5, 40, 60), (30, 4, 46, 62), (60, 5, 90, 30)], [0.5, 0.9, 0.8], [0] * 3)
    assert corners(merged(views, found, np.array([0, 2, 2]))) == [(20, 5, 40, 60)]


def test_the_shrunk_image_joins_parts_that_do_not_overlap():
    views = views_of(128, 64, overlap=0.0, coarse=True)
    found = Boxes.of([(30, 5, 64, 60), (64, 5, 100, 60), (33, 8, 99, 55)], [0.5, 0.6, 0.4], [0] * 3)
    result = merged(views, found, np.array([0, 1, 2]))
    # The parts are more precise, as long as the box of the shrunk image is not larger.
    assert corners(result) == [(30, 5, 100, 60)] and result.scores == pytest.approx(0.6)
    lone = merged(views, found.take([0, 2]), np.array([0, 2]))
    assert corners(lone) == [(33, 8, 99, 55)] and lone.scores == pytest.approx(0.4)
    assert len(merged(views, found.take([0, 1]), np.array([0, 1]))) == 2


@given(objects=scattered(), seed=st.integers(0, 3))
def test_the_order_of_the_boxes_does_not_matter(objects, seed):
    views = views_of(300, 200)
    found, view_ids = seen(views, objects, jitter=0.4)
    order = np.random.default_rng(seed).permutation(len(found))
    one, other = merged(views, found, view_ids), merged(views, found.take(order), view_ids[order])
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_merging_no_boxes_gives_none():
    result = merged(views_of(112, 64), Boxes.of((), (), ()), np.empty(0, np.int64))
    assert result.boxes.shape == (0, 4) and len(result) == 0


def test_merging_at_seams_makes_the_fewest_errors_in_a_crowd():
    random = np.random.default_rng(0)
    side, corner = random.uniform(20, 70, (400, 2)), random.uniform(0, 530, (400, 2))
    objects = nms(
        Boxes.of(np.hstack([corner, corner + side]), np.full(400, 0.9), np.zeros(400)), 0.5
    )
    views = views_of(600, 600, side=160)
    rows = np.column_stack([objects.boxes, objects.scores, objects.labels])
    found, view_ids = seen(views, rows, least=8, jitter=1.0)
    results = {
        "seams": merged(views, found, view_ids),
        "nms": nms(found, 0.5, metric="ios"),
        "nmm": greedy_nmm(found, 0.5),
        "weighted": weighted_boxes_fusion(found, 0.5),
    }
    faults = {name: faults_of(result, objects) for name, result in results.items()}
    assert faults["seams"] < 0.05 * len(objects)
    assert all(faults["seams"] * 5 < faults[name] for name in ("nms", "nmm", "weighted")), faults


def faults_of(result, objects):
    """Return the number of missed objects, plus that of false and duplicate boxes."""
    truth, shown = objects.boxes.astype(np.float64), set()
    for box in result.boxes.astype(np.float64):
        values = overlaps(truth, box, "iou")
        if values.max() >= 0.7:
            shown.add(int(values.argmax()))
    return len(objects) - len(shown) + len(result) - len(shown)
