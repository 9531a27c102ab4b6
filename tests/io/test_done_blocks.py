"""Blocks that are complete: a collection of names that takes a few bytes for each block."""

from __future__ import annotations

import tracemalloc

import pytest

from dask_onnx.io.block_journal import DoneBlock
from dask_onnx.io.done_blocks import DoneBlocks

FOUND = [
    DoneBlock("7", (5, 1), 30.0),
    DoneBlock("2", (5, 0), 10.0),
    DoneBlock("000003-000001", (4, 0), 40.0),
    DoneBlock("000003-000000", (4, 1), 20.0),
    DoneBlock("000002-000000", (5, 0), 5.0),
    DoneBlock("7", (6, 1), 35.0),
]


def test_names_counts_and_pieces_are_those_of_the_records_and_the_last_record_counts():
    done = DoneBlocks.of(FOUND)
    assert set(done) == {"2", "7", "000003-000000", "000003-000001"} and len(done) == 4
    assert all(name in done for name in done)
    assert "3" not in done and "000002-000000" not in done and 7 not in done
    assert done.totals() == [11, 1] and done.rows == 19
    assert [done.mask()[block] for block in range(8)] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert {place: each.counts for place, each in done.pieces[3].items()} == {0: (4, 1), 1: (4, 0)}


def test_only_keeps_blocks_and_pieces_by_name():
    done = DoneBlocks.of(FOUND).only({"7", "000003-000001"})
    assert set(done) == {"7", "000003-000001"} and done.totals() == [6, 1]
    assert not DoneBlocks.of(FOUND).only(set())


def test_nothing_is_an_empty_collection():
    done = DoneBlocks.of([])
    assert not done and list(done) == [] and done.mask() == b"" and done.totals() == [0]
    assert done.rows == 0 and done.latest(10) == ([], [])


@pytest.mark.parametrize(
    ("count", "since", "expected"),
    [
        (9, -1.0, ([10.0, 20.0, 35.0, 40.0], [5, 4, 6, 4])),
        (2, -1.0, ([35.0, 40.0], [6, 4])),
        (9, 20.0, ([20.0, 35.0, 40.0], [4, 6, 4])),
    ],
)
def test_the_latest_are_those_of_blocks_and_pieces_by_time(count, since, expected):
    assert DoneBlocks.of(FOUND).latest(count, since) == expected


def test_many_blocks_take_few_bytes():
    tracemalloc.start()
    done = DoneBlocks.of(DoneBlock(str(i), (1,), 1.0) for i in range(100_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(done) == 100_000 and held < 40 * 100_000
