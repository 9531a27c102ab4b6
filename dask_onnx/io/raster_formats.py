"""Choice of the sink of a raster by the ending of its name, with the checks before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import is_url
from dask_onnx.io.georeference import attributes_for_grid
from dask_onnx.io.raster_axes import checked_dims
from dask_onnx.io.raster_sinks import NpyRasterSink, RasterSink, TiffRasterSink, ZarrRasterSink
from dask_onnx.io.targets import absolute_target

_SINKS: Mapping[str, type[RasterSink]] = {
    ".npy": NpyRasterSink,
    ".tif": TiffRasterSink,
    ".tiff": TiffRasterSink,
    ".zarr": ZarrRasterSink,
}


def open_raster_sink(
    path: str | Path,
    chunks: tuple[tuple[int, ...], ...],
    dtype: np.dtype[Any],
    *,
    dims: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    compression: str | None = "deflate",
    run: str = "",
) -> RasterSink:
    """Return the sink for a raster, checked as far as this process can. Creates nothing.

    Parameters
    ----------
    path : str or Path
        Path ending in .zarr (also a URL), .npy, .tif or .tiff.
    chunks : tuple of tuple of int
        Sizes of the blocks along each axis, as a dask array has them.
    dtype : numpy.dtype
    dims, attributes, overwrite, compression
        As for `dask_onnx.io.raster_writing.write_raster`.
    run : str
        Name of the run, in the names of incomplete files; empty for names that all runs share.

    Raises
    ------
    InputError
        As for `write_raster`; or the blocks along an axis have several sizes.
    """
    text = str(path)
    kind = _kind_of(text)
    if compression not in ("deflate", None):
        raise InputError(
            f"compression is {compression!r}",
            "pass 'deflate' or None",
            option="compression",
            suggestions=[Suggestion("compression", "deflate")],
        )
    shape = tuple(map(sum, chunks))
    if any(math.isnan(size) for size in shape) or not is_regular(chunks):
        raise InputError(
            f"the blocks {chunks} do not have one known size along each axis",
            "call compute_chunk_sizes() or rechunk() on the array",
            option="chunks",
        )
    names = checked_dims(shape, dims, "the raster")
    height, width = shape[names.index("y")], shape[names.index("x")]
    sink = kind(
        target=absolute_target(text),
        shape=shape,
        dtype=dtype,
        dims=names,
        block_shape=tuple(sizes[0] for sizes in chunks),
        attributes=attributes_for_grid(attributes or {}, height, width),
        overwrite=overwrite,
        compression=compression,
        run=run,
    )
    sink.check()
    return sink


def _kind_of(text: str) -> type[RasterSink]:
    suffix = Path(text.rstrip("/")).suffix.lower()
    if suffix not in _SINKS or (is_url(text) and suffix != ".zarr"):
        raise InputError(
            f"the output {text} has a format that rasters cannot be written in",
            f"use one of the endings {', '.join(_SINKS)}; for a URL .zarr",
            option="path",
        )
    return _SINKS[suffix]


def is_regular(chunks: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether blocks have one size along each axis, except for a smaller last one."""
    return all(set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] for sizes in chunks)
