"""Jobs over arrays and pictures: rows are read, predicted and written block by block."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.collections.grouped_chunks import chunks_kept
from dask_onnx.collections.output_forms import as_row_arrays
from dask_onnx.collections.row_checks import unproven
from dask_onnx.core.errors import DaskOnnxError, InputError, StageError, Suggestion
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.io.file_job import (
    WriteBlock,
    apply_post,
    described,
    output_specs,
    read_blocks,
    write_blocks,
)
from dask_onnx.io.row_slices import rows_of
from dask_onnx.io.run_manifest import RunManifest
from dask_onnx.io.sinks import OutputSpec, Sink
from dask_onnx.io.sources import FileArray
from dask_onnx.jobs.block_graph import BlockGraph
from dask_onnx.jobs.block_sizes import COUPLED_ROWS, coupled_rows, rows_of_block
from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.job_manifests import (
    array_identities,
    function_identity,
    job_manifest,
    spec_facts,
)
from dask_onnx.jobs.job_progress import JobProgress, block_result
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.job_shards import Shard
from dask_onnx.jobs.resumable_run import ResumableRun
from dask_onnx.jobs.watched_model import ModelWatch
from dask_onnx.jobs.worker_checks import check_workers

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
    block_rows: int | None = None
    """Rows of a block; None where they follow from the cluster."""
    watch: ModelWatch | None = None
    """Model file that is looked at while the job runs; None for a model that stays as it is."""
    shard: Shard | None = None
    """The part of the rows that is predicted; None for all of them."""

    def at(self, block: int) -> ArrayJob:
        """Return the job with the model of the blocks from one on."""
        model = self.model if self.watch is None else self.watch.at(block)
        if model is self.model:
            return self
        return replace(self, model=model, plan=model.plan("whole", outputs=list(self.outputs)))

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
        """Rows that are predicted."""
        return len(self.part)

    @property
    def part(self) -> range:
        """Positions of the rows that are predicted, among those of the data set.

        Shards meet between blocks, or between runs, so that no run has other rows than without
        shards.

        Raises
        ------
        InputError
            There are fewer such pieces than shards.
        """
        rows = next(iter(self.source.values())).shape[0]
        if self.shard is None:
            return range(rows)
        batch = _batch_of(self)
        coupled = COUPLED_ROWS if batch.coupled else 1
        step = self.block_rows or self.batch_size or batch.fixed_rows or coupled
        what = "rows" if step == 1 else f"blocks of {step:,} rows"
        pieces = self.shard.part(math.ceil(rows / step), what, {"rows": rows})
        return range(pieces.start * step, min(pieces.stop * step, rows))

    @property
    def described(self) -> str:
        """Description of the files, and of the part of their rows, for errors."""
        files = described(self.source)
        if self.shard is None:
            return files
        return f"{self.shard}, which begins at row {self.part.start:,} of {files}"

    def check(self) -> None:
        """Compare the arrays with the model, as far as that is possible before anything runs.

        Raises
        ------
        InputError
            An array does not fit the model.
        """
        if self.pre is None:
            # With `pre`, the model's input is known only after it has run on a worker.
            lazy = {name: array.to_dask(array.shape[0]) for name, array in self.source.items()}
            self.model.check(_bare(lazy), outputs=list(self.outputs))
            _check_rows_first(self)
        if self.shard is not None:
            batch = _batch_of(self)
            if self.shard.count > 1 and not batch.is_proven:
                raise unproven(batch, f"the input is divided into {self.shard.count:,} shards")

    @property
    def sinks(self) -> Sequence[Sink]:
        """Outputs that are written."""
        return (self.sink,)

    @property
    def paths(self) -> Sequence[str]:
        """Absolute paths or URLs of the input's files."""
        return list({file.path for array in self.source.values() for file in array.files})

    def manifest(self) -> RunManifest:
        """Return what decides the results, as far as it is known before the job runs."""
        options = {
            "outputs": self.outputs,
            "batch_size": self.batch_size,
            "nodes of each stage": [len(stage.nodes) for stage in self.plan.stage_graph.stages],
            "pre": function_identity(self.pre),
            "post": function_identity(self.post),
            "format": type(self.sink).__name__,
        }
        inputs = array_identities(self.source)
        return job_manifest("arrays", self.model, options, inputs, rows=self.rows)

    def run(self, client: Client, progress: JobProgress, resumable: ResumableRun) -> FilePrediction:
        """Check the job on the workers, run it, and write the result.

        Raises
        ------
        InputError
            A worker cannot read or write the files or import the functions; the first rows do not
            fit the model, the output or `pre`; rows would be cut that are not proven independent.
        StageError
            Workers died while they ran a block.
        """
        return _run(self, client, progress, resumable)


def _check_rows_first(job: ArrayJob) -> None:
    """Refuse a model whose rows are on another axis than that along which files are read."""
    for name, axis in _batch_of(job).input_axes.items():
        if axis:
            raise InputError(
                f"input {name!r} has its rows on axis {axis}; files are read along axis 0",
                "predict a dask.array that is chunked along that axis, and write the result; or "
                "export the model with its rows first",
                input=name,
                axis=axis,
            )


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Specs of values that running the first rows on a worker found."""

    inputs: dict[str, OutputSpec]
    """Inputs of the model; ``{"": spec}`` for one array without a name."""
    constants: dict[str, Any]
    """Inputs without rows that `pre` returned, which every block shares."""
    outputs: tuple[OutputSpec, ...]


def _run(
    job: ArrayJob, client: Client, progress: JobProgress, resumable: ResumableRun
) -> FilePrediction:
    files = {f for array in job.source.values() for f in (*array.files[:1], *array.files[-1:])}
    functions = [each for each in (job.pre, job.post) if each is not None]
    check_workers(client, files, [job.sink], functions)
    probed = _probe(job, client)
    job.sink.check_outputs(probed.outputs)
    batch = _batch_of(job)
    batch_size = job.batch_size
    if batch_size is None:
        batch_size = coupled_rows(batch, progress)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    row_bytes = sum(array.row_bytes for array in job.source.values())
    row_bytes += sum(spec.row_bytes for spec in probed.inputs.values() if job.pre is not None)
    row_bytes += sum(spec.row_bytes for spec in probed.outputs)
    block_rows = rows_of_block(job.rows, row_bytes, workers, batch_size, job.block_rows)
    if not batch.is_proven:
        if batch_size is not None:
            raise unproven(batch, f"batch_size is {batch_size}")
        progress.warn(f"all {job.rows:,} rows are one block: {batch.blockers[0]}")
        block_rows = job.rows
    # Other blocks than those of the run that is resumed would divide the rows otherwise.
    block_rows = resumable.block_rows or block_rows
    began = time.perf_counter()
    blocks = math.ceil(job.rows / block_rows)
    outputs = spec_facts(probed.outputs)
    manifest = replace(resumable.manifest, outputs=outputs, blocks=blocks, block_rows=block_rows)

    def build(part: range) -> da.Array:
        return _build(job.at(part.start), probed, block_rows, batch_size, resumable, part)

    work = BlockWork(
        count=blocks,
        submit=lambda part: BlockGraph.of([build(part)], part.start).submit(client, job.retries),
        units_of=lambda block: min(block_rows, job.rows - block * block_rows),
        unit="rows",
        is_done=resumable.is_done,
        suggestions=_LESS_MEMORY,
    )
    with resumable.kept_on_failure(progress):
        resumable.start(manifest, lambda: job.sink.prepare(job.rows, block_rows, probed.outputs))
        computed = compute_blocks(client, work, progress)
        resumable.finish()
    return FilePrediction(
        files=(job.sink.target,),
        seconds=time.perf_counter() - began,
        workers=len(workers),
        blocks=blocks,
        resumed_blocks=blocks - computed,
        rows=job.rows,
        block_rows=block_rows,
        batch_size=batch_size or "auto",
        swaps=() if job.watch is None else tuple(job.watch.swaps),
    )


def _bare(values: Mapping[str, Any]) -> Any:
    """Return the one value without a name itself, and named values as they are."""
    return values[""] if set(values) == {""} else values


def _probe(job: ArrayJob, client: Client) -> ProbeResult:
    rows = min(job.rows, job.model.analysis.batch.fixed_rows or 1)
    key = f"probe-{time.time_ns()}"
    future = client.submit(probe_rows, job, rows, key=key, pure=False, retries=job.retries)
    result: ProbeResult | DaskOnnxError = block_result(future, _LESS_MEMORY)
    if isinstance(result, DaskOnnxError):
        raise result
    return result


def probe_rows(job: ArrayJob, rows: int) -> ProbeResult | DaskOnnxError:
    """Run the first rows on a worker through all steps but the writing.

    Errors of the input and of the caller's functions are returned rather than raised, since Dask
    would repeat a task that raises.
    """
    try:
        return _probe_rows(job, rows)
    except InputError as error:
        return error
    except StageError as error:
        if error.option not in ("pre", "post"):
            raise
        return error


def _probe_rows(job: ArrayJob, rows: int) -> ProbeResult:
    given = _bare({name: array.read_rows(0, rows) for name, array in job.source.items()})
    count = "row" if rows == 1 else f"{rows:,} rows"
    where = f"the first {count} of {described(job.source)}"
    prepared = given if job.pre is None else job.pre.call(given, where)
    values = prepared if isinstance(prepared, Mapping) else {"": prepared}
    arrays = {name: _as_array(name, value) for name, value in values.items()}
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
    found = as_row_arrays(results, _batch_of(job).output_axes)
    outputs = apply_post(job.post, tuple(found), list(found.values()), job.result_name, where)
    for value in outputs.values():
        if not value.ndim:
            raise InputError(
                f"post returned a single {value.dtype} for {where}, and results have rows",
                "return an array with an axis of rows, such as keepdims=True keeps it",
                option="post",
            )
        job.sink.check_rows(value, rows, where)
    with_rows = {name: array for name, array in arrays.items() if array.ndim}
    return ProbeResult(
        inputs={spec.name: spec for spec in output_specs(with_rows)},
        constants={name: array for name, array in arrays.items() if not array.ndim},
        outputs=output_specs(outputs),
    )


def _as_array(name: str, value: Any) -> Any:
    """Return what `pre` returned for an input as an array."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"pre returned {type(value).__name__} for input {name!r}, which is no array: {error}",
            "return an array, or a dict of arrays by input name",
            option="pre",
            input=name,
            reason=str(error),
        ) from error


def _batch_of(job: ArrayJob) -> BatchFacts:
    """Return what carries rows, at the shapes of the files unless `pre` changes these."""
    if job.pre is not None:
        return job.model.analysis.batch
    names = {spec.name for spec in job.model.inputs}
    bare = next(iter(names)) if len(names) == 1 else ""
    shapes = {name or bare: array.shape for name, array in job.source.items()}
    return job.model._facts.batch_at(job.outputs, shapes)


def _build(
    job: ArrayJob,
    probed: ProbeResult,
    block_rows: int,
    batch_size: int | None,
    resumable: ResumableRun,
    blocks: range,
) -> da.Array:
    """Return the lazy work of consecutive blocks."""
    start, stop = blocks.start * block_rows, min(blocks.stop * block_rows, job.rows)
    first = job.part.start
    source = {n: rows_of(array, first + start, first + stop) for n, array in job.source.items()}
    arrays: dict[str, Any] = {
        **read_blocks(source, block_rows, job.pre, probed.inputs, blocks.start, job.described),
        **probed.constants,
    }
    with chunks_kept():
        results = job.model.predict(
            _bare(arrays),
            outputs=list(job.outputs),
            batch_size=batch_size or "auto",
            plan=job.plan,
            retries=job.retries,
        )
    found = as_row_arrays(results, _batch_of(job).output_axes)
    write = WriteBlock(
        job.sink,
        tuple(found),
        job.post,
        job.result_name,
        job.described,
        resumable.journal,
    )
    return write_blocks(found, block_rows, stop - start, write, blocks.start)
