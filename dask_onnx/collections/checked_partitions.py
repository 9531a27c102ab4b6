"""Partitions whose bad rows are split off: one task computes both tables, two others select one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.config
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from dask.sizeof import sizeof

from dask_onnx.collections.bad_rows import ERROR, Found

TEXT = pd.ArrowDtype(pa.string())
"""Dtype of columns of text."""
_CELL = "checked"
"""Name of the column that holds a `CheckedPart`."""


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """Results and bad rows of one partition."""

    good: Any
    """Results of the good rows: DataFrame or Series."""
    bad: pd.DataFrame
    """The caller's bad rows, with a column of their errors."""


def _sizeof_checked(part: CheckedPart) -> int:
    return int(sizeof(part.good)) + int(sizeof(part.bad))


# Dask weighs results by this when it places tasks and when it spills.
sizeof.register(CheckedPart, _sizeof_checked)


def bad_rows(table: pd.DataFrame, found: Found) -> pd.DataFrame:
    """Return the bad rows of a table, with a column of their errors."""
    messages = pd.array(found.messages(), dtype=TEXT)
    return table.iloc[found.bad].assign(**{ERROR: messages})


def as_table(part: Any, name: str) -> pd.DataFrame:
    """Return a Series as a table of one column, called `name` if it has none; tables unchanged."""
    if isinstance(part, pd.DataFrame):
        return part
    table: pd.DataFrame = part.to_frame(name if part.name is None else part.name)
    return table


def as_cell(part: CheckedPart) -> pd.DataFrame:
    """Return a table of one cell that holds a checked partition.

    A partition of a Dask DataFrame must be one pandas DataFrame; this one carries two.
    """
    return pd.DataFrame({_CELL: pd.Series([part], dtype=object)})


CELL_META = pd.DataFrame({_CELL: pd.Series([], dtype=object)})
"""Meta, in Dask's sense, of the tables of `as_cell`."""


def take_apart(cells: dd.DataFrame, good: Any, table: pd.DataFrame) -> tuple[Any, Any]:
    """Return the results and the bad rows as two collections.

    Parameters
    ----------
    cells : dask.dataframe.DataFrame
        Partitions as `as_cell` makes them.
    good : pandas DataFrame or Series
        Meta of the results.
    table : pandas DataFrame
        Meta of the caller's table.
    """
    bad = table.iloc[:0].assign(**{ERROR: pd.array([], dtype=TEXT)})
    # Going through Delayed keeps Dask from fusing a cell into its two consumers, which would
    # compute it twice. Dask would convert the objects in the cells to strings.
    with dask.config.set({"dataframe.convert-string": False}):
        shared = dd.from_delayed(
            cells.to_delayed(),
            meta=CELL_META,
            divisions=cells.divisions if cells.known_divisions else None,
            verify_meta=False,
        )
    return shared.map_partitions(_take_good, meta=good), shared.map_partitions(_take_bad, meta=bad)


def _take_good(cell: pd.DataFrame) -> Any:
    return cell[_CELL].iloc[0].good


def _take_bad(cell: pd.DataFrame) -> pd.DataFrame:
    bad: pd.DataFrame = cell[_CELL].iloc[0].bad
    return bad
