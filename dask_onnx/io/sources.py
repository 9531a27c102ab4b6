"""Data sets that are read by rows: npy, npz, zarr and images.

Opening reads metadata only. An opened array is a record of paths, shape and dtype, a few hundred
bytes, that travels to the workers and reads there. ``dask.array.from_array`` accepts it directly.
"""

from __future__ import annotations

import glob
import math
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import InputError
from dask_onnx.core.files import FileSource, is_url, stat_file
from dask_onnx.core.filesystems import filesystem_of, open_seekable
from dask_onnx.core.stage_tasks import digest
from dask_onnx.io.npy_headers import checked_header, read_header, read_npy_rows
from dask_onnx.io.optional_packages import require_package

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())
"""Endings of files that are read as images."""


@dataclass(frozen=True, slots=True)
class FileArray(ABC):
    """An array in files, indexed by rows."""

    files: tuple[FileSource, ...]
    """Files of the array, as they were when it was opened; empty for a URL."""
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
    """Images of one size and mode, one in each row: uint8, shape (height, width[, channels])."""

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), one decoded image each."""
        paths = np.array([file.path for file in self.files[start:stop]])
        return ReadImages(self.files[0].path, self.shape[1:], self.dtype)(paths)

    def to_dask(self, block_rows: int) -> da.Array:
        """Return a lazy array of `block_rows` rows in a block, whose tasks carry their own paths.

        ``from_array`` would put the paths of all images into each task.
        """
        paths = np.array([file.path for file in self.files])
        name = self.layer_name(block_rows)
        array: da.Array = da.blockwise(
            ReadImages(self.files[0].path, self.shape[1:], self.dtype),
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

    def __call__(self, paths: Array) -> Array:
        """Return the images at `paths`, shape (len(paths), *row_shape).

        Raises
        ------
        InputError
            An image has another size or mode than the first.
        """
        from PIL import Image  # optional: only images need it

        rows = np.empty((len(paths), *self.row_shape), self.dtype)
        for row, path in zip(rows, paths, strict=True):
            with Image.open(path) as image:
                pixels = np.asarray(image)
            if pixels.shape != row.shape:
                raise InputError(
                    f"{path} is {_format_size(pixels.shape)}, and the first image, {self.first}, "
                    f"is {_format_size(row.shape)}",
                    "convert all images to one size and mode first",
                    numbers={
                        "height_pixels": pixels.shape[0],
                        "width_pixels": pixels.shape[1],
                        "first_height_pixels": row.shape[0],
                        "first_width_pixels": row.shape[1],
                    },
                )
            row[...] = pixels
        return rows


def _format_size(shape: tuple[int, ...]) -> str:
    channels = f" with {shape[2]} channels" if len(shape) > 2 else " with one channel"
    return f"{shape[1]} x {shape[0]}{channels}"


def open_source(path: str) -> dict[str, FileArray]:
    """Open a data set.

    Parameters
    ----------
    path : str
        A path ending in .npy, .npz or .zarr; the URL of a zarr store; an image, or a glob of
        images.

    Returns
    -------
    dict of str to FileArray
        Arrays by name; a single array without a name has the name "".

    Raises
    ------
    InputError
        Nothing is there; the format is unknown or its package is missing; an array is a scalar or
        empty, or the arrays differ in their number of rows.
    """
    arrays = _open(path)
    for name, array in arrays.items():
        if not array.shape:
            raise InputError(
                f"array {name!r} of {path} is a scalar, which has no rows",
                "pass arrays with an axis of rows",
                option="path",
            )
    rows = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InputError(
            f"the arrays of {path} differ in their number of rows: {counts}",
            "give all arrays the same number of rows",
            option="path",
            numbers={f"{name}_rows": count for name, count in rows.items()},
        )
    if 0 in rows.values():
        raise InputError(f"{path} has no rows", "pass at least one row", option="path")
    return arrays


def _open(text: str) -> dict[str, FileArray]:
    if is_url(text):
        return _open_url(text)
    path = Path(text).expanduser().absolute()
    if path.suffix == ".zarr" or (path / "zarr.json").exists() or (path / ".zarray").exists():
        _require_exists(path)
        return _open_zarr(str(path), (stat_file(str(path)),))
    if path.suffix == ".npy":
        _require_exists(path)
        return {"": _open_npy(str(path))}
    if path.suffix == ".npz":
        _require_exists(path)
        return _open_npz(str(path))
    if path.suffix.lower() in IMAGE_SUFFIXES or glob.has_magic(text):
        return {"": _open_images(text)}
    _require_exists(path)
    raise InputError(
        f"{path} has a format that cannot be read",
        "pass .npy, .npz, .zarr, or a glob of images in quotes, such as 'scans/*.png'",
        option="path",
    )


def _open_url(url: str) -> dict[str, FileArray]:
    suffix = PurePosixPath(url.rstrip("/")).suffix.lower()
    filesystem_of(url)
    if suffix not in (".npy", ".npz"):
        return _open_zarr(url, ())
    try:
        return {"": _open_npy(url)} if suffix == ".npy" else _open_npz(url)
    except OSError as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"the input {url} cannot be read: {reason}",
            "check the URL",
            option="path",
            reason=reason,
        ) from error


def _require_exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"the input {path} does not exist", "check the path", option="path")
    if not (path.is_file() or path.is_dir()):
        raise InputError(
            f"the input {path} is a pipe, socket or device, which may have no end",
            "save what it gives to a file first",
            option="path",
        )


def _open_npy(path: str) -> NpyArray:
    file = stat_file(path)
    with open_seekable(path) as stream:
        shape, _, dtype = checked_header(stream, path, file.size)
    return NpyArray((file,), shape, dtype)


def _open_npz(path: str) -> dict[str, FileArray]:
    arrays: dict[str, FileArray] = {}
    file = stat_file(path)
    try:
        with open_seekable(path) as opened, zipfile.ZipFile(opened) as archive:
            for info in archive.infolist():
                with archive.open(info) as stream:
                    shape, is_fortran, dtype = checked_header(stream, path, info.file_size)
                if is_fortran and len(shape) > 1:
                    raise InputError(
                        f"{info.filename} of {path} is in Fortran order and cannot be read by rows",
                        "save it with np.ascontiguousarray",
                        option="path",
                    )
                name = info.filename.removesuffix(".npy")
                arrays[name] = NpzArray((file,), shape, dtype, info.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(
            f"{path} is not an npz archive: {error}",
            "save it again with np.savez",
            option="path",
            reason=str(error),
        ) from error
    if not arrays:
        raise InputError(f"{path} has no arrays", "save at least one array in it", option="path")
    # np.savez names a single positional array "arr_0".
    return {"": arrays["arr_0"]} if set(arrays) == {"arr_0"} else arrays


def _open_zarr(url: str, files: tuple[FileSource, ...]) -> dict[str, FileArray]:
    require_package("zarr", url)
    import zarr  # optional: only zarr files need it

    try:
        node = zarr.open(url, mode="r")
    except Exception as error:  # each of zarr's stores raises errors of its own
        raise InputError(
            f"{url} cannot be opened as zarr: {error}",
            "check the path",
            option="path",
            reason=str(error),
        ) from error
    if hasattr(node, "shape"):
        return {"": ZarrArray(files, tuple(node.shape), np.dtype(node.dtype), url)}
    with warnings.catch_warnings():
        # About the marker _SUCCESS of a group that a job has written.
        warnings.simplefilter("ignore", UserWarning)
        members = dict(node.arrays())
    if not members:
        raise InputError(
            f"the zarr group {url} has no arrays",
            "pass the path of an array, or of a group with arrays",
            option="path",
        )
    return {
        name: ZarrArray(files, tuple(array.shape), np.dtype(array.dtype), url, name)
        for name, array in sorted(members.items())
    }


def _open_images(pattern: str) -> ImageArray:
    require_package("PIL", pattern)
    from PIL import Image, UnidentifiedImageError  # optional: only images need it

    # pathlib cannot glob a pattern that may be absolute or relative.
    names = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207 - absolute patterns
    paths = sorted(Path(name).absolute() for name in names)
    if not paths:
        raise InputError(
            f"no file matches {pattern}", "check the pattern, and put it in quotes", option="path"
        )
    try:
        with Image.open(paths[0]) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        raise InputError(
            f"{paths[0]} is not an image", "narrow the pattern", option="path", reason=str(error)
        ) from error
    files = tuple(stat_file(str(path)) for path in paths)
    return ImageArray(files, (len(paths), *pixels.shape), pixels.dtype)
