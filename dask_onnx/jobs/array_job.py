"""Jobs over arrays and pictures: rows are read, predicted and written block by block."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, Future, futures_of

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.collections.row_checks import unproven
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.file_job import (
    NamedFunction,
    WriteBlock,
    apply_post,
    output_specs,
    read_blocks,
    write_blocks,
)
from dask_onnx.io.sinks import OutputSpec, Sink
from dask_onnx.io.sources import FileArray
from dask_onnx.jobs.job_progress import JobProgress, block_result, wait_for
from dask_onnx.jobs.job_result import FilePrediction

_BLOCK_BYTES = 32 * 2**20
"""Bytes of input and output of a block, unless the workers are small."""
_BLOCKS_PER_THREAD = 4
"""Least number of blocks for each thread, so that all threads end at about the same time."""
_SHARE_OF_MEMORY = 16
"""Divisor of a thread's share of memory that gives the most bytes of a block."""
_COUPLED_ROWS = 256
"""Rows of a run of a model whose rows are coupled, where the caller does not say: the results must
not depend on the size of the cluster."""
_LESS_MEMORY = (Suggestion("batch_size"), Suggestion("worker_memory_limit"))


@dataclass(frozen=True, slots=True)
class ArrayJob:
    """A prediction over arrays, opened and checked but not started."""

    model: Model
    plan: Plan
    source: Mapping[str, FileArray]
    """Arrays by input name; ``{"": array}`` for one array without a name."""
    sink: Sink
    pre: NamedFunction | None
    post: NamedFunction | None
    retries: int
    batch_size: int | None
    """Rows of a run; None where they are tuned."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are written."""
        return tuple(spec.name for spec in self.plan.stage_graph.outputs)

    @property
    def result_name(self) -> str:
        """Name of a result of `post` that is an array rather than a mapping."""
        return self.outputs[0] if len(self.outputs) == 1 else "result"

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return next(iter(self.source.values())).shape[0]

    def check(self) -> None:
        """Compare the arrays with the model, as far as that is possible before anything runs.

        Raises
        ------
        InputError
            An array does not fit the model.
        """
        if self.pre is None:
            # With `pre`, the model's input is known only after it has run on a worker.
            self.model.check(_bare(self.source), outputs=list(self.outputs))

    def run(self, client: Client, progress: JobProgress) -> FilePrediction:
        """Check the job on the workers, run it, and write the result.

        Raises
        ------
        InputError
            A worker cannot read or write the files or import the functions; the first rows do not
            fit the model, the output or `pre`; rows would be cut that are not proven independent.
        StageError
            Workers died while they ran a block.
        """
        return _run(self, client, progress)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Specs of values that running the first rows on a worker found."""

    inputs: dict[str, OutputSpec]
    """Inputs of the model; ``{"": spec}`` for one array without a name."""
    constants: dict[str, Any]
    """Inputs without rows that `pre` returned, which every block shares."""
    outputs: tuple[OutputSpec, ...]


def _run(job: ArrayJob, client: Client, progress: JobProgress) -> FilePrediction:
    _check_workers(job, client)
    probed = _probe(job, client)
    job.sink.check_outputs(probed.outputs)
    batch = _batch_of(job)
    batch_size = job.batch_size
    if batch_size is None:
        batch_size = _coupled_rows(batch, progress)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    block_rows = _block_rows(job, probed, workers, batch_size)
    if not batch.is_proven:
        if batch_size is not None:
            raise unproven(batch, f"batch_size is {batch_size}")
        progress.warn(f"all {job.rows:,} rows are one block: {batch.blockers[0]}")
        block_rows = job.rows
    began = time.perf_counter()
    job.sink.prepare(job.rows, block_rows, probed.outputs)
    futures: list[Future] = []
    try:
        lazy = _build(job, probed, block_rows, batch_size)
        futures = futures_of(client.persist(lazy, retries=job.retries))
        sizes = {
            future.key: min(block_rows, job.rows - number * block_rows)
            for number, future in enumerate(futures)
        }
        wait_for(futures, sizes, "rows", progress, _LESS_MEMORY)
        job.sink.finish()
    except BaseException:
        # Also on Ctrl-C: an incomplete output must not look like a result.
        progress.stopping()
        client.cancel(futures, force=True)
        job.sink.discard()
        raise
    return FilePrediction(
        files=(job.sink.target,),
        seconds=time.perf_counter() - began,
        workers=len(workers),
        blocks=len(futures),
        rows=job.rows,
        block_rows=block_rows,
        batch_size=batch_size or "auto",
    )


def _bare(values: Mapping[str, Any]) -> Any:
    """Return the one value without a name itself, and named values as they are."""
    return values[""] if set(values) == {""} else values


def _check_workers(job: ArrayJob, client: Client) -> None:
    """Let every worker look at input, output folder and functions, before any work starts."""
    files = tuple(
        {f for array in job.source.values() for f in (*array.files[:1], *array.files[-1:])}
    )
    functions = tuple(f for f in (job.pre, job.post) if f is not None)
    found = client.run(_worker_problems, files, job.sink, functions, on_error="return")
    for worker, problems in found.items():
        if isinstance(problems, Exception):
            raise InputError(
                f"the files and functions cannot be checked on worker {worker}: {problems}",
                "install the same version of dask_onnx on every worker",
                reason=str(problems),
            )
        if problems:
            raise InputError(
                f"worker {worker}: {problems[0]}",
                "use a path that is the same on the client and on every worker",
                reason=problems[0],
            )


def _worker_problems(
    files: Sequence[Any], sink: Sink, functions: Sequence[NamedFunction]
) -> list[str]:
    problems = [file.problem() for file in files] + [sink.problem()]
    for function in functions:
        try:
            function.resolve()
        except InputError as error:
            problems.append(error.cause)
    return [problem for problem in problems if problem]


def _probe(job: ArrayJob, client: Client) -> ProbeResult:
    rows = min(job.rows, job.model.analysis.batch.fixed_rows or 1)
    key = f"probe-{time.time_ns()}"
    future = client.submit(probe_rows, job, rows, key=key, pure=False, retries=job.retries)
    result: ProbeResult | InputError = block_result(future, _LESS_MEMORY)
    if isinstance(result, InputError):
        raise result
    return result


def probe_rows(job: ArrayJob, rows: int) -> ProbeResult | InputError:
    """Run the first rows on a worker through all steps but the writing.

    An InputError is returned rather than raised, since Dask would repeat a task that raises.
    """
    try:
        return _probe_rows(job, rows)
    except InputError as error:
        return error


def _probe_rows(job: ArrayJob, rows: int) -> ProbeResult:
    given = _bare({name: array.read_rows(0, rows) for name, array in job.source.items()})
    prepared = given if job.pre is None else job.pre.resolve()(given)
    values = prepared if isinstance(prepared, Mapping) else {"": prepared}
    arrays = {name: np.asarray(value) for name, value in values.items()}
    for name, array in arrays.items():
        if array.ndim and array.shape[0] != rows:
            raise InputError(
                f"pre returned {array.shape[0]} rows for {rows} rows of input {name!r}",
                "return a row for each row of the block",
                option="pre",
                input=name,
                numbers={"rows": rows, "returned_rows": array.shape[0]},
            )
    results = job.model(_bare(arrays), outputs=list(job.outputs))
    found = [results[name] for name in job.outputs]
    outputs = apply_post(job.post, job.outputs, found, job.result_name)
    with_rows = {name: array for name, array in arrays.items() if array.ndim}
    return ProbeResult(
        inputs={spec.name: spec for spec in output_specs(with_rows)},
        constants={name: array for name, array in arrays.items() if not array.ndim},
        outputs=output_specs(outputs),
    )


def _batch_of(job: ArrayJob) -> BatchFacts:
    """Return what carries rows, at the shapes of the files unless `pre` changes these."""
    if job.pre is not None:
        return job.model.analysis.batch
    names = {spec.name for spec in job.model.inputs}
    bare = next(iter(names)) if len(names) == 1 else ""
    shapes = {name or bare: array.shape for name, array in job.source.items()}
    return job.model._facts.batch_at(job.outputs, shapes)


def _coupled_rows(batch: BatchFacts, progress: JobProgress) -> int | None:
    """Return a fixed number of rows for a model whose results depend on it, with a warning."""
    if not batch.coupled or not batch.is_proven or batch.fixed_rows is not None:
        return None
    progress.warn(
        f"{', '.join(batch.coupled[:3])} of this model quantise by a statistic over all rows of a "
        f"run, so that results depend on the batch size, which is {_COUPLED_ROWS} since none was "
        "given"
    )
    return _COUPLED_ROWS


def _block_rows(
    job: ArrayJob, probed: ProbeResult, workers: Mapping[str, Any], batch_size: int | None
) -> int:
    """Return the rows of a block: whole runs, little memory, and enough blocks for all threads."""
    row_bytes = sum(array.row_bytes for array in job.source.values())
    row_bytes += sum(spec.row_bytes for spec in probed.inputs.values() if job.pre is not None)
    row_bytes += sum(spec.row_bytes for spec in probed.outputs)
    threads = max(1, sum(worker["nthreads"] for worker in workers.values()))
    share: float = min(
        (w["memory_limit"] / w["nthreads"] for w in workers.values() if w["memory_limit"]),
        default=math.inf,
    )
    by_memory = min(_BLOCK_BYTES, share / _SHARE_OF_MEMORY) / max(row_bytes, 1)
    by_threads = math.ceil(job.rows / (threads * _BLOCKS_PER_THREAD))
    step = batch_size or 1
    runs: int = max(1, math.floor(min(by_memory, by_threads) / step))
    return runs * step


def _build(job: ArrayJob, probed: ProbeResult, block_rows: int, batch_size: int | None) -> da.Array:
    """Return the lazy work of all blocks."""
    arrays: dict[str, Any] = {
        **read_blocks(job.source, block_rows, job.pre, probed.inputs),
        **probed.constants,
    }
    results = job.model.predict(
        _bare(arrays),
        outputs=list(job.outputs),
        batch_size=batch_size or "auto",
        plan=job.plan,
        retries=job.retries,
    )
    write = WriteBlock(job.sink, job.outputs, job.post, job.result_name)
    return write_blocks(results, block_rows, job.rows, write)
