"""The strip of a schedule shows where the work is, whatever share of the time it is."""

from __future__ import annotations

import pytest

from dask_onnx.diagnostics.stage_tables import timetable
from dask_onnx.planning.timeline import Span, Timeline


def course(seconds, every, batches=8, workers=2):
    """Return a timeline in which each worker is at work for `seconds` of every `every`."""
    spans = [
        Span(worker, chunk, worker, start := (chunk + worker) * every, start + seconds)
        for chunk in range(batches)
        for worker in range(workers)
    ]
    return Timeline(tuple(spans), workers)


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-2, 0.4, 1.0])
def test_every_micro_batch_is_in_the_line_of_each_worker(seconds):
    for line in timetable(course(seconds, every=1.0)):
        cells = line.split("  ")[1]
        assert set("01234567") <= set(cells)


def test_a_worker_that_waits_has_dots_where_it_waits():
    lines = timetable(course(1.0, every=1.0))
    assert lines[1].split("  ")[1].startswith(".")
    assert lines[0].split("  ")[1].endswith(".")
    sparse = timetable(course(0.001, every=1.0))[0].split("  ")[1]
    assert sparse.count(".") > len(sparse) / 2


def test_a_worker_with_little_work_beside_a_busy_one_is_shown_too():
    spans = [Span(0, i, 0, i, i + 1.0) for i in range(8)]
    spans += [Span(1, i, 1, i + 1.0, i + 1.001) for i in range(8)]
    busy, idle = timetable(Timeline(tuple(spans), 2))
    assert set("01234567") <= set(busy) and set("01234567") <= set(idle)


def test_a_timeline_without_work_is_all_dots():
    assert timetable(Timeline((), 1)) == ["worker 0  " + "." * 64]
