"""Micro-batches: splitting the rows of a task into runs of the session, joining the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.sizeof import sizeof

from dask_onnx.core.errors import InputError, RunError, StageError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batching:
    """Rule by which the rows of one task are split into runs of the session."""

    rows_per_run: int | None = None
    """Rows of one run; None runs all rows of the task at once."""
    is_fixed: bool = False
    """True if the graph takes exactly `rows_per_run` rows: the last run is padded, then trimmed."""
    is_auto: bool = False
    """True if the task measures the best number of rows itself."""
    is_divisible: bool = False
    """True if a run may be split further where memory is short: rows are proven independent, and
    every result has them."""


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """One value in micro-batches, one per run of the session, on its way between two stages."""

    pieces: tuple[Any, ...]
    """The micro-batches, in the order of the rows."""
    rows: int
    """Rows of the task's input."""
    is_padded: bool
    """True if the last run was padded to a fixed size, so that only `rows` of the result count."""


def _sizeof_micro_batches(value: MicroBatches) -> int:
    return sum(sizeof(piece) for piece in value.pieces)


# Dask weighs results by this when it places tasks and when it spills.
sizeof.register(MicroBatches, _sizeof_micro_batches)


@dataclass(frozen=True, slots=True)
class SplitInputs:
    """Inputs of every run, with the facts that joining the results needs."""

    feeds: list[list[Any]]
    """For every run the inputs of the stage."""
    rows: int | None
    """Rows of the inputs that were split; None if none has a batch axis."""
    is_padded: bool
    """True if the runs have more rows than the inputs, so that results must be trimmed."""


def split_rows(
    values: Sequence[Any], axes: Sequence[int | None], batching: Batching
) -> SplitInputs:
    """Split the inputs of a stage into runs.

    Parameters
    ----------
    values : sequence of ndarray or MicroBatches
        Inputs; those that are in micro-batches already stay so.
    axes : sequence of int or None
        For each input its batch axis; None for one that every run gets whole.
    batching : Batching
        Rows of a run.

    Raises
    ------
    InputError
        The inputs differ in their number of rows.
    """
    rows = _common_rows(values, axes)
    if rows is None:
        return SplitInputs([list(values)], None, False)
    # A chunk may be empty after a selection. No kernel is asked to handle that: one row of zeros
    # runs in its place, which gives the right shapes and dtypes, and is then cut off.
    step = batching.rows_per_run or max(rows, 1)
    starts = range(0, max(rows, 1), step)
    fill = step if batching.is_fixed else (1 if rows == 0 else 0)
    feeds = [
        [_piece(v, a, number, start, step, fill) for v, a in zip(values, axes, strict=True)]
        for number, start in enumerate(starts)
    ]
    was_padded = any(value.is_padded for value in values if isinstance(value, MicroBatches))
    return SplitInputs(feeds, rows, is_padded=rows == 0 or bool(fill and rows % step) or was_padded)


def _piece(value: Any, axis: int | None, number: int, start: int, step: int, fill: int) -> Any:
    """Return the part of an input for run `number`, with at least `fill` rows."""
    if isinstance(value, MicroBatches):
        return value.pieces[number]
    if axis is None:
        return value
    rows = value.shape[axis]
    if start == 0 and step >= rows >= fill:
        return value
    piece = value[(slice(None),) * axis + (slice(start, start + step),)]
    missing = fill - piece.shape[axis]
    if missing <= 0:
        return piece
    if not piece.shape[axis]:
        return _zeros(piece, axis, fill)
    try:
        last = np.take(piece, [-1], axis=axis)
        return np.concatenate([piece, np.repeat(last, missing, axis)], axis=axis)
    except (MemoryError, ValueError, OverflowError) as error:
        raise _no_room(piece, axis, fill) from error


def _no_room(piece: Array, axis: int, rows: int) -> RunError:
    needed = piece.nbytes / max(piece.shape[axis], 1) * rows
    return RunError(
        f"the model runs {rows:,} rows at a time, and {needed:,.0f} bytes cannot be allocated",
        "export the model for fewer rows, or with an open number of them",
        axis=axis,
        numbers={"rows": rows, "needed_bytes": needed},
    )


def _zeros(like: Array, axis: int, rows: int) -> Array:
    shape = [rows if i == axis else size for i, size in enumerate(like.shape)]
    return np.full(shape, "", dtype=object) if like.dtype == object else np.zeros(shape, like.dtype)


def row_count(values: Sequence[Any], axes: Sequence[int | None]) -> int | None:
    """Return the rows of the inputs.

    Parameters
    ----------
    values, axes
        As for `split_rows`.

    Returns
    -------
    int or None
        None if an input is in micro-batches already, or none has a batch axis.

    Raises
    ------
    InputError
        The inputs differ in their number of rows.
    """
    if any(isinstance(value, MicroBatches) for value in values):
        return None
    return _common_rows(values, axes)


def _common_rows(values: Sequence[Any], axes: Sequence[int | None]) -> int | None:
    """Return the rows of the inputs, those in micro-batches included; None if none has any."""
    counts = {
        value.rows if isinstance(value, MicroBatches) else value.shape[axis]
        for value, axis in zip(values, axes, strict=True)
        if isinstance(value, MicroBatches) or axis is not None
    }
    if len(counts) > 1:
        raise InputError(
            f"inputs have {' and '.join(map(str, sorted(counts)))} rows",
            "inputs with a batch axis must have the same number of rows",
            numbers={"fewest_rows": min(counts), "most_rows": max(counts)},
        )
    return counts.pop() if counts else None


def take_rows(
    values: Sequence[Any], axes: Sequence[int | None], start: int, rows: int
) -> list[Any]:
    """Return views of rows `start` to `start + rows` of the inputs; others are returned whole.

    Parameters
    ----------
    values : sequence of ndarray
        Inputs of a stage.
    axes : sequence of int or None
        For each input its batch axis.
    start, rows : int
        First row, and number of rows.
    """
    return [
        value if axis is None else value[(slice(None),) * axis + (slice(start, start + rows),)]
        for value, axis in zip(values, axes, strict=True)
    ]


def keep_split(pieces: Sequence[Any], split: SplitInputs) -> Any:
    """Return a value for another stage: bare if there was one run of just the input's rows."""
    if split.rows is None or (len(pieces) == 1 and not split.is_padded):
        return pieces[0]
    return MicroBatches(tuple(pieces), split.rows, split.is_padded)


def join(pieces: Sequence[Any], axis: int | None, split: SplitInputs) -> Any:
    """Return a value that leaves the plan: the results of all runs, without padded rows."""
    value = keep_split(pieces, split)
    return join_micro_batches(value, axis) if isinstance(value, MicroBatches) else value


def join_micro_batches(value: MicroBatches, axis: int | None) -> Any:
    """Return the whole value; with axis None, for a value without rows, that of the first run."""
    if axis is None:
        return value.pieces[0]
    joined = concatenated(value.pieces, axis)
    if not value.is_padded:
        return joined
    first_rows = (slice(None),) * axis + (slice(0, value.rows),)
    return [each[first_rows] for each in joined] if isinstance(joined, list) else joined[first_rows]


def concatenated(pieces: Sequence[Any], axis: int) -> Any:
    """Return arrays joined along an axis; lists of arrays are joined item by item.

    Raises
    ------
    StageError
        The lists differ in length, so that their items do not belong together.
    """
    if len(pieces) == 1:
        return pieces[0]
    if not isinstance(pieces[0], list):
        return np.concatenate(pieces, axis=axis)
    lengths = sorted({len(piece) for piece in pieces})
    if len(lengths) > 1:
        raise StageError(
            f"a sequence has {lengths[0]} items for some rows and {lengths[-1]} for others, so "
            "that results of several runs cannot be joined",
            "give all rows in one run: one chunk or partition, and batch_size=None",
            option="batch_size",
            numbers={"fewest": lengths[0], "most": lengths[-1]},
        )
    return [np.concatenate(items, axis=axis) for items in zip(*pieces, strict=True)]
