"""What the tasks of a tiled prediction run: pure functions of small records and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.errors import StageError
from dask_onnx.core.stage_tasks import Hints
from dask_onnx.tiles.reduce import Partial, finish, merge, partial

Array = npt.NDArray[Any]
Slices = tuple[slice, ...]


class Pick(NamedTuple):
    """Where a piece is among the arguments of a task."""

    argument: int
    position: int | None
    """In the argument, if that is a tuple."""
    slices: Slices | None
    """The part of it that is meant; None for all of it."""

    def of(self, arguments: Sequence[Any]) -> Array:
        """Return the piece."""
        value = arguments[self.argument]
        array = np.asarray(value if self.position is None else value[self.position])
        return array if self.slices is None else array[self.slices]


@dataclass(frozen=True, slots=True)
class GatherSpec:
    """How pieces make an array."""

    name: str
    """Of the input that it is for."""
    picks: tuple[Pick, ...]
    grid: tuple[int, ...]
    """Pieces along each axis; the last axis is the fastest."""
    shape: tuple[int, ...]
    """Of the array, with axes joined that the pieces have apart."""

    def array(self, arguments: Sequence[Any]) -> Array:
        """Return the array."""
        if len(self.picks) == 1:
            return self.picks[0].of(arguments).reshape(self.shape)
        pieces = np.empty(self.grid, object)
        for place, pick in zip(np.ndindex(self.grid), self.picks, strict=True):
            pieces[place] = pick.of(arguments)
        return np.asarray(np.block(pieces.tolist())).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class KeepSpec:
    """What of a value a tile keeps."""

    name: str
    joined: tuple[int, ...]
    """Shape of the value as the part gives it."""
    apart: tuple[int, ...]
    """The same with the tiled axes apart."""
    slices: Slices
    """The tile's own part, without what it shares with others."""
    statistic: str = ""
    """The statistic that is taken of it; empty to keep it as it is."""
    axes: tuple[int, ...] = ()
    """That the statistic reduces, among those of `apart`."""


@dataclass(frozen=True, slots=True)
class PartCall:
    """A part of the model on a crop of the picture."""

    part: InlineGraph | None
    """None where what is kept is given."""
    gathers: tuple[GatherSpec, ...]
    told: tuple[tuple[str, tuple[int, ...]], ...]
    """Inputs that say shapes, and their numbers."""
    keeps: tuple[KeepSpec, ...]

    def run(self, arguments: Sequence[Any], supplies: Sequence[Any]) -> list[Any]:
        """Return what is kept, arrays or partial statistics."""
        values = {gather.name: gather.array(arguments) for gather in self.gathers}
        if self.part is not None:
            told = {name: np.array(numbers, np.int64) for name, numbers in self.told}
            values |= self.part.run({**values, **told}, supplies)
        return [_keep(spec, values[spec.name]) for spec in self.keeps]


@dataclass(frozen=True, slots=True)
class TileCall:
    """One tile of one pass."""

    parts: tuple[PartCall, ...]

    @property
    def hints(self) -> Hints:
        """What Dask's scheduler may know of the task."""
        graphs = (call.part for call in self.parts)
        return next((graph.hints for graph in graphs if graph is not None), Hints())


def run_tile(call: TileCall, *arguments: Any) -> Any:
    """Run a part of the model on a tile.

    Parameters
    ----------
    call : TileCall
    arguments : results of other tasks, and last what brings the model here

    Returns
    -------
    array, or tuple
        What is kept: arrays, or partial statistics.

    Raises
    ------
    StageError
        A part cannot be run here, or gives another shape than the plan says.
    """
    kept, last = [], len(arguments)
    for part in reversed(call.parts):
        first = last - (0 if part.part is None else len(part.part.supplies))
        kept.append(part.run(arguments, arguments[first:last]))
        last = first
    found = tuple(value for values in reversed(kept) for value in values)
    return found if len(found) > 1 else found[0]


def _keep(spec: KeepSpec, value: Any) -> Any:
    if value.shape != spec.joined:
        raise StageError(
            f"value {spec.name!r} of a tile has shape {value.shape}; the plan says {spec.joined}",
            "the model does not treat a crop as it treats the whole: pass exact=False",
        )
    own = value.reshape(spec.apart)[spec.slices]
    if spec.statistic:
        return partial(spec.statistic, own, spec.axes)
    return own if own.size == value.size else np.ascontiguousarray(own)


def gather_whole(spec: GatherSpec, *arguments: Any) -> Array:
    """Return a whole value, made of its tiles."""
    return spec.array(arguments)


def cut_pieces(picks: Sequence[Pick], result: Any) -> tuple[Array, ...]:
    """Return the parts of a neighbour's tile that another tile needs, as copies."""
    return tuple(np.ascontiguousarray(pick.of((result,))) for pick in picks)


def take_value(results: Any, position: int | None, shape: tuple[int, ...] | None = None) -> Any:
    """Return one of the values that a task has given."""
    value = results if position is None else results[position]
    return value if shape is None else np.asarray(value).reshape(shape)


def merge_statistics(kind: str, position: int | None, *results: Any) -> Partial:
    """Return the statistic of the pixels of several tiles.

    Parameters
    ----------
    position : where the statistic stands in what the tiles' tasks give; None if that is all
    """
    return merge(kind, [r if position is None else r[position] for r in results])


def finish_statistic(
    kind: str, part: Partial, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Array:
    """Return the value of a statistic, in the model's type and shape."""
    return finish(kind, part, dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class OnceCall:
    """A part of the model that runs on whole values."""

    part: InlineGraph
    names: tuple[str, ...]
    """The inputs, in the order of the arguments."""
    wanted: tuple[str, ...]

    @property
    def hints(self) -> Hints:
        return self.part.hints


def run_once(call: OnceCall, *arguments: Any) -> Any:
    """Run a part of the model on whole values; return one, or a tuple in the order wanted."""
    count = len(call.names)
    feeds = dict(zip(call.names, arguments[:count], strict=True))
    values = call.part.run(feeds, arguments[count:])
    kept = tuple(values[name] for name in call.wanted)
    return kept if len(kept) > 1 else kept[0]
