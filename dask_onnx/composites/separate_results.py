"""Results of several models on one collection, joined into one of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.collections.frames import spread
from dask_onnx.core.errors import InputError


@dataclass(frozen=True, slots=True)
class PickInputs:
    """Function on the rows of a bag: those inputs of a row that one model takes."""

    own: frozenset[str]
    """Inputs of the model."""
    known: frozenset[str]
    """Inputs of all models."""

    def __call__(self, row: Any) -> Any:
        """Return a mapping without the inputs of other models."""
        if not isinstance(row, Mapping):
            raise InputError(
                f"a row is a {type(row).__name__}; the models take {len(self.known)} inputs",
                f"make each row a dict of {', '.join(map(repr, sorted(self.known)))}",
                option="x",
                numbers={"inputs": len(self.known)},
            )
        return {name: v for name, v in row.items() if name in self.own or name not in self.known}


def join_rows(*rows: Any) -> Any:
    """Return the outputs of several models for one row of a bag; None if it is bad for any."""
    if any(row is None for row in rows):
        return None
    return {name: value for row in rows for name, value in row.items()}


def join_tables(*tables: Any) -> Any:
    """Return the columns of several tables of pandas side by side, row by row.

    Parameters
    ----------
    tables : DataFrame
        Of the same rows, in the same order.
    """
    import pandas as pd

    # By position: labels of an index may occur twice.
    plain = [table.reset_index(drop=True) for table in tables]
    joined = pd.concat(plain, axis=1)
    joined.index = tables[0].index
    return joined


def number_rows(table: Any) -> Any:
    """Return a table or Series of pandas whose index is the position of each row."""
    return table.reset_index(drop=True)


def keep_common(table: Any, *found: Any) -> Any:
    """Return the rows of a numbered table that are in all of some results.

    Parameters
    ----------
    table : DataFrame or Series
        Rows with their positions as index.
    found : DataFrame
        Results of some of the rows, with these positions as index.
    """
    return table.loc[_common(table.index, found)]


@dataclass(frozen=True, slots=True)
class JoinGood:
    """Function that joins the results of several models on the rows that are good for each."""

    metas: tuple[Any, ...]
    """Result of each model without rows: its columns and dtypes, which have missing values."""
    kept: tuple[Any, ...]
    """Columns of the caller's table that stay before those of the models."""

    def __call__(self, table: Any, *found: Any) -> Any:
        """Return all columns, in which rows are missing that are bad for any model.

        Parameters
        ----------
        table : DataFrame or Series
            All rows, as the caller gave them.
        found : DataFrame
            Results of each model on its good rows, with their positions in `table` as index.
        """
        common = _common(range(len(table)), found)
        positions = np.asarray(common, np.int64)
        parts = [
            spread(own.loc[common].astype(dict(meta.dtypes)), positions, table.index)
            for own, meta in zip(found, self.metas, strict=True)
        ]
        return join_tables(*([table[list(self.kept)]] if self.kept else []), *parts)


def _common(labels: Sequence[int], found: Sequence[Any]) -> list[int]:
    """Return those of some labels that are in the index of each of some tables."""
    known = [set(own.index) for own in found]
    return [label for label in labels if all(label in own for own in known)]


def kept_columns(x: Any, append: bool | Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Return the columns of a table that stay before those of the models.

    Raises
    ------
    InputError
        A column does not exist, or a model makes one of the same name.
    """
    if append is False:
        return []
    if x.ndim == 1:
        raise InputError(
            "append is for DataFrames; a Series was given",
            "call .to_frame() on it",
            option="append",
        )
    columns = list(x.columns) if append is True else list(append)
    for column in columns:
        if column not in x.columns or column in new:
            what = "the models make a column of this name" if column in new else "there is none"
            raise InputError(
                f"append names column {column!r}: {what}",
                "rename it, or leave it out",
                option="append",
                column=str(column),
            )
    return columns
