"""Layout of pictures: the number of places, and lines that stay apart."""

from __future__ import annotations

import itertools
from collections import defaultdict
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.diagnostics import picture_layout as layout
from dask_onnx.diagnostics.picture_layout import into_layers, place_all


def chain(boxes):
    return [(i, i + 1) for i in range(boxes - 1)]


def places_of(layers):
    return {place for row in layers.rows for place in row} | set(layers.beside)


def passes_of(layers):
    return {place for place in places_of(layers) if place[0] < 0}


def test_a_line_that_skips_layers_has_a_place_in_each():
    layers = into_layers(5, [*chain(5), (0, 4)], range(5))
    assert layers.paths[-1] == ((0, 0), (-1, 1), (-1, 2), (-1, 3), (4, 0))
    assert passes_of(layers) == set(layers.paths[-1][1:-1])


def test_lines_from_a_box_with_the_same_values_share_their_places():
    lines = [*chain(5), (0, 2), (0, 4), (0, 3)]
    layers = into_layers(5, lines, ["next"] * 4 + ["same"] * 3)
    assert layers.paths[4:] == (
        ((-1, 1), (2, 0)),
        ((0, 0), (-1, 1), (-1, 2), (-1, 3), (4, 0)),
        ((-1, 2), (3, 0)),
    )
    assert [layers.branches_off(i) for i in range(7)] == [False] * 4 + [True, False, True]
    assert passes_of(layers) == {(-1, 1), (-1, 2), (-1, 3)}


def test_lines_with_other_values_or_from_other_boxes_share_no_places():
    lines = [*chain(5), (0, 4), (0, 3), (1, 4)]
    layers = into_layers(5, lines, ["next"] * 4 + ["same", "other", "same"])
    assert not any(layers.branches_off(i) for i in range(7))
    assert len(passes_of(layers)) == 3 + 2 + 2


def test_each_skip_of_a_long_chain_takes_a_few_places():
    lines = [*chain(600), *((i, 599 - i) for i in range(299))]
    layers = into_layers(600, lines, [first for first, _ in lines])
    assert len(places_of(layers)) <= 600 + 3 * 299
    assert all(place >= 0 for row in layers.rows for place, _ in row)


def test_a_dense_graph_takes_no_more_places_than_it_has_lines():
    lines = [(i, j) for j in range(200) for i in range(max(0, j - 100), j)]
    layers = into_layers(200, lines, [first for first, _ in lines])
    assert len(places_of(layers)) < 200 + 4 * 200 + len(lines)
    assert sum(map(len, layers.paths)) < 3 * len(lines)
    middles = place_all(layers, [140.0] * 200)
    assert max(middles.values()) < 4000


def test_lines_run_among_the_boxes_up_to_thousands_of_places():
    lines = [*chain(100), *((i, 99 - i) for i in range(49))]
    layers = into_layers(100, lines, range(len(lines)))
    assert layers.beside == {}
    assert len(passes_of(layers)) == sum(98 - 2 * i for i in range(49))


@given(st.data())
def test_columns_are_right_of_all_boxes_and_do_not_overlap(data):
    count = data.draw(st.integers(3, 14))
    pairs = [(i, j) for j in range(count) for i in range(j)]
    lines = data.draw(st.lists(st.sampled_from(pairs), unique=True, max_size=30))
    carried = data.draw(st.lists(st.integers(0, 2), min_size=len(lines), max_size=len(lines)))
    with mock.patch.object(layout, "_MOST_PASSES", 0):
        layers = into_layers(count, lines, carried)
    middles = place_all(layers, [140.0] * count)
    assert set(middles) == places_of(layers)
    edge = max(middles[i, 0] + 70 for i in range(count))
    spans = defaultdict(list)
    for track, level in layers.beside:
        spans[track].append(level)
    ways = {
        track: (min(levels), max(levels), middles[track, min(levels)])
        for track, levels in spans.items()
    }
    for track, level in layers.beside:
        assert middles[track, level] == ways[track][2] > edge
    for one, other in itertools.combinations(ways.values(), 2):
        assert one[2] != other[2] or one[1] < other[0] or other[1] < one[0]
