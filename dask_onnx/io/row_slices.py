"""Rows of an array in files as an array of its own, so that a graph needs a part of it only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dask_onnx.io.sources import Array, FileArray, ImageArray


@dataclass(frozen=True, slots=True)
class RowSlice(FileArray):
    """Consecutive rows of an array in files."""

    array: FileArray
    """The whole array."""
    first: int
    """First of the rows."""

    def read_rows(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (exclusive), counted from the first of the slice."""
        return self.array.read_rows(self.first + start, self.first + stop)


def rows_of(array: FileArray, start: int, stop: int) -> FileArray:
    """Return rows `start` to `stop` (exclusive) of an array as an array; reads nothing."""
    stop = min(stop, array.shape[0])
    if (start, stop) == (0, array.shape[0]):
        return array
    shape = (stop - start, *array.shape[1:])
    if isinstance(array, ImageArray):
        return replace(array, files=array.files[start:stop], shape=shape)
    return RowSlice(array.files, shape, array.dtype, array, start)
