"""`predict_files`: run a model from file to file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from distributed import Client

from dask_onnx.api.loading import load
from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.run_options import BatchSize, Columns, OnError, Outputs
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.io.sinks import open_sink
from dask_onnx.io.sources import open_source
from dask_onnx.jobs.array_job import ArrayJob
from dask_onnx.jobs.block_functions import block_function
from dask_onnx.jobs.job_cluster import JobCluster
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.raster_job import RasterJob, tiled_output
from dask_onnx.jobs.table_request import Pooling, TableRequest, is_table
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
    strategy: str | Strategy | StrategyObject = "whole",
    n_stages: int | None = None,
    outputs: Outputs = None,
    pre: BlockFunction | None = None,
    post: BlockFunction | None = None,
    retries: int | None = None,
    overwrite: bool = False,
    tile: Tile | None = None,
    columns: Columns = None,
    text: str | None = None,
    tokenizer: Any = None,
    pooling: Pooling = "mean",
    append: bool | Sequence[str] = False,
    encoding: str | None = None,
    length_buckets: Sequence[int] | None = None,
    require_finite: bool = False,
    on_error: OnError = "raise",
    quarantine: str | os.PathLike[str] | None = None,
    progress: JobProgress | None = None,
) -> FilePrediction:
    """Run a model over a data set in files and write the results to files, block by block.

    Input and output are opened by path inside the tasks, so that the workers must see them under
    the same paths. Everything that can be is checked before the cluster is started or reached. A
    job that fails leaves no output under its final name.

    Parameters
    ----------
    model : Model, or whatever `load` takes
    input : path or URL
        Rows of ``.npy``, ``.npz`` (an array for each input) or ``.zarr``; a glob of pictures of one
        size; a table of ``.parquet`` or ``.csv``; with `tile` one raster.
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
        Replace an output that exists.
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
    length_buckets : sequence of int, optional
        Lengths that columns of lists are padded to.
    require_finite : bool, default False
        Treat rows with NaN or infinity in the model's float inputs as bad ones.
    on_error : {"raise", "null"}
        Effect of a bad row of a table: an error, or missing values.
    quarantine : path or URL, optional
        Output for the bad rows of a table, with the reasons in a column ``error``.
    progress : JobProgress, optional
        Receiver of reports; by default warnings are given by `warnings.warn`.

    Returns
    -------
    FilePrediction

    Raises
    ------
    InputError
        Options that do not go together; an input or output that cannot be opened, does not fit the
        model, or is not there on a worker; bad rows.
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
    )
    given = {
        "pre": pre is not None,
        "post": post is not None,
        "strategy": strategy != "whole",
        "n_stages": n_stages is not None,
        "batch_size": batch_size not in ("auto", None),
    }
    given |= dict.fromkeys(request.given, True)
    job: ArrayJob | TableJob | RasterJob
    if tile is not None:
        unused = ("post", "strategy", "n_stages", "batch_size", *request.given)
        _refuse(given, unused, "rasters")
        prepare = block_function(pre, "pre")
        name = tiled_output(loaded, names)
        job = RasterJob(loaded, source, target, tile, name, prepare, overwrite)
    elif is_table(source) or request.given:
        _refuse(given, ("pre", "post", "strategy", "n_stages"), "tables")
        job = _table_job(loaded, source, target, request, names, batch_size, overwrite)
    else:
        job = ArrayJob(
            model=loaded,
            plan=_plan(loaded, strategy, n_stages, names),
            source=open_source(source),
            sink=open_sink(target, overwrite=overwrite),
            pre=block_function(pre, "pre"),
            post=block_function(post, "post"),
            retries=effective_retries(retries),
            batch_size=None if batch_size in ("auto", None) else int(batch_size),
        )
    job.check()
    with cluster.connect() as client:
        progress.connected(client)
        return job.run(client, progress)


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


def _table_job(
    model: Model,
    source: str,
    target: str,
    request: TableRequest,
    outputs: list[str] | None,
    batch_size: BatchSize,
    overwrite: bool,
) -> TableJob:
    # Tables need pandas, which is an extra.
    from dask_onnx.jobs import table_job as tables  # needs pandas

    targets = [target] if request.quarantine is None else [target, request.quarantine]
    if len(set(targets)) < len(targets):
        raise InputError(
            f"the quarantine {target} is the output", "name another place", option="quarantine"
        )
    sinks = [open_sink(path, overwrite=overwrite) for path in targets]
    job: TableJob = tables.TableJob(model, source, request, outputs, batch_size, sinks)
    return job
