"""Search for rows that a model cannot take, while all other rows are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_onnx.core.errors import CrashError, DaskOnnxError, InputError, RunError

Arrays = Mapping[str, Any]
"""Inputs by name: arrays, or anything else with a length whose rows a slice selects."""
ERROR = "error"
"""Name of the column, or dict key, that holds the error of a bad row."""


class RowsError(InputError):
    """Some of the rows of a partition do not fit the model.

    Parameters
    ----------
    cause, next_step : str
        Message about all rows; see `DaskOnnxError`.
    mask : ndarray of bool, shape (rows,)
        True for each bad row.
    row_cause : str, optional
        Message about one bad row; `cause` by default.
    row_causes : mapping of int to str, optional
        More precise messages, by the row's position.
    fields
        Fields of `DaskOnnxError`. ``numbers["bad_rows"]`` is set to the number of bad rows, and
        ``numbers["rows"]`` to that of all rows.
    """

    def __init__(
        self,
        cause: str,
        next_step: str = "",
        mask: np.ndarray | None = None,
        row_cause: str = "",
        row_causes: Mapping[int, str] | None = None,
        **fields: Any,
    ) -> None:
        self.mask = np.zeros(0, bool) if mask is None else mask
        self.row_cause = row_cause or cause
        self.row_causes = row_causes or {}
        counts = {"bad_rows": int(self.mask.sum()), "rows": len(self.mask)}
        fields["numbers"] = {**counts, **fields.get("numbers", {})}
        super().__init__(cause, next_step, **fields)

    def of_row(self, position: int) -> InputError:
        """Return the error of one bad row."""
        fields = {name: value for name, value in self.fields.items() if name != "numbers"}
        cause = self.row_causes.get(position, self.row_cause)
        return InputError(cause, self.next_step, **fields)


@dataclass(frozen=True, slots=True)
class Found:
    """Results of the good rows and errors of the bad rows of one partition."""

    values: dict[str, Any] | None
    """Results of the good rows, in their order; None if there are none."""
    good: np.ndarray
    """Positions of the good rows, ascending."""
    errors: dict[int, DaskOnnxError | ValueError]
    """Position of each bad row to its error."""

    @property
    def bad(self) -> list[int]:
        """Positions of the bad rows, ascending."""
        return sorted(self.errors)

    def messages(self) -> list[str]:
        """Return the messages of the bad rows, in the order of `bad`."""
        return [message(self.errors[position]) for position in self.bad]


@dataclass(slots=True)
class _Search:
    """Good and bad rows found so far, while a partition is searched from the first row on."""

    run: Callable[[Arrays], Arrays]
    """Function of inputs by name; see `run_rows`."""
    stops: bool
    """True if the search ends at the first bad row."""
    pieces: list[tuple[np.ndarray, Arrays]] = field(default_factory=list)
    """Positions of rows that ran together, and their results."""
    errors: dict[int, DaskOnnxError | ValueError] = field(default_factory=dict)
    """Position of each bad row to its error."""

    def try_rows(self, positions: np.ndarray, arrays: Arrays) -> None:
        """Run rows; if that fails, run each half of them."""
        if not len(positions) or (self.stops and self.errors):
            return
        try:
            self.pieces.append((positions, self.run(arrays)))
        except CrashError as error:
            if error.rows:
                self._set_aside(error, positions, arrays)
                return
            failure: DaskOnnxError | ValueError = error
        except (ValueError, RunError) as error:
            failure = error
        else:
            return
        if len(positions) == 1:
            self.errors[int(positions[0])] = failure
            return
        middle = len(positions) // 2
        for half in (slice(0, middle), slice(middle, None)):
            self.try_rows(positions[half], {name: value[half] for name, value in arrays.items()})

    def _set_aside(self, error: CrashError, positions: np.ndarray, arrays: Arrays) -> None:
        """Note the bad rows that an error names, and run the others."""
        start = 0
        count = len(positions)
        bad = list(error.rows)
        for row in bad:
            self.errors[int(positions[row])] = _of_one_row(error, count)
        if self.stops:
            return
        if all(isinstance(value, np.ndarray) for value in arrays.values()):
            good = np.delete(np.arange(count), bad)
            self.try_rows(positions[good], {name: value[good] for name, value in arrays.items()})
            return
        for row in [*bad, count]:  # values of other kinds have slices only
            part = slice(start, row)
            self.try_rows(positions[part], {name: value[part] for name, value in arrays.items()})
            start = row + 1

    def found(self) -> Found:
        """Return the result of the search."""
        good = [positions for positions, _ in self.pieces]
        values = None
        if self.pieces:
            names = self.pieces[0][1]
            values = {
                name: join_pieces([values[name] for _, values in self.pieces]) for name in names
            }
        return Found(values, np.concatenate(good or [np.empty(0, np.int64)]), self.errors)


@contextlib.contextmanager
def crashes_at(positions: Sequence[int] | np.ndarray) -> Iterator[None]:
    """Let errors about rows that end their process name positions among all rows.

    Parameters
    ----------
    positions : sequence of int
        Position of each row that runs inside the context.
    """
    try:
        yield
    except CrashError as error:
        rows = sorted({int(positions[row]) for row in error.rows if row < len(positions)})
        raise error.at_rows(rows) from None


@contextlib.contextmanager
def crashes_in_blocks(starts: Sequence[int]) -> Iterator[None]:
    """Let errors about rows that end their process name positions among the rows of all blocks.

    Parameters
    ----------
    starts : sequence of int
        First row of each block, and last the number of all rows; empty if there are no rows.
    """
    try:
        yield
    except CrashError as error:
        block = int(error.numbers.get("block", len(starts)))
        if block + 1 >= len(starts) or "row" not in error.numbers:
            raise
        start = starts[block]
        row = start + int(error.numbers["row"])
        numbers = {**error.numbers, "row": row, "rows": starts[-1]}
        raise CrashError(
            f"{error.cause}; row {row:,} of {starts[-1]:,} in all",
            error.next_step,
            [start + each for each in error.rows],
            **{**error.fields, "numbers": numbers},
        ) from None


def _of_one_row(error: CrashError, count: int) -> CrashError:
    """Return the error of one of the rows that an error names."""
    cause = f"stage {error.stage} ends its process on this row: {error.reason}"
    numbers = {**error.numbers, "rows": count, "bad_rows": 1}
    return CrashError(cause, error.next_step, **{**error.fields, "numbers": numbers})


def run_rows(
    count: int,
    convert: Callable[[np.ndarray | None], Arrays],
    run: Callable[[Arrays], Arrays],
    *,
    stops: bool,
    is_independent: bool = True,
) -> Found:
    """Run all rows, and find those that fail.

    A conversion reports all its bad rows at once, and so does a run that ends its process. A kernel
    that raises reports none: rows on which it fails are bisected until single rows are left, so
    that one bad row about doubles the work.

    Parameters
    ----------
    count : int
        Number of rows.
    convert : callable
        Takes an array of positions, or None for all rows, and returns the inputs by name. Raises
        `RowsError`, or another ValueError if it does not know which rows are bad.
    run : callable
        Takes inputs by name, and returns values by name with one row for each input row.
    stops : bool
        True to stop at the first bad row, which is then the only one in `Found.errors`.
    is_independent : bool
        False if rows are not proven to be independent: then the good rows are run together in the
        end, as they would be without the bad ones.
    """

    def checked(arrays: Arrays) -> Arrays:
        return _with_all_rows(run(arrays), len(next(iter(arrays.values()))))

    search = _Search(checked, stops)
    _convert_rows(np.arange(count), None, convert, search)
    if not is_independent and len(search.pieces) > 1 and not (stops and search.errors):
        good = np.concatenate([positions for positions, _ in search.pieces])
        search.pieces = [(good, checked(convert(good)))]
    return search.found()


def _with_all_rows(values: Arrays, rows: int) -> Arrays:
    """Return the results of a run, after checking that they have one row for each row of the input.

    Raises
    ------
    InputError
        An output has more or fewer rows, so that it cannot be told which row gave which.
    """
    for name, value in values.items():
        has_rows = hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
        count = len(value) if has_rows else 0
        if count != rows:
            raise InputError(
                f"output {name!r} has {count:,} rows for {rows:,} of the input, and nothing tells "
                "which row gave which",
                "name other outputs: outputs=[...]; or run it on an array",
                option="outputs",
                numbers={"rows": rows, "output_rows": count},
            )
    return values


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
            # Another column may have a bad row before this one.
            earlier = positions[: int(np.argmax(fault.mask))]
            before = _Search(lambda _: {}, stops=True)
            _convert_rows(earlier, earlier, convert, before)
            search.errors |= before.errors or {int(bad[0]): fault}
            return
        search.errors |= {
            int(positions[place]): fault.of_row(int(place)) for place in np.flatnonzero(fault.mask)
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
    """Join the results of consecutive pieces of the rows.

    Parameters
    ----------
    parts : sequence of (int, Found)
        Position of the first row of each piece, and the piece's results.
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


def in_place(found: Found, values: Any, missing: Any) -> list[Any]:
    """Return the values of the good rows, and `missing` for bad ones, in the order of the rows."""
    rows = dict(zip(found.good, values, strict=True))
    return [rows.get(place, missing) for place in range(len(found.good) + len(found.errors))]


def bad_items(rows: Sequence[Any], found: Found) -> list[dict[str, Any]]:
    """Return a dict of ``row`` and ``error`` for each bad row."""
    return [
        {"row": rows[place], ERROR: text}
        for place, text in zip(found.bad, found.messages(), strict=True)
    ]


def join_pieces(pieces: Sequence[Any]) -> Any:
    """Concatenate the pieces of a value, arrays or lists, along the rows."""
    if len(pieces) == 1:
        return pieces[0]
    if any(isinstance(piece, list) for piece in pieces):
        return [row for piece in pieces for row in piece]
    return np.concatenate(pieces)


def located(error: Exception, where: str, row: int, count: int) -> DaskOnnxError:
    """Return the error of one row with its location in front of the message.

    Parameters
    ----------
    error : Exception
        Error of the row. Its fields are kept.
    where : str
        Location in words, such as "partition 0, row 3 of 10: ".
    row, count : int
        Position of the row in its partition and the partition's number of rows, for the field
        `numbers`.
    """
    numbers = {"row": row, "rows": count}
    if not isinstance(error, DaskOnnxError):
        return InputError(f"{where}{error}", reason=str(error), numbers=numbers)
    kind = InputError if isinstance(error, RowsError) else type(error)
    fields = {**error.fields, "numbers": {**error.numbers, **numbers}}
    return kind(f"{where}{error.cause}", error.next_step, **fields)


def message(error: Exception) -> str:
    """Return the message of an error without the next step."""
    return error.cause if isinstance(error, DaskOnnxError) else str(error)
