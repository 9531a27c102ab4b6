"""Blocks of a job start in their order, whatever their keys are."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from dask.delayed import delayed
from job_steps import predict

from dask_onnx.io.sinks import NpySink
from dask_onnx.jobs.block_graph import BlockGraph

BLOCKS = 30


def test_ranks_follow_the_blocks_and_a_task_comes_after_what_it_needs():
    shared = delayed(lambda: 1, pure=False)()
    lazy = [delayed(lambda a, b: a, pure=False)(shared, delayed(str)(i)) for i in range(12)]
    graph = BlockGraph.of(lazy, first=100)
    ranks = graph.ranks()
    assert set(ranks) == set(graph.tasks)
    assert [int(ranks[key]) for key in graph.keys] == list(range(100, 112))
    for key, task in graph.tasks.items():
        assert all(ranks[each] < ranks[key] for each in task.dependencies)
    assert int(ranks[shared.key]) == 100


def test_a_part_has_the_ranks_of_its_place_and_only_what_it_needs():
    array = da.from_array(np.arange(40), chunks=2).map_overlap(np.copy, 1, boundary=0)
    graph = BlockGraph.of([array])
    part = graph.part(range(5, 8))
    ranks = part.ranks()
    assert [int(ranks[key]) for key in part.keys] == [5, 6, 7] and part.keys == graph.keys[5:8]
    assert len(ranks) < len(graph.tasks) and min(ranks.values()) >= 5


@pytest.mark.parametrize("block_rows", [1, 2])
def test_the_blocks_of_a_job_are_written_in_order(one_thread, tmp_path, monkeypatch, block_rows):
    written = []
    write = NpySink.write

    def noted(self, block, *others):
        written.append(block)
        return write(self, block, *others)

    monkeypatch.setattr(NpySink, "write", noted)
    np.save(tmp_path / "x.npy", np.zeros((BLOCKS * block_rows, 8), np.float32))
    options = {"block_rows": block_rows, "batch_size": block_rows}
    predict(tmp_path / "x.npy", tmp_path / "y.npy", one_thread, **options)
    assert written == list(range(BLOCKS))
