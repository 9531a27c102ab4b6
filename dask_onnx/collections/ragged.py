"""Rows of unequal length: padded to a few lengths, run together, put back in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.collections.bad_rows import RowsError


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows of numbers, one after the other."""

    flat: np.ndarray
    offsets: np.ndarray
    """Where each row begins, and where the last one ends: (rows + 1,) int."""

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> Ragged:
        start, stop, _ = rows.indices(len(self))
        return Ragged(self.flat, self.offsets[start : stop + 1])

    def padded(self, positions: np.ndarray, length: int) -> np.ndarray:
        """Some rows, filled up with zeros (or empty strings): (positions, length)."""
        fill: Any = "" if self.flat.dtype == object else 0
        rows = np.full((len(positions), length), fill, self.flat.dtype)
        for row, position in zip(rows, positions, strict=True):
            start, stop = self.offsets[position : position + 2]
            row[: stop - start] = self.flat[start:stop]
        return rows


def by_length(lengths: np.ndarray, buckets: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Length to pad to, and the positions of the rows that are; shortest first."""
    chosen = np.searchsorted(np.asarray(buckets), lengths)
    for number in np.unique(chosen):
        yield int(buckets[number]), np.flatnonzero(chosen == number)


def check_lengths(arrays: Mapping[str, Any], buckets: Sequence[int]) -> None:
    """Whether the ragged inputs agree, row by row, and fit the longest bucket.

    Raises
    ------
    RowsError
    """
    ragged = {name: value.sizes for name, value in arrays.items() if isinstance(value, Ragged)}
    if not ragged:
        return
    (first, lengths), *others = ragged.items()
    for name, sizes in others:
        wrong = sizes != lengths
        if wrong.any():
            what = f"inputs {first!r} and {name!r} must be equally long in a row"
            raise RowsError(
                f"{what}; they are not in {int(wrong.sum()):,} of {len(wrong):,} rows",
                "pad or cut the lists",
                wrong,
                f"{what}; they are not",
            )
    wrong = lengths > buckets[-1]
    if wrong.any():
        what = f"input {first!r} may be {buckets[-1]:,} long, the longest of length_buckets"
        raise RowsError(
            f"{what}; {int(wrong.sum()):,} of {len(wrong):,} rows are longer, "
            f"{int(lengths.max()):,} the longest",
            "add a bucket, or cut the lists",
            wrong,
            f"{what}; it is longer",
        )


def run_by_length(
    arrays: Mapping[str, Any],
    buckets: Sequence[int],
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    trimmed: frozenset[str],
) -> dict[str, Any]:
    """Run rows of about one length together.

    Parameters
    ----------
    arrays : inputs by name; those that are `Ragged` have equal lengths in each row
    run : function of arrays by name that gives arrays by name, rows first
    trimmed : values whose axis 1 is as long as the inputs: each row is cut to its own length

    Returns
    -------
    dict of value to ndarray, or to a list of one array a row where rows differ in shape
    """
    lengths = next(value.sizes for value in arrays.values() if isinstance(value, Ragged))
    rows: dict[str, list[Any]] = {}
    for length, positions in by_length(lengths, buckets):
        feeds = {
            name: value.padded(positions, length) if isinstance(value, Ragged) else value[positions]
            for name, value in arrays.items()
        }
        for name, values in run(feeds).items():
            of_rows = rows.setdefault(name, [None] * len(lengths))
            for position, value in zip(positions, values, strict=True):
                of_rows[position] = value[: lengths[position]] if name in trimmed else value
    return {
        name: of_rows if name in trimmed or _differ(of_rows) else np.stack(of_rows)
        for name, of_rows in rows.items()
    }


def _differ(rows: Sequence[np.ndarray]) -> bool:
    return len({row.shape for row in rows}) > 1
