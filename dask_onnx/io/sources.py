"""Data sets that are read by rows: npy, npz, zarr and images.

An opened array is a record of paths, shape and dtype, a few hundred bytes, that travels to the
workers and reads there. ``dask.array.from_array`` accepts it directly. `input_formats` opens them.
"""

from __future__ import annotations

import math
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import FileSource, is_url
from dask_onnx.core.filesystems import open_seekable
from dask_onnx.core.meters import metered
from dask_onnx.core.stage_tasks import digest
from dask_onnx.io.npy_headers import read_header, read_npy_rows

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FileArray(ABC):
    """An array in files, indexed by rows."""

    files: tuple[FileSource, ...]
    """Files of the array, as they were when it was opened; empty for a zarr store at a URL."""
    shape: tuple[int, ...]
    """Shape with the axis of rows first."""
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def token(self) -> str:
        """Identity of the content: a digest of the files' paths, sizes and times."""
        return digest(type(self).__name__, self)

    def layer_name(self, blocks: Any) -> str:
        """Return the name of the graph layer that reads the array in these blocks.

        Two arrays of one file with different blocks must not share keys: their tasks differ.
        """
        return f"read-{digest(self.token, blocks)}"

    def __getitem__(self, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        start, stop, step = index[0].indices(self.shape[0])
        with metered("read"):
            rows = self.read_rows(start, stop)
        return rows[(slice(None, None, step), *index[1:])]

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), read from the files."""

    def to_dask(self, block_rows: int) -> da.Array:
        """Return a lazy array with blocks of `block_rows` rows, read in the tasks."""
        array: da.Array = da.from_array(
            self,
            chunks=(block_rows, *(-1 for _ in self.shape[1:])),
            name=self.layer_name(block_rows),
            inline_array=True,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


@dataclass(frozen=True, slots=True)
class NpyArray(FileArray):
    """One .npy file, memory-mapped: a task reads the pages of its rows only."""

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive): a view of the mapped file, or read by URL.

        A file in Fortran's order at a URL is read as a whole.
        """
        path = self.files[0].path
        if is_url(path):
            with open_seekable(path) as stream:
                return read_npy_rows(stream, self.shape, start, stop)
        mapped: Array = np.load(self.files[0].path, mmap_mode="r", allow_pickle=False)
        return mapped[start:stop]


@dataclass(frozen=True, slots=True)
class NpzArray(FileArray):
    """One member of an .npz archive, decompressed from its beginning up to the rows."""

    member: str
    """Name of the member in the archive, with its ending."""

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), read from the archive."""
        with (
            open_seekable(self.files[0].path) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(self.member) as stream,
        ):
            read_header(stream)
            stream.seek(stream.tell() + start * self.row_bytes)
            data = stream.read((stop - start) * self.row_bytes)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class ZarrArray(FileArray):
    """A zarr array, or one member of a zarr group, at a path or URL."""

    url: str
    """Path or URL of the array or group."""
    member: str | None = None
    """Name of the array in its group; None if `url` is the array."""

    def open(self) -> Any:
        """Return the ``zarr.Array``."""
        import zarr  # optional: only zarr files need it

        node = zarr.open(self.url, mode="r")
        return node if self.member is None else node[self.member]

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), read from the chunks that hold them."""
        rows: Array = np.asarray(self.open()[start:stop])
        return rows


@dataclass(frozen=True, slots=True)
class ImageArray(FileArray):
    """Images of one size and mode, one in each row: shape (height, width[, channels])."""

    mode: str
    """Pillow's name of the mode of all images, such as "RGB"."""

    @property
    def _reader(self) -> ReadImages:
        return ReadImages(self.files[0].path, self.shape[1:], self.dtype, self.mode)

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), one decoded image each."""
        paths = np.array([file.path for file in self.files[start:stop]])
        rows: Array = self._reader(paths)
        return rows

    def to_dask(self, block_rows: int) -> da.Array:
        """Return a lazy array of `block_rows` rows in a block, whose tasks carry their own paths.

        ``from_array`` would put the paths of all images into each task.
        """
        paths = np.array([file.path for file in self.files])
        name = self.layer_name(block_rows)
        array: da.Array = da.blockwise(
            self._reader,
            ("rows", *(f"image.{i}" for i in range(1, self.ndim))),
            da.from_array(paths, chunks=block_rows, name=f"paths-{name}"),
            ("rows",),
            name=name,
            new_axes={f"image.{i}": self.shape[i] for i in range(1, self.ndim)},
            dtype=self.dtype,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


@dataclass(frozen=True, slots=True)
class ReadImages:
    """Task function that reads images of equal size and mode."""

    first: str
    """Path of the first image of the data set, for errors."""
    row_shape: tuple[int, ...]
    """Shape of every image: (height, width[, channels])."""
    dtype: np.dtype[Any]
    mode: str
    """Pillow's name of the mode of every image."""

    @metered("read")
    def __call__(self, paths: Array) -> Array:
        """Return the images at `paths`, shape (len(paths), *row_shape).

        Raises
        ------
        InputError
            An image cannot be read, or has another size or mode than the first.
        """
        from PIL import Image  # optional: only images need it

        rows = np.empty((len(paths), *self.row_shape), self.dtype)
        for row, path in zip(rows, paths, strict=True):
            try:
                with Image.open(path) as image:
                    pixels, mode = np.asarray(image), image.mode
            except (OSError, Image.DecompressionBombError) as error:
                raise InputError(
                    f"{path} cannot be read as an image: {error}",
                    "replace the file, or leave it out",
                    option="path",
                    reason=str(error),
                ) from error
            # Images of two modes may have one shape: grey values of 16 bits would lose bits.
            if (pixels.shape, mode) != (row.shape, self.mode):
                raise InputError(
                    f"{path} is {_format_size(pixels.shape, mode)}, and the first image, "
                    f"{self.first}, is {_format_size(row.shape, self.mode)}",
                    "convert all images to one size and mode first",
                    option="path",
                    numbers={
                        "height_pixels": pixels.shape[0],
                        "width_pixels": pixels.shape[1],
                        "first_height_pixels": row.shape[0],
                        "first_width_pixels": row.shape[1],
                    },
                )
            row[...] = pixels
        return rows


def _format_size(shape: tuple[int, ...], mode: str) -> str:
    return f"{shape[1]} x {shape[0]} pixels of mode {mode}"
