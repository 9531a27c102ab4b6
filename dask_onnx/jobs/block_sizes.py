"""Rows of the blocks and runs of a job over arrays, where the caller leaves them open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.jobs.job_progress import JobProgress

_BLOCK_BYTES = 32 * 2**20
"""Bytes of input and output of a block, unless the workers are small."""
_BLOCKS_PER_THREAD = 4
"""Least number of blocks for each thread, so that all threads end at about the same time."""
_SHARE_OF_MEMORY = 16
"""Divisor of a thread's share of memory that gives the most bytes of a block."""
COUPLED_ROWS = 256
"""Rows of a run of a model whose rows are coupled, where the caller does not say: the results must
not depend on the size of the cluster."""


def coupled_rows(batch: BatchFacts, progress: JobProgress) -> int | None:
    """Return a fixed number of rows for a model whose results depend on it, with a warning.

    Parameters
    ----------
    batch : BatchFacts
    progress : JobProgress
        Receiver of the warning.
    """
    if not batch.coupled or not batch.is_proven or batch.fixed_rows is not None:
        return None
    progress.warn(
        f"{', '.join(batch.coupled[:3])} of this model quantise by a statistic over all rows of a "
        f"run, so that results depend on the batch size, which is {COUPLED_ROWS} since none was "
        "given"
    )
    return COUPLED_ROWS


def rows_of_block(
    rows: int,
    row_bytes: int,
    workers: Mapping[str, Any],
    batch_size: int | None,
    given: int | None,
) -> int:
    """Return the rows of a block: whole runs, little memory, and enough blocks for all threads.

    Parameters
    ----------
    rows : int
        Rows of the job.
    row_bytes : int
        Bytes of a row of the input and the output.
    workers : mapping of str to mapping
        The scheduler's records of the workers.
    batch_size : int or None
        Rows of a run; None where they are tuned.
    given : int or None
        Rows of a block that the caller has given.

    Raises
    ------
    InputError
        The rows that were given are no multiple of those of a run.
    """
    threads = max(1, sum(worker["nthreads"] for worker in workers.values()))
    share: float = min(
        (w["memory_limit"] / w["nthreads"] for w in workers.values() if w["memory_limit"]),
        default=math.inf,
    )
    by_memory = min(_BLOCK_BYTES, share / _SHARE_OF_MEMORY) / max(row_bytes, 1)
    by_threads = math.ceil(rows / (threads * _BLOCKS_PER_THREAD))
    step = batch_size or 1
    if given is not None:
        if given % step:
            raise InputError(
                f"block_rows is {given}, which is no multiple of the {step} rows of a run",
                "give a multiple of batch_size",
                option="block_rows",
                numbers={"block_rows": given, "batch_size": step},
                suggestions=[Suggestion("block_rows", -(-given // step) * step)],
            )
        return given
    runs: int = max(1, math.floor(min(by_memory, by_threads) / step))
    return runs * step
