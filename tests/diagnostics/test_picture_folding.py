"""Folding of graphs for a picture: every box is shown once, without circles, and the page fits."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dask_onnx.diagnostics.picture_folding import Page, fold

PAGE = Page()


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 70))
    reach = draw(st.integers(1, 12))
    lines = set()
    for second in range(1, count):
        for first in draw(st.lists(st.integers(max(0, second - reach), second - 1), max_size=3)):
            lines.add((first, second))
    seconds = draw(st.lists(st.floats(0, 10), min_size=count, max_size=count))
    colours = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return count, sorted(lines), seconds, colours


def depths_of(folds, lines):
    """Return the layer of each fold; the folds must be in topological order."""
    place = {member: i for i, each in enumerate(folds) for member in each.members}
    depth = [0] * len(folds)
    pairs = {(place[a], place[b]) for a, b in lines} - {(i, i) for i in range(len(folds))}
    assert all(first < second for first, second in pairs)
    for first, second in sorted(pairs):
        depth[second] = max(depth[second], depth[first] + 1)
    return depth


@given(graphs())
def test_every_box_is_in_one_fold_without_circles_and_the_page_fits(graph):
    count, lines, seconds, colours = graph
    folds = fold(count, lines, seconds, colours, PAGE)
    assert sorted(member for each in folds for member in each.members) == list(range(count))
    rows = Counter(depths_of(folds, lines))
    assert len(rows) <= PAGE.rows
    assert max(rows.values()) <= max(PAGE.columns, PAGE.rows)
    assert len(folds) <= PAGE.boxes


def test_what_fits_is_not_folded():
    lines = [(i, i + 1) for i in range(7)]
    assert [each.members for each in fold(8, lines, [1] * 8, [None] * 8, PAGE)] == [
        (i,) for i in range(8)
    ]


def test_a_chain_is_cut_where_its_colour_changes():
    lines = [(i, i + 1) for i in range(19)]
    colours = [0] * 7 + [1] * 13
    for each in fold(20, lines, [1.0] * 20, colours, PAGE):
        assert len({colours[member] for member in each.members}) == 1


def test_of_many_branches_the_slowest_keep_a_box():
    count = 50
    lines = [(0, i) for i in range(1, 49)] + [(i, 49) for i in range(1, 49)]
    seconds = [1.0] * count
    seconds[17] = seconds[30] = 5.0
    folds = fold(count, lines, seconds, [None] * count, PAGE)
    alone = {each.members for each in folds if len(each.members) == 1}
    assert {(17,), (30,)} <= alone
    assert any(each.kind == "branches" for each in folds)


def test_the_room_of_a_page_goes_to_what_takes_long():
    # A cheap ladder before and one dear chain: the chain is shown in several boxes.
    ladder = [(i, j) for i in range(40) for j in (i + 1, i + 2) if j <= 40]
    lines = [*ladder, *((i, i + 1) for i in range(40, 59))]
    seconds = [1e-4] * 40 + [1.0] * 20
    folds = fold(60, lines, seconds, [None] * 60, PAGE)
    assert sum(any(member >= 40 for member in each.members) for each in folds) >= 3
