"""Raster files larger than memory, written by blocks: npy, zarr and tiled BigTIFF.

Each task writes its own block. An incomplete file lies beside the target under a name with
``.partial``, so two runs must not write the same target at the same time.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import is_url
from dask_onnx.core.meters import metered
from dask_onnx.io.georeference import tags_from_attributes
from dask_onnx.io.npy_headers import read_header
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.output_places import check_target
from dask_onnx.io.sinks import NpySink, OutputSpec
from dask_onnx.io.targets import (
    explained_writes,
    new_run_name,
    partial_path,
    remove_folder,
    remove_marker,
    swap_folder,
    sync_and_rename,
    write_marker,
)
from dask_onnx.io.tiff import Array, Region, import_tifffile, write_tiled


@dataclass(frozen=True, slots=True)
class RasterSink(ABC):
    """An output raster: `prepare` first, `write` in tasks, then `finish`, or `discard` on failure.

    `prepare` and `finish` may be called again: Dask repeats tasks whose worker is lost.
    """

    target: str
    """Absolute path, or URL."""
    shape: tuple[int, ...]
    """Shape of the raster in pixels and bands."""
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    """Names of the axes: "y", "x", and "band" if there are several bands."""
    block_shape: tuple[int, ...]
    """Shape of the blocks that are written; those at the end of an axis may be smaller."""
    attributes: Mapping[str, Any]
    """Georeference of the raster, as `georeference` describes it."""
    overwrite: bool
    """True if an existing file is replaced."""
    compression: str | None
    """"deflate" or None; for TIFF only."""
    run: str = ""
    """Name of the run, in the names of incomplete files; empty for names that all runs share."""

    def check(self) -> None:
        """Raise an error if the raster cannot be written, before any work.

        Raises
        ------
        InputError
            The target exists or has no folder; the format cannot store the shape or dtype; or a
            package is missing.
        """
        check_target(self.target, overwrite=self.overwrite)
        if self.dtype.kind not in "biufc" or 0 in self.shape:
            raise InputError(
                f"a raster of {self.dtype} and shape {self.shape} cannot be written",
                "convert it to one of numpy's own number types, with at least one pixel",
            )

    @abstractmethod
    def prepare(self) -> None:
        """Create the incomplete file, unless it exists already."""

    @abstractmethod
    def is_begun(self) -> bool:
        """Return whether the incomplete file exists, for this shape, dtype and blocks."""

    def block_number(self, region: Region) -> int:
        """Return the position of the block of a region, the last axis first."""
        number = 0
        for part, size, total in zip(region, self.block_shape, self.shape, strict=True):
            number = number * -(-total // size) + part.start // size
        return number

    @abstractmethod
    def write(self, region: Region, block: Array) -> list[str]:
        """Write the pixels of a region; return the local files that hold them.

        Raises
        ------
        InputError
            The block has another shape or dtype than the raster declares.
        OutputError
            It cannot be written, as on a full disk; so for `prepare` and `finish`.
        """

    @abstractmethod
    def finish(self) -> None:
        """Give the complete file its name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the incomplete file."""


@dataclass(frozen=True, slots=True)
class NpyRasterSink(RasterSink):
    """One .npy file, which tasks fill in place under a temporary name."""

    @property
    def file(self) -> NpySink:
        """The .npy file."""
        return NpySink(self.target, self.run)

    def prepare(self) -> None:
        """Create a file of the final size, unless it exists already."""
        if not self.is_begun():
            self.file.discard()
            spec = OutputSpec("raster", self.dtype, self.shape[1:])
            self.file.prepare(self.shape[0], self.shape[0], (spec,))

    def is_begun(self) -> bool:
        """Return whether the file exists: a repeated task must not erase blocks in it."""
        if not self.file.partial.exists():
            return False
        try:
            found: Array = np.load(self.file.partial, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):  # the remains of another run
            return False
        return (found.shape, found.dtype) == (self.shape, self.dtype)

    @metered("write")
    def write(self, region: Region, block: Array) -> list[str]:
        """Write the pixels of a region, one contiguous run of bytes at a time.

        A memory map would end the process when the disk is full. A buffered file would also write
        the bytes between two runs, which belong to other tasks.
        """
        _require_block(self, region, block)
        block = np.ascontiguousarray(block)
        whole = [size == full for size, full in zip(block.shape, self.shape, strict=True)]
        # From this axis on, a block's pixels are contiguous in the file.
        split = max((axis for axis, is_whole in enumerate(whole) if not is_whole), default=0)
        strides = [self.dtype.itemsize * math.prod(self.shape[i + 1 :]) for i in range(len(whole))]
        with (
            explained_writes(self.target),
            self.file.partial.open("r+b", buffering=0) as file,
        ):
            read_header(file)
            begin = file.tell()
            for place in np.ndindex(block.shape[:split]):
                starts = [part.start for part in region]
                starts[:split] = (start + i for start, i in zip(starts, place, strict=False))
                offset = begin + sum(a * b for a, b in zip(starts, strides, strict=True))
                _write_at(file.fileno(), block[place].reshape(-1).view(np.uint8).data, offset)
        return [str(self.file.partial)]

    def finish(self) -> None:
        """Rename the file, unless an earlier call has done so."""
        if self.file.partial.exists() or not Path(self.target).exists():
            self.file.finish()

    def discard(self) -> None:
        """Remove the incomplete file."""
        self.file.discard()


@dataclass(frozen=True, slots=True)
class TiffRasterSink(NpyRasterSink):
    """A tiled BigTIFF, made at the end from an uncompressed .npy file that tasks fill.

    The offset of a compressed tile depends on the sizes of the tiles before it, and blocks arrive
    in any order.
    """

    @property
    def file(self) -> NpySink:
        """The .npy file beside the target."""
        return NpySink(f"{self.target}.npy", self.run)

    @property
    def partial(self) -> Path:
        """Path of the incomplete TIFF file."""
        return partial_path(self.target, self.run)

    def check(self) -> None:
        """Raise an error for axes and dtypes that TIFF does not have, and as every raster sink."""
        # `super()` without arguments fails in a dataclass with slots, which is a new class.
        RasterSink.check(self)
        import_tifffile()
        if self.dims not in (("y", "x"), ("band", "y", "x"), ("y", "x", "band")):
            raise InputError(
                f"a TIFF file stores one image; the axes are {self.dims} of {self.shape}",
                "write .zarr or .npy",
                option="dims",
            )
        if self.dtype.kind == "c" or self.dtype.itemsize > 8:
            raise InputError(
                f"TIFF cannot store pixels of {self.dtype}", "write .zarr or .npy", option="path"
            )

    def finish(self) -> None:
        """Write the TIFF file and remove the .npy file, unless an earlier call has done so."""
        if Path(self.target).exists() and not self.file.partial.exists():
            return
        with explained_writes(self.target):
            write_tiled(
                self.partial,
                self.read_rows,
                self.shape,
                # tifffile writes booleans as single bits, which not all readers support.
                np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype,
                planar=self.dims[0] == "band",
                tags=tags_from_attributes(self.attributes),
                compression=self.compression,
            )
            sync_and_rename(self.partial, self.target)
        self.file.discard()

    def read_rows(self, plane: int, top: int, bottom: int) -> Array:
        """Return rows `top` to `bottom` (exclusive); of band `plane` if the band axis is first."""
        # Mapped again each time: pages of a kept map count as memory of this process.
        mapped: Array = np.load(self.file.partial, mmap_mode="r", allow_pickle=False)
        return np.array(mapped[plane, top:bottom] if self.dims[0] == "band" else mapped[top:bottom])

    def discard(self) -> None:
        """Remove both incomplete files."""
        self.file.discard()
        self.partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ZarrRasterSink(RasterSink):
    """A zarr array with one chunk for each block, the names of the axes and the attributes.

    A local store is renamed when it is complete. An object store cannot rename, so there the array
    has its final name from the beginning. Both get the marker ``_SUCCESS`` at the end.
    """

    @property
    def is_local(self) -> bool:
        """True if the target is a path rather than a URL."""
        return not is_url(self.target)

    @property
    def partial(self) -> str:
        """Path or URL of the incomplete store."""
        return str(partial_path(self.target, self.run)) if self.is_local else self.target

    def check(self) -> None:
        """Raise an error as every raster sink, or if zarr is not installed."""
        RasterSink.check(self)
        require_package("zarr", f"the output {self.target}")

    def prepare(self) -> None:
        """Create the array, unless it exists already."""
        import zarr  # optional: only zarr files need it

        with explained_writes(self.target):
            remove_marker(self.partial)
            if (found := self._prepared()) is not None:
                found.attrs.put(dict(self.attributes))
                return
            zarr.create_array(
                self.partial,
                shape=self.shape,
                # No chunk spans two blocks, so that no two tasks write the same one.
                chunks=self.block_shape,
                dtype=self.dtype,
                dimension_names=self.dims,
                attributes=dict(self.attributes),
                zarr_format=3,
                overwrite=True,
            )

    def is_begun(self) -> bool:
        """Return whether the array exists, with these blocks."""
        return self._prepared() is not None

    def _prepared(self) -> Any:
        """Return the array if it exists: a repeated task must not erase blocks in it."""
        import zarr  # optional: only zarr files need it

        try:
            found = zarr.open_array(self.partial, mode="r+")
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
            return None  # nothing, or the remains of another run
        facts = (found.shape, found.dtype, found.chunks, found.metadata.dimension_names)
        wanted = (self.shape, self.dtype, self.block_shape, self.dims)
        return found if found.metadata.zarr_format == 3 and facts == wanted else None

    @metered("write")
    def write(self, region: Region, block: Array) -> list[str]:
        """Write the chunk of a region."""
        import zarr  # optional: only zarr files need it

        _require_block(self, region, block)
        with explained_writes(self.target):
            array = zarr.open_array(self.partial, mode="r+")
            array[region] = block
        sizes = zip(region, self.block_shape, strict=True)
        key = array.metadata.encode_chunk_key(tuple(part.start // size for part, size in sizes))
        return [f"{self.partial}/{key}"] if self.is_local else []

    def finish(self) -> None:
        """Write the marker and rename a local store, unless an earlier call has done so."""
        if self.is_local and Path(self.target).exists() and not Path(self.partial).exists():
            return
        with explained_writes(self.target):
            write_marker(self.partial)
            if self.is_local:
                swap_folder(self.partial, self.target, self.run or new_run_name())

    def discard(self) -> None:
        """Remove a local store; a remote one stays without its marker, as removal is expensive."""
        if self.is_local:
            remove_folder(self.partial)


def _write_at(descriptor: int, rest: memoryview, offset: int) -> None:
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _require_block(sink: RasterSink, region: Region, block: Array) -> None:
    shape = tuple(part.stop - part.start for part in region)
    if block.shape != shape or block.dtype != sink.dtype:
        raise InputError(
            f"a block is {block.dtype} {block.shape}, and the array declares {sink.dtype} {shape}",
            "return the declared dtype and shape from the function that computes the blocks",
        )
