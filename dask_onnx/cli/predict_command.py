"""``dask-onnx predict``."""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import click
import dask.array as da
import numpy as np
from dask.utils import parse_bytes
from distributed import Client, Future, KilledWorker, as_completed, futures_of
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.cli import Options, common_options
from dask_onnx.cli import raster_job as rasters
from dask_onnx.cli.cluster_options import connect, dashboard_line
from dask_onnx.cli.csv_text import other_types
from dask_onnx.cli.parameters import (
    configuration_option,
    n_stages_option,
    named_strategy,
    outputs_option,
    parse_rows,
    rows_option,
    split_names,
    strategy_option,
)
from dask_onnx.cli.table_request import Pooling, TableRequest, is_table
from dask_onnx.cli.wording import worded_for
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.request_checks import unproven
from dask_onnx.collections.run_options import OnError
from dask_onnx.core.errors import InputError, StageError
from dask_onnx.io.file_job import (
    NamedFunction,
    WriteBlock,
    finish_values,
    output_specs,
    read_blocks,
    write_blocks,
)
from dask_onnx.io.sinks import OutputSpec, Sink, open_sink
from dask_onnx.io.sources import FileArray, open_source

_BLOCK_BYTES = 32 * 2**20
"""Input and output of a block, unless the workers are smaller."""
_BLOCKS_PER_THREAD = 4
"""A data set is cut into at least so many blocks a thread, so that all end at about one time."""
_SHARE_OF_MEMORY = 16
"""A block's input and output take at most one in so many of a thread's share of memory."""
_DEPENDENT_ROWS = 256
"""Rows of a run where they depend on each other and --batch-size is not given."""


@dataclass(frozen=True, slots=True)
class Job:
    """A prediction over a data set, opened and checked but not begun."""

    model: Model
    plan: Plan
    source: Mapping[str, FileArray]
    sink: Sink
    outputs: tuple[str, ...]
    pre: NamedFunction | None
    post: NamedFunction | None
    retries: int

    @property
    def result_name(self) -> str:
        """What a result of --post without a name is called."""
        return self.outputs[0] if len(self.outputs) == 1 else "result"

    @property
    def rows(self) -> int:
        return next(iter(self.source.values())).shape[0]


@dataclass(frozen=True, slots=True)
class Probed:
    """What running the first rows on a worker showed."""

    inputs: dict[str, OutputSpec]
    """What the model gets, as specs; {"": spec} for one array without a name."""
    constants: dict[str, Any]
    """What --pre gave without rows: the same for every block."""
    outputs: tuple[OutputSpec, ...]


@click.command("predict")
@click.argument("model_path", metavar="MODEL")
@click.argument("input_path", metavar="INPUT")
@click.argument("output_path", metavar="OUTPUT")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Rows of a session's run; found out if left."
)
@strategy_option
@configuration_option
@n_stages_option
@rows_option
@outputs_option
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one a core by default.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of a process; 1 by default.")
@click.option("--memory-limit", help="Memory of a process, such as 4GiB; its share by default.")
@click.option("--scheduler", metavar="ADDRESS", help="A cluster that is there, tcp://HOST:PORT.")
@click.option("--pre", metavar="MODULE:FUNCTION", help="From a block that was read to the input.")
@click.option("--post", metavar="MODULE:FUNCTION", help="From a block of output to the result.")
@click.option("--retries", type=click.IntRange(min=0), help="Of a block that fails; 3 by default.")
@click.option(
    "--tile",
    metavar="auto|N|N,N",
    help="INPUT is one large picture (.tif, .npy, .zarr, .png): run it in tiles of so many pixels.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that is there.")
@click.option("--columns", help="Of a table, for the one input; those of numbers by default.")
@click.option("--feed", "feeds", multiple=True, metavar="INPUT=COLUMN", help="What feeds an input.")
@click.option("--text", metavar="COLUMN", help="Of text, for a text encoder.")
@click.option("--tokenizer", metavar="FILE", help="The tokenizer.json that --text needs.")
@click.option("--pooling", type=click.Choice(["mean", "max", "first"]), default="mean")
@click.option("--keep", help="Columns of the input table to write too, separated by commas.")
@click.option("--append", is_flag=True, help="Write all columns of the input table too.")
@click.option("--encoding", metavar="NAME", help="Of the text of a .csv; UTF-8 by default.")
@click.option("--length-buckets", metavar="N,N,...", help="Lengths that lists are padded to.")
@click.option("--require-finite", is_flag=True, help="Rows with NaN or infinity are bad ones.")
@click.option("--on-error", type=click.Choice(["raise", "null"]), default="raise")
@click.option("--quarantine", metavar="PATH", help="Write bad rows there, and why they are bad.")
@common_options
@click.pass_obj
@worded_for("predict")
def command(
    options: Options,
    model_path: str,
    input_path: str,
    output_path: str,
    batch_size: int | None,
    strategy: str,
    configuration: str | None,
    n_stages: int | None,
    rows: str | None,
    outputs: str | None,
    workers: int | None,
    threads: int | None,
    memory_limit: str | None,
    scheduler: str | None,
    pre: str | None,
    post: str | None,
    retries: int | None,
    tile: str | None,
    overwrite: bool,
    columns: str | None,
    feeds: tuple[str, ...],
    text: str | None,
    tokenizer: str | None,
    pooling: Pooling,
    keep: str | None,
    append: bool,
    encoding: str | None,
    length_buckets: str | None,
    require_finite: bool,
    on_error: OnError,
    quarantine: str | None,
) -> None:
    """Run MODEL over INPUT and write OUTPUT, block by block, on a cluster.

    INPUT is .npy, .npz, .zarr or a glob of pictures; OUTPUT .npy, .zarr or .parquet. A table is
    .parquet or .csv, in and out. Both are opened by path inside the tasks, so the workers must see
    them.
    """
    names = split_names(outputs) or None
    way = named_strategy(strategy, configuration)
    model = load(model_path, rows=parse_rows(rows))
    if tile is not None:
        if post or batch_size or way != "whole":
            raise InputError(
                "--post, --batch-size and --strategy are not for --tile",
                "leave them out, or use Python",
            )
        _check_memory_limit(memory_limit)
        picture = rasters.TiledJob(
            model,
            input_path,
            output_path,
            rasters.parse_tile(tile),
            rasters.tiled_output(model, names),
            _named(pre, "--pre"),
            overwrite,
        )
        rasters.lazy_result(picture)  # all that can be refused is, before a cluster starts
        _run_picture(
            picture, options, functools.partial(connect, scheduler, workers, threads, memory_limit)
        )
        return
    table = TableRequest(
        tuple(split_names(columns)),
        feeds,
        text,
        tokenizer,
        pooling,
        tuple(split_names(keep)),
        append,
        on_error,
        quarantine,
        require_finite,
        _lengths(length_buckets),
        encoding,
    )
    if is_table(input_path) or table.is_given:
        if pre or post or way != "whole":
            raise InputError(
                "--pre, --post and --strategy are not for tables", "leave them out, or use Python"
            )
        _check_memory_limit(memory_limit)
        console = Console(stderr=True, highlight=False, quiet=options.as_json)
        cluster = functools.partial(
            connect, scheduler, workers, threads, memory_limit, debug=options.debug
        )
        paths = [output_path] if quarantine is None else [output_path, quarantine]
        if len(set(paths)) < len(paths):
            raise InputError("--quarantine is the output", "name another place")
        sinks = [open_sink(path, overwrite=overwrite) for path in paths]
        summary = _run_table(model, input_path, table, names, batch_size, sinks, console, cluster)
        _print_summary(options, summary, output_path)
        return
    plan = model.plan(way, n_stages=n_stages, outputs=names)
    job = Job(
        model=model,
        plan=plan,
        source=open_source(input_path),
        sink=open_sink(output_path, overwrite=overwrite),
        outputs=tuple(spec.name for spec in plan.stage_graph.outputs),
        pre=_named(pre, "--pre"),
        post=_named(post, "--post"),
        retries=effective_retries(retries),
    )
    _check_memory_limit(memory_limit)
    if job.pre is None:
        # Otherwise what the model gets is only known once --pre has run on a worker.
        model.check(_bare(job.source), outputs=names)
    console = Console(stderr=True, highlight=False, quiet=options.as_json)
    with connect(scheduler, workers, threads, memory_limit, debug=options.debug) as client:
        console.print(dashboard_line(client))
        summary = run(job, client, console, batch_size)
    _print_summary(options, summary, output_path)


def _run_table(
    model: Model,
    input_path: str,
    table: TableRequest,
    outputs: list[str] | None,
    batch_size: int | None,
    sinks: Sequence[Sink],
    console: Console,
    cluster: Callable[[], AbstractContextManager[Client]],
) -> dict[str, Any]:
    """Check everything, then start or reach a cluster, run and write; the numbers of the run."""
    from dask_onnx.cli import tables  # needs pandas, which arrays do without

    def plan() -> Any:
        rows = batch_size or "auto"
        return tables.plan_table(model, tables.open_table(input_path, table), table, outputs, rows)

    def wait(futures: list[Future]) -> None:
        _wait(futures, len(futures), 1, console, "parts")

    plan()
    with cluster() as client:
        console.print(dashboard_line(client))
        try:
            # Planned again, now that there is a client: what its workers lack travels along.
            summary: dict[str, Any] = tables.run_table(plan(), sinks, client, wait)
        except UnicodeDecodeError as error:
            raise tables.undecodable_table(input_path, table, error) from None
        except ValueError as error:
            if (other := other_types(input_path, error)) is not None:
                raise other from None
            raise
    return summary


def _run_picture(
    job: rasters.TiledJob,
    options: Options,
    cluster: Callable[..., AbstractContextManager[Client]],
) -> None:
    """Start or reach a cluster, run the picture through the model, and say how long it took."""
    console = Console(stderr=True, highlight=False, quiet=options.as_json)

    def wait(futures: list[Future], count: int) -> None:
        _wait(futures, count, 1, console, "tiles")

    with cluster(debug=options.debug) as client:
        console.print(dashboard_line(client))
        summary = rasters.run_tiled(job, client, wait)
    if options.as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(
            f"{summary['pixels']:,} pixels in {summary['seconds']:.2f} s, "
            f"{summary['pixels_per_second']:,.0f} pixels/s, {summary['workers']} workers: "
            f"{job.output_path}"
        )


def _lengths(text: str | None) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in split_names(text)) or None
    except ValueError:
        raise InputError(f"--length-buckets is {text!r}", "give numbers: 16,32,64") from None


def _print_summary(options: Options, summary: dict[str, Any], output_path: str) -> None:
    if options.as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(
            f"{summary['rows']:,} rows in {summary['seconds']:.2f} s, "
            f"{summary['rows_per_second']:,.1f} rows/s, {summary['workers']} workers: "
            f"{output_path}"
            + (f"; {summary['bad_rows']:,} bad rows" if "bad_rows" in summary else "")
        )


def _bare(values: Mapping[str, Any]) -> Any:
    """What has no name stands for itself."""
    return values[""] if set(values) == {""} else values


def _named(text: str | None, option: str) -> NamedFunction | None:
    if text is None:
        return None
    function = NamedFunction(text, option)
    function.resolve()
    return function


def _check_memory_limit(text: str | None) -> None:
    if text is None:
        return
    try:
        parse_bytes(text)
    except ValueError as error:
        raise InputError(f"--memory-limit is {text!r}", "give it like 4GiB or 800MB") from error


def run(job: Job, client: Client, console: Console, batch_size: int | None) -> dict[str, Any]:
    """Check on the workers, run, write; the numbers of the run."""
    _check_workers(job, client)
    probed = _probe(job, client)
    job.sink.check_outputs(probed.outputs)
    batch = _batch_of(job)
    if batch_size is None:
        batch_size = _rows_of_coupled(batch, console)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    block_rows = _block_rows(job, probed, workers, batch_size)
    if not batch.is_proven:
        if batch_size is not None:
            raise unproven(batch, f"--batch-size is {batch_size}")
        console.print(f"all {job.rows:,} rows are one block: {batch.blockers[0]}", style="yellow")
        block_rows = job.rows
    began = time.perf_counter()
    job.sink.prepare(job.rows, block_rows, probed.outputs)
    futures: list[Future] = []
    try:
        lazy = _build(job, probed, block_rows, batch_size)
        futures = futures_of(client.persist(lazy, retries=job.retries))
        _wait(futures, job.rows, block_rows, console)
        job.sink.finish()
    except BaseException:
        # Also on Ctrl-C: what is half done must not look like a result.
        _quiet_loggers()
        client.cancel(futures, force=True)
        job.sink.discard()
        raise
    seconds = time.perf_counter() - began
    return {
        "rows": job.rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(job.rows / seconds, 3),
        "workers": len(workers),
        "blocks": len(futures),
        "block_rows": block_rows,
        "batch_size": batch_size or "auto",
        "output": job.sink.target,
    }


def _quiet_loggers() -> None:
    """Workers that are told to stop complain about it; the error that made us stop says more."""
    for name in ("distributed.worker", "distributed.scheduler", "distributed.nanny"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_workers(job: Job, client: Client) -> None:
    """Whether every worker sees input, output folder and functions, before any work starts."""
    files = tuple(
        {f for array in job.source.values() for f in (*array.files[:1], *array.files[-1:])}
    )
    functions = tuple(f for f in (job.pre, job.post) if f is not None)
    found = client.run(_worker_problems, files, job.sink, functions, on_error="return")
    for worker, problems in found.items():
        if isinstance(problems, Exception):
            raise InputError(
                f"worker {worker} cannot be asked: {problems}",
                "install the same dask_onnx on every worker",
            )
        if problems:
            raise InputError(
                f"worker {worker}: {problems[0]}",
                "use a path that is the same on the client and on every worker",
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


def _probe(job: Job, client: Client) -> Probed:
    rows = min(job.rows, job.model.analysis.batch.fixed_rows or 1)
    key = f"probe-{time.time_ns()}"
    future = client.submit(probe_rows, job, rows, key=key, pure=False, retries=job.retries)
    result: Probed | InputError = _result(future)
    if isinstance(result, InputError):
        raise result
    return result


def probe_rows(job: Job, rows: int) -> Probed | InputError:
    """Run the first rows through everything but the writing; on a worker.

    What is wrong with the input is returned: raising it would have Dask try again.
    """
    try:
        return _probe_rows(job, rows)
    except InputError as error:
        return error


def _probe_rows(job: Job, rows: int) -> Probed:
    given = _bare({name: array.read_rows(0, rows) for name, array in job.source.items()})
    prepared = given if job.pre is None else job.pre.resolve()(given)
    values = prepared if isinstance(prepared, Mapping) else {"": prepared}
    arrays = {name: np.asarray(value) for name, value in values.items()}
    for name, array in arrays.items():
        if array.ndim and array.shape[0] != rows:
            raise InputError(
                f"--pre made {array.shape[0]} rows of {rows} for input {name!r}",
                "it must give a row for each row that it gets",
            )
    results = job.model(_bare(arrays), outputs=list(job.outputs))
    found = [results[name] for name in job.outputs]
    values = finish_values(job.post, job.outputs, found, job.result_name)
    with_rows = {name: array for name, array in arrays.items() if array.ndim}
    return Probed(
        inputs={spec.name: spec for spec in output_specs(with_rows)},
        constants={name: array for name, array in arrays.items() if not array.ndim},
        outputs=output_specs(values),
    )


def _batch_of(job: Job) -> BatchFacts:
    """What is known of the rows: at the shapes of the files, unless --pre makes others of them."""
    if job.pre is not None:
        return job.model.analysis.batch
    names = {spec.name for spec in job.model.inputs}
    bare = next(iter(names)) if len(names) == 1 else ""
    shapes = {name or bare: array.shape for name, array in job.source.items()}
    return job.model._facts.batch_at(job.outputs, shapes)


def _rows_of_coupled(batch: BatchFacts, console: Console) -> int | None:
    """Where results depend on what a run holds, that must not depend on the cluster: said aloud."""
    if not batch.coupled or not batch.is_proven or batch.fixed_rows is not None:
        return None
    console.print(
        f"warning: {', '.join(batch.coupled[:3])} of this model quantise by a statistic over all "
        f"rows of a run, so results depend on --batch-size, which is {_DEPENDENT_ROWS} as none was "
        "given",
        style="yellow",
    )
    return _DEPENDENT_ROWS


def _block_rows(
    job: Job, probed: Probed, workers: Mapping[str, Any], batch_size: int | None
) -> int:
    """Rows of a block: whole runs, small against memory, and enough blocks for all threads."""
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


def _build(job: Job, probed: Probed, block_rows: int, batch_size: int | None) -> da.Array:
    """The lazy work of all blocks."""
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


def _wait(
    futures: list[Future], rows: int, block_rows: int, console: Console, unit: str = "rows"
) -> None:
    sizes = {
        future.key: min(block_rows, rows - number * block_rows)
        for number, future in enumerate(futures)
    }
    progress = Progress(
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        task = progress.add_task(unit, total=rows)
        for future in as_completed(futures):
            _result(future)
            progress.update(task, advance=sizes[future.key])


class RateColumn(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f} rows/s" if task.speed else "- rows/s")


def _result(future: Future) -> Any:
    """The result; a worker that died under it is explained."""
    try:
        return future.result()
    except KilledWorker as error:
        raise StageError(
            f"{error.allowed_failures + 1} workers died while they ran {error.task}",
            "they may have run out of memory: lower --batch-size, or raise --memory-limit",
        ) from None
