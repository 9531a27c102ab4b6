"""Slices of an image: its layout, the location of slices, and the tasks that cut them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.task_spec import Task, TaskRef

from dask_onnx.collections.images.input_layout import InputLayout, Size
from dask_onnx.collections.kinds import is_dataarray
from dask_onnx.core.array_values import without_mask
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, is_floating
from dask_onnx.core.stage_tasks import Key
from dask_onnx.runtime.input_values import as_input

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkedImage:
    """One image in chunks."""

    array: da.Array
    """Pixels, of rank 2 or 3."""
    y: int
    """Axis of the rows."""
    x: int
    """Axis of the columns."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return int(self.array.shape[self.y]), int(self.array.shape[self.x])

    @property
    def channels(self) -> int | None:
        """Number of channels; None for an image of rank 2."""
        axis = self.channel_axis
        return None if axis is None else int(self.array.shape[axis])

    @property
    def channel_axis(self) -> int | None:
        """Axis of the channels; None for an image of rank 2."""
        return next((i for i in range(self.array.ndim) if i not in (self.y, self.x)), None)

    def shrunk(self, factor: int) -> ChunkedImage:
        """Return the image shrunk by an integer factor: each pixel is the mean of a square.

        Squares that extend beyond the lower and right edge are filled with the last row and column.

        Parameters
        ----------
        factor : int
            Side of the squares in pixels.
        """
        axes = (self.y, self.x)
        widths = [(0, -n % factor if i in axes else 0) for i, n in enumerate(self.array.shape)]
        padded = da.pad(self.array, widths, mode="edge")
        means = da.coarsen(np.mean, padded, {self.y: factor, self.x: factor})
        if self.array.dtype.kind in "iub":
            means = da.rint(means)
        return ChunkedImage(means.astype(self.array.dtype), self.y, self.x)


def as_chunked_image(image: Any, layout: InputLayout) -> ChunkedImage:
    """Return an image as a dask array with its rows, columns and channels identified.

    Parameters
    ----------
    image : numpy.ndarray, dask.array or xarray.DataArray
        (H, W), (H, W, C), (C, H, W), or these with a first axis of size 1. The channel axis is the
        one whose size is the number of channels of the model. If both are, it is that of the
        model's layout; if neither is, the smaller axis. A DataArray has the dimensions y and x, and
        at most one more.
    layout : InputLayout

    Raises
    ------
    InputError
        The image is of another type or rank, is empty, or has chunks of unknown size.
    """
    y, x = None, None
    if is_dataarray(image):
        image, y, x = _from_dataarray(image)
    if not isinstance(image, np.ndarray | da.Array):
        raise InputError(
            f"image is a {type(image).__name__}",
            "pass a numpy array, a dask.array (da.from_delayed makes one), or an xarray.DataArray",
            option="image",
        )
    array = image if isinstance(image, da.Array) else da.from_array(image, name=False)
    if any(math.isnan(size) for size in array.shape):
        raise InputError(
            f"image has an unknown size (NaN); its shape is {array.shape}",
            "call compute_chunk_sizes() on it first",
            option="image",
        )
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"image has shape {tuple(image.shape)}, which is not that of one image",
            "pass (H, W, C), (C, H, W) or (H, W), one image at a time",
            option="image",
            numbers={"rank": array.ndim},
        )
    if y is None or x is None:
        is_first = array.ndim == 3 and _is_channels_first(array.shape, layout)
        y, x = (1, 2) if is_first else (0, 1)
    return ChunkedImage(array, y, x)


def _from_dataarray(image: Any) -> tuple[Any, int, int]:
    """Return the array of a DataArray, and its axes of rows and columns."""
    dims = list(image.dims)
    if "y" not in dims or "x" not in dims or len(dims) > 3:
        raise InputError(
            f"image has the dimensions {', '.join(map(repr, dims))}",
            "rename the rows to 'y' and the columns to 'x', and select along all other dimensions "
            "but one",
            option="image",
        )
    return image.data, dims.index("y"), dims.index("x")


def _is_channels_first(shape: Sequence[int], layout: InputLayout) -> bool:
    """Return whether the channels are the first axis of an image of rank 3."""
    is_first, is_last = shape[0] == layout.channels, shape[2] == layout.channels
    if is_first != is_last:
        return is_first
    if is_first:
        return layout.is_channels_first
    return shape[0] < shape[2]


def fit_to_input(image: ChunkedImage, layout: InputLayout) -> ChunkedImage:
    """Return an image with its axes in the order of the model's input.

    Raises
    ------
    InputError
        Dtype or number of channels differ from those of the input.
    """
    array, axis = image.array, image.channel_axis
    is_float = is_floating(array.dtype) and is_floating(layout.dtype)
    if is_float and array.dtype != layout.dtype:
        spec = TensorSpec(layout.name, layout.dtype, None)
        # Numbers beyond the range are refused, in the tasks, where their values are known.
        meta = np.empty((0,) * array.ndim, layout.dtype)
        array = da.map_blocks(as_input, array, spec, dtype=layout.dtype, meta=meta)
    if array.dtype != layout.dtype:
        raise InputError(
            f"image has dtype {array.dtype}; input {layout.name!r} takes {layout.dtype}",
            "convert it, or pass preprocess=, such as lambda s: s.astype('float32') / 255",
            option="image",
            input=layout.name,
            suggestions=[Suggestion("preprocess")],
        )
    given = 1 if image.channels is None else image.channels
    if layout.channels is not None and layout.channels != given:
        raise InputError(
            f"image has {given} channels (shape {array.shape}); input {layout.name!r} takes "
            f"{layout.channels}",
            "select channels, or pass preprocess= to convert slices to what the model takes",
            option="image",
            input=layout.name,
            axis=axis,
            numbers={"channels": given, "expected_channels": layout.channels},
            suggestions=[Suggestion("preprocess")],
        )
    order = [image.y, image.x]
    if axis is not None:
        order.insert(0 if layout.is_channels_first else 2, axis)
    if order != list(range(array.ndim)):
        array = array.transpose(order)
    if axis is None:
        array = array[None] if layout.is_channels_first else array[..., None]
    return ChunkedImage(array, *((1, 2) if layout.is_channels_first else (0, 1)))


@dataclass(frozen=True, slots=True)
class Strip:
    """Region of an image that one task reads: several slices of a row, side by side."""

    y: int
    """First row of the image."""
    x: int
    """First column of the image."""
    height: int
    """Number of rows, not beyond the image."""
    width: int
    """Number of columns, not beyond the image."""
    offsets: tuple[int, ...]
    """First column of each slice in the strip."""


def cut_strips(image_size: Size, slice_size: Size, overlap: float, at_most: int) -> list[Strip]:
    """Return strips whose slices cover an image, row by row.

    The last slice of a row or column is moved back so that it ends at the end of the image.

    Parameters
    ----------
    image_size, slice_size : (int, int)
        Height and width in pixels.
    overlap : float
        Share of a slice that the next one repeats, 0 to less than 1.
    at_most : int
        Slices of a strip.
    """
    height, width = min(image_size[0], slice_size[0]), slice_size[1]
    columns = list(_starts(image_size[1], slice_size[1], overlap))
    strips = []
    for y in _starts(image_size[0], slice_size[0], overlap):
        for start in range(0, len(columns), at_most):
            group = columns[start : start + at_most]
            end = min(group[-1] + width, image_size[1])
            offsets = tuple(x - group[0] for x in group)
            strips.append(Strip(y, group[0], height, end - group[0], offsets))
    return strips


def _starts(length: int, size: int, overlap: float) -> Iterator[int]:
    """Yield the starts of slices of some size that cover a length, all in pixels."""
    step = max(1, size - round(size * overlap))
    count = 1 + max(0, math.ceil((length - size) / step))
    for number in range(count):
        yield max(0, min(number * step, length - size))


class RegionCutter:
    """Builder of the tasks that cut regions out of the chunks of an image.

    There is one for each chunk that a region touches, so that only the region is transferred from
    the worker that has the chunk.

    Parameters
    ----------
    image : ChunkedImage
    name : str
        First element of the tasks' keys.
    """

    def __init__(self, image: ChunkedImage, name: str) -> None:
        self.tasks: dict[Key, Task] = {}
        """Tasks by key."""
        self._image = image
        self._name = name
        self._bounds = [np.concatenate([[0], np.cumsum(chunks)]) for chunks in image.array.chunks]

    def cut(self, strip: Strip) -> tuple[list[TaskRef], tuple[int, ...]]:
        """Add the tasks for a strip.

        Returns
        -------
        references : list of TaskRef
            Pieces of the strip in C order.
        counts : tuple of int
            Number of pieces along each axis.
        """
        regions = {
            self._image.y: (strip.y, strip.y + strip.height),
            self._image.x: (strip.x, strip.x + strip.width),
        }
        axes = [
            list(_parts(bounds, *regions.get(axis, (0, int(bounds[-1])))))
            for axis, bounds in enumerate(self._bounds)
        ]
        references = []
        for parts in itertools.product(*axes):
            chunk = (self._image.array.name, *(number for number, _ in parts))
            key = (self._name, len(self.tasks))
            self.tasks[key] = Task(key, cut_piece, TaskRef(chunk), tuple(part for _, part in parts))
            references.append(TaskRef(key))
        return references, tuple(map(len, axes))


def _parts(bounds: Array, low: int, high: int) -> Iterator[tuple[int, slice]]:
    """Yield the chunks of an axis that a range touches, and the part of each inside it."""
    first = int(np.searchsorted(bounds, low, "right")) - 1
    for number in range(first, len(bounds) - 1):
        start, stop = int(bounds[number]), int(bounds[number + 1])
        if start >= high:
            return
        if stop > start:
            yield number, slice(max(low - start, 0), min(high, stop) - start)


def cut_piece(chunk: Any, region: tuple[slice, ...]) -> Array:
    """Return a region of a chunk as a numpy array.

    It is a copy if it is less than half of the chunk, since a view would keep the chunk in memory.
    """
    piece = without_mask(chunk[region], "the image", option="image")
    return piece.copy() if 2 * piece.size < chunk.size else piece


def assemble(pieces: Sequence[Array], counts: Sequence[int]) -> Array:
    """Return the array that pieces make up.

    Parameters
    ----------
    pieces : sequence of array
        In C order.
    counts : sequence of int
        Number of pieces along each axis.
    """
    if len(pieces) == 1:
        return pieces[0]
    grid = np.empty(len(pieces), object)
    for place, piece in enumerate(pieces):
        grid[place] = piece
    return np.asarray(np.block(grid.reshape(counts).tolist()))
