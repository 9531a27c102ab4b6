"""Functions that the tasks of a tiled prediction run: pure, on small records and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.errors import StageError, Suggestion
from dask_onnx.core.stage_tasks import Hints
from dask_onnx.tiles.reduce import Partial, finish, merge, partial

Array = npt.NDArray[Any]
Slices = tuple[slice, ...]


class Pick(NamedTuple):
    """Location of a piece of a value among the arguments of a task."""

    argument: int
    """Position of the argument."""
    position: int | None
    """Position in the argument if that is a tuple."""
    slices: Slices | None
    """Part of the array; None for all of it."""

    def of(self, arguments: Sequence[Any]) -> Array:
        """Return the piece."""
        value = arguments[self.argument]
        array = np.asarray(value if self.position is None else value[self.position])
        return array if self.slices is None else array[self.slices]


@dataclass(frozen=True, slots=True)
class GatherSpec:
    """Assembly of an array from pieces."""

    name: str
    """Name of the feed that the array is for."""
    picks: tuple[Pick, ...]
    """Pieces in C order."""
    grid: tuple[int, ...]
    """Number of pieces along each axis."""
    shape: tuple[int, ...]
    """Shape of the array; axes that are split in the pieces are joined in it."""

    def array(self, arguments: Sequence[Any]) -> Array:
        """Return the array."""
        if len(self.picks) == 1:
            return self.picks[0].of(arguments).reshape(self.shape)
        pieces = np.empty(self.grid, object)
        for place, pick in zip(np.ndindex(self.grid), self.picks, strict=True):
            pieces[place] = pick.of(arguments)
        return np.asarray(np.block(pieces.tolist())).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TileOutput:
    """Part of a value that a tile returns, or a partial statistic of that part."""

    name: str
    """Name of the value."""
    joined: tuple[int, ...]
    """Shape of the value as the part of the model returns it."""
    split: tuple[int, ...]
    """The same shape with each tiled axis as an axis of its own."""
    slices: Slices
    """Slices of the split array that belong to the tile, without what it has borrowed."""
    statistic: str = ""
    """Statistic that is taken, one of `reduce.KINDS`; empty to return the part itself."""
    axes: tuple[int, ...] = ()
    """Axes of the split array that the statistic reduces."""

    def of(self, value: Array) -> Array | Partial:
        """Return the part of a value, or its partial statistic.

        Raises
        ------
        StageError
            The value has another shape than planned.
        """
        if value.shape != self.joined:
            raise StageError(
                f"value {self.name!r} of a tile has shape {value.shape}; the plan expects "
                f"{self.joined}: the model treats a crop differently from the whole image",
                "pass exact=False, or use model.predict",
                suggestions=[Suggestion("exact", False)],
            )
        part = value.reshape(self.split)[self.slices]
        if self.statistic:
            return partial(self.statistic, part, self.axes)
        return part if part.size == value.size else np.ascontiguousarray(part)


@dataclass(frozen=True, slots=True)
class PartCall:
    """One part of the model on a crop of the image."""

    part: InlineGraph | None
    """The part; None where everything that is returned is a feed."""
    gathers: tuple[GatherSpec, ...]
    """Feeds of the part."""
    shape_inputs: tuple[tuple[str, tuple[int, ...]], ...]
    """Names and values of inputs that contain shapes; see `local_shapes`."""
    outputs: tuple[TileOutput, ...]
    """Values that the tile returns."""

    def run(self, arguments: Sequence[Any], supplies: Sequence[Any]) -> list[Any]:
        """Return the values of the tile: arrays or partial statistics.

        Parameters
        ----------
        arguments : sequence
            Arguments of the task.
        supplies : sequence
            Those of them that bring the model to the worker.
        """
        values = {gather.name: gather.array(arguments) for gather in self.gathers}
        if self.part is not None:
            shapes = {name: np.array(sizes, np.int64) for name, sizes in self.shape_inputs}
            values |= self.part.run({**values, **shapes}, supplies)
        return [output.of(values[output.name]) for output in self.outputs]


@dataclass(frozen=True, slots=True)
class TileCall:
    """One tile of one pass."""

    parts: tuple[PartCall, ...]

    @property
    def hints(self) -> Hints:
        """Hints for Dask's scheduler: those of the first part that runs nodes."""
        graphs = (call.part for call in self.parts)
        return next((graph.hints for graph in graphs if graph is not None), Hints())


def run_tile(call: TileCall, *arguments: Any) -> Any:
    """Run one tile of one pass.

    Parameters
    ----------
    call : TileCall
    *arguments
        Results of other tasks, followed by those that bring each part of the model to the worker,
        part by part.

    Returns
    -------
    array or Partial, or a tuple of these
        Values of all parts; a tuple if there is more than one.

    Raises
    ------
    StageError
        A part cannot be run, or returns another shape than planned.
    """
    results, last = [], len(arguments)
    for part in reversed(call.parts):
        first = last - (0 if part.part is None else len(part.part.supplies))
        results.append(part.run(arguments, arguments[first:last]))
        last = first
    found = tuple(value for values in reversed(results) for value in values)
    return found if len(found) > 1 else found[0]


def gather_value(spec: GatherSpec, *arguments: Any) -> Array:
    """Return a whole value, assembled from its tiles."""
    return spec.array(arguments)


def cut_pieces(picks: Sequence[Pick], result: Any) -> tuple[Array, ...]:
    """Return copies of the parts of a tile's result that other tiles need."""
    return tuple(np.ascontiguousarray(pick.of((result,))) for pick in picks)


def take_value(results: Any, position: int | None, shape: tuple[int, ...] | None = None) -> Any:
    """Return one of the values that a task has returned.

    Parameters
    ----------
    results : array or tuple of arrays
    position : int or None
        Position in the tuple; None if the task returns that value only.
    shape : tuple of int, optional
        Shape to give the value.
    """
    value = results if position is None else results[position]
    return value if shape is None else np.asarray(value).reshape(shape)


def merge_statistics(kind: str, position: int | None, *results: Any) -> Partial:
    """Return the partial statistic of the pixels of several tiles.

    Parameters
    ----------
    kind : str
        One of `reduce.KINDS`.
    position : int or None
        Position of the partial statistic in the results of the tiles; None if it is all of them.
    *results
        Results of the tiles.
    """
    return merge(kind, [r if position is None else r[position] for r in results])


def finish_statistic(
    kind: str, part: Partial, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Array:
    """Return the value of a statistic, in the dtype and shape that it has in the model."""
    return finish(kind, part, dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class UntiledCall:
    """One part of the model on untiled values."""

    part: InlineGraph
    names: tuple[str, ...]
    """Inputs of the part, in the order of the task's arguments."""
    wanted: tuple[str, ...]
    """Values to return."""

    @property
    def hints(self) -> Hints:
        """Hints for Dask's scheduler."""
        return self.part.hints


def run_untiled(call: UntiledCall, *arguments: Any) -> Any:
    """Run a part of the model on untiled values.

    Parameters
    ----------
    call : UntiledCall
    *arguments
        Values of the inputs, followed by those that bring the part to the worker.

    Returns
    -------
    array or tuple of arrays
        In the order of `call.wanted`; a tuple if there is more than one.
    """
    count = len(call.names)
    feeds = dict(zip(call.names, arguments[:count], strict=True))
    values = call.part.run(feeds, arguments[count:])
    found = tuple(values[name] for name in call.wanted)
    return found if len(found) > 1 else found[0]
