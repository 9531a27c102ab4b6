"""Jobs over files of pictures: opened, prepared, predicted and written picture by picture."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from dask.delayed import delayed
from distributed import Client, Future

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.collections.images.image_runner import PICTURES_OF_A_TASK
from dask_onnx.collections.images.picture_batches import result_ranks
from dask_onnx.collections.run_options import BatchSize, OnError, RowOptions
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import stat_file
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.output_formats import open_sink, suffix_of
from dask_onnx.io.picture_files import (
    PictureFiles,
    PictureNames,
    find_pictures,
    is_picture_path,
)
from dask_onnx.io.picture_folder import open_picture_folder
from dask_onnx.io.run_manifest import RunManifest, file_identities
from dask_onnx.io.sinks import OutputSpec
from dask_onnx.io.targets import check_distinct
from dask_onnx.jobs.block_graph import BlockGraph
from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.job_manifests import job_manifest, spec_facts
from dask_onnx.jobs.job_progress import JobProgress, block_result
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.picture_tasks import PictureOutputs, probe_picture, write_pictures
from dask_onnx.jobs.resumable_run import Output, ResumableRun

_BLOCKS_PER_THREAD = 4
"""Least number of blocks for each thread, so that all threads end at about the same time."""
_LESS_MEMORY = (
    Suggestion("resize"),
    Suggestion("batch_size"),
    Suggestion("worker_memory_limit"),
)


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

    @property
    def sinks(self) -> Sequence[Output]:
        """Outputs that are written."""
        return self.outputs.parts

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


def is_image_request(source: str, image: Any, draw: Any, given: Mapping[str, bool]) -> bool:
    """Return whether a job runs pictures through their preparation.

    Pictures for the caller's own function, or for a plan of several stages, are read as arrays.

    Parameters
    ----------
    source : str
        Path, folder or pattern.
    image, draw : Any
        Options for pictures; None if they are not given.
    given : mapping of str to bool
        Whether other options are given.

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
    has_own = any(given[name] for name in ("pre", "post", "strategy", "n_stages"))
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
) -> ImageJob:
    """Return a job over pictures, checked as far as this process can; see `predict_files`."""
    names = {each for each in inspect.signature(ImageModel).parameters if each != "model"}
    if unknown := [name for name in image if name not in names]:
        raise InputError(
            f"image has {unknown[0]!r}, which is no option of ImageModel",
            f"its options are {', '.join(sorted(names))}",
            option="image",
        )
    prepared = ImageModel(model, **image)
    files = find_pictures(source)
    outputs = open_outputs(
        target, files=files, draw=draw, quarantine=quarantine, overwrite=overwrite, begun=begun
    )
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
    is_folder = not suffix_of(target) and not PurePosixPath(target.rstrip("/")).suffix
    opened: dict[str, Any] = {"overwrite": overwrite, "begun": begun}
    sink = None if is_folder else open_sink(target, **opened)
    bad = None if quarantine is None else open_sink(quarantine, tables=True, **opened)
    return PictureOutputs(
        sink=sink,
        masks=open_picture_folder(target, **opened) if is_folder else None,
        drawings=None if draw is None else open_picture_folder(draw, option="draw", **opened),
        bad=bad,
        names=PictureNames.of(files.paths),
    )


def _run(
    job: ImageJob, client: Client, progress: JobProgress, resumable: ResumableRun
) -> FilePrediction:
    if job.files.skipped:
        progress.warn(job.files.skipped_text())
    progress.note(job.model.describe())
    runner, supplies = job.model._runner(job.batch_size, job.rows)
    paths, outputs = list(job.files.paths), replace(job.outputs, journal=resumable.journal)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    _check_workers(client, outputs)
    threads = max(1, sum(worker["nthreads"] for worker in workers.values()))
    size = max(1, min(PICTURES_OF_A_TASK, math.ceil(len(paths) / (threads * _BLOCKS_PER_THREAD))))
    # Other blocks than those of the run that is resumed would divide the pictures otherwise.
    size = resumable.block_rows or job.block_rows or size
    shared = delayed((runner, outputs), traverse=False, pure=False)
    specs: tuple[OutputSpec, ...] = ()
    if outputs.is_array:
        # The shape of the array is that of the first result.
        probe = delayed(probe_picture, pure=False)(shared, paths[0], *supplies)
        specs = block_result(client.compute(probe, retries=job.retries), _LESS_MEMORY)
    began = time.perf_counter()
    counts, blocks = np.zeros(2, int), math.ceil(len(paths) / size)

    def submit(part: range) -> list[Future]:
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
    )


def _check_workers(client: Client, outputs: PictureOutputs) -> None:
    """Check that every worker can write the outputs, before anything runs.

    Raises
    ------
    InputError
        One cannot, with its address.
    """
    for address, problem in client.run(outputs.problem).items():
        if problem is not None:
            raise InputError(
                f"worker {address}: {problem}",
                "choose an output that all workers can write, or start them where they can",
                option="path",
                reason=problem,
            )
