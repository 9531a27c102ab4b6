"""Rows of unequal length, padded to a few lengths and run with others of the same length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.collections.bad_rows import RowsError, crashes_at
from dask_onnx.core.errors import Suggestion


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows of different lengths, stored one after the other."""

    flat: np.ndarray
    """Elements of all rows, shape (elements,)."""
    offsets: np.ndarray
    """Start of each row in `flat`, and the end of the last row: int, shape (rows + 1,)."""

    @property
    def sizes(self) -> np.ndarray:
        """Length of each row, shape (rows,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> Ragged:
        start, stop, _ = rows.indices(len(self))
        return Ragged(self.flat, self.offsets[start : stop + 1])

    def padded(self, positions: np.ndarray, length: int) -> np.ndarray:
        """Return the rows at some positions, padded with zeros or empty strings.

        Parameters
        ----------
        positions : ndarray of int, shape (n,)
            Rows to return.
        length : int
            Length to pad to.

        Returns
        -------
        ndarray, shape (n, length)
        """
        fill: Any = "" if self.flat.dtype == object else 0
        rows = np.full((len(positions), length), fill, self.flat.dtype)
        for row, position in zip(rows, positions, strict=True):
            start, stop = self.offsets[position : position + 2]
            row[: stop - start] = self.flat[start:stop]
        return rows


def by_length(lengths: np.ndarray, buckets: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each length to pad to, and the positions of the rows to pad to it; shortest first.

    Parameters
    ----------
    lengths : ndarray of int, shape (rows,)
        Length of each row; at most the last bucket.
    buckets : sequence of int
        Lengths to pad to, ascending.
    """
    chosen = np.searchsorted(np.asarray(buckets), lengths)
    for number in np.unique(chosen):
        yield int(buckets[number]), np.flatnonzero(chosen == number)


def check_lengths(arrays: Mapping[str, Any], buckets: Sequence[int]) -> None:
    """Check that ragged inputs have equal lengths in each row, and fit the longest bucket.

    Raises
    ------
    RowsError
        Some rows do not.
    """
    ragged = {name: value.sizes for name, value in arrays.items() if isinstance(value, Ragged)}
    if not ragged:
        return
    (first, lengths), *others = ragged.items()
    for name, sizes in others:
        bad = sizes != lengths
        if bad.any():
            rule = f"inputs {first!r} and {name!r} must be equally long in a row"
            raise RowsError(
                f"{rule}; they are not in {int(bad.sum()):,} of {len(bad):,} rows",
                "pad or cut the lists",
                bad,
                f"{rule}; they are not",
                input=name,
            )
    bad = lengths > buckets[-1]
    if bad.any():
        rule = f"input {first!r} may be {buckets[-1]:,} long, the longest of length_buckets"
        longest = int(lengths.max())
        raise RowsError(
            f"{rule}; {int(bad.sum()):,} of {len(bad):,} rows are longer, {longest:,} the longest",
            "add a bucket, or cut the lists",
            bad,
            f"{rule}; it is longer",
            option="length_buckets",
            input=first,
            numbers={"longest": longest, "longest_bucket": int(buckets[-1])},
            suggestions=[Suggestion("length_buckets", [*buckets, longest])],
        )


def run_by_length(
    arrays: Mapping[str, Any],
    buckets: Sequence[int],
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    trimmed: frozenset[str],
) -> dict[str, Any]:
    """Run rows of about the same length together, and restore the order of the rows.

    Parameters
    ----------
    arrays : mapping of str to ndarray or Ragged
        Inputs by name; ragged ones have equal lengths in each row.
    buckets : sequence of int
        Lengths to pad to, ascending.
    run : callable
        Takes arrays by name, and returns arrays by name, rows first.
    trimmed : frozenset of str
        Values whose axis 1 is as long as the inputs; the padding is cut off each row of them.

    Returns
    -------
    dict of str to ndarray or list
        For each value an array, or a list of one array for each row if rows differ in shape.
    """
    lengths = next(value.sizes for value in arrays.values() if isinstance(value, Ragged))
    rows: dict[str, list[Any]] = {}
    for length, positions in by_length(lengths, buckets):
        feeds = {
            name: value.padded(positions, length) if isinstance(value, Ragged) else value[positions]
            for name, value in arrays.items()
        }
        with crashes_at(positions):
            found = run(feeds)
        for name, values in found.items():
            in_order = rows.setdefault(name, [None] * len(lengths))
            for position, value in zip(positions, values, strict=True):
                in_order[position] = value[: lengths[position]] if name in trimmed else value
    return {
        name: in_order if name in trimmed or _differ(in_order) else np.stack(in_order)
        for name, in_order in rows.items()
    }


def _differ(rows: Sequence[np.ndarray]) -> bool:
    return len({row.shape for row in rows}) > 1
