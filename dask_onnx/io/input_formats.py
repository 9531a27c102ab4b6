"""Opening of data sets by the ending of their names: npy, npz, zarr and images of one size.

Only metadata are read.
"""

from __future__ import annotations

import glob
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.files import FileSource, is_url, stat_file
from dask_onnx.core.filesystems import filesystem_of, open_seekable
from dask_onnx.io.npy_headers import checked_header
from dask_onnx.io.optional_packages import require_package
from dask_onnx.io.sources import FileArray, ImageArray, NpyArray, NpzArray, ZarrArray
from dask_onnx.io.table_files import SUFFIXES

IMAGE_SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .png .tif .tiff .webp".split())
"""Endings of files that are read as images."""
_SHOWN = 3
"""Names of files that an error lists."""


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
    raise _unreadable(path)


def _unreadable(path: Path) -> InputError:
    """Return the error for a file or folder whose name tells no format."""
    if path.is_dir():
        kinds = sorted(
            {each.suffix for each in path.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES}
        )
        if kinds:
            return InputError(
                f"{path} is a folder, and pictures that are read as an array are named by a glob",
                f"pass '{path}/*{kinds[0]}', in quotes",
                option="path",
                suggestions=[Suggestion("path", f"{path}/*{kind}") for kind in kinds],
            )
        names = sorted(each.name for each in path.iterdir())
        shown = f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        cause = (
            f"the folder {path} has no pictures, no tables and no array: "
            f"{f'it holds {shown}' if names else 'it is empty'}"
        )
    else:
        ending = f"{path.suffix!r} is not one that can be read" if path.suffix else "it has none"
        cause = f"the ending of a name tells the format of a file, and of {path} {ending}"
    return InputError(
        cause,
        "pass an array (.npy, .npz, .zarr), pictures (a folder, or a glob in quotes, such as "
        f"'scans/*.png'), or a table ({', '.join(SUFFIXES)}, or a folder of these)",
        option="path",
    )


def _open_url(url: str) -> dict[str, FileArray]:
    suffix = PurePosixPath(url.rstrip("/")).suffix.lower()
    filesystem_of(url)
    if suffix not in (".npy", ".npz"):
        return _open_zarr(url, ())
    try:
        return {"": _open_npy(url)} if suffix == ".npy" else _open_npz(url)
    except InputError:
        raise
    except Exception as error:  # file systems behind URLs raise errors of their own
        reason = str(error) or type(error).__name__
        raise InputError(
            f"the input {url} cannot be read: {type(error).__name__}: {reason}",
            "check the URL, the network and the credentials",
            option="path",
            reason=reason,
        ) from error


def _require_exists(path: Path) -> None:
    if not path.exists():
        is_pattern = glob.has_magic(str(path))
        raise InputError(
            f"the input {path} does not exist",
            "name one file: patterns stand for pictures and tables only"
            if is_pattern
            else "check the path",
            option="path",
        )
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
            pixels, mode = np.asarray(image), image.mode
    except (UnidentifiedImageError, OSError) as error:
        reason = str(error)
        raise InputError(
            f"{paths[0]} cannot be read as an image: {reason}",
            "check the file, or narrow the pattern to images",
            option="path",
            reason=reason,
        ) from error
    if mode in ("P", "PA"):
        raise InputError(
            f"the pixels of {paths[0]} are indices of colours in a palette",
            "convert the images to grey or RGB first",
            option="path",
        )
    files = tuple(stat_file(str(path)) for path in paths)
    return ImageArray(files, (len(paths), *pixels.shape), pixels.dtype, mode)
