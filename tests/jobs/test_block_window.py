"""Many blocks with a bounded number in flight, in order, and without those that are complete."""

from __future__ import annotations

import pytest
from distributed import Client, LocalCluster

from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.job_progress import JobProgress


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


class Steps(JobProgress):
    def __init__(self):
        self.steps = []

    def advanced(self, done, total, unit):
        self.steps.append((done, total, unit))


def work_of(client, count, **options):
    """Work whose blocks return their positions; with the parts that were submitted."""
    parts = []

    def submit(part):
        parts.append(part)
        return client.map(int, list(part), pure=False)

    given = {"units_of": lambda _: 2, "unit": "rows", "is_done": lambda _: False} | options
    return BlockWork(count=count, submit=submit, **given), parts


def test_blocks_start_in_order_and_few_at_a_time(client):
    found, most = [], 0
    progress = Steps()
    work, parts = work_of(client, 1000, collect=found.append)

    def submit(part):
        nonlocal most
        futures = work.submit(part)
        most = max(most, part.stop - len(found))
        return futures

    limited = BlockWork(1000, submit, work.units_of, "rows", work.is_done, collect=found.append)
    assert compute_blocks(client, limited, progress) == 1000
    assert sorted(found) == list(range(1000))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert most <= 2 * 256 and max(map(len, parts)) <= 256 and len(parts) > 4
    assert progress.steps[0] == (0, 2000, "rows") and progress.steps[-1] == (2000, 2000, "rows")


def test_blocks_that_are_complete_are_left_out_and_count_as_progress(client):
    found, progress = [], Steps()
    done = {0, 1, 5, 7, 8, 9}
    work, parts = work_of(client, 12, is_done=done.__contains__, collect=found.append)
    assert compute_blocks(client, work, progress) == 6
    assert sorted(found) == [2, 3, 4, 6, 10, 11]
    assert [list(part) for part in parts] == [[2, 3, 4], [6], [10, 11]]
    assert progress.steps[0] == (12, 24, "rows") and progress.steps[-1] == (24, 24, "rows")


def test_nothing_is_started_where_everything_is_complete(client):
    work, parts = work_of(client, 5, is_done=lambda _: True)
    assert compute_blocks(client, work, JobProgress()) == 0 and parts == []


def test_an_error_of_a_block_ends_the_work_and_no_more_is_started(client):
    def submit(part):
        parts.append(part)
        return client.map(lambda block: 1 // (block - 20), list(part), pure=False)

    parts = []
    work, _ = work_of(client, 5000)
    failing = BlockWork(5000, submit, work.units_of, "rows", work.is_done)
    with pytest.raises(ZeroDivisionError):
        compute_blocks(client, failing, JobProgress())
    assert parts[-1].stop < 5000
