"""Data sets that can be read by rows: npy, npz, zarr, images. Nothing is read to open one.

Each is an array-like of a path, a shape and a dtype: a few hundred bytes that travel to the worker
and read there. ``dask.array.from_array`` takes them as they are.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file as the client saw it; a worker compares."""

    path: str
    size: int
    modified_ns: int

    def problem(self) -> str | None:
        """What is wrong with the file from where this runs; None if it is the same one."""
        path = Path(self.path)
        if not path.exists():
            return f"{path} does not exist there"
        status = path.stat()
        if path.is_file() and (status.st_size, status.st_mtime_ns) != (self.size, self.modified_ns):
            return f"{path} is another file there, or has changed"
        return None


def see(path: Path) -> SeenFile:
    status = path.stat()
    return SeenFile(str(path), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class FileArray(ABC):
    """An array in files, indexed by rows: what ``da.from_array`` slices in each task."""

    files: tuple[SeenFile, ...]
    """Empty for a URL, which only the reader can look at."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def token(self) -> str:
        """Identity of the content: the files' paths, sizes and times."""
        return hashlib.sha256(repr((type(self).__name__, self)).encode()).hexdigest()[:32]

    def __getitem__(self, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        start, stop, step = index[0].indices(self.shape[0])
        rows = self.read_rows(start, stop)
        return rows[(slice(None, None, step), *index[1:])]

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> Array:
        """Read them from the files; each format has its own way."""

    def to_dask(self, block_rows: int) -> da.Array:
        """A lazy array with blocks of `block_rows` rows."""
        array: da.Array = da.from_array(
            self,
            chunks=(block_rows, *(-1 for _ in self.shape[1:])),
            name=f"read-{self.token}",
            inline_array=True,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


@dataclass(frozen=True, slots=True)
class NpyArray(FileArray):
    """One .npy file, mapped: a task touches the pages of its rows only."""

    def read_rows(self, start: int, stop: int) -> Array:
        mapped: Array = np.load(self.files[0].path, mmap_mode="r")
        return mapped[start:stop]


@dataclass(frozen=True, slots=True)
class NpzArray(FileArray):
    """One member of an .npz archive, read as a stream from its beginning to the rows."""

    member: str

    def read_rows(self, start: int, stop: int) -> Array:
        with zipfile.ZipFile(self.files[0].path) as archive, archive.open(self.member) as stream:
            _read_header(stream)
            stream.seek(stream.tell() + start * self.row_bytes)
            data = stream.read((stop - start) * self.row_bytes)
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class ZarrArray(FileArray):
    """A zarr array, or one of a group, by path or URL."""

    url: str
    member: str | None = None

    def read_rows(self, start: int, stop: int) -> Array:
        import zarr  # an extra: only who reads zarr needs it

        node = zarr.open(self.url, mode="r")
        array = node if self.member is None else node[self.member]
        rows: Array = np.asarray(array[start:stop])
        return rows


@dataclass(frozen=True, slots=True)
class ImageArray(FileArray):
    """Pictures of one size and mode, a row each: uint8, shape (height, width[, channels])."""

    def read_rows(self, start: int, stop: int) -> Array:
        paths = np.array([file.path for file in self.files[start:stop]])
        return ReadImages(self.files[0].path, self.shape[1:], self.dtype)(paths)

    def to_dask(self, block_rows: int) -> da.Array:
        """As for every source, but that a task carries the paths of its own pictures only."""
        paths = np.array([file.path for file in self.files])
        array: da.Array = da.blockwise(
            ReadImages(self.files[0].path, self.shape[1:], self.dtype),
            ("rows", *(f"image.{i}" for i in range(1, self.ndim))),
            da.from_array(paths, chunks=block_rows, name=f"paths-{self.token}"),
            ("rows",),
            name=f"read-{self.token}",
            new_axes={f"image.{i}": self.shape[i] for i in range(1, self.ndim)},
            dtype=self.dtype,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return array


@dataclass(frozen=True, slots=True)
class ReadImages:
    """Reads pictures that are all like the first."""

    first: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, paths: Array) -> Array:
        from PIL import Image  # an extra: only who reads images needs it

        rows = np.empty((len(paths), *self.row_shape), self.dtype)
        for row, path in zip(rows, paths, strict=True):
            with Image.open(path) as image:
                pixels = np.asarray(image)
            if pixels.shape != row.shape:
                raise InputError(
                    f"{path} is {_size(pixels.shape)}, the first picture, {self.first}, is "
                    f"{_size(row.shape)}",
                    "bring all pictures to one size and mode first",
                )
            row[...] = pixels
        return rows


def _size(shape: tuple[int, ...]) -> str:
    channels = f" with {shape[2]} channels" if len(shape) > 2 else ", one channel"
    return f"{shape[1]} x {shape[0]}{channels}"


def open_source(text: str) -> dict[str, FileArray]:
    """Open a data set by its name: arrays by name, "" for the one of a set without names.

    Parameters
    ----------
    text : str
        A path ending in .npy, .npz or .zarr; a URL of a zarr; a picture, or a glob of pictures.

    Raises
    ------
    InputError
        Nothing there; a format that is not known or whose package is missing; arrays that do not
        have the same number of rows.
    """
    arrays = _open(text)
    rows = {name: array.shape[0] if array.shape else None for name, array in arrays.items()}
    if None in rows.values():
        raise InputError(f"{text} has a scalar, which has no rows", "give arrays with rows")
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InputError(
            f"the arrays of {text} differ in their number of rows: {counts}",
            "every array must have a row for each row of the result",
        )
    if 0 in rows.values():
        raise InputError(f"{text} has no rows", "give at least one row")
    return arrays


def _open(text: str) -> dict[str, FileArray]:
    if "://" in text:
        return _open_zarr(text, ())
    path = Path(text).expanduser().absolute()
    if path.suffix == ".zarr" or (path / "zarr.json").exists() or (path / ".zarray").exists():
        _require_exists(path)
        return _open_zarr(str(path), (see(path),))
    if path.suffix == ".npy":
        _require_exists(path)
        return {"": _open_npy(path)}
    if path.suffix == ".npz":
        _require_exists(path)
        return _open_npz(path)
    if path.suffix.lower() in IMAGE_SUFFIXES or glob.has_magic(text):
        return {"": _open_images(text)}
    _require_exists(path)
    raise InputError(
        f"{path} is of a kind that cannot be read",
        "give .npy, .npz, .zarr, or a glob of pictures in quotes, such as 'scans/*.png'",
    )


def _require_exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"the input {path} does not exist", "check the path")


def _open_npy(path: Path) -> NpyArray:
    with path.open("rb") as stream:
        shape, _, dtype = _checked_header(stream, path)
    return NpyArray((see(path),), shape, dtype)


def _open_npz(path: Path) -> dict[str, FileArray]:
    arrays: dict[str, FileArray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    shape, fortran, dtype = _checked_header(stream, path)
                if fortran and len(shape) > 1:
                    raise InputError(
                        f"{member} of {path} is in Fortran order and cannot be read by rows",
                        "save it with np.ascontiguousarray",
                    )
                arrays[member.removesuffix(".npy")] = NpzArray((see(path),), shape, dtype, member)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not an npz archive: {error}", "save it again") from error
    if not arrays:
        raise InputError(f"{path} has no arrays", "save at least one array in it")
    return arrays if len(arrays) > 1 or not _is_unnamed(arrays) else {"": arrays["arr_0"]}


def _is_unnamed(arrays: Mapping[str, Any]) -> bool:
    return set(arrays) == {"arr_0"}


def _checked_header(stream: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        shape, fortran, dtype = _read_header(stream)
    except ValueError as error:
        raise InputError(f"{path} is not a numpy file: {error}", "save it with np.save") from error
    if dtype.hasobject:
        raise InputError(
            f"{path} holds Python objects, which only unpickling could read",
            "save strings as a fixed-width type (dtype 'U'), or use zarr",
        )
    return shape, fortran, dtype


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(stream)
    return npy_format.read_array_header_2_0(stream)


def _open_zarr(url: str, files: tuple[SeenFile, ...]) -> dict[str, FileArray]:
    _require_package("zarr", "zarr", url)
    import zarr

    try:
        node = zarr.open(url, mode="r")
    except Exception as error:  # zarr's stores raise whatever their backend does
        raise InputError(f"{url} cannot be opened as zarr: {error}", "check the path") from error
    if hasattr(node, "shape"):
        return {"": ZarrArray(files, tuple(node.shape), np.dtype(node.dtype), url)}
    members = dict(node.arrays())
    if not members:
        raise InputError(f"the zarr group {url} has no arrays", "name an array or a fuller group")
    return {
        name: ZarrArray(files, tuple(array.shape), np.dtype(array.dtype), url, name)
        for name, array in sorted(members.items())
    }


def _open_images(pattern: str) -> ImageArray:
    _require_package("PIL", "images", pattern)
    from PIL import Image, UnidentifiedImageError

    # pathlib cannot glob a pattern that is absolute or relative, as it comes.
    names = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207
    paths = sorted(Path(name).absolute() for name in names)
    if not paths:
        raise InputError(f"no file matches {pattern}", "check the pattern, and put it in quotes")
    try:
        with Image.open(paths[0]) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{paths[0]} is not a picture", "narrow the pattern") from error
    return ImageArray(tuple(map(see, paths)), (len(paths), *pixels.shape), pixels.dtype)


def _require_package(module: str, extra: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"{what} needs a package that is not installed",
            f"pip install 'dask-onnx[{extra}]'",
        )
