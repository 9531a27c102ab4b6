"""Rates of runs from the times of their blocks."""

from __future__ import annotations

import pytest

from dask_onnx.jobs.run_status import RunStatus, rate_of


@pytest.mark.parametrize(
    ("times", "rows", "expected"),
    [
        ([], [], None),
        ([5.0], [4], None),
        ([5.0, 5.0], [4, 4], None),
        ([0.0, 1.0, 2.0], [9, 4, 6], 5.0),
        # A night between two runs does not count.
        ([0.0, 1.0, 40_000.0, 40_001.0, 40_002.0], [9, 4, 6, 2, 4], 3.0),
        # Slow blocks are no pause.
        ([0.0, 300.0, 600.0], [9, 30, 30], 0.1),
    ],
)
def test_the_rate_is_that_of_the_latest_run(times, rows, expected):
    assert rate_of(times, rows) == expected


def test_the_time_that_is_left_follows_from_rows_or_else_from_blocks():
    running = RunStatus("/y.npy", "running", 5, 20, 50, 200, rate=10.0)
    assert running.rows_left == 150 and running.seconds_left == 15.0
    unknown = RunStatus("/y.parquet", "running", 5, 20, 50, None, rate=10.0)
    assert unknown.rows_left is None and unknown.seconds_left == 15.0
    assert RunStatus("/y.npy", "ended", 5, 20, 50, 200, rate=10.0).seconds_left is None
