"""Choice of the kind of a job by its input and options, with all checks before any work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dask_onnx.api.model import Model
from dask_onnx.api.plan import Plan
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.input_formats import open_source
from dask_onnx.io.output_formats import open_sink, suffix_of
from dask_onnx.io.output_places import check_apart, check_distinct
from dask_onnx.io.picture_files import is_picture_path
from dask_onnx.io.table_files import is_table
from dask_onnx.jobs.array_job import ArrayJob
from dask_onnx.jobs.block_functions import block_function
from dask_onnx.jobs.image_job import ImageJob, is_image_request, open_image_job
from dask_onnx.jobs.job_options import JobOptions
from dask_onnx.jobs.raster_job import RasterJob, RasterPlace, tiled_output

if TYPE_CHECKING:
    from dask_onnx.jobs.table_job import TableJob

_RUNS = ("strategy", "n_stages", "batch_size", "block_rows")
"""Options of runs that a raster does not take."""


def open_job(
    model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
) -> ArrayJob | TableJob | RasterJob | ImageJob:
    """Return a job that is checked as far as this process can. Creates nothing.

    Parameters
    ----------
    model : Model
    source, target : str
        Paths or URLs of input and output.
    options : JobOptions
    begun : BegunOutputs
        What an earlier run has begun and is resumed or removed.

    Raises
    ------
    InputError
        Options that do not apply to such an input; an input or output that cannot be opened, or
        that is the other one; an input that does not fit the model.
    PlanError
        The strategy cannot be used.
    """
    is_picture = options.tile is None and is_image_request(
        source, options.image, options.draw, options.given
    )
    job: ArrayJob | TableJob | RasterJob | ImageJob
    if options.tile is not None:
        job = _raster_job(model, source, target, options, begun)
    elif is_picture:
        job = _picture_job(model, source, target, options, begun)
    elif is_table(source) or options.table.given:
        job = _table_job(model, source, target, options, begun)
    else:
        job = _array_job(model, source, target, options, begun)
    check_apart(
        [sink.target for sink in job.sinks],
        source,
        job.paths,
        may_be_inside=is_picture_path(source),
    )
    job.check()
    return job


def _raster_job(
    model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
) -> RasterJob:
    assert options.tile is not None
    if options.shard is not None:
        raise InputError(
            "a raster is one picture, whose tiles are not divided into shards",
            "leave shard and of out; give several rasters to several runs",
            option="shard",
        )
    options.refuse(("post", *_RUNS, "draw", *options.table.given), "rasters")
    if options.image:
        options.refuse(("pre",), "rasters whose pixel values follow from a preset")
    return RasterJob(
        model=model,
        path=source,
        place=RasterPlace.at(target, begun),
        tile=options.tile,
        output=tiled_output(model, options.outputs),
        pre=block_function(options.pre, "pre"),
        overwrite=options.overwrite,
        image=options.image or {},
    )


def _picture_job(
    model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
) -> ImageJob:
    table = options.table
    others = [name for name in table.given if name not in ("on_error", "quarantine")]
    options.refuse(("pre", "post", "strategy", "n_stages", *others), "pictures")
    outputs = {} if options.outputs is None else {"outputs": options.outputs}
    return open_image_job(
        model,
        source,
        target,
        {**(options.image or {}), **outputs},
        draw=options.draw,
        quarantine=table.quarantine,
        overwrite=options.overwrite,
        on_error=table.on_error,
        batch_size=options.batch_size,
        retries=options.repeats,
        block_rows=options.block_rows,
        begun=begun,
        shard=options.shard,
    )


def _table_job(
    model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
) -> TableJob:
    request = options.table
    options.refuse(
        ("pre", "post"),
        "tables",
        "prepare the table in Python: model.predict(table.map_partitions(function))",
    )
    options.refuse(("strategy", "n_stages", "block_rows"), "tables")
    if not is_table(source) and suffix_of(source) in (".npy", ".zarr"):
        options.refuse(request.given, f"arrays, and {source} has no columns")
    # Tables need pandas, which is an extra.
    from dask_onnx.jobs.table_job import TableJob  # needs pandas

    check_distinct({"output": target, "quarantine": request.quarantine})
    places = [path for path in (target, request.quarantine) if path is not None]
    opened = partial(open_sink, overwrite=options.overwrite, results="tables", begun=begun)
    sinks = [opened(path) for path in places]
    return TableJob(
        model, source, request, options.outputs, options.batch_size, sinks, shard=options.shard
    )


def _array_job(
    model: Model, source: str, target: str, options: JobOptions, begun: BegunOutputs
) -> ArrayJob:
    return ArrayJob(
        model=model,
        plan=_plan(model, options),
        source=open_source(source),
        sink=open_sink(target, overwrite=options.overwrite, results="arrays", begun=begun),
        pre=block_function(options.pre, "pre"),
        post=block_function(options.post, "post"),
        retries=options.repeats,
        batch_size=options.rows_of_run,
        block_rows=options.block_rows,
        shard=options.shard,
    )


def _plan(model: Model, options: JobOptions) -> Plan:
    plan = model.plan(options.strategy, n_stages=options.n_stages, outputs=options.outputs)
    if not isinstance(plan, Plan):
        raise PlanError(
            f"strategy {options.strategy!r} makes shards, which jobs over files cannot use",
            "choose another strategy, or call Model.predict on arrays",
            option="strategy",
        )
    return plan
