"""Columns of text in, columns of vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from dask_onnx.collections.bad_rows import ERROR, Found
from dask_onnx.collections.checked_partitions import (
    CELL_META,
    CheckedPart,
    as_cell,
    bad_rows,
    take_apart,
)
from dask_onnx.collections.text.text_columns import kept_faults, texts_of
from dask_onnx.collections.text.text_encoder import Encoder
from dask_onnx.collections.text.texts import Unfit
from dask_onnx.core.errors import InputError
from dask_onnx.core.stage_tasks import Hints


def predict_series(
    x: Any,
    encode: Encoder,
    place: Place,
    width: int | None,
    compute: Callable[[list[Any]], Found],
    arguments: Sequence[Delayed],
) -> Any:
    """A Series for a Series, a DataFrame for a DataFrame, of pandas or dask; for "split" also a
    DataFrame of the bad texts.

    Parameters
    ----------
    width : elements of a vector, where the model says it
    compute : encodes the texts of a pandas Series now
    arguments : what the encoder needs besides the texts, for Dask to compute first
    """
    is_split = encode.rows.on_error == "split"
    place.check(x, is_split=is_split)
    kind = pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())
    part = SeriesTexts(encode, place, pd.ArrowDtype(kind))
    if not hasattr(x, "map_partitions"):
        found = part.finish(x, compute(place.texts(x)), "")
        return (found.good, found.bad) if isinstance(found, CheckedPart) else found
    meta = part.result(x._meta, Found(None, np.empty(0, np.int64), {}))
    lazy = x.map_partitions(part, *arguments, meta=CELL_META if is_split else meta)
    return take_apart(lazy, meta, _as_table(x._meta)) if is_split else lazy


@dataclass(frozen=True, slots=True)
class Place:
    """Where texts are in what the caller gave, and where the vectors go."""

    column: Any = None
    """Of a table; None for a Series."""
    name: str = "embedding"
    """The new column."""

    def check(self, x: Any, *, is_split: bool) -> None:
        """
        Raises
        ------
        InputError
        """
        if x.ndim == 1:
            if self.column is not None:
                raise InputError("column names a column, and a Series was given", "leave it out")
            names = [x.name]
        else:
            names = list(x.columns)
            if self.column not in names:
                what = "a table was given" if self.column is None else f"no column {self.column!r}"
                raise InputError(
                    f"{what}; its columns are {', '.join(map(repr, names[:20]))}",
                    "name the one of text: column='text', or pass ddf['text']",
                )
            if self.name in names:
                raise InputError(
                    f"the table has a column {self.name!r} already", "choose another: name=..."
                )
        if is_split and ERROR in names:
            raise InputError(
                f"there is a column {ERROR!r}, which is what bad rows get", "rename that column"
            )

    def texts(self, part: Any) -> list[Any]:
        """The texts of a partition; in their place `Unfit` where a column that stays beside the
        vectors cannot be written."""
        if self.column is None:
            return texts_of(part)
        texts = texts_of(part[self.column])
        for row, reason in kept_faults(part, [self.column]).items():
            texts[row] = Unfit(reason)
        return texts


@dataclass(frozen=True, slots=True, eq=False)
class SeriesTexts:
    """The encoder on one partition; what `map_partitions` calls."""

    encode: Encoder
    place: Place
    dtype: pd.ArrowDtype = field(repr=False)
    """Of the result."""

    @property
    def __name__(self) -> str:
        """What the dashboard calls the task."""
        return self.encode.graph.label

    @property
    def hints(self) -> Hints:
        return self.encode.graph.hints

    def __call__(
        self,
        part: Any,
        content: bytes,
        *supplies: Any,
        partition_info: dict[str, Any] | None = None,
    ) -> Any:
        where = f"partition {partition_info['number']}, " if partition_info else ""
        texts = self.place.texts(part)
        found = self.finish(part, self.encode(content, texts, *supplies), where)
        return as_cell(found) if isinstance(found, CheckedPart) else found

    def finish(self, part: Any, found: Found, where: str) -> Any:
        """Raise, or put what was found into a Series, a DataFrame or a CheckedPart."""
        count = len(part)
        self.encode.raise_first(
            found,
            count,
            lambda row: f"{where}row {row:,} of {count:,}, with index {part.index[row]!r}: ",
        )
        if self.encode.rows.on_error == "split":
            good = part.iloc[found.good]
            kept = Found(found.values, np.arange(len(good)), {})
            return CheckedPart(self.result(good, kept), bad_rows(_as_table(part), found))
        return self.result(part, found)

    def result(self, part: Any, found: Found) -> Any:
        """A vector for each text, or for each window; missing where the text is bad."""
        values: Any = [] if found.values is None else next(iter(found.values.values()))
        counts = np.ones(len(part), int)
        if isinstance(values, list):
            # Windows of their own: a row for each of them.
            counts[found.good] = [len(windows) for windows in values]
            values = np.concatenate(values) if values else np.empty((0, 0), np.float32)
        column: Any = pd.arrays.ArrowExtensionArray(self._lists(np.asarray(values, np.float32)))
        if found.errors:
            is_good = np.zeros(len(part), bool)
            is_good[found.good] = True
            sources = np.full(counts.sum(), -1)
            sources[np.repeat(is_good, counts)] = np.arange(len(values))
            column = pd.api.extensions.take(column, sources, allow_fill=True)
        if (counts != 1).any():
            part = part.iloc[np.repeat(np.arange(len(part)), counts)]
        if self.place.column is None:
            return pd.Series(column, index=part.index, name=part.name)
        return part.assign(**{self.place.name: column})

    def _lists(self, vectors: np.ndarray) -> Any:
        flat = pa.array(vectors.reshape(-1))
        kind = self.dtype.pyarrow_dtype
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(flat, type=kind)
        width = vectors.shape[1] if vectors.ndim == 2 else 0
        starts = np.arange(len(vectors) + 1, dtype=np.int32) * width
        return pa.ListArray.from_arrays(pa.array(starts), flat)

    def __dask_tokenize__(self) -> Any:
        return (*self.encode.__dask_tokenize__(), repr(self.place), str(self.dtype))


def _as_table(part: Any) -> pd.DataFrame:
    if isinstance(part, pd.DataFrame):
        return part
    return part.to_frame("text" if part.name is None else part.name)
