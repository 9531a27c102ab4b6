"""Jobs over one large raster, which goes through a model tile by tile."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client

from dask_onnx.api.image_model import ImageModel
from dask_onnx.api.model import Model
from dask_onnx.collections.images.preparation import Preparation
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url, stat_file
from dask_onnx.io.begun_outputs import BegunOutputs
from dask_onnx.io.caller_functions import NamedFunction
from dask_onnx.io.output_formats import suffix_of
from dask_onnx.io.raster_axes import to_channels_first
from dask_onnx.io.raster_formats import open_raster_sink
from dask_onnx.io.raster_sinks import RasterSink
from dask_onnx.io.raster_writing import with_regular_blocks, write_blocks
from dask_onnx.io.rasters import open_raster_source, raster_attributes
from dask_onnx.io.run_manifest import RunManifest, file_identities
from dask_onnx.io.targets import absolute_target, target_problem
from dask_onnx.jobs.block_graph import BlockGraph
from dask_onnx.jobs.block_window import BlockWork, compute_blocks
from dask_onnx.jobs.job_manifests import folder_identity, function_identity, job_manifest
from dask_onnx.jobs.job_progress import JobProgress
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.jobs.resumable_run import Output, ResumableRun
from dask_onnx.jobs.worker_checks import check_workers, local_ends
from dask_onnx.tiles.predict import Tile, predict_tiled

_READ_PIXELS = 1024
"""Side of the blocks that are read where the size of a tile is not given."""
_PIXEL_OPTIONS = ("preset", "color", "scale", "mean", "std")
"""Options of `ImageModel` that say what becomes of a pixel value."""
_LESS_MEMORY = (Suggestion("tile"), Suggestion("worker_memory_limit"))


@dataclass(frozen=True, slots=True)
class RasterPlace:
    """Output of a raster, whose sink is known once its blocks are."""

    target: str
    """Absolute path, or URL."""
    run: str
    """Name of the run."""
    replaces: bool
    """True if the target exists and is replaced."""
    sink: RasterSink | None = None
    """Sink of the raster; None before the lazy result is built."""

    @classmethod
    def at(cls, path: str, begun: BegunOutputs) -> RasterPlace:
        """Return the place of an output at a path or URL.

        Parameters
        ----------
        path : str
        begun : BegunOutputs
            What an earlier run has begun and is resumed or removed.
        """
        target = absolute_target(path)
        return cls(target, begun.run, begun.will_replace(target))

    @property
    def is_complete(self) -> bool:
        """True if there is no incomplete output any more, and the target exists."""
        is_local = not is_url(self.target)
        return is_local and not self._opened.is_begun() and os.path.lexists(self.target)

    def problem(self) -> str | None:
        """Return the reason why this process cannot write the output; None if it can."""
        return target_problem(self.target)

    @property
    def _opened(self) -> RasterSink:
        assert self.sink is not None
        return self.sink

    def kept(self, blocks: Collection[str]) -> Collection[str]:
        """Return all blocks of an earlier run if its incomplete output fits."""
        return blocks if self._opened.is_begun() else set()

    def finish(self) -> None:
        """Give the complete output its name."""
        self._opened.finish()

    def discard(self) -> None:
        """Remove the incomplete output."""
        self._opened.discard()


@dataclass(frozen=True, slots=True)
class RasterJob:
    """A prediction over one raster, checked but not started."""

    model: Model
    path: str
    place: RasterPlace
    """The output."""
    tile: Tile
    output: str
    """Name of the output that is written."""
    pre: NamedFunction | None
    overwrite: bool
    image: Mapping[str, Any] = field(default_factory=dict)
    """Options of pixel values as the caller gave them; empty leaves pixels as they are."""

    def check(self) -> None:
        """Build the lazy result once, so that everything is refused that can be before it runs.

        Raises
        ------
        InputError
            See `lazy_result`.
        """
        self.lazy_result()

    @property
    def sinks(self) -> Sequence[Output]:
        """Outputs that are written."""
        return (self.place,)

    @property
    def paths(self) -> Sequence[str]:
        """Path or URL of the input."""
        return (self.path,)

    def manifest(self) -> RunManifest:
        """Return what decides the results, as far as it is known before the job runs."""
        options = {
            "tile": self.tile,
            "outputs": self.output,
            "pre": function_identity(self.pre),
            "image": dict(self.image),
            "format": suffix_of(self.place.target),
        }
        return job_manifest("a raster", self.model, options, _identity(self.path))

    def run(self, client: Client, progress: JobProgress, resumable: ResumableRun) -> FilePrediction:
        """Run the job and write its blocks.

        Raises
        ------
        InputError
            The output cannot be written; the caller's function changes the shape of a block.
        StageError
            Workers died while they ran a block.
        """
        return _run(self, client, progress, resumable)

    def lazy_result(self) -> da.Array:
        """Return the lazy output of the model on the raster, without a batch axis.

        Raises
        ------
        InputError
            The raster cannot be opened, does not fit the model, or has no exact tiles.
        """
        source = open_raster_source(self.path)
        side = self.tile if isinstance(self.tile, int) else _READ_PIXELS
        chunks = tuple(side if name in ("y", "x") else -1 for name in source.dims)
        image = to_channels_first(source.to_blocks(chunks), source.dims)
        if self.pre is not None:
            dtype = self.model.inputs[0].dtype
            meta = np.empty(0, dtype)
            image = image.map_blocks(apply_pre, self.pre, dtype, self.path, dtype=dtype, meta=meta)
        if image.ndim == 2:
            image = image[None]
        if self.image:
            image = _scaled(image, _pixel_scaling(self.model, self.image), self.path)
        result: da.Array = predict_tiled(self.model, image, tile=self.tile, outputs=self.output)
        if result.ndim < 2:
            raise InputError(
                f"output {self.output!r} has shape {result.shape}, which is no raster",
                "leave out tile, or name another output",
                option="outputs",
            )
        return with_regular_blocks(result)


def _pixel_scaling(model: Model, image: Mapping[str, Any]) -> Preparation:
    """Return the preparation whose values the pixels of a raster get.

    Parameters
    ----------
    model : Model
    image : mapping of str to value
        Options of `ImageModel`: the preset, and those of pixel values.

    Raises
    ------
    InputError
        One of them is about the size or the results of pictures, or does not fit the model.
    """
    if others := [name for name in image if name not in _PIXEL_OPTIONS]:
        raise InputError(
            f"{others[0]} does not apply to a raster, which is not resized, and whose output is "
            "written as it is",
            f"leave it out; pixel values follow from {', '.join(_PIXEL_OPTIONS)}, or from your "
            "function: pre",
            option=others[0],
        )
    return ImageModel(model, **image, task="raw")._settings.preparation


def _scaled(image: Any, scaling: Preparation, path: str) -> da.Array:
    """Return the lazy values of a raster's pixels.

    Raises
    ------
    InputError
        They are not 0 to 255, or of another number of channels than the model's.
    """
    channels = scaling.layout.channels or 3
    if image.dtype != np.uint8 or image.shape[0] != channels:
        raise InputError(
            f"{path} has {image.shape[0]} bands of {image.dtype}; presets are for pixel values "
            f"from 0 to 255, and the model takes {channels} channels",
            "leave the preset out, and prepare the blocks by your function: pre",
            option="preset",
            numbers={"bands": image.shape[0], "channels": channels},
        )
    dtype = scaling.layout.dtype
    meta = np.empty(0, dtype)
    found: da.Array = image.map_blocks(_values_of, scaling, dtype=dtype, meta=meta)
    return found


def _values_of(pixels: np.ndarray, scaling: Preparation) -> np.ndarray:
    return scaling.values(pixels)


def tiled_output(model: Model, outputs: list[str] | None) -> str:
    """Return the name of the one output that is written.

    Raises
    ------
    InputError
        There are several, and none is named.
    """
    names = outputs or [spec.name for spec in model.outputs]
    if len(names) != 1:
        raise InputError(
            f"a raster job writes one output; there are {len(names)}: {', '.join(names)}",
            "name one of them",
            option="outputs",
            suggestions=tuple(Suggestion("outputs", name) for name in names),
        )
    return names[0]


def apply_pre(
    block: np.ndarray,
    function: NamedFunction,
    dtype: Any,
    path: str,
    block_info: Any = None,
) -> np.ndarray:
    """Apply the caller's function to a block of pixels, which must keep its shape.

    Parameters
    ----------
    block : ndarray, shape (bands, height, width) or (height, width)
    function : NamedFunction
    dtype : numpy.dtype
        Dtype of the result.
    path : str
        The raster, for errors.
    block_info : dict, optional
        Place of the block, as `dask.array.map_blocks` gives it.

    Raises
    ------
    InputError
        The function returned another shape.
    StageError
        The function raised.
    """
    at = (block_info or {}).get(0, {}).get("array-location", ())
    names = ("band", "y", "x")[-block.ndim :]
    place = ", ".join(f"{n} {a:,} to {b - 1:,}" for n, (a, b) in zip(names, at, strict=False))
    made = np.asarray(function.call(block, f"the block {place} of {path}"))
    if made.shape != block.shape:
        raise InputError(
            f"pre returned shape {made.shape} for a block of shape {block.shape}",
            "with tile, the function must keep the pixels where they are",
            option="pre",
        )
    return made.astype(dtype, copy=False)


def _identity(path: str) -> dict[str, Any]:
    """Return the identity of a raster: of a file, or of all files of a store."""
    target = absolute_target(path)
    if is_url(target) or Path(target).is_dir():
        return {target: folder_identity(target)}
    return file_identities([stat_file(target)])


def _run(
    job: RasterJob, client: Client, progress: JobProgress, resumable: ResumableRun
) -> FilePrediction:
    functions = [] if job.pre is None else [job.pre]
    check_workers(client, local_ends([absolute_target(job.path)]), [job.place], functions)
    began = time.perf_counter()
    with warnings.catch_warnings():
        # `RasterJob.check` has given these warnings.
        warnings.simplefilter("ignore", UserWarning)
        result = job.lazy_result()
    names = ("band", "y", "x")[-result.ndim :] if result.ndim <= 3 else None
    sink = open_raster_sink(
        job.place.target,
        result.chunks,
        result.dtype,
        dims=names,
        attributes=raster_attributes(job.path),
        # It was checked under the lock, and may exist if a run is resumed.
        overwrite=True,
        run=job.place.run,
    )
    resumable.outputs = [replace(job.place, sink=sink)]
    blocks = math.prod(result.numblocks)
    shapes = [list(result.shape), [sizes[0] for sizes in result.chunks], str(result.dtype)]
    graph = BlockGraph.of([write_blocks(result, sink, journal=resumable.journal)])
    work = BlockWork(
        count=blocks,
        submit=lambda part: graph.part(part).submit(client),
        units_of=lambda _: 1,
        unit="tiles",
        is_done=resumable.is_done,
        suggestions=_LESS_MEMORY,
    )
    with resumable.kept_on_failure(progress):
        resumable.start(replace(resumable.manifest, outputs=shapes, blocks=blocks), sink.prepare)
        computed = compute_blocks(client, work, progress)
        resumable.finish()
    return FilePrediction(
        files=(sink.target,),
        shape=tuple(map(int, result.shape)),
        seconds=time.perf_counter() - began,
        workers=len(client.scheduler_info(n_workers=-1)["workers"]),
        blocks=blocks,
        resumed_blocks=blocks - computed,
    )
