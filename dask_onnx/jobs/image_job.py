"""Jobs over files of pictures: opened, prepared, predicted and written picture by picture."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
from dask.delayed import delayed
from distributed import Client, Future

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.collections.images.image_runner import PICTURES_OF_A_TASK
from dask_onnx.collections.images.picture_batches import result_ranks
from dask_onnx.collections.images.presets import named_preset
from dask_onnx.collections.run_options import BatchSize, OnError, RowOptions
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import stat_file
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.output_formats import open_sink, suffix_of
from dask_onnx.io.output_places import check_distinct
from dask_onnx.io.picture_files import (
    PictureFiles,
    PictureNames,
    find_pictures,
    is_picture_path,
)
from dask_onnx.io.picture_folder import open_picture_folder
from dask_onnx.io.run_manifest import RunManifest, file_identities
from dask_onnx.io.sinks import OutputSpec
from dask_onnx.io.table_sinks import TableSink
from dask_onnx.jobs.block_graph import BlockGraph
from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.job_manifests import job_manifest, spec_facts
from dask_onnx.jobs.job_progress import JobProgress, block_result
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.job_shards import Shard
from dask_onnx.jobs.picture_tasks import PictureOutputs, probe_picture, write_pictures
from dask_onnx.jobs.resumable_run import Output, ResumableRun
from dask_onnx.jobs.watched_model import ModelWatch
from dask_onnx.jobs.worker_checks import check_workers, local_ends

_BLOCKS_PER_THREAD = 4
"""Least number of blocks for each thread, so that all threads end at about the same time."""
_LESS_MEMORY = (
    Suggestion("resize"),
    Suggestion("batch_size"),
    Suggestion("worker_memory_limit"),
)
_OUTPUT_OPTIONS = ("draw", "quarantine")
"""Options of `ImageJob.options` that are none of `ImageModel`."""


@dataclass(frozen=True, slots=True)
class ImageJob:
    """A prediction over pictures, checked but not started."""

    model: ImageModel
    files: PictureFiles
    outputs: PictureOutputs
    rows: RowOptions
    batch_size: BatchSize
    retries: int
    block_rows: int | None
    """Pictures of a block; None where they follow from the cluster."""
    options: Mapping[str, Any]
    """Options of the pictures and of the drawings, as the caller gave them."""
    watch: ModelWatch | None = None
    """Model file that is looked at while the job runs; None for a model that stays as it is."""

    def at(self, block: int) -> ImageJob:
        """Return the job with the model of the blocks from one on."""
        model = self.model.model if self.watch is None else self.watch.at(block)
        if model is self.model.model:
            return self
        own = {name: v for name, v in self.options.items() if name not in _OUTPUT_OPTIONS}
        return replace(self, model=ImageModel(model, **own))

    @property
    def sinks(self) -> Sequence[Output]:
        """Outputs that are written."""
        return self.outputs.parts

    @property
    def paths(self) -> Sequence[str]:
        """Absolute paths or URLs of the input's files."""
        return self.files.paths

    def manifest(self) -> RunManifest:
        """Return what decides the results, as far as it is known before the job runs."""
        options = {
            "image": self.options,
            "on_error": self.rows.on_error,
            "batch_size": self.batch_size,
            "format": [type(part).__name__ for part in self.outputs.parts],
            "labels": self.model.describe(),
        }
        inputs = file_identities(map(stat_file, self.files.paths))
        return job_manifest(
            "pictures", self.model.model, options, inputs, rows=len(self.files.paths)
        )

    def check(self) -> None:
        """Build the tasks' function once, so that everything is refused that can be before it runs.

        Raises
        ------
        InputError
            The model cannot run several pictures, or results do not fit the output's format.
        """
        facts, settings = self.model.model._facts, self.model._settings
        self.outputs.check(self.model.task, result_ranks(facts, settings))
        self.model._runner(self.batch_size, self.rows)

    def run(self, client: Client, progress: JobProgress, resumable: ResumableRun) -> FilePrediction:
        """Run the job and write its pictures.

        Raises
        ------
        InputError
            A picture cannot be read, with its path, where that is an error; results of several
            shapes, where they are written to one array.
        StageError
            Workers died while they ran a picture.
        """
        return _run(self, client, progress, resumable)


def is_image_request(source: str, image: Any, draw: Any, given: Collection[str]) -> bool:
    """Return whether a job runs pictures through their preparation.

    Pictures for the caller's own function, or for a plan of several stages, are read as arrays.

    Parameters
    ----------
    source : str
        Path, folder or pattern.
    image, draw : Any
        Options for pictures; None if they are not given.
    given : collection of str
        Names of the options that are given.

    Raises
    ------
    InputError
        Options for pictures are given for something else.
    """
    if not is_picture_path(source):
        if image or draw is not None:
            raise InputError(
                f"there are options for pictures ({', '.join(image or ['draw'])}), and the input "
                f"{source} is none",
                "leave them out, or name a picture, a folder or a pattern of pictures",
                option=next(iter(image)) if image else "draw",
            )
        return False
    has_own = any(name in given for name in ("pre", "post", "strategy", "n_stages"))
    return bool(image) or draw is not None or not has_own


def open_image_job(
    model: Model,
    source: str,
    target: str,
    image: Mapping[str, Any],
    *,
    draw: str | None,
    quarantine: str | None,
    overwrite: bool,
    on_error: OnError,
    batch_size: BatchSize,
    retries: int,
    block_rows: int | None,
    begun: BegunOutputs,
    shard: Shard | None = None,
) -> ImageJob:
    """Return a job over pictures, checked as far as this process can; see `predict_files`."""
    names = {each for each in inspect.signature(ImageModel).parameters if each != "model"}
    if unknown := [name for name in image if name not in names]:
        raise InputError(
            f"image has {unknown[0]!r}, which is no option of ImageModel",
            f"its options are {', '.join(sorted(names))}",
            option="image",
        )
    # A wrong path is told before anything about the preparation of pictures.
    files = find_pictures(source)
    if _is_folder(target):
        image = _as_mask(model, image)
    prepared = ImageModel(model, **image)
    outputs = open_outputs(
        target, files=files, draw=draw, quarantine=quarantine, overwrite=overwrite, begun=begun
    )
    if shard is not None:
        # Names of results are those among all pictures.
        part = shard.part(len(files.paths), "pictures")
        files = replace(files, paths=files.paths[part.start : part.stop])
    rows = RowOptions(on_error if quarantine is None else "split")
    # Outputs are compared by their places.
    options = {**image, "draw": draw is not None, "quarantine": quarantine is not None}
    return ImageJob(prepared, files, outputs, rows, batch_size, retries, block_rows, options)


def open_outputs(
    target: str,
    *,
    files: PictureFiles,
    draw: str | None,
    quarantine: str | None,
    overwrite: bool,
    begun: BegunOutputs | None = None,
) -> PictureOutputs:
    """Return the outputs of a job, checked as far as this process can.

    Parameters
    ----------
    target : str
        A table (.parquet, .csv, .jsonl), an array (.npy, .zarr), or a folder for masks as PNG.
    files : PictureFiles
    draw : str or None
        Folder for pictures with results drawn over them.
    quarantine : str or None
        Table for pictures that cannot be read, with the reasons.
    overwrite : bool
    begun : BegunOutputs, optional
        What an earlier run has begun and is resumed or removed.

    Raises
    ------
    InputError
        One cannot be written, or two are the same.
    """
    check_distinct({"output": target, "draw": draw, "quarantine": quarantine})
    is_folder = _is_folder(target)
    opened: dict[str, Any] = {"overwrite": overwrite, "begun": begun}
    sink = None if is_folder else open_sink(target, **opened)
    bad = None
    if quarantine is not None:
        bad = cast(TableSink, open_sink(quarantine, results="tables", **opened))
    return PictureOutputs(
        sink=sink,
        masks=open_picture_folder(target, **opened) if is_folder else None,
        drawings=None if draw is None else open_picture_folder(draw, option="draw", **opened),
        bad=bad,
        names=PictureNames.of(files.paths),
    )


def _is_folder(target: str) -> bool:
    """Return whether an output is a folder, which holds masks."""
    return not suffix_of(target) and not PurePosixPath(target.rstrip("/")).suffix


def _as_mask(model: Model, image: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return options that leave a map of text as it is, unless the caller asks for another form."""
    if image.get("preset") is None or any(name in image for name in ("task", "format", "decode")):
        return image
    preset = named_preset(image["preset"], model.outputs[0].rank)
    return {**image, "task": "mask"} if preset.is_text_map else image


def _run(
    job: ImageJob, client: Client, progress: JobProgress, resumable: ResumableRun
) -> FilePrediction:
    if job.files.skipped:
        progress.warn(job.files.skipped_text())
    progress.note(job.model.describe())
    runner, supplies = job.model._runner(job.batch_size, job.rows)
    paths, outputs = list(job.files.paths), replace(job.outputs, journal=resumable.journal)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    check_workers(client, local_ends(paths), [outputs])
    threads = max(1, sum(worker["nthreads"] for worker in workers.values()))
    size = max(1, min(PICTURES_OF_A_TASK, math.ceil(len(paths) / (threads * _BLOCKS_PER_THREAD))))
    # Other blocks than those of the run that is resumed would divide the pictures otherwise.
    size = resumable.block_rows or job.block_rows or size
    shared = delayed((runner, outputs), traverse=False, pure=False)
    specs = _specs_of_array(job, client, shared, supplies) if outputs.is_array else ()
    began, used = time.perf_counter(), job.model
    counts, blocks = np.zeros(2, int), math.ceil(len(paths) / size)

    def submit(part: range) -> list[Future]:
        nonlocal used, shared, supplies
        if (current := job.at(part.start)).model is not used:
            used = current.model
            runner, supplies = used._runner(job.batch_size, job.rows)
            shared = delayed((runner, outputs), traverse=False, pure=False)
        write = delayed(write_pictures, pure=False)
        lazy = [
            write(
                shared,
                paths[block * size : (block + 1) * size],
                (block, block * size),
                specs,
                *supplies,
            )
            for block in part
        ]
        return BlockGraph.of(lazy, part.start).submit(client, job.retries)

    def collect(rows: Sequence[int]) -> None:
        counts[:] += rows

    work = BlockWork(
        count=blocks,
        submit=submit,
        units_of=lambda block: min(size, len(paths) - block * size),
        unit="pictures",
        is_done=resumable.is_done,
        collect=collect,
        suggestions=_LESS_MEMORY,
    )
    manifest = replace(
        resumable.manifest, outputs=spec_facts(specs), blocks=blocks, block_rows=size
    )
    with resumable.kept_on_failure(progress):
        resumable.start(manifest, lambda: outputs.prepare(len(paths), size, specs))
        counts[:] += resumable.totals(len(counts))
        computed = compute_blocks(client, work, progress)
        resumable.finish()
    return FilePrediction(
        files=outputs.targets,
        rows=int(counts[0]),
        bad_rows=int(counts[1]) if outputs.bad is not None else None,
        seconds=time.perf_counter() - began,
        workers=len(workers),
        blocks=blocks,
        resumed_blocks=blocks - computed,
        pictures=len(paths),
        swaps=() if job.watch is None else tuple(job.watch.swaps),
    )


def _specs_of_array(
    job: ImageJob, client: Client, shared: Any, supplies: Sequence[Any]
) -> tuple[OutputSpec, ...]:
    """Return the specs of the outputs: the shapes of an array are those of the first result.

    Parameters
    ----------
    job : ImageJob
    client : Client
    shared : Delayed
        Values that the tasks of all blocks share.
    supplies : sequence of Delayed
        Tasks that bring the model to workers.
    """
    probe = delayed(probe_picture, pure=False)(shared, job.files.paths[0], *supplies)
    found: tuple[OutputSpec, ...] = block_result(
        client.compute(probe, retries=job.retries), _LESS_MEMORY
    )
    return found
