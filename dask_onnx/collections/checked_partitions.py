"""Partitions that were checked: results and bad rows travel together, then part."""

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
_CELL = "checked"


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """What became of one partition."""

    good: Any
    """Results of the good rows: DataFrame or Series."""
    bad: pd.DataFrame
    """The caller's bad rows, and what is wrong with them."""


def _sizeof_checked(part: CheckedPart) -> int:
    return int(sizeof(part.good)) + int(sizeof(part.bad))


# Dask weighs results by this when it places tasks and when it spills.
sizeof.register(CheckedPart, _sizeof_checked)


def bad_rows(table: pd.DataFrame, found: Found) -> pd.DataFrame:
    """The bad rows of a table, with a column that says why."""
    messages = pd.array(found.messages(), dtype=TEXT)
    return table.iloc[found.bad].assign(**{ERROR: messages})


def as_cell(part: CheckedPart) -> pd.DataFrame:
    """A table of one cell: Dask's tables hold tables, and this carries two."""
    return pd.DataFrame({_CELL: pd.Series([part], dtype=object)})


CELL_META = pd.DataFrame({_CELL: pd.Series([], dtype=object)})


def take_apart(cells: dd.DataFrame, good: Any, table: pd.DataFrame) -> tuple[Any, Any]:
    """The two collections behind the cells.

    Parameters
    ----------
    good : meta of the results
    table : meta of the caller's table
    """
    bad = table.iloc[:0].assign(**{ERROR: pd.array([], dtype=TEXT)})
    # Keys that stay as they are: fused into its two readers, a cell would be computed twice.
    # A cell is an object, which Dask would otherwise make a string of.
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
