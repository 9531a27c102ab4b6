"""Numbers of chunks that one task computes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dask_onnx.planning.chunk_groups import (
    SCHEDULER_SECONDS_PER_TASK,
    ChunkGroups,
    grouping_reason,
    groups_for,
)
from dask_onnx.planning.resources import Cluster, Overhead

LARGE = Cluster(workers=256, threads=1, memory_limit=math.inf)


def test_tasks_are_long_enough_for_the_scheduler_of_a_large_cluster():
    measured = replace(LARGE, overhead=Overhead(scheduler_seconds_per_task=5e-4))
    groups = groups_for(measured)
    assert groups.least_seconds == pytest.approx(256 * 5e-4 / 0.5)
    # Tasks of three chunks of 100 ms on 256 threads are 853 a second: 0.43 s of the scheduler's.
    assert groups.size(100_000, 0.1) == 3
    assert groups.size(100_000, 0.3) == 1
    assert groups_for(LARGE).least_seconds == 256 * SCHEDULER_SECONDS_PER_TASK / 0.5


def test_workers_keep_several_tasks_each():
    groups = groups_for(LARGE)
    assert groups.size(100_000, 1e-6) == 100_000 // (8 * 256)
    assert groups.size(8 * 256, 1e-6) == 1
    assert groups.size(0, 0.0) == 1 and groups.size(10**6, 0.0) > 1


def test_few_workers_need_no_groups():
    few = Cluster(workers=2, threads=1, memory_limit=math.inf)
    assert not groups_for(few).applies_to(0.1)
    assert groups_for(replace(few, is_local=True)) is None


@pytest.mark.parametrize(("asked", "chunks", "size"), [(1, 9, 1), (4, 9, 4), (20, 9, 9), (3, 0, 1)])
def test_a_number_that_was_asked_for_is_kept(asked, chunks, size):
    assert ChunkGroups(asked).size(chunks, 100.0) == size


def test_the_reason_has_the_numbers():
    reason = grouping_reason(groups_for(LARGE), LARGE, 0.1)
    assert "409.6 ms" in reason and "up to 5" in reason and "256 threads" in reason
    assert "800 us" in reason and "assumed" in reason
    known = replace(LARGE, overhead=Overhead(scheduler_seconds_per_task=1e-3))
    assert "measured" in grouping_reason(groups_for(known), known, 0.0)
