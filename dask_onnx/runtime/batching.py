"""Cutting the rows of a task into runs of the session, and joining what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.sizeof import sizeof

from dask_onnx.core.errors import InputError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batching:
    """How the rows of one task are cut into runs of the session."""

    rows_per_run: int | None = None
    """None runs all rows of the task at once."""
    is_fixed: bool = False
    """The graph takes exactly `rows_per_run` rows: the last run is filled up, then trimmed."""
    is_auto: bool = False
    """The task finds out how many rows a run is best given."""


@dataclass(frozen=True, slots=True)
class Runs:
    """One value in pieces, one for each run of the session, on its way between two stages."""

    pieces: tuple[Any, ...]
    rows: int
    """Rows that came in."""
    is_filled: bool
    """The last run was filled up to a fixed size: only `rows` of what comes out count."""


def _sizeof_runs(runs: Runs) -> int:
    return sum(sizeof(piece) for piece in runs.pieces)


# Dask weighs results by this when it places tasks and when it spills.
sizeof.register(Runs, _sizeof_runs)


@dataclass(frozen=True, slots=True)
class Cut:
    """The feeds of every run, and what it takes to put the results together."""

    feeds: list[list[Any]]
    rows: int | None
    """Rows of the inputs that were cut; None if none has a batch axis."""
    is_filled: bool
    """The runs have more rows than came in, so that the results must be trimmed."""


def cut_rows(values: Sequence[Any], axes: Sequence[int | None], batching: Batching) -> Cut:
    """Cut the inputs of a stage into runs.

    Parameters
    ----------
    values : ndarray or Runs
    axes : for each of them the axis to cut; None for one that every run gets whole
    batching : Batching

    Raises
    ------
    InputError
        The inputs differ in their number of rows.
    """
    counts = {
        value.rows if isinstance(value, Runs) else value.shape[axis]
        for value, axis in zip(values, axes, strict=True)
        if isinstance(value, Runs) or axis is not None
    }
    if len(counts) > 1:
        raise InputError(
            f"inputs have {' and '.join(map(str, sorted(counts)))} rows",
            "inputs with a batch axis must have the same number of rows",
        )
    if not counts:
        return Cut([list(values)], None, False)
    rows = counts.pop()
    carried = [value for value in values if isinstance(value, Runs)]
    # A chunk may be empty after a selection. No kernel is asked to cope with that: one row of
    # zeros runs in its place, which gives the right shapes and dtypes, and is then cut off.
    step = batching.rows_per_run or max(rows, 1)
    starts = range(0, max(rows, 1), step)
    fill = step if batching.is_fixed else (1 if rows == 0 else 0)
    feeds = [
        [_piece(v, a, number, start, step, fill) for v, a in zip(values, axes, strict=True)]
        for number, start in enumerate(starts)
    ]
    return Cut(
        feeds,
        rows,
        is_filled=rows == 0 or bool(fill and rows % step) or any(v.is_filled for v in carried),
    )


def _piece(value: Any, axis: int | None, number: int, start: int, step: int, fill: int) -> Any:
    if isinstance(value, Runs):
        return value.pieces[number]
    if axis is None:
        return value
    rows = value.shape[axis]
    if start == 0 and step >= rows >= fill:
        return value
    piece = value[(slice(None),) * axis + (slice(start, start + step),)]
    lacking = fill - piece.shape[axis]
    if lacking <= 0:
        return piece
    if not piece.shape[axis]:
        return _zeros(piece, axis, fill)
    return np.concatenate([piece, *[np.take(piece, [-1], axis=axis)] * lacking], axis=axis)


def _zeros(like: Array, axis: int, rows: int) -> Array:
    shape = [rows if i == axis else size for i, size in enumerate(like.shape)]
    return np.full(shape, "", dtype=object) if like.dtype == object else np.zeros(shape, like.dtype)


def row_count(values: Sequence[Any], axes: Sequence[int | None]) -> int | None:
    """Rows of arrays that are cut here; None if others were cut before, or nothing is cut.

    Raises
    ------
    InputError
        The arrays differ in their number of rows.
    """
    if any(isinstance(value, Runs) for value in values):
        return None
    return cut_rows(values, axes, Batching()).rows


def take_rows(
    values: Sequence[Any], axes: Sequence[int | None], start: int, rows: int
) -> list[Any]:
    """The same values with rows `start` to `start + rows` only, as views."""
    return [
        value if axis is None else value[(slice(None),) * axis + (slice(start, start + rows),)]
        for value, axis in zip(values, axes, strict=True)
    ]


def keep_apart(pieces: Sequence[Any], cut: Cut) -> Any:
    """A value that goes on to another stage: bare if there was one run of just the rows."""
    if cut.rows is None or (len(pieces) == 1 and not cut.is_filled):
        return pieces[0]
    return Runs(tuple(pieces), cut.rows, cut.is_filled)


def join(pieces: Sequence[Any], axis: int | None, cut: Cut) -> Any:
    """A value that leaves the plan: the pieces one after the other, without filled-up rows."""
    value = keep_apart(pieces, cut)
    return join_runs(value, axis) if isinstance(value, Runs) else value


def join_runs(runs: Runs, axis: int | None) -> Any:
    if axis is None:
        return runs.pieces[0]
    pieces = runs.pieces
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)
    if not runs.is_filled:
        return joined
    return joined[(slice(None),) * axis + (slice(0, runs.rows),)]
