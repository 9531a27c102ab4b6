"""`predict_files`: run a model from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from distributed import Client

from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.collections.run_options import BatchSize, Columns, OnError, Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.output_lock import locked_outputs
from dask_onnx.io.targets import absolute_target
from dask_onnx.jobs.completed_runs import completed_run, require_complete
from dask_onnx.jobs.image_job import ImageJob
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.job_opening import open_job
from dask_onnx.jobs.job_options import JobOptions
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.job_shards import common_folders, shard_of
from dask_onnx.jobs.option_checks import check_mapping, counts_of, names_of, path_text
from dask_onnx.jobs.raster_job import RasterJob
from dask_onnx.jobs.resumable_run import ResumableRun, begun_before
from dask_onnx.jobs.table_request import Missing, Pooling, TableRequest
from dask_onnx.jobs.watched_model import ModelWatch
from dask_onnx.planning.recipe import Strategy
from dask_onnx.planning.strategies import StrategyObject
from dask_onnx.tiles.predict import Tile

BlockFunction = Callable[..., Any] | str
"""A function, or its name as "MODULE:FUNCTION"."""
Opening = Callable[[Model, str, str, JobOptions, BegunOutputs], Any]
"""Function that opens a job; see `open_job`."""
_WATCHED = "watched"
"""Model in the manifest of a job whose model may change while it runs."""


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
    normalize: bool = False,
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
    watch_model: bool | Mapping[str, Any] = False,
    shard: int | None = None,
    of: int | None = None,
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
        with Hive partitions) or a glob of these; with `tile` one raster. The first line of a
        ``.csv`` has the names of its columns. A file of text that is compressed, or has line breaks
        in cells, is read by one task, block after block.
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
    normalize : bool, default False
        True to divide the vector of each text by its length.
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
    watch_model : bool or mapping of str to value, default False
        True to look at the model's file, given by path or URL, while the job runs: when it has
        changed to a model with the same inputs and outputs, blocks that have not started are run by
        that one, and the result tells from which block on. A mapping is the options of `load`.
        Blocks of a resumed run may be of several models. Not for rasters and plans of several
        stages.
    shard, of : int, optional
        Run one of `of` independent runs, numbered from 0, which need no common scheduler: each
        takes its part of the files or, where there are fewer files than shards, of their blocks or
        rows. All must be given the same input and options; give `block_rows` for arrays if results
        have to be the same to the last bit. Each has an output of its own, whose name carries the
        shard and which is resumed on its own. Tables are in one folder,
        ``scores.parquet/shard-0001-of-0004.parquet``, and the folder read as one table has the rows
        in the order of the input. ``.npy`` and ``.zarr`` lie beside each other,
        ``scores.shard-0001-of-0004.npy``. A shard of a ``.csv`` that is divided first reads the
        text before it, to tell whether it begins in a quoted cell. Not for rasters.
    progress : JobProgress, optional
        Receiver of reports; by default warnings are given by `warnings.warn`.

    Returns
    -------
    FilePrediction

    Raises
    ------
    InputError
        Options that do not go together, or values that they do not take; an input or output that
        cannot be opened, does not fit the model, is the other one, or is not there on a worker;
        bad rows; an earlier run has begun the output, and differs, or neither `resume` nor
        `overwrite` says what becomes of it.
    ModelError, PlanError
        From `load` and `Model.plan`.
    StageError
        A block failed on a worker.
    """
    # Everything that a caller may have mistaken is checked before the model is read.
    source, target = path_text(input, "input"), path_text(output, "output")
    options = JobOptions(
        table=TableRequest(
            columns=columns,
            text=text,
            tokenizer=tokenizer,
            pooling=pooling,
            normalize=normalize,
            append=append,
            on_error=on_error,
            quarantine=None if quarantine is None else path_text(quarantine, "quarantine"),
            require_finite=require_finite,
            length_buckets=counts_of(length_buckets, "length_buckets"),
            encoding=encoding,
            dtype=dtype or None,
            na_values=na_values,
            delimiter=delimiter,
            decimal=decimal,
        ),
        batch_size=batch_size,
        block_rows=block_rows,
        strategy=strategy,
        n_stages=n_stages,
        outputs=names_of(outputs, "outputs"),
        pre=pre,
        post=post,
        retries=retries,
        overwrite=overwrite,
        tile=tile,
        image=image,
        draw=None if draw is None else path_text(draw, "draw"),
        shard=shard_of(shard, of),
    )
    progress = progress or JobProgress()
    cluster = JobCluster(
        scheduler, workers, threads, worker_memory_limit, is_verbose=progress.is_verbose
    )
    if watch_model is not False:
        watch = _watch(model, watch_model, options, progress)
        return run_job(
            watch.model, source, target, options, cluster, progress, watch, resume=resume
        )
    loaded = model if isinstance(model, Model) else load(model)
    return run_job(loaded, source, target, options, cluster, progress, resume=resume)


def _watch(
    given: Any, loading: bool | Mapping[str, Any], options: JobOptions, progress: JobProgress
) -> ModelWatch:
    """Return the watch over a model's file.

    Raises
    ------
    InputError
        The model was not given by path, or the job has one plan for all blocks.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(
            f"watch_model is for a model that is given by path; a {type(given).__name__} was given",
            "pass the path of its file",
            option="watch_model",
        )
    if options.tile is not None or options.strategy != "whole":
        raise InputError(
            "watch_model replaces models between blocks that are run whole",
            "leave tile and strategy out, or watch_model",
            option="watch_model",
        )
    path = path_text(given, "model")
    check_mapping(None if loading is True else loading, "watch_model", "{'rows': 'independent'}")
    others = dict(loading) if isinstance(loading, Mapping) else {}

    def current() -> Model:
        return load(path, **others)

    return ModelWatch(current(), path, current, progress.warn)


def run_job(
    model: Model,
    source: str,
    target: str,
    options: JobOptions,
    cluster: JobCluster,
    progress: JobProgress,
    watch: ModelWatch | None = None,
    *,
    resume: bool,
    opening: Opening = open_job,
) -> FilePrediction:
    """Open a job, find out what an earlier run has left, and run what is missing.

    Parameters
    ----------
    model : Model
    source, target : str
        Paths or URLs of input and output.
    options : JobOptions
    cluster : JobCluster
        Cluster to start or to connect to.
    progress : JobProgress
    watch : ModelWatch, optional
        Model file that is looked at while the job runs.
    resume : bool
        True to go on with what an earlier run has left.
    opening : function
        Opens the job, as `open_job` does.

    Raises
    ------
    InputError, ModelError, PlanError, StageError
        As for `predict_files`.
    """
    if options.shard is None:
        return _run_job(model, source, target, options, cluster, progress, watch, resume, opening)
    places = (target, options.table.quarantine, options.draw)
    with common_folders([path for path in places if path is not None], options.shard):
        target, options = options.placed(target)
        return _run_job(model, source, target, options, cluster, progress, watch, resume, opening)


def _run_job(
    model: Model,
    source: str,
    target: str,
    options: JobOptions,
    cluster: JobCluster,
    progress: JobProgress,
    watch: ModelWatch | None,
    resume: bool,
    opening: Opening,
) -> FilePrediction:
    overwrite = options.overwrite
    begun = begun_before(target, resume=resume, overwrite=overwrite)
    is_resumed = resume and begun is not None and begun.has_work
    names = BegunOutputs() if begun is None else begun.outputs(resume=is_resumed)
    completed = completed_run(absolute_target(target)) if resume and begun is None else None
    names = replace(names, is_completed=completed is not None)
    job = opening(model, source, target, options, names)
    manifest = job.manifest()
    if options.shard is not None:
        # Another division has other rows, even where the blocks look the same.
        divided = {"shard": options.shard.index, "of": options.shard.count}
        manifest = replace(manifest, options={**manifest.options, **divided})
    if watch is not None:
        assert not isinstance(job, RasterJob)
        job = replace(job, watch=watch)
        manifest = replace(manifest, model=_WATCHED)
    targets = [sink.target for sink in job.sinks]
    if completed is not None:
        require_complete(completed, manifest, targets, options.block_rows)
        return completed.prediction(targets)
    resumable = ResumableRun(job.sinks, manifest, begun if is_resumed else None)
    resumable.check(options.block_rows)
    with locked_outputs(targets):
        # Another run may have begun or completed it since it was checked.
        found = begun_before(target, resume=resume, overwrite=overwrite, is_locked=True)
        resumable.take_over(found)
        for each in job.outputs.checked if isinstance(job, ImageJob) else targets:
            names.check(each, overwrite=overwrite)
        with cluster.connect() as client:
            progress.connected(client)
            result: FilePrediction = job.run(client, progress, resumable)
            resumable.complete(result)
    return result
