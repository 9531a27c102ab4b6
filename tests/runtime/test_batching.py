from __future__ import annotations

import numpy as np
import pytest
from dask.sizeof import sizeof

from dask_onnx.core.errors import InputError
from dask_onnx.runtime.batching import Batching, Runs, cut_rows, join, keep_apart

ROWS = np.arange(14).reshape(7, 2)


def run_all(values, axes, batching, function=lambda *feeds: feeds[0] * 10, axis=0):
    cut = cut_rows(values, axes, batching)
    pieces = [function(*feeds) for feeds in cut.feeds]
    return pieces, join(pieces, axis, cut), keep_apart(pieces, cut)


@pytest.mark.parametrize("per_run", [None, 1, 2, 3, 7, 100])
def test_pieces_join_to_the_whole(per_run):
    pieces, joined, _ = run_all([ROWS], [0], Batching(per_run))
    np.testing.assert_array_equal(joined, ROWS * 10)
    assert len(pieces) == -(-7 // min(per_run or 7, 7))


def test_one_run_of_all_rows_is_not_copied():
    cut = cut_rows([ROWS], [0], Batching(None))
    assert cut.feeds[0][0] is ROWS
    assert keep_apart([ROWS], cut) is ROWS


def test_pieces_are_views():
    cut = cut_rows([ROWS], [0], Batching(2))
    assert all(np.shares_memory(feeds[0], ROWS) for feeds in cut.feeds)


def test_a_fixed_size_is_filled_up_and_trimmed():
    pieces, joined, apart = run_all([ROWS], [0], Batching(4, is_fixed=True))
    assert [len(piece) for piece in pieces] == [4, 4]
    np.testing.assert_array_equal(joined, ROWS * 10)
    assert apart.rows == 7


@pytest.mark.parametrize("fixed", [None, 3])
def test_no_rows_give_no_rows_of_the_right_shape(fixed):
    batching = Batching(fixed, is_fixed=fixed is not None)
    _, joined, _ = run_all(
        [ROWS[:0].astype("f4")], [0], batching, lambda x: x @ np.ones((2, 5), "f4")
    )
    assert joined.shape == (0, 5)
    assert joined.dtype == np.float32


def test_no_rows_of_strings_work_too():
    _, joined, _ = run_all([np.empty((0, 2), object)], [0], Batching(None), lambda x: x)
    assert joined.shape == (0, 2)


def test_rows_may_stand_on_another_axis():
    state = ROWS.T.copy()
    _, joined, _ = run_all([state], [1], Batching(3), axis=1)
    np.testing.assert_array_equal(joined, state * 10)


def test_what_has_no_rows_goes_to_every_run():
    scale = np.array(3)
    cut = cut_rows([ROWS, scale], [0, None], Batching(2))
    assert all(feeds[1] is scale for feeds in cut.feeds)


def test_pieces_go_on_to_the_next_stage_as_they_are():
    cut = cut_rows([ROWS], [0], Batching(3))
    between = keep_apart([feeds[0] for feeds in cut.feeds], cut)
    assert isinstance(between, Runs)
    later = cut_rows([between, ROWS], [None, 0], Batching(3))
    for first, second in later.feeds:
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(join([a for a, _ in later.feeds], 0, later), ROWS)


def test_results_whose_size_depends_on_data_are_not_trimmed():
    cut = cut_rows([ROWS], [0], Batching(3))
    many = [np.repeat(feeds[0], 4, axis=0) for feeds in cut.feeds]
    assert join(many, 0, cut).shape == (28, 2)


def test_different_numbers_of_rows_are_an_error():
    with pytest.raises(InputError, match="5 and 7 rows"):
        cut_rows([ROWS, ROWS[:5]], [0, 0], Batching(None))


def test_dask_sees_the_bytes_of_the_pieces():
    runs = Runs((np.zeros(1000), np.zeros(500)), 2, False)
    assert sizeof(runs) >= 12000
