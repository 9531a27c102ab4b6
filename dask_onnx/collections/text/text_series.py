"""Encoding of columns of text, of pandas and Dask, to columns of vectors."""

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
    as_table,
    bad_rows,
    take_apart,
)
from dask_onnx.collections.columns import check_named_column
from dask_onnx.collections.inline import InlineGraph, InlineTask
from dask_onnx.collections.text.text_columns import kept_faults, texts_of
from dask_onnx.collections.text.text_encoder import Encoder, UnfitText
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.errors import InputError


def predict_series(
    x: Any,
    encode: Encoder,
    place: TextPlace,
    width: int | None,
    compute: Callable[[list[Any]], Found],
    arguments: Sequence[Delayed],
) -> Any:
    """Return the vectors of a column of text: pandas at once, Dask lazily.

    Parameters
    ----------
    x : Series or DataFrame of pandas or Dask
        Texts.
    encode : Encoder
        Function for one partition.
    place : TextPlace
        Column of the texts and of the vectors.
    width : int or None
        Elements of a vector, if the model fixes them.
    compute : callable
        Encodes a list of texts at once.
    arguments : sequence of Delayed
        Further arguments of the encoder, which Dask computes first: the tokenizer's content and
        the supplies.

    Returns
    -------
    Series or DataFrame, or tuple of two
        Of the kind of `x`; for "split" the results, and a DataFrame of the bad texts.

    Raises
    ------
    InputError
        A column is missing or has a reserved name; at once for pandas, a text is bad.
    """
    is_split = encode.rows.on_error == "split"
    place.check(x, is_split=is_split)
    kind = pa.list_(pa.float32(), width) if width else pa.list_(pa.float32())
    part = SeriesTexts(encode, place, pd.ArrowDtype(kind))
    if not hasattr(x, "map_partitions"):
        found = part.finish(x, compute(place.texts(x)), "")
        return (found.good, found.bad) if isinstance(found, CheckedPart) else found
    meta = part.result(meta_of(x), Found(None, np.empty(0, np.int64), {}))
    lazy = x.map_partitions(part, *arguments, meta=CELL_META if is_split else meta)
    return take_apart(lazy, meta, as_table(meta_of(x), "text")) if is_split else lazy


@dataclass(frozen=True, slots=True)
class TextPlace:
    """Columns of a table that hold the texts and the vectors."""

    column: Any = None
    """Label of the column of text; None for a Series."""
    name: str = "embedding"
    """Label of the new column of vectors."""

    def check(self, x: Any, *, is_split: bool) -> None:
        """Check that the columns fit a Series or DataFrame.

        Raises
        ------
        InputError
            A column is missing, or the name of a new column is taken.
        """
        next_step = "name the column of text: column='text', or pass ddf['text']"
        check_named_column(x, self.column, next_step)
        names = [x.name] if x.ndim == 1 else list(x.columns)
        if x.ndim > 1 and self.name in names:
            raise InputError(
                f"the table has a column {self.name!r} already",
                "choose another name for the vectors: name=...",
                option="name",
                column=self.name,
            )
        if is_split and ERROR in names:
            raise InputError(
                f"there is a column {ERROR!r}, the name of the column of errors of bad rows",
                "rename that column",
                column=ERROR,
            )

    def texts(self, part: Any) -> list[Any]:
        """Return the texts of a partition.

        `UnfitText` replaces those beside which another column holds text that is not UTF-8.
        """
        if self.column is None:
            return texts_of(part)
        texts = texts_of(part[self.column])
        for row, reason in kept_faults(part, [self.column]).items():
            texts[row] = UnfitText(reason)
        return texts


@dataclass(frozen=True, slots=True, eq=False)
class SeriesTexts(InlineTask):
    """Function that `map_partitions` calls: the encoder on one partition."""

    encode: Encoder
    """Encoder of texts."""
    place: TextPlace
    """Columns of texts and vectors."""
    dtype: pd.ArrowDtype = field(repr=False)
    """Dtype of the column of vectors: Arrow lists of float32."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.encode.graph

    def __call__(
        self,
        part: Any,
        content: bytes,
        *supplies: Any,
        partition_info: dict[str, Any] | None = None,
    ) -> Any:
        """Return the vectors of a partition, or a cell with these and its bad texts.

        Parameters
        ----------
        part : Series or DataFrame
            Partition.
        content : bytes
            Content of the tokenizer's JSON file.
        supplies
            Results of the tasks that bring the model here.
        partition_info : dict, optional
            Number of the partition, given by Dask.
        """
        where = f"partition {partition_info['number']}, " if partition_info else ""
        texts = self.place.texts(part)
        found = self.finish(part, self.encode(content, texts, *supplies), where)
        return as_cell(found) if isinstance(found, CheckedPart) else found

    def finish(self, part: Any, found: Found, where: str) -> Any:
        """Return the result as a Series, DataFrame or CheckedPart, or raise the first error.

        Parameters
        ----------
        part : Series or DataFrame
            Rows.
        found : Found
            Vectors and errors.
        where : str
            Location that precedes the messages of errors.
        """
        count = len(part)
        self.encode.raise_first(
            found,
            count,
            lambda row: f"{where}row {row:,} of {count:,}, with index {part.index[row]!r}: ",
        )
        if self.encode.rows.on_error == "split":
            good = part.iloc[found.good]
            kept = Found(found.values, np.arange(len(good)), {})
            return CheckedPart(self.result(good, kept), bad_rows(as_table(part, "text"), found))
        return self.result(part, found)

    def result(self, part: Any, found: Found) -> Any:
        """Return a row for each text, or for each window; a missing value for a bad text."""
        values: Any = [] if found.values is None else next(iter(found.values.values()))
        counts = np.ones(len(part), int)
        if isinstance(values, list):
            # Windows that are not merged: each becomes a row.
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
