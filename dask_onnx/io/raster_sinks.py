"""Places that take a picture larger than memory by blocks: npy, zarr, tiled BigTIFF.

Each task writes its own block by path. What is not complete lies beside the target under a name
with ``.partial``; two runs must not write the same target at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.lib import format as npy_format

from dask_onnx.core.errors import InputError
from dask_onnx.io.georeference import attributes_for_grid, tags_from_attributes
from dask_onnx.io.raster_axes import checked_dims
from dask_onnx.io.sinks import MARKER, NpySink, OutputSpec
from dask_onnx.io.tiff import Array, Region, import_tifffile, write_tiled


@dataclass(frozen=True, slots=True)
class RasterSink(ABC):
    """Where a picture goes. `prepare` first, `write` in tasks, `finish` or `discard` after.

    `prepare` and `finish` may be repeated, as Dask does with tasks whose worker is lost.
    """

    target: str
    """Path, absolute, or URL."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    """Names of the axes: "y", "x", "band" where there are several."""
    block_shape: tuple[int, ...]
    """Shape of the blocks that are written; those at the end of an axis may be smaller."""
    attributes: Mapping[str, Any]
    """Where the picture lies on the ground, for its own size."""
    overwrite: bool
    compression: str | None
    """"deflate" or None; TIFF only."""

    def check(self) -> None:
        """Refuse what is there already, and what this format cannot hold, before any work."""
        NpySink(self.target, self.overwrite).check()
        if self.dtype.kind not in "biufc" or 0 in self.shape:
            raise InputError(
                f"a picture of {self.dtype} and shape {self.shape} cannot be written",
                "convert it to a dtype of numpy's own numbers, with at least one pixel",
            )

    def problem(self) -> str | None:
        """Return what keeps this process from writing; None if nothing does."""
        return NpySink(self.target).problem()

    @abstractmethod
    def prepare(self) -> None:
        """Make room for the picture, unless it is there."""

    @abstractmethod
    def write(self, region: Region, block: Array) -> None:
        """Keep one block."""

    @abstractmethod
    def finish(self) -> None:
        """Give what is complete its name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what is not complete."""


@dataclass(frozen=True, slots=True)
class NpyRasterSink(RasterSink):
    """One .npy file, which tasks fill in place under a temporary name."""

    @property
    def file(self) -> NpySink:
        return NpySink(self.target)

    def prepare(self) -> None:
        if not self._is_prepared():
            spec = OutputSpec("picture", self.dtype, self.shape[1:])
            self.file.prepare(self.shape[0], self.shape[0], (spec,))

    def _is_prepared(self) -> bool:
        """Whether the file is there. A repeated task must not empty it: blocks may be in it."""
        if not self.file.partial.exists():
            return False
        try:
            found: Array = np.load(self.file.partial, mmap_mode="r")
        except (ValueError, EOFError):  # what an earlier run left is no such file
            return False
        return (found.shape, found.dtype) == (self.shape, self.dtype)

    def write(self, region: Region, block: Array) -> None:
        """Write the runs of bytes that a block has in the file.

        Not by a mapping, under which a full disk ends the process; and unbuffered, since a buffer
        also writes the bytes between two runs, which belong to other tasks.
        """
        _require_block(self, region, block)
        block = np.ascontiguousarray(block)
        whole = [size == full for size, full in zip(block.shape, self.shape, strict=True)]
        split = max((axis for axis, is_whole in enumerate(whole) if not is_whole), default=0)
        strides = [self.dtype.itemsize * math.prod(self.shape[i + 1 :]) for i in range(len(whole))]
        with self.file.partial.open("r+b", buffering=0) as file:
            npy_format.read_magic(file)
            npy_format.read_array_header_2_0(file)
            begin = file.tell()
            for place in np.ndindex(block.shape[:split]):
                starts = [part.start for part in region]
                starts[:split] = (start + i for start, i in zip(starts, place, strict=False))
                offset = begin + sum(a * b for a, b in zip(starts, strides, strict=True))
                _write_at(file.fileno(), block[place].reshape(-1).view(np.uint8).data, offset)

    def finish(self) -> None:
        if self.file.partial.exists() or not Path(self.target).exists():
            self.file.finish()

    def discard(self) -> None:
        self.file.discard()


@dataclass(frozen=True, slots=True)
class TiffRasterSink(NpyRasterSink):
    """A tiled BigTIFF, made at the end from a .npy file that tasks fill.

    The place of a compressed tile in the file depends on the sizes of those before it, and blocks
    come in any order: hence the .npy file, the picture uncompressed, beside the target.
    """

    @property
    def file(self) -> NpySink:
        return NpySink(f"{self.target}.npy")

    @property
    def partial(self) -> Path:
        path = Path(self.target)
        return path.with_name(f".{path.name}.partial")

    def check(self) -> None:
        # The explicit class: a dataclass with slots is another class than `super()` looks for.
        RasterSink.check(self)
        import_tifffile()
        if self.dims not in (("y", "x"), ("band", "y", "x"), ("y", "x", "band")):
            raise InputError(
                f"a TIFF file holds one picture; the axes are {self.dims} of {self.shape}",
                "write .zarr or .npy",
            )
        if self.dtype.kind == "c" or self.dtype.itemsize > 8:
            raise InputError(f"TIFF cannot hold pixels of {self.dtype}", "write .zarr or .npy")

    def finish(self) -> None:
        if Path(self.target).exists() and not self.file.partial.exists():
            return
        write_tiled(
            self.partial,
            self.read_rows,
            self.shape,
            # tifffile writes a boolean in one bit, which not all readers take.
            np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype,
            planar=self.dims[0] == "band",
            tags=tags_from_attributes(self.attributes),
            compression=self.compression,
        )
        with self.partial.open("r+b") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.target)
        self.file.discard()

    def read_rows(self, plane: int, top: int, bottom: int) -> Array:
        """Return rows of the picture, of one band if bands follow each other."""
        # Mapped anew each time: pages that stay mapped count as this process' memory.
        mapped: Array = np.load(self.file.partial, mmap_mode="r")
        return np.array(mapped[plane, top:bottom] if self.dims[0] == "band" else mapped[top:bottom])

    def discard(self) -> None:
        self.file.discard()
        self.partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ZarrRasterSink(RasterSink):
    """A zarr array with one chunk for each block, the axes' names and the attributes.

    A local store is renamed when it is complete. On an object store, which cannot rename, it has
    its name from the beginning; both get the marker ``_SUCCESS`` at the end.
    """

    @property
    def is_local(self) -> bool:
        return "://" not in self.target

    @property
    def partial(self) -> str:
        if not self.is_local:
            return self.target
        path = Path(self.target)
        return str(path.with_name(f".{path.name}.partial"))

    def check(self) -> None:
        RasterSink.check(self)
        if importlib.util.find_spec("zarr") is None:
            raise InputError("zarr is not installed", "pip install 'dask-onnx[zarr]'")

    def prepare(self) -> None:
        import zarr  # an extra: only who writes zarr needs it

        filesystem, root = fsspec.url_to_fs(self.partial)
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{MARKER}")
        if (found := self._prepared()) is not None:
            found.attrs.put(dict(self.attributes))
            return
        zarr.create_array(
            self.partial,
            shape=self.shape,
            # A chunk is never in two blocks, so that no two tasks write the same one.
            chunks=self.block_shape,
            dtype=self.dtype,
            dimension_names=self.dims,
            attributes=dict(self.attributes),
            zarr_format=3,
            overwrite=True,
        )

    def _prepared(self) -> Any:
        """Return the array if it is there. A repeated task must not empty it of blocks."""
        import zarr

        try:
            found = zarr.open_array(self.partial, mode="r+")
        except Exception:  # stores raise whatever their backend does: then there is none
            return None
        facts = (found.shape, found.dtype, found.chunks, found.metadata.dimension_names)
        wanted = (self.shape, self.dtype, self.block_shape, self.dims)
        return found if found.metadata.zarr_format == 3 and facts == wanted else None

    def write(self, region: Region, block: Array) -> None:
        import zarr

        _require_block(self, region, block)
        zarr.open_array(self.partial, mode="r+")[region] = block

    def finish(self) -> None:
        path, partial = Path(self.target), Path(self.partial)
        if self.is_local and path.exists() and not partial.exists():
            return
        filesystem, root = fsspec.url_to_fs(self.partial)
        filesystem.pipe_file(f"{root}/{MARKER}", b"")
        if self.is_local:
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            partial.replace(path)

    def discard(self) -> None:
        """Remove a local store; a remote one stays without its marker, as removing costs much."""
        if self.is_local:
            shutil.rmtree(self.partial, ignore_errors=True)


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
) -> RasterSink:
    """Return the place for a picture, checked as far as this process can; makes nothing.

    Parameters
    ----------
    path : str or Path
        Ending in .zarr (also a URL), .npy, .tif or .tiff.
    chunks : tuple of tuple of int
        Sizes of the blocks along each axis, as a dask array has them.
    dtype : numpy.dtype
    dims, attributes, overwrite, compression
        As for `dask_onnx.io.raster_writing.write_raster`.

    Raises
    ------
    InputError
        As there; or blocks of several sizes along an axis.
    """
    text = str(path)
    kind = _kind_of(text)
    if compression not in ("deflate", None):
        raise InputError(f"compression is {compression!r}", "give 'deflate' or None")
    shape = tuple(map(sum, chunks))
    if any(math.isnan(size) for size in shape) or not is_regular(chunks):
        raise InputError(
            f"the blocks {chunks} are not of one known size along each axis",
            "call compute_chunk_sizes() or rechunk() on the array",
        )
    names = checked_dims(shape, dims, "the picture")
    height, width = shape[names.index("y")], shape[names.index("x")]
    sink = kind(
        target=text if "://" in text else str(Path(text).expanduser().absolute()),
        shape=shape,
        dtype=dtype,
        dims=names,
        block_shape=tuple(sizes[0] for sizes in chunks),
        attributes=attributes_for_grid(attributes or {}, height, width),
        overwrite=overwrite,
        compression=compression,
    )
    sink.check()
    return sink


def _kind_of(text: str) -> type[RasterSink]:
    suffix = Path(text.rstrip("/")).suffix.lower()
    if suffix not in _SINKS or ("://" in text and suffix != ".zarr"):
        raise InputError(
            f"the output {text} is of a kind that a picture cannot be written to",
            f"give it one of the endings {', '.join(_SINKS)}; at a URL .zarr",
        )
    return _SINKS[suffix]


def is_regular(chunks: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether blocks are of one size along each axis, but for a smaller last one."""
    return all(set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] for sizes in chunks)


def _write_at(descriptor: int, rest: memoryview, offset: int) -> None:
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _require_block(sink: RasterSink, region: Region, block: Array) -> None:
    shape = tuple(part.stop - part.start for part in region)
    if block.shape != shape or block.dtype != sink.dtype:
        raise InputError(
            f"a block is {block.dtype} {block.shape}, and {sink.dtype} {shape} goes there",
            "make the function that computes it return what the array's dtype and chunks say",
        )
