"""``dask-onnx predict --tile``: a large picture through a model by tiles, from file to file."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, Future, futures_of

from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError
from dask_onnx.io.file_job import NamedFunction
from dask_onnx.io.raster_axes import to_channels_first
from dask_onnx.io.raster_sinks import open_raster_sink
from dask_onnx.io.raster_writing import with_regular_blocks, write_blocks
from dask_onnx.io.rasters import open_raster_source, raster_attributes
from dask_onnx.tiles.predict import Tile, predict_tiled

_READ_PIXELS = 1024
"""Side of the blocks that are read, where the tile is found out later."""


@dataclass(frozen=True, slots=True)
class TiledJob:
    """A prediction over one picture, checked but not begun."""

    model: Model
    input_path: str
    output_path: str
    tile: Tile
    output: str
    """Name of the output that is written."""
    pre: NamedFunction | None
    overwrite: bool


def parse_tile(text: str) -> Tile:
    """Return what `predict_tiled` takes as `tile`.

    Raises
    ------
    InputError
        Neither "auto", nor a number, nor several numbers.
    """
    if text == "auto":
        return "auto"
    sizes = text.replace("x", ",").split(",")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise InputError(f"--tile is {text!r}", "give auto, 1024, or 512,1024")
    found = tuple(map(int, sizes))
    return found[0] if len(found) == 1 else found


def tiled_output(model: Model, outputs: list[str] | None) -> str:
    """Return the one output that is written.

    Raises
    ------
    InputError
        There are several, and none is named.
    """
    names = outputs or [spec.name for spec in model.outputs]
    if len(names) != 1:
        raise InputError(
            f"--tile writes one output; the model has {len(names)}: {', '.join(names)}",
            "name one with --outputs",
        )
    return names[0]


def lazy_result(job: TiledJob) -> da.Array:
    """Return the lazy output of the model on the picture, without a batch axis.

    Raises
    ------
    InputError
        The picture cannot be opened, does not fit the model, or has no exact tiles.
    """
    source = open_raster_source(job.input_path)
    side = job.tile if isinstance(job.tile, int) else _READ_PIXELS
    chunks = tuple(side if name in ("y", "x") else -1 for name in source.dims)
    image = to_channels_first(source.to_blocks(chunks), source.dims)
    if job.pre is not None:
        dtype = job.model.inputs[0].dtype
        image = image.map_blocks(_prepared, job.pre, dtype, dtype=dtype, meta=np.empty(0, dtype))
    if image.ndim == 2:
        image = image[None]
    result: da.Array = predict_tiled(job.model, image, tile=job.tile, outputs=job.output)
    if result.ndim < 2:
        raise InputError(
            f"output {job.output!r} has shape {result.shape}, which is no picture",
            "leave --tile out, or name another output with --outputs",
        )
    return with_regular_blocks(result)


def _prepared(block: np.ndarray, function: NamedFunction, dtype: Any) -> np.ndarray:
    """What the caller's function makes of a block of pixels, which keeps its shape."""
    made = np.asarray(function.resolve()(block))
    if made.shape != block.shape:
        raise InputError(
            f"--pre made shape {made.shape} of a block of shape {block.shape}",
            "under --tile it must keep the pixels where they are",
        )
    return made.astype(dtype, copy=False)


def run_tiled(
    job: TiledJob, client: Client, wait: Callable[[list[Future], int], None]
) -> dict[str, Any]:
    """Run and write; return the numbers of the run.

    Parameters
    ----------
    wait : function of the futures of blocks and their number, which shows progress
    """
    began = time.perf_counter()
    with warnings.catch_warnings():
        # Said when the job was checked.
        warnings.simplefilter("ignore", UserWarning)
        result = lazy_result(job)
    names = ("band", "y", "x")[-result.ndim :] if result.ndim <= 3 else None
    sink = open_raster_sink(
        job.output_path,
        result.chunks,
        result.dtype,
        dims=names,
        attributes=raster_attributes(job.input_path),
        overwrite=job.overwrite,
    )
    sink.prepare()
    futures: list[Future] = []
    try:
        futures = futures_of(client.persist(write_blocks(result, sink)))
        wait(futures, len(futures))
        client.submit(sink.finish, pure=False).result()
    except BaseException:
        # Also on Ctrl-C: what is half done must not look like a result.
        client.cancel(futures, force=True)
        sink.discard()
        raise
    seconds = time.perf_counter() - began
    pixels = int(np.prod(result.shape[-2:]))
    return {
        "pixels": pixels,
        "shape": list(result.shape),
        "seconds": round(seconds, 3),
        "pixels_per_second": round(pixels / seconds, 1),
        "workers": len(client.scheduler_info(n_workers=-1)["workers"]),
        "blocks": len(futures),
        "output": sink.target,
    }
