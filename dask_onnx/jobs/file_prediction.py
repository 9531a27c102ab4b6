"""`predict_files`: run a model from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import Client

from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.run_options import BatchSize, Columns, OnError, Outputs
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.input_formats import open_source
from dask_onnx.io.output_formats import open_sink, suffix_of
from dask_onnx.io.output_lock import locked_outputs
from dask_onnx.io.sinks import Sink
from dask_onnx.io.table_files import is_table
from dask_onnx.io.table_sinks import CsvSink
from dask_onnx.io.targets import absolute_target, check_distinct
from dask_onnx.jobs.array_job import ArrayJob
from dask_onnx.jobs.block_functions import block_function
from dask_onnx.jobs.completed_runs import completed_run, require_complete
from dask_onnx.jobs.image_job import ImageJob, is_image_request, open_image_job
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.raster_job import RasterJob, RasterPlace, tiled_output
from dask_onnx.jobs.resumable_run import ResumableRun, begun_before
from dask_onnx.jobs.table_request import Missing, Pooling, TableRequest
from dask_onnx.planning.recipe import Strategy
from dask_onnx.planning.strategies import StrategyObject
from dask_onnx.tiles.predict import Tile

if TYPE_CHECKING:
    from dask_onnx.jobs.table_job import TableJob

BlockFunction = Callable[..., Any] | str
"""A function, or its name as "MODULE:FUNCTION"."""


def predict_files(
    model: Any,
    input: str | os.PathLike[str],  # noqa: A002 - the option's name on the command line
    output: str | os.PathLike[str],
    *,
    scheduler: Client | str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    worker_memory_limit: int | str | None = None,
    batch_size: BatchSize = "auto",
    block_rows: int | None = None,
    strategy: str | Strategy | StrategyObject = "whole",
    n_stages: int | None = None,
    outputs: Outputs = None,
    pre: BlockFunction | None = None,
    post: BlockFunction | None = None,
    retries: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    tile: Tile | None = None,
    columns: Columns = None,
    text: str | None = None,
    tokenizer: Any = None,
    pooling: Pooling = "mean",
    append: bool | Sequence[str] = False,
    encoding: str | None = None,
    dtype: Mapping[str, str] | None = None,
    na_values: Missing | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    length_buckets: Sequence[int] | None = None,
    require_finite: bool = False,
    on_error: OnError = "raise",
    quarantine: str | os.PathLike[str] | None = None,
    image: Mapping[str, Any] | None = None,
    draw: str | os.PathLike[str] | None = None,
    progress: JobProgress | None = None,
) -> FilePrediction:
    """Run a model over a data set in files and write the results to files, block by block.

    Input and output are opened by path inside the tasks, so that the workers must see them under
    the same paths. Everything that can be is checked before the cluster is started or reached. A
    job that fails leaves no output under its final name. Blocks that were complete before it
    failed, was interrupted or killed are kept beside the output, and `resume` goes on with them.

    Parameters
    ----------
    model : Model, or whatever `load` takes
    input : path or URL
        Rows of ``.npy``, ``.npz`` (an array for each input) or ``.zarr``; a picture, or a folder or
        glob of pictures; a table of ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` (text also as
        ``.gz``, ``.bz2``, ``.xz``, ``.zst``), ``.arrow``, ``.feather`` or ``.orc``, a folder (also
        with Hive partitions) or a glob of these; with `tile` one raster. A file of text that is
        compressed, or has line breaks in cells, is read by one task, block after block.
    output : path or URL
        ``.npy``, ``.zarr`` or ``.parquet``; for a table ``.parquet`` or ``.csv``; for a raster
        ``.zarr``, ``.npy`` or ``.tif``.
    scheduler : Client or str, optional
        Client, or address of a scheduler. By default the current client or, without one or with
        any of the next three options, a local cluster for the time of the job.
    workers, threads : int, optional
        Processes of the local cluster (one for each core by default), and threads of each (1).
    worker_memory_limit : int or str, optional
        Memory of each process of the local cluster, in bytes or as "4GiB".
    batch_size : int or "auto", optional
        Rows of a run; tuned by default. Not for rasters.
    block_rows : int, optional
        Rows, or pictures, of a block, which is what a task reads and writes, and what is lost at
        most for each thread if the job is killed; by default few enough for the memory of workers.
        Not for tables and rasters.
    strategy : str, Strategy, Pipeline, Fused or Branches, default "whole"
        Division of the model into stages, as for `Model.plan`. Not for tables and rasters.
    n_stages : int, optional
        Number of stages of the strategy.
    outputs : str or sequence of str, optional
        Outputs or intermediate values; the graph's outputs by default. One for a raster.
    pre : callable or "MODULE:FUNCTION", optional
        Function from a block as it was read to the model's input: an array, or a dict of arrays by
        input name. A name is imported on the workers; a function travels by value. Not for tables.
    post : callable or "MODULE:FUNCTION", optional
        Function from a block of output, or a dict of several, to an array or a dict of arrays to
        write. Not for tables and rasters.
    retries : int, optional
        Times that a block is repeated if it raises; ``onnx.retries`` by default.
    overwrite : bool, default False
        Replace an output that exists, or one that an earlier run has begun.
    resume : bool, default False
        Go on with what an earlier run has left that failed, was interrupted or killed: only blocks
        that it had not completed are computed, and the result is that of one run. The model, the
        input, the options and the versions of packages must be the same. If that run has completed
        the output, nothing is done. Without such a run, the job starts at the beginning.
    tile : int, sequence of int, or "auto", optional
        Run one large raster in tiles of so many pixels, as for `predict_tiled`.
    columns : str, sequence of str, or mapping of input to columns, optional
        Columns of a table that feed the model, as for `Model.predict`.
    text : str, optional
        Column of text for a text encoder, whose vectors become the column ``embedding``.
    tokenizer : path, optional
        ``tokenizer.json`` for `text`.
    pooling : {"mean", "max", "first"}
        Reduction of the vectors of a text's tokens.
    append : bool or sequence of str, default False
        Columns of the input to write too; True for all.
    encoding : str, optional
        Encoding of ``.csv``; UTF-8 by default.
    dtype : mapping of str to str, optional
        Type of columns: "string", "int64", "float64", "bool", "datetime" and the like. In ``.csv``
        a string input makes its columns text; a float input float64; other types follow from the
        first rows. A column that is only kept is a number only if it can be written from it: 01234
        stays a text. A later value of another type is an error that names it.
    na_values : sequence of str, or mapping of column to these, optional
        Texts of ``.csv`` that mean a missing value. In columns of numbers the usual ones do too
        (empty, NA, null, ...); in columns of text nothing else does.
    delimiter : str, optional
        Character between the columns of ``.csv``; a comma by default, a tab in ``.tsv``.
    decimal : {".", ","}, optional
        Character before the decimals in ``.csv``.
    length_buckets : sequence of int, optional
        Lengths that columns of lists are padded to.
    require_finite : bool, default False
        Treat rows with NaN or infinity in the model's float inputs as bad ones.
    on_error : {"raise", "null"}
        Effect of a bad row of a table: an error, or missing values.
    quarantine : path or URL, optional
        Output for the bad rows of a table, or for pictures that cannot be read, with the reasons in
        a column ``error``.
    image : mapping of str to value, optional
        Options of `ImageModel` for pictures, such as ``{"preset": "yolo"}``. Boxes and classes are
        written to a table, sorted by the names of the pictures, which are a column ``file``; masks
        to a folder, if `output` has no ending, or to an array. With `pre`, pictures of one size and
        mode are passed to that instead, and these options are refused.
    draw : path, optional
        Folder for pictures with the results drawn over them.
    progress : JobProgress, optional
        Receiver of reports; by default warnings are given by `warnings.warn`.

    Returns
    -------
    FilePrediction

    Raises
    ------
    InputError
        Options that do not go together; an input or output that cannot be opened, does not fit the
        model, or is not there on a worker; bad rows; an earlier run has begun the output, and
        differs, or neither `resume` nor `overwrite` says what becomes of it.
    ModelError, PlanError
        From `load` and `Model.plan`.
    StageError
        A block failed on a worker.
    """
    loaded = model if isinstance(model, Model) else load(model)
    names = [outputs] if isinstance(outputs, str) else list(outputs or ()) or None
    progress = progress or JobProgress()
    cluster = JobCluster(
        scheduler, workers, threads, worker_memory_limit, is_verbose=progress.is_verbose
    )
    source, target = os.fspath(input), os.fspath(output)
    begun = begun_before(target, resume=resume, overwrite=overwrite)
    is_resumed = resume and begun is not None and begun.has_work
    names_of_files = BegunOutputs() if begun is None else begun.outputs(resume=is_resumed)
    completed = completed_run(absolute_target(target)) if resume and begun is None else None
    names_of_files = replace(names_of_files, is_completed=completed is not None)
    request = TableRequest(
        columns=columns,
        text=text,
        tokenizer=tokenizer,
        pooling=pooling,
        append=append,
        on_error=on_error,
        quarantine=None if quarantine is None else os.fspath(quarantine),
        require_finite=require_finite,
        length_buckets=None if length_buckets is None else tuple(length_buckets),
        encoding=encoding,
        dtype=dtype or None,
        na_values=na_values,
        delimiter=delimiter,
        decimal=decimal,
    )
    given = {
        "pre": pre is not None,
        "post": post is not None,
        "strategy": strategy != "whole",
        "n_stages": n_stages is not None,
        "batch_size": batch_size not in ("auto", None),
        "block_rows": block_rows is not None,
    }
    if block_rows is not None and (isinstance(block_rows, bool) or block_rows < 1):
        raise InputError(
            f"block_rows is {block_rows!r}", "give a number of at least 1", option="block_rows"
        )
    given |= dict.fromkeys(request.given, True)
    given |= {"image": bool(image), "draw": draw is not None}
    job: ArrayJob | TableJob | RasterJob | ImageJob
    prepared = is_image_request(source, image, draw, given)
    if tile is not None:
        runs = ("strategy", "n_stages", "batch_size", "block_rows")
        _refuse(given, ("post", *runs, "image", "draw", *request.given), "rasters")
        prepare = block_function(pre, "pre")
        name = tiled_output(loaded, names)
        place = RasterPlace.at(target, names_of_files)
        job = RasterJob(loaded, source, place, tile, name, prepare, overwrite)
    elif prepared:
        others = [name for name in request.given if name not in ("on_error", "quarantine")]
        _refuse(given, ("pre", "post", "strategy", "n_stages", *others), "pictures")
        job = open_image_job(
            loaded,
            source,
            target,
            {**(image or {}), **({} if names is None else {"outputs": names})},
            draw=None if draw is None else os.fspath(draw),
            quarantine=request.quarantine,
            overwrite=overwrite,
            on_error=on_error,
            batch_size=batch_size,
            retries=effective_retries(retries),
            block_rows=block_rows,
            begun=names_of_files,
        )
    elif is_table(source) or request.given:
        _refuse(given, ("pre", "post", "strategy", "n_stages", "block_rows"), "tables")
        open_output = partial(open_sink, overwrite=overwrite, tables=True, begun=names_of_files)
        job = _table_job(loaded, source, target, request, names, batch_size, open_output)
    else:
        job = ArrayJob(
            model=loaded,
            plan=_plan(loaded, strategy, n_stages, names),
            source=open_source(source),
            sink=_array_sink(open_sink(target, overwrite=overwrite, begun=names_of_files)),
            pre=block_function(pre, "pre"),
            post=block_function(post, "post"),
            retries=effective_retries(retries),
            batch_size=None if batch_size in ("auto", None) else int(batch_size),
            block_rows=block_rows,
        )
    job.check()
    targets = [sink.target for sink in job.sinks]
    if completed is not None:
        require_complete(completed, job.manifest(), targets, block_rows)
        return completed.prediction(targets)
    resumable = ResumableRun(job.sinks, job.manifest(), begun if is_resumed else None)
    resumable.check(block_rows)
    with locked_outputs(targets):
        # Another run may have begun or completed it since it was checked.
        found = begun_before(target, resume=resume, overwrite=overwrite, is_locked=True)
        resumable.take_over(found)
        for each in job.outputs.checked if isinstance(job, ImageJob) else targets:
            names_of_files.check(each, overwrite=overwrite)
        with cluster.connect() as client:
            progress.connected(client)
            result = job.run(client, progress, resumable)
            resumable.complete(result)
    return result


def _refuse(given: dict[str, bool], names: Sequence[str], what: str) -> None:
    """Refuse options that were given and do not apply."""
    found = [name for name in names if given[name]]
    if found:
        raise InputError(
            f"{' and '.join(found)} do not apply to {what}", "leave them out", option=found[0]
        )


def _plan(
    model: Model,
    strategy: str | Strategy | StrategyObject,
    n_stages: int | None,
    outputs: list[str] | None,
) -> Plan:
    plan = model.plan(strategy, n_stages=n_stages, outputs=outputs)
    if not isinstance(plan, Plan):
        raise PlanError(
            f"strategy {strategy!r} makes shards, which jobs over files cannot use",
            "choose another strategy, or call Model.predict on arrays",
            option="strategy",
        )
    return plan


def _array_sink(sink: Sink) -> Sink:
    if isinstance(sink, CsvSink):
        sink.check_outputs(())
    return sink


def _table_job(
    model: Model,
    source: str,
    target: str,
    request: TableRequest,
    outputs: list[str] | None,
    batch_size: BatchSize,
    open_output: Callable[[str], Sink],
) -> TableJob:
    if not is_table(source) and suffix_of(source) in (".npy", ".zarr"):
        raise InputError(
            f"{' and '.join(request.given)} do not apply to arrays, and {source} has no columns",
            "leave them out",
            option=request.given[0],
        )
    # Tables need pandas, which is an extra.
    from dask_onnx.jobs import table_job as tables  # needs pandas

    check_distinct({"output": target, "quarantine": request.quarantine})
    sinks = [open_output(path) for path in (target, request.quarantine) if path is not None]
    job: TableJob = tables.TableJob(model, source, request, outputs, batch_size, sinks)
    return job
