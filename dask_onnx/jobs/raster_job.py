"""Jobs over one large raster, which goes through a model tile by tile."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, Future, futures_of

from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.io.file_job import NamedFunction
from dask_onnx.io.raster_axes import to_channels_first
from dask_onnx.io.raster_sinks import open_raster_sink
from dask_onnx.io.raster_writing import with_regular_blocks, write_blocks
from dask_onnx.io.rasters import open_raster_source, raster_attributes
from dask_onnx.jobs.job_progress import JobProgress, wait_for
from dask_onnx.jobs.job_result import FilePrediction
from dask_onnx.tiles.predict import Tile, predict_tiled

_READ_PIXELS = 1024
"""Side of the blocks that are read where the size of a tile is not given."""
_LESS_MEMORY = (Suggestion("tile"), Suggestion("worker_memory_limit"))


@dataclass(frozen=True, slots=True)
class RasterJob:
    """A prediction over one raster, checked but not started."""

    model: Model
    path: str
    target: str
    """Path or URL of the output."""
    tile: Tile
    output: str
    """Name of the output that is written."""
    pre: NamedFunction | None
    overwrite: bool

    def check(self) -> None:
        """Build the lazy result once, so that everything is refused that can be before it runs.

        Raises
        ------
        InputError
            See `lazy_result`.
        """
        self.lazy_result()

    def run(self, client: Client, progress: JobProgress) -> FilePrediction:
        """Run the job and write its blocks.

        Raises
        ------
        InputError
            The output cannot be written; the caller's function changes the shape of a block.
        StageError
            Workers died while they ran a block.
        """
        return _run(self, client, progress)

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
            image = image.map_blocks(apply_pre, self.pre, dtype, dtype=dtype, meta=meta)
        if image.ndim == 2:
            image = image[None]
        result: da.Array = predict_tiled(self.model, image, tile=self.tile, outputs=self.output)
        if result.ndim < 2:
            raise InputError(
                f"output {self.output!r} has shape {result.shape}, which is no raster",
                "leave out tile, or name another output",
                option="outputs",
            )
        return with_regular_blocks(result)


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


def apply_pre(block: np.ndarray, function: NamedFunction, dtype: Any) -> np.ndarray:
    """Apply the caller's function to a block of pixels, which must keep its shape.

    Raises
    ------
    InputError
        The function returned another shape.
    """
    made = np.asarray(function.resolve()(block))
    if made.shape != block.shape:
        raise InputError(
            f"pre returned shape {made.shape} for a block of shape {block.shape}",
            "with tile, the function must keep the pixels where they are",
            option="pre",
        )
    return made.astype(dtype, copy=False)


def _run(job: RasterJob, client: Client, progress: JobProgress) -> FilePrediction:
    began = time.perf_counter()
    with warnings.catch_warnings():
        # `RasterJob.check` has given these warnings.
        warnings.simplefilter("ignore", UserWarning)
        result = job.lazy_result()
    names = ("band", "y", "x")[-result.ndim :] if result.ndim <= 3 else None
    sink = open_raster_sink(
        job.target,
        result.chunks,
        result.dtype,
        dims=names,
        attributes=raster_attributes(job.path),
        overwrite=job.overwrite,
    )
    sink.prepare()
    futures: list[Future] = []
    try:
        futures = futures_of(client.persist(write_blocks(result, sink)))
        sizes = {future.key: 1 for future in futures}
        wait_for(futures, sizes, "tiles", progress, _LESS_MEMORY)
        client.submit(sink.finish, pure=False).result()
    except BaseException:
        # Also on Ctrl-C: an incomplete output must not look like a result.
        progress.stopping()
        client.cancel(futures, force=True)
        sink.discard()
        raise
    return FilePrediction(
        files=(sink.target,),
        shape=tuple(map(int, result.shape)),
        seconds=time.perf_counter() - began,
        workers=len(client.scheduler_info(n_workers=-1)["workers"]),
        blocks=len(futures),
    )
