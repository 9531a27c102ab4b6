"""Headers of .npy files, compared with the size of the file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from dask_onnx.core.content_kinds import HEAD_BYTES
from dask_onnx.core.errors import InputError
from dask_onnx.io.foreign_content import foreign_content


def checked_header(
    stream: Any, path: str, file_bytes: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype of an array that can be read.

    Parameters
    ----------
    stream : binary file
    path : str
        Its name, for errors.
    file_bytes : int
        Size of the file, which the array must not exceed.

    Raises
    ------
    InputError
        It is no array, has Python objects, or declares more bytes than the file has.
    """
    try:
        shape, is_fortran, dtype = read_header(stream)
    except Exception as error:  # the header is Python source, which numpy parses
        if stream.seekable():
            stream.seek(0)
            if (foreign := foreign_content(stream.read(HEAD_BYTES), "npy", path)) is not None:
                raise foreign from error
        raise InputError(
            f"{path} is not a numpy file: {error}",
            "save it with np.save",
            option="path",
            reason=str(error),
        ) from error
    if dtype.hasobject:
        raise InputError(
            f"{path} holds Python objects, which cannot be read without unpickling",
            "save strings with a fixed width (dtype 'U'), or use zarr",
            option="path",
        )
    is_shape = all(isinstance(size, int) and size >= 0 for size in shape)
    needed = math.prod(shape) * dtype.itemsize if is_shape else 0
    found = file_bytes - stream.tell()
    if not is_shape or needed > found:
        raise InputError(
            f"{path} declares an array of {dtype} {shape}, "
            + (f"{needed:,} bytes, and has {found:,}" if is_shape else "which is no shape"),
            "the file is cut off or damaged: save it again with np.save",
            option="path",
            numbers={"declared_bytes": needed, "found_bytes": found},
        )
    return shape, is_fortran, dtype


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is Fortran's, and dtype; the stream is then at the data."""
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(stream)
    return npy_format.read_array_header_2_0(stream)


def read_npy_rows(stream: Any, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """Return rows `start` to `stop` (exclusive) of an array in a file that cannot be mapped.

    An array in Fortran's order is read as a whole.

    Parameters
    ----------
    stream : binary file
        At its beginning.
    shape : tuple of int
        Shape of the array.
    start, stop : int
    """
    _, is_fortran, dtype = read_header(stream)
    if is_fortran:
        whole = np.frombuffer(stream.read(), dtype, count=math.prod(shape))
        return whole.reshape(shape, order="F")[start:stop]
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    stream.seek(stream.tell() + start * row_bytes)
    data = stream.read((stop - start) * row_bytes)
    return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])
