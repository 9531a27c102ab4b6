"""Borders of contiguous stages: the slowest as fast as possible, the others even."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_onnx.planning.borders import PieceTimes, best_borders


def seconds_of(times, borders):
    """Return the seconds of each stage, with those of receiving its values."""
    return [
        times.done[b] - times.done[a] + times.arriving[a] for a, b in itertools.pairwise(borders)
    ]


def slowest(times, borders):
    return max(seconds_of(times, borders))


@st.composite
def piece_times(draw):
    count = draw(st.integers(1, 9))
    second = st.one_of(st.just(0.0), st.floats(0.001, 10))
    seconds = draw(st.lists(second, min_size=count, max_size=count))
    arriving = draw(st.lists(st.floats(0, 3), min_size=count + 1, max_size=count + 1))
    times = PieceTimes(np.concatenate([[0.0], np.cumsum(seconds)]), np.asarray(arriving))
    return times, draw(st.integers(1, count))


@settings(max_examples=200, deadline=None)
@given(piece_times())
def test_no_other_borders_are_better(drawn):
    times, n_stages = drawn
    borders = best_borders(times, n_stages, [0] * (times.pieces - 1))
    assert borders[0] == 0 and borders[-1] == times.pieces and len(borders) == n_stages + 1
    assert all(a < b for a, b in itertools.pairwise(borders))
    best = min(
        slowest(times, [0, *inner, times.pieces])
        for inner in itertools.combinations(range(1, times.pieces), n_stages - 1)
    )
    assert slowest(times, borders) <= best * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(piece_times(), st.data())
def test_borders_keep_within_the_memory(drawn, data):
    times, n_stages = drawn
    bytes_ = data.draw(st.lists(st.integers(0, 50), min_size=times.pieces, max_size=times.pieces))
    limit = data.draw(st.integers(30, 120))
    within = np.array(
        [
            max(b for b in range(a, times.pieces + 1) if sum(bytes_[a:b]) <= limit)
            for a in range(times.pieces + 1)
        ]
    )

    def fits(borders):
        return all(b <= within[a] for a, b in itertools.pairwise(borders))

    cuts = itertools.combinations(range(1, times.pieces), n_stages - 1)
    fitting = [each for inner in cuts if fits(each := [0, *inner, times.pieces])]
    if not fitting:
        return
    borders = best_borders(times, n_stages, [0] * (times.pieces - 1), within)
    assert fits(borders)
    assert slowest(times, borders) <= min(slowest(times, f) for f in fitting) * (1 + 1e-9)


def test_of_equal_cuts_the_one_that_sends_least_is_taken():
    times = PieceTimes(np.arange(5.0), np.zeros(5))
    assert best_borders(times, 2, [5, 9, 1]) == [0, 2, 4]
    even = PieceTimes(np.array([0.0, 1, 1, 1, 2]), np.zeros(5))
    assert best_borders(even, 2, [5, 9, 1]) == [0, 3, 4]


def test_an_expensive_node_leaves_the_other_stages_even():
    seconds = [*[0.1] * 60, 20.0, *[0.1] * 120]
    times = PieceTimes(np.concatenate([[0.0], np.cumsum(seconds)]), np.full(182, 0.5))
    found = sorted(seconds_of(times, best_borders(times, 10, [1] * 180)))
    assert found[-1] == pytest.approx(20.5)
    # 18 seconds for nine stages.
    assert found[0] > 0.5 + 2 - 0.3 and found[-2] < 0.5 + 2 + 0.3


def test_stages_are_not_spent_on_cheap_nodes_before_an_expensive_one():
    seconds = [*[0.001] * 10, 5.0, *[1.0] * 20]
    times = PieceTimes(np.concatenate([[0.0], np.cumsum(seconds)]), np.array([0, *[0.5] * 30, 0]))
    borders = best_borders(times, 12, [1] * 10 + [9] * 20)
    assert sum(border < 11 for border in borders) <= 2


def test_of_about_equal_stages_the_one_that_sends_least_is_taken():
    times = PieceTimes(np.linspace(0, 4, 401), np.zeros(401))
    crossing = [9] * 399
    crossing[202 - 1] = 1
    slack = PieceTimes(np.concatenate([times.done, [7.0]]), np.zeros(402))  # the slowest takes 3
    borders = best_borders(slack, 3, [*crossing, 9])
    assert borders == [0, 202, 400, 401]


@settings(max_examples=100, deadline=None)
@given(piece_times())
def test_stages_are_nearly_as_even_as_any_that_are_as_fast(drawn):
    times, n_stages = drawn
    borders = best_borders(times, n_stages, [0] * (times.pieces - 1))
    ways = [
        [0, *inner, times.pieces]
        for inner in itertools.combinations(range(1, times.pieces), n_stages - 1)
    ]
    most = slowest(times, borders) * (1 + 1e-9)
    squares = [
        sum(second**2 for second in found)
        for way in ways
        if max(found := seconds_of(times, way)) <= most
    ]
    assert sum(s**2 for s in seconds_of(times, borders)) <= 4 * min(squares) + 1e-9


def test_ten_thousand_nodes_are_cut_quickly():
    rng = np.random.default_rng(0)
    times = PieceTimes(np.concatenate([[0.0], np.cumsum(rng.random(10_000))]), rng.random(10_001))
    borders = best_borders(times, 16, [0] * 9_999)
    assert slowest(times, borders) < 1.01 * (times.done[-1] / 16 + 1)


@pytest.mark.parametrize("n_stages", [1, 16, 500, 4000, 9999])
@pytest.mark.parametrize("longest", [0.0, 50.0])
def test_time_does_not_grow_with_the_stages(n_stages, longest):
    rng = np.random.default_rng(0)
    seconds = rng.random(10_000)
    seconds[3000] += longest
    times = PieceTimes(np.concatenate([[0.0], np.cumsum(seconds)]), rng.random(10_001))
    began = time.process_time()
    borders = best_borders(times, n_stages, [0] * 9_999)
    assert time.process_time() - began < 1  # 0.03 to 0.2 s where nothing else runs
    assert len(borders) == n_stages + 1
