"""Borders of contiguous stages: the slowest as fast as can be, the others even."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_onnx.planning.borders import Load, best_borders


def seconds_of(load, borders):
    """Of each stage, with what it takes to receive its values."""
    return [load.done[b] - load.done[a] + load.arriving[a] for a, b in itertools.pairwise(borders)]


def slowest(load, borders):
    return max(seconds_of(load, borders))


@st.composite
def loads(draw):
    count = draw(st.integers(1, 9))
    times = st.one_of(st.just(0.0), st.floats(0.001, 10))
    seconds = draw(st.lists(times, min_size=count, max_size=count))
    arriving = draw(st.lists(st.floats(0, 3), min_size=count + 1, max_size=count + 1))
    load = Load(np.concatenate([[0.0], np.cumsum(seconds)]), np.asarray(arriving))
    return load, draw(st.integers(1, count))


@settings(max_examples=200, deadline=None)
@given(loads())
def test_no_other_borders_are_better(given_load):
    load, n_stages = given_load
    borders = best_borders(load, n_stages, [0] * (load.pieces - 1))
    assert borders[0] == 0 and borders[-1] == load.pieces and len(borders) == n_stages + 1
    assert all(a < b for a, b in itertools.pairwise(borders))
    best = min(
        slowest(load, [0, *inner, load.pieces])
        for inner in itertools.combinations(range(1, load.pieces), n_stages - 1)
    )
    assert slowest(load, borders) <= best * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(loads(), st.data())
def test_borders_keep_within_the_memory(given_load, data):
    load, n_stages = given_load
    bytes_ = data.draw(st.lists(st.integers(0, 50), min_size=load.pieces, max_size=load.pieces))
    limit = data.draw(st.integers(30, 120))
    within = np.array(
        [
            max(b for b in range(a, load.pieces + 1) if sum(bytes_[a:b]) <= limit)
            for a in range(load.pieces + 1)
        ]
    )

    def fits(borders):
        return all(b <= within[a] for a, b in itertools.pairwise(borders))

    cuts = itertools.combinations(range(1, load.pieces), n_stages - 1)
    fitting = [each for inner in cuts if fits(each := [0, *inner, load.pieces])]
    if not fitting:
        return
    borders = best_borders(load, n_stages, [0] * (load.pieces - 1), within)
    assert fits(borders)
    assert slowest(load, borders) <= min(slowest(load, f) for f in fitting) * (1 + 1e-9)


def test_of_equal_cuts_the_one_that_sends_least_is_taken():
    load = Load(np.arange(5.0), np.zeros(5))
    assert best_borders(load, 2, [5, 9, 1]) == [0, 2, 4]
    even = Load(np.array([0.0, 1, 1, 1, 2]), np.zeros(5))
    assert best_borders(even, 2, [5, 9, 1]) == [0, 3, 4]


def test_a_dear_node_leaves_the_other_stages_even():
    seconds = [*[0.1] * 60, 20.0, *[0.1] * 120]
    load = Load(np.concatenate([[0.0], np.cumsum(seconds)]), np.full(182, 0.5))
    times = sorted(seconds_of(load, best_borders(load, 10, [1] * 180)))
    assert times[-1] == pytest.approx(20.5)
    # 18 seconds for nine stages.
    assert times[0] > 0.5 + 2 - 0.3 and times[-2] < 0.5 + 2 + 0.3


def test_stages_are_not_spent_on_next_to_nothing_before_a_dear_node():
    seconds = [*[0.001] * 10, 5.0, *[1.0] * 20]
    load = Load(np.concatenate([[0.0], np.cumsum(seconds)]), np.array([0, *[0.5] * 30, 0]))
    borders = best_borders(load, 12, [1] * 10 + [9] * 20)
    assert sum(border < 11 for border in borders) <= 2


def test_of_about_equal_stages_the_one_that_sends_least_is_taken():
    load = Load(np.linspace(0, 4, 401), np.zeros(401))
    crossing = [9] * 399
    crossing[202 - 1] = 1
    slack = Load(np.concatenate([load.done, [7.0]]), np.zeros(402))  # the slowest takes 3
    borders = best_borders(slack, 3, [*crossing, 9])
    assert borders == [0, 202, 400, 401]


@settings(max_examples=100, deadline=None)
@given(loads())
def test_stages_are_nearly_as_even_as_any_that_are_as_fast(given_load):
    load, n_stages = given_load
    borders = best_borders(load, n_stages, [0] * (load.pieces - 1))
    ways = [
        [0, *inner, load.pieces]
        for inner in itertools.combinations(range(1, load.pieces), n_stages - 1)
    ]
    most = slowest(load, borders) * (1 + 1e-9)
    squares = [
        sum(second**2 for second in times)
        for way in ways
        if max(times := seconds_of(load, way)) <= most
    ]
    assert sum(s**2 for s in seconds_of(load, borders)) <= 4 * min(squares) + 1e-9


def test_ten_thousand_nodes_are_cut_quickly():
    rng = np.random.default_rng(0)
    load = Load(np.concatenate([[0.0], np.cumsum(rng.random(10_000))]), rng.random(10_001))
    borders = best_borders(load, 16, [0] * 9_999)
    assert slowest(load, borders) < 1.01 * (load.done[-1] / 16 + 1)


@pytest.mark.parametrize("n_stages", [1, 16, 500, 4000, 9999])
@pytest.mark.parametrize("dearest", [0.0, 50.0])
def test_time_does_not_grow_with_the_stages(n_stages, dearest):
    rng = np.random.default_rng(0)
    seconds = rng.random(10_000)
    seconds[3000] += dearest
    load = Load(np.concatenate([[0.0], np.cumsum(seconds)]), rng.random(10_001))
    began = time.process_time()
    borders = best_borders(load, n_stages, [0] * 9_999)
    assert time.process_time() - began < 1  # 0.03 to 0.2 s where nothing else runs
    assert len(borders) == n_stages + 1
