"""Overlaps, pairs, and common ways to merge boxes, compared with brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.collections.images import boxes as geometry
from dask_onnx.collections.images import merging
from dask_onnx.collections.images.boxes import (
    Boxes,
    best_first,
    crossing_pairs,
    overlapping_pairs,
    overlaps,
)
from dask_onnx.collections.images.merging import greedy_nmm, nms, weighted_boxes_fusion


def boxes_of(*rows):
    """Return the Boxes of rows (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Boxes.of(table[:, :4], table[:, 4], table[:, 5])


def rows_of(found):
    return [
        (*box, score, label)
        for box, score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


@st.composite
def some_boxes(draw, most=30):
    """Draw boxes on a small grid with few scores: with ties, equal boxes and empty boxes."""
    count = draw(st.integers(0, most))
    corner, side = st.integers(0, 12), st.integers(0, 8)
    rows = [
        (x, y, x + draw(side), y + draw(side), draw(st.integers(1, 4)) / 4, draw(st.integers(0, 1)))
        for x, y in [(draw(corner), draw(corner)) for _ in range(count)]
    ]
    return boxes_of(*rows)


def overlap(a, b, metric):
    """Return the overlap of two boxes, by definition."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    whole = sum(sizes) - shared if metric == "iou" else min(sizes)
    return shared / whole if whole else 0.0


def in_order(rows):
    return sorted(rows, key=lambda r: (-r[4], *r[:4], r[5]))


def slow_groups(found, threshold, metric, agnostic):
    """Return each kept box with those that it suppresses, pair by pair."""
    groups = []
    for row in in_order(rows_of(found)):
        for group in groups:
            is_same = agnostic or group[0][5] == row[5]
            if is_same and overlap(group[0], row, metric) >= threshold:
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def around(group, threshold, metric):
    grown, *others = group
    for row in others:
        if overlap(grown, row, metric) >= threshold:
            low = [min(grown[i], row[i]) for i in (0, 1)]
            grown = (*low, *(max(grown[i], row[i]) for i in (2, 3)), *grown[4:])
    return grown


def slow_fusion(found, threshold, metric, agnostic):
    clusters = []
    for row in in_order(rows_of(found)):
        values = [
            overlap(mean, row, metric) if agnostic or mean[5] == row[5] else -1.0
            for mean, _ in clusters
        ]
        if values and max(values) >= threshold:
            place = values.index(max(values))
            members = [*clusters[place][1], row]
        else:
            place, members = len(clusters), [row]
            clusters.append(None)
        weight = sum(member[4] for member in members)
        mean = [sum(member[i] * member[4] for member in members) / weight for i in range(4)]
        clusters[place] = ((*mean, weight / len(members), members[0][5]), members)
    return [mean for mean, _ in clusters]


cases = given(
    found=some_boxes(),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]),
    metric=st.sampled_from(["iou", "ios"]),
    agnostic=st.booleans(),
)


@cases
def test_nms_equals_brute_force(found, threshold, metric, agnostic):
    expected = [g[0] for g in slow_groups(found, threshold, metric, agnostic)]
    assert rows_of(nms(found, threshold, metric=metric, class_agnostic=agnostic)) == expected


@cases
def test_greedy_nmm_equals_brute_force(found, threshold, metric, agnostic):
    groups = slow_groups(found, threshold, metric, agnostic)
    expected = in_order([around(group, threshold, metric) for group in groups])
    assert rows_of(greedy_nmm(found, threshold, metric=metric, class_agnostic=agnostic)) == expected


@cases
def test_weighted_boxes_fusion_equals_brute_force(found, threshold, metric, agnostic):
    expected = slow_fusion(found, threshold, metric, agnostic)
    fused = weighted_boxes_fusion(found, threshold, metric=metric, class_agnostic=agnostic)
    expected = boxes_of(*expected).in_order()
    np.testing.assert_allclose(rows_of(fused), rows_of(expected), rtol=1e-6)


@given(found=some_boxes(), other=some_boxes(), at_a_time=st.sampled_from([1, 7, 1000]))
def test_pairs_are_all_boxes_that_share_an_area(found, other, at_a_time):
    a, b = found.boxes.astype(np.float64), other.boxes.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_PAIRS_AT_A_TIME", at_a_time)
        own = [tuple(sorted(p)) for i, j in overlapping_pairs(a) for p in zip(i, j, strict=True)]
        crossing = [p for i, j in crossing_pairs(a, b) for p in zip(i, j, strict=True)]
    assert sorted(own) == [
        (i, j) for i in range(len(a)) for j in range(i + 1, len(a)) if overlap(a[i], a[j], "ios")
    ]
    assert sorted(crossing) == [
        (i, j) for i in range(len(a)) for j in range(len(b)) if overlap(a[i], b[j], "ios")
    ]


@given(found=some_boxes(most=60))
def test_blocks_do_not_change_what_is_suppressed(found):
    expected = rows_of(nms(found, 0.3)), rows_of(greedy_nmm(found, 0.3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_FIRST_BLOCK", 3)
        patch.setattr(merging, "_LARGEST_BLOCK", 12)
        assert (rows_of(nms(found, 0.3)), rows_of(greedy_nmm(found, 0.3))) == expected


@given(found=some_boxes(), seed=st.integers(0, 5))
def test_results_do_not_depend_on_the_order_of_the_boxes(found, seed):
    shuffled = found.take(np.random.default_rng(seed).permutation(len(found)))
    for merge in (nms, greedy_nmm, weighted_boxes_fusion):
        assert rows_of(merge(found, 0.4)) == rows_of(merge(shuffled, 0.4))


def test_overlaps_of_two_boxes():
    a, b = np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 6, 4]])
    assert overlaps(a, b, "iou") == pytest.approx(8 / 24)
    assert overlaps(a, b, "ios") == pytest.approx(8 / 16)
    part = np.array([[0.0, 0, 1, 4]])
    assert overlaps(a, part, "iou") == pytest.approx(0.25)
    assert overlaps(a, part, "ios") == 1
    assert overlaps(a, a + 10, "iou") == 0
    assert overlaps(a, a[:, [0, 1, 0, 1]], "ios") == 0


def test_a_part_is_a_duplicate_of_the_whole_by_ios_only():
    found = boxes_of((0, 0, 40, 10, 0.9, 0), (30, 0, 40, 10, 0.6, 0), (0, 0, 40, 10, 0.5, 1))
    assert rows_of(nms(found, 0.5)) == rows_of(found)
    assert rows_of(nms(found, 0.5, metric="ios")) == rows_of(found)[::2]
    assert len(nms(found, 0.5, metric="ios", class_agnostic=True)) == 1


def test_nmm_grows_the_best_box_where_nms_loses_the_whole():
    found = boxes_of((30, 0, 40, 10, 0.75, 0), (0, 0, 40, 10, 0.5, 0))
    assert rows_of(nms(found, 0.5, metric="ios")) == [(30, 0, 40, 10, 0.75, 0)]
    assert rows_of(greedy_nmm(found, 0.5)) == [(0, 0, 40, 10, 0.75, 0)]


def test_weighted_fusion_of_two_boxes_by_hand():
    found = boxes_of((0, 0, 10, 10, 0.75, 3), (1, 0, 13, 10, 0.25, 3), (50, 50, 60, 60, 0.5, 3))
    assert rows_of(weighted_boxes_fusion(found, 0.5)) == [
        (0.25, 0, 10.75, 10, 0.5, 3),
        (50, 50, 60, 60, 0.5, 3),
    ]


def test_equal_scores_are_ordered_by_position():
    found = boxes_of((5, 5, 9, 9, 0.5, 0), (7, 1, 9, 9, 0.5, 0), (3, 5, 9, 9, 0.5, 0))
    assert best_first(found).tolist() == [2, 0, 1]


def test_nms_of_a_hundred_thousand_boxes_is_right_for_a_sample():
    random = np.random.default_rng(0)
    corners, sides = random.uniform(0, 5000, (100_000, 2)), random.uniform(10, 60, (100_000, 2))
    found = Boxes.of(
        np.hstack([corners, corners + sides]), random.uniform(0.2, 1, 100_000), np.zeros(100_000)
    ).in_order()
    kept = nms(found, 0.5)
    assert 80_000 < len(kept) < 95_000
    kept_boxes = kept.boxes.astype(np.float64)
    for place in random.choice(100_000, 300, replace=False):
        box, score = found.boxes[place].astype(np.float64), found.scores[place]
        is_kept = (kept.boxes == found.boxes[place]).all(axis=1).any()
        is_beaten = (overlaps(kept_boxes[kept.scores > score], box, "iou") >= 0.5).any()
        assert is_kept is not is_beaten, place


@pytest.mark.parametrize("merge", [nms, greedy_nmm, weighted_boxes_fusion])
def test_merging_no_boxes_gives_none(merge):
    merged = merge(boxes_of(), 0.5)
    assert len(merged) == 0
    assert merged.boxes.shape == (0, 4) and merged.boxes.dtype == np.float32
    assert merged.labels.dtype == np.int64
