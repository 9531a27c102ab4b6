from __future__ import annotations

import numpy as np
import pytest
from dask.sizeof import sizeof

from dask_onnx.core.errors import InputError
from dask_onnx.runtime.batching import Batching, MicroBatches, join, keep_split, split_rows

ROWS = np.arange(14).reshape(7, 2)


def run_all(values, axes, batching, function=lambda *feeds: feeds[0] * 10, axis=0):
    split = split_rows(values, axes, batching)
    pieces = [function(*feeds) for feeds in split.feeds]
    return pieces, join(pieces, axis, split), keep_split(pieces, split)


@pytest.mark.parametrize("per_run", [None, 1, 2, 3, 7, 100])
def test_pieces_join_to_the_whole(per_run):
    pieces, joined, _ = run_all([ROWS], [0], Batching(per_run))
    np.testing.assert_array_equal(joined, ROWS * 10)
    assert len(pieces) == -(-7 // min(per_run or 7, 7))


def test_one_run_of_all_rows_is_not_copied():
    split = split_rows([ROWS], [0], Batching(None))
    assert split.feeds[0][0] is ROWS
    assert keep_split([ROWS], split) is ROWS


def test_pieces_are_views():
    split = split_rows([ROWS], [0], Batching(2))
    assert all(np.shares_memory(feeds[0], ROWS) for feeds in split.feeds)


def test_a_fixed_size_is_padded_and_trimmed():
    pieces, joined, split = run_all([ROWS], [0], Batching(4, is_fixed=True))
    assert [len(piece) for piece in pieces] == [4, 4]
    np.testing.assert_array_equal(joined, ROWS * 10)
    assert split.rows == 7


@pytest.mark.parametrize("fixed", [None, 3])
def test_no_rows_give_no_rows_of_the_right_shape(fixed):
    batching = Batching(fixed, is_fixed=fixed is not None)
    _, joined, _ = run_all(
        [ROWS[:0].astype("f4")], [0], batching, lambda x: x @ np.ones((2, 5), "f4")
    )
    assert joined.shape == (0, 5)
    assert joined.dtype == np.float32


def test_no_rows_of_strings_give_no_rows():
    _, joined, _ = run_all([np.empty((0, 2), object)], [0], Batching(None), lambda x: x)
    assert joined.shape == (0, 2)


def test_rows_may_be_on_another_axis():
    state = ROWS.T.copy()
    _, joined, _ = run_all([state], [1], Batching(3), axis=1)
    np.testing.assert_array_equal(joined, state * 10)


def test_an_input_without_rows_goes_to_every_run():
    scale = np.array(3)
    split = split_rows([ROWS, scale], [0, None], Batching(2))
    assert all(feeds[1] is scale for feeds in split.feeds)


def test_micro_batches_reach_the_next_stage_as_they_are():
    split = split_rows([ROWS], [0], Batching(3))
    between = keep_split([feeds[0] for feeds in split.feeds], split)
    assert isinstance(between, MicroBatches)
    later = split_rows([between, ROWS], [None, 0], Batching(3))
    for first, second in later.feeds:
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(join([a for a, _ in later.feeds], 0, later), ROWS)


def test_results_whose_size_depends_on_data_are_not_trimmed():
    split = split_rows([ROWS], [0], Batching(3))
    many = [np.repeat(feeds[0], 4, axis=0) for feeds in split.feeds]
    assert join(many, 0, split).shape == (28, 2)


def test_different_numbers_of_rows_are_an_error():
    with pytest.raises(InputError) as caught:
        split_rows([ROWS, ROWS[:5]], [0, 0], Batching(None))
    assert caught.value.numbers == {"fewest_rows": 5, "most_rows": 7}


def test_dask_sees_the_bytes_of_the_pieces():
    runs = MicroBatches((np.zeros(1000), np.zeros(500)), 2, False)
    assert sizeof(runs) >= 12000
