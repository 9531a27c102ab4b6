"""Where the slices of a picture lie, and the tasks that cut them out of its chunks."""

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

from dask_onnx.collections.kinds import is_dataarray
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Key

Array = npt.NDArray[Any]
Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class InputLayout:
    """What the model's input says of the pictures that it takes."""

    name: str
    dtype: np.dtype[Any]
    is_batch: bool
    """The first axis is that of the batch; without it the input is one picture."""
    is_channels_first: bool
    channels: int | None
    """None where the model leaves it open, as for height and width."""
    height: int | None
    width: int | None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of one picture, without the batch axis."""
        sides = (self.height, self.width)
        return (self.channels, *sides) if self.is_channels_first else (*sides, self.channels)

    def takes(self, shape: Sequence[int]) -> bool:
        """Return whether a picture of a shape, without the batch axis, fits."""
        return len(shape) == 3 and all(
            own in (None, size) for own, size in zip(self.shape, shape, strict=True)
        )

    @property
    def row_axes(self) -> tuple[int, int]:
        """Axes of height and width, counted from the last."""
        return (-2, -1) if self.is_channels_first else (-3, -2)


def input_layout(spec: TensorSpec) -> InputLayout:
    """Return how an input takes pictures, from its declared shape.

    The channels are the first or the last axis of a picture: the one whose size is declared, or
    the smaller one of two.

    Raises
    ------
    InputError
        It is no array of (batch,) channels, height, width or (batch,) height, width, channels.
    """
    if spec.dtype is None or spec.shape is None or len(spec.shape) not in (3, 4):
        raise InputError(
            f"input {spec} does not take pictures: it has not 3 axes, or 4 with the batch",
            "pass the model's other inputs as feeds=, or declare the input's shape in the model",
        )
    dims = [dim if isinstance(dim, int) else None for dim in spec.shape[-3:]]
    first, last = (math.inf if dim is None else dim for dim in (dims[0], dims[2]))
    is_first = first <= last
    channels, height, width = dims if is_first else (dims[2], dims[0], dims[1])
    return InputLayout(
        spec.name, spec.dtype, len(spec.shape) == 4, is_first, channels, height, width
    )


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture in chunks."""

    array: da.Array
    """2 or 3 axes."""
    y: int
    """Axis of its rows."""
    x: int

    @property
    def size(self) -> Size:
        return int(self.array.shape[self.y]), int(self.array.shape[self.x])

    @property
    def channels(self) -> int | None:
        """None for a picture of 2 axes."""
        axis = self.channel_axis
        return None if axis is None else int(self.array.shape[axis])

    @property
    def channel_axis(self) -> int | None:
        return next((i for i in range(self.array.ndim) if i not in (self.y, self.x)), None)

    def shrunk(self, factor: int) -> Picture:
        """Return the picture with each square of so many pixels a side as one pixel, their mean.

        Squares over the lower and right edge are filled with the last row and column.
        """
        axes = (self.y, self.x)
        widths = [(0, -n % factor if i in axes else 0) for i, n in enumerate(self.array.shape)]
        padded = da.pad(self.array, widths, mode="edge")
        means = da.coarsen(np.mean, padded, {self.y: factor, self.x: factor})
        if self.array.dtype.kind in "iub":
            means = da.rint(means)
        return Picture(means.astype(self.array.dtype), self.y, self.x)


def as_picture(image: Any, layout: InputLayout) -> Picture:
    """Return a picture with its axes told apart.

    Parameters
    ----------
    image : ndarray, dask.array or xarray.DataArray
        (H, W), (H, W, C), (C, H, W), or these with a first axis of size 1. Channels are the axis
        that has as many as the model takes; both or neither: the model's layout, or the smaller
        axis. A DataArray has the dimensions y and x, and at most one more.

    Raises
    ------
    InputError
        Another type, another number of axes, or chunks of unknown size.
    """
    y, x = None, None
    if is_dataarray(image):
        image, y, x = _from_dataarray(image)
    if not isinstance(image, np.ndarray | da.Array):
        raise InputError(
            f"image is a {type(image).__name__}",
            "pass a numpy array, a dask.array (da.from_delayed makes one), or an xarray.DataArray",
        )
    array = image if isinstance(image, da.Array) else da.from_array(image, name=False)
    if any(math.isnan(size) for size in array.shape):
        raise InputError(
            f"image has an unknown size (NaN); its shape is {array.shape}",
            "call compute_chunk_sizes() on it first",
        )
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"image has shape {tuple(image.shape)}, which is not one picture",
            "pass (H, W, C), (C, H, W) or (H, W), one picture at a time",
        )
    if y is None or x is None:
        is_first = array.ndim == 3 and _is_channels_first(array.shape, layout)
        y, x = (1, 2) if is_first else (0, 1)
    return Picture(array, y, x)


def _from_dataarray(image: Any) -> tuple[Any, int, int]:
    dims = list(image.dims)
    if "y" not in dims or "x" not in dims or len(dims) > 3:
        raise InputError(
            f"image has the dimensions {', '.join(map(repr, dims))}",
            "rename the rows to 'y' and the columns to 'x', and select all but one other dimension",
        )
    return image.data, dims.index("y"), dims.index("x")


def _is_channels_first(shape: Sequence[int], layout: InputLayout) -> bool:
    is_first, is_last = shape[0] == layout.channels, shape[2] == layout.channels
    if is_first != is_last:
        return is_first
    if is_first:
        return layout.is_channels_first
    return shape[0] < shape[2]


def fit_picture(picture: Picture, layout: InputLayout) -> Picture:
    """Return a picture in the layout of the model's input.

    Raises
    ------
    InputError
        Another dtype, or another number of channels.
    """
    array, axis = picture.array, picture.channel_axis
    if array.dtype != layout.dtype:
        raise InputError(
            f"image is {array.dtype}, and input {layout.name!r} takes {layout.dtype}",
            "convert it, or pass preprocess=, such as lambda s: s.astype('float32') / 255",
        )
    given = 1 if picture.channels is None else picture.channels
    if layout.channels not in (None, given):
        raise InputError(
            f"image has {given} channels (shape {array.shape}), and input {layout.name!r} takes "
            f"{layout.channels}",
            "select channels, or pass preprocess=, which gives slices as the model takes them",
        )
    order = [picture.y, picture.x]
    if axis is not None:
        order.insert(0 if layout.is_channels_first else 2, axis)
    if order != list(range(array.ndim)):
        array = array.transpose(order)
    if axis is None:
        array = array[None] if layout.is_channels_first else array[..., None]
    return Picture(array, *((1, 2) if layout.is_channels_first else (0, 1)))


@dataclass(frozen=True, slots=True)
class Strip:
    """The part of a picture that one task takes, and the slices of it, one beside the other."""

    y: int
    """First row of the picture."""
    x: int
    """First column."""
    height: int
    """Rows, not beyond the picture."""
    width: int
    offsets: tuple[int, ...]
    """First column of each slice in the strip."""


def cut_strips(picture: Size, slice_size: Size, overlap: float, at_most: int) -> list[Strip]:
    """Return strips whose slices cover a picture, row by row.

    Parameters
    ----------
    picture, slice_size : height and width in pixels
    overlap : share of a slice that the next one repeats
    at_most : slices of a strip

    Returns
    -------
    Strips; the last slice of a row or column is moved back so that it ends with the picture.
    """
    height, width = min(picture[0], slice_size[0]), slice_size[1]
    columns = list(_starts(picture[1], slice_size[1], overlap))
    strips = []
    for y in _starts(picture[0], slice_size[0], overlap):
        for start in range(0, len(columns), at_most):
            group = columns[start : start + at_most]
            end = min(group[-1] + width, picture[1])
            offsets = tuple(x - group[0] for x in group)
            strips.append(Strip(y, group[0], height, end - group[0], offsets))
    return strips


def _starts(length: int, size: int, overlap: float) -> Iterator[int]:
    """Where slices of a size start, so that they cover a length."""
    step = max(1, size - round(size * overlap))
    count = 1 + max(0, math.ceil((length - size) / step))
    for number in range(count):
        yield max(0, min(number * step, length - size))


class Cutter:
    """Makes the tasks that cut regions out of the chunks of a picture.

    A task for each chunk that a region touches, so that only the region leaves the worker that
    has the chunk.
    """

    def __init__(self, picture: Picture, name: str) -> None:
        self.tasks: dict[Key, Task] = {}
        self._picture = picture
        self._name = name
        self._bounds = [np.concatenate([[0], np.cumsum(chunks)]) for chunks in picture.array.chunks]

    def cut(self, strip: Strip) -> tuple[list[TaskRef], tuple[int, ...]]:
        """Return the pieces of a strip, in C order, and how many there are along each axis."""
        regions = {
            self._picture.y: (strip.y, strip.y + strip.height),
            self._picture.x: (strip.x, strip.x + strip.width),
        }
        axes = [
            list(_parts(bounds, *regions.get(axis, (0, int(bounds[-1])))))
            for axis, bounds in enumerate(self._bounds)
        ]
        references = []
        for parts in itertools.product(*axes):
            chunk = (self._picture.array.name, *(number for number, _ in parts))
            key = (self._name, len(self.tasks))
            self.tasks[key] = Task(key, cut_piece, TaskRef(chunk), tuple(part for _, part in parts))
            references.append(TaskRef(key))
        return references, tuple(map(len, axes))


def _parts(bounds: Array, low: int, high: int) -> Iterator[tuple[int, slice]]:
    """Chunks of an axis that a range touches, and the part of each that is in it."""
    first = int(np.searchsorted(bounds, low, "right")) - 1
    for number in range(first, len(bounds) - 1):
        start, stop = int(bounds[number]), int(bounds[number + 1])
        if start >= high:
            return
        if stop > start:
            yield number, slice(max(low - start, 0), min(high, stop) - start)


def cut_piece(chunk: Any, region: tuple[slice, ...]) -> Array:
    """Return a region of a chunk as numpy has it; a copy where a view would keep much alive."""
    piece = np.asarray(chunk[region])
    return piece.copy() if 2 * piece.size < chunk.size else piece


def put_together(pieces: Sequence[Array], counts: Sequence[int]) -> Array:
    """Return the array whose pieces these are.

    Parameters
    ----------
    pieces : in C order
    counts : how many there are along each axis
    """
    if len(pieces) == 1:
        return pieces[0]
    grid = np.empty(len(pieces), object)
    for place, piece in enumerate(pieces):
        grid[place] = piece
    return np.asarray(np.block(grid.reshape(counts).tolist()))
