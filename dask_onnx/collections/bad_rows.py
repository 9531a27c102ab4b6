"""Rows that the model cannot take: found one by one, while the good ones are all computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_onnx.core.errors import DaskOnnxError, InputError, RunError

Arrays = Mapping[str, Any]
"""Inputs by name; anything with a length that a slice takes rows of."""
ERROR = "error"
"""The column that says what is wrong with a row."""


class RowsError(InputError):
    """Some of the rows at hand do not fit the model: `mask` says which."""

    def __init__(
        self,
        cause: str,
        next_step: str = "",
        mask: np.ndarray | None = None,
        of_row: str = "",
        of_rows: Mapping[int, str] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(cause, next_step, **fields)
        self.mask = np.zeros(0, bool) if mask is None else mask
        self.of_row = of_row or cause
        """What is wrong, said of one row."""
        self.of_rows = of_rows or {}
        """The same, by the positions of those of which more is known."""


@dataclass(frozen=True, slots=True)
class Found:
    """What became of the rows."""

    values: dict[str, Any] | None
    """Results of the good rows, in their order; None if there are none."""
    good: np.ndarray
    """Positions of the good rows, ascending."""
    errors: dict[int, DaskOnnxError | ValueError]
    """Position of each bad row to what is wrong with it."""

    @property
    def bad(self) -> list[int]:
        return sorted(self.errors)

    def messages(self) -> list[str]:
        """What is wrong, in the order of `bad`."""
        return [message(self.errors[position]) for position in self.bad]


@dataclass(slots=True)
class _Search:
    """The good and the bad of one partition, while it is gone through from left to right."""

    run: Callable[[Arrays], Arrays]
    stops: bool
    """At the first bad row."""
    pieces: list[tuple[np.ndarray, Arrays]] = field(default_factory=list)
    errors: dict[int, DaskOnnxError | ValueError] = field(default_factory=dict)

    def try_rows(self, positions: np.ndarray, arrays: Arrays) -> None:
        """Run rows; where that fails, each half of them."""
        if not len(positions) or (self.stops and self.errors):
            return
        try:
            self.pieces.append((positions, self.run(arrays)))
        except (ValueError, RunError) as error:
            if len(positions) == 1:
                self.errors[int(positions[0])] = error
                return
        else:
            return
        middle = len(positions) // 2
        for half in (slice(0, middle), slice(middle, None)):
            self.try_rows(positions[half], {name: value[half] for name, value in arrays.items()})

    def found(self) -> Found:
        good = [positions for positions, _ in self.pieces]
        values = None
        if self.pieces:
            names = self.pieces[0][1]
            values = {
                name: join_pieces([values[name] for _, values in self.pieces]) for name in names
            }
        return Found(values, np.concatenate(good or [np.empty(0, np.int64)]), self.errors)


def run_rows(
    count: int,
    convert: Callable[[np.ndarray | None], Arrays],
    run: Callable[[Arrays], Arrays],
    *,
    stops: bool,
) -> Found:
    """Run all rows, and find those that cannot be.

    A conversion tells of all its bad rows at once. A kernel tells of none: what it fails on is
    halved until single rows are left, so that a bad row costs about twice the work of the rows.

    Parameters
    ----------
    count : rows
    convert : function of positions (None for all) that gives the inputs
        Raises `RowsError`, or another ValueError of rows that it cannot say.
    run : function of inputs by name that gives values by name, with a row for each
    stops : at the first bad row, which is then the only one in `errors`
    """
    search = _Search(run, stops)
    _convert_rows(np.arange(count), None, convert, search)
    return search.found()


def _convert_rows(
    positions: np.ndarray,
    chosen: np.ndarray | None,
    convert: Callable[[np.ndarray | None], Arrays],
    search: _Search,
) -> None:
    if not len(positions) or (search.stops and search.errors):
        return
    try:
        arrays = convert(chosen)
    except RowsError as fault:
        bad = positions[fault.mask]
        if search.stops:
            # Another column may be at fault further up.
            earlier = positions[: int(np.argmax(fault.mask))]
            above = _Search(lambda _: {}, stops=True)
            _convert_rows(earlier, earlier, convert, above)
            search.errors |= above.errors or {int(bad[0]): fault}
            return
        search.errors |= {
            int(positions[place]): InputError(fault.of_rows.get(int(place), fault.of_row))
            for place in np.flatnonzero(fault.mask)
        }
        rest = positions[~fault.mask]
        _convert_rows(rest, rest, convert, search)
        return
    except ValueError as error:
        if len(positions) == 1:
            search.errors[int(positions[0])] = error
            return
    else:
        search.try_rows(positions, arrays)
        return
    middle = len(positions) // 2
    for half in (positions[:middle], positions[middle:]):
        _convert_rows(half, half, convert, search)


def join_found(parts: Sequence[tuple[int, Found]]) -> Found:
    """What was found of rows that were gone through in pieces.

    Parameters
    ----------
    parts : position of the first row of each piece, and what was found in it
    """
    if len(parts) == 1:
        return parts[0][1]
    pieces = [found.values for _, found in parts if found.values is not None]
    values = {name: join_pieces([piece[name] for piece in pieces]) for name in (pieces or [{}])[0]}
    return Found(
        values or None,
        np.concatenate([found.good + start for start, found in parts]),
        {start + place: error for start, found in parts for place, error in found.errors.items()},
    )


def join_pieces(pieces: Sequence[Any]) -> Any:
    """Pieces of a value, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    if any(isinstance(piece, list) for piece in pieces):
        return [row for piece in pieces for row in piece]
    return np.concatenate(pieces)


def located(error: Exception, where: str) -> DaskOnnxError:
    """The same error, with the place in front of what it says."""
    if isinstance(error, DaskOnnxError):
        kind = InputError if isinstance(error, RowsError) else type(error)
        return kind(f"{where}{error.cause}", error.next_step)
    return InputError(f"{where}{error}")


def message(error: Exception) -> str:
    """What is wrong, without the advice."""
    return error.cause if isinstance(error, DaskOnnxError) else str(error)
