"""Writing of lazy arrays to raster files, each block by a task."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from dask_onnx.core.dask_internals import ArraySliceDep
from dask_onnx.io.block_journal import BlockJournal
from dask_onnx.io.raster_formats import is_regular, open_raster_sink
from dask_onnx.io.raster_sinks import RasterSink
from dask_onnx.io.tiff import Array, Region


def write_raster(
    array: da.Array,
    path: str | Path,
    *,
    dims: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compression: str | None = "deflate",
) -> Delayed:
    """Return a Delayed that writes a lazy array by blocks and evaluates to the target's path.

    The target appears when it is complete. After a failure, an incomplete file stays beside it
    under a name with ``.partial``, which the next run replaces; `save_raster` removes it.

    Parameters
    ----------
    array : dask.array.Array
        Shape (height, width), (bands, height, width), or another that `dims` describes. Blocks that
        differ in size along an axis are rechunked to the largest.
    path : str or Path
        Path ending in .zarr (also a URL), .npy, .tif or .tiff, whose folder all workers can access.
        While a TIFF is written, the uncompressed raster takes space beside it.
    dims : sequence of str, optional
        Names of the axes; ("y", "x") or ("band", "y", "x") by default.
    attributes : mapping, optional
        Result of `raster_attributes` for the raster that the array covers. The array must have the
        raster's size, or a multiple or a divisor of it. The georeference is written to TIFF's tags
        and zarr's attributes; facts about pixel values, such as nodata, are not.
    overwrite : bool
        True to replace an existing target.
    compression : {"deflate", None}
        Compression of the tiles of a TIFF file.

    Returns
    -------
    dask.delayed.Delayed
        Evaluates to the path as str.

    Raises
    ------
    InputError
        The target exists or has no folder; the ending, shape or dtype cannot be written; or
        `attributes` do not fit the array's size.
    """
    return _Writing.of(array, path, dims, attributes, overwrite, compression).lazy()


def save_raster(
    array: da.Array,
    path: str | Path,
    *,
    dims: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compression: str | None = "deflate",
) -> str:
    """Write a lazy array by blocks at once, on the scheduler that Dask would use.

    After a failure or an interruption, the incomplete file is removed.

    Parameters
    ----------
    array, path, dims, attributes, overwrite, compression
        As for `write_raster`.

    Returns
    -------
    str
        The path.

    Raises
    ------
    InputError
        As for `write_raster`.
    """
    writing = _Writing.of(array, path, dims, attributes, overwrite, compression)
    try:
        target: str = writing.lazy().compute()
    except BaseException:
        # Also on Ctrl-C: no incomplete file may stay.
        writing.sink.discard()
        raise
    return target


@dataclass(frozen=True, slots=True)
class _Writing:
    """A lazy array, and the checked sink that its blocks go to."""

    array: da.Array
    """Array with regular blocks, as the sink takes them."""
    sink: RasterSink

    @classmethod
    def of(
        cls,
        array: da.Array,
        path: str | Path,
        dims: Sequence[str] | None,
        attributes: Mapping[str, Any] | None,
        overwrite: bool,
        compression: str | None,
    ) -> _Writing:
        """Return what `write_raster` writes, checked; creates nothing."""
        regular = with_regular_blocks(array)
        sink = open_raster_sink(
            path,
            regular.chunks,
            regular.dtype,
            dims=dims,
            attributes=attributes,
            overwrite=overwrite,
            compression=compression,
        )
        return cls(regular, sink)

    def lazy(self) -> Delayed:
        """Return the Delayed that writes all blocks and evaluates to the target's path."""
        prepared = delayed(_prepare, pure=False)(self.sink)
        written = write_blocks(self.array, self.sink, prepared)
        done: Delayed = delayed(_finish, pure=False)(self.sink, written)
        return done


def write_blocks(
    array: da.Array,
    sink: RasterSink,
    prepared: Any = None,
    journal: BlockJournal | None = None,
) -> da.Array:
    """Return a lazy array with the number of pixels of each block; computing it writes the blocks.

    Parameters
    ----------
    array : dask.array.Array
        Shape, dtype and chunks must be those that the sink was opened for.
    sink : RasterSink
        The caller calls its `finish` or `discard` afterwards.
    prepared : Delayed, optional
        Task that runs before the first block; None if `sink.prepare` has been called already.
    journal : BlockJournal, optional
        Journal in which a block is recorded once it is written.
    """
    axes = tuple(range(array.ndim))
    done: da.Array = da.blockwise(
        _write,
        axes,
        array,
        axes,
        ArraySliceDep(array.chunks),
        axes,
        sink=sink,
        prepared=prepared,
        journal=journal,
        # A unique name, so that a repeated call writes again.
        name=f"write-raster-{uuid.uuid4().hex}",
        dtype=np.int64,
        meta=np.empty((0,) * array.ndim, np.int64),
        adjust_chunks={axis: (1,) * count for axis, count in enumerate(array.numblocks)},
        align_arrays=False,
    )
    return done


def with_regular_blocks(array: da.Array) -> da.Array:
    """Return the array with blocks of one size along each axis, except for a smaller last one."""
    if is_regular(array.chunks) or any(map(math.isnan, array.shape)):
        return array  # `open_raster_sink` refuses unknown sizes
    regular: da.Array = array.rechunk(tuple(max(sizes) for sizes in array.chunks))
    return regular


def _prepare(sink: RasterSink) -> None:
    sink.prepare()


def _write(
    block: Array,
    region: Region,
    sink: RasterSink,
    prepared: None,
    journal: BlockJournal | None = None,
) -> Array:
    """Write a block after `prepared` is done; return its number of pixels."""
    written = sink.write(region, block)
    if journal is not None:
        journal.record(sink.block_number(region), [block.size], written)
    return np.full((1,) * block.ndim, block.size)


def _finish(sink: RasterSink, written: Array) -> str:
    """Finish the sink after all blocks are `written`; return the target."""
    sink.finish()
    return sink.target
