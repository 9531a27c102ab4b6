"""Columns of pictures, of pandas and Dask, to tables of what a model finds in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from dask_onnx.collections.bad_rows import ERROR, Found
from dask_onnx.collections.checked_partitions import (
    CELL_META,
    TEXT,
    CheckedPart,
    as_cell,
    as_table,
    bad_rows,
    take_apart,
)
from dask_onnx.collections.columns import check_named_column
from dask_onnx.collections.images.image_forms import Form
from dask_onnx.collections.images.image_results import ImageResult
from dask_onnx.collections.images.image_runner import PictureTask, in_order, name_of, results_of
from dask_onnx.collections.run_options import TableOptions
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.errors import InputError, Suggestion

_CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True, slots=True)
class ResultColumns:
    """Columns that results become in a table."""

    form: Form
    """Form of the results."""
    has_names: bool
    """True if classes have names: their numbers then are a column of their own."""
    has_missing: bool = False
    """True if bad pictures become rows of missing values."""

    def check(self, ranks: Mapping[str, int | None]) -> None:
        """Check that results fit into columns.

        Parameters
        ----------
        ranks : mapping of str to int or None
            Output to its number of axes, without the batch axis.

        Raises
        ------
        InputError
            They are maps, or arrays of several axes.
        """
        large = [name for name in self.form.outputs if (ranks.get(name) or 0) > 1]
        if self.form.task in ("boxes", "labels", "text") or (self.form.task == "raw" and not large):
            return
        what = f"output {large[0]!r}" if large and self.form.task == "raw" else "a mask"
        raise InputError(
            f"{what} has several axes for each picture, which do not fit into a column",
            "pass a list or a bag of pictures, or choose another output: outputs=",
            option="outputs",
            suggestions=[Suggestion("outputs")],
        )

    def frame(self, results: Sequence[ImageResult | None]) -> tuple[pd.DataFrame, Any]:
        """Return the rows of results, and for each row the position of its picture.

        Objects of a picture are rows by falling score; a picture without objects has none. A bad
        picture has one row of missing values. Masks of objects are run lengths, as COCO
        counts them.
        """
        if self.form.task == "raw":
            return self._lists(results), np.arange(len(results))
        if self.form.task == "text":
            return _texts(results), np.arange(len(results))
        counts = np.array([_row_count(result) for result in results], np.int64)
        sources = np.repeat(np.arange(len(results)), counts)
        columns: dict[str, Any] = {}
        if self.form.task == "labels":
            ranks = [np.arange(count) + 1 for count in counts]
            columns["rank"] = self._integers(ranks, [result is None for result in results])
        labels = [_labels(result) for result in results]
        numbers = self._integers(labels, [result is None for result in results])
        if self.has_names:
            names = [_names(result) for result in results]
            columns["class"] = pd.array([name for own in names for name in own], dtype=TEXT)
            columns["class_id"] = numbers
        else:
            columns["class"] = numbers
        columns["score"] = _joined([_scores(result) for result in results])
        if self.form.task == "boxes":
            corners = _joined([_corners(result) for result in results]).reshape(-1, 4)
            columns |= {name: corners[:, place] for place, name in enumerate(_CORNERS)}
            reader = self.form.reader
            columns |= _details("" if reader is None else reader.detail, results)
        return pd.DataFrame(columns), sources

    def _integers(self, parts: Sequence[Any], missing: Sequence[bool]) -> Any:
        values = np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
        if not self.has_missing:
            return values
        mask = [np.full(len(p), flag) for p, flag in zip(parts, missing, strict=True)]
        return pd.arrays.IntegerArray(values, np.concatenate([np.empty(0, bool), *mask]))

    def _lists(self, results: Sequence[ImageResult | None]) -> pd.DataFrame:
        columns = {}
        for name, (dtype, rank) in zip(self.form.outputs, self.form.row_types, strict=True):
            rows = [None if r is None else np.asarray(r.outputs[name]) for r in results]
            element = _element_type(name, dtype)
            if rank == 0:
                # Floats are widened, so that numbers of all models have one type.
                kind = pa.float64() if pa.types.is_floating(element) else element
                values = [None if row is None else _single(name, row) for row in rows]
            else:
                kind = pa.list_(element)
                plain = element.to_pandas_dtype()
                values = [None if row is None else row.reshape(-1).astype(plain) for row in rows]
            columns[name] = pd.array(pa.array(values, kind), dtype=pd.ArrowDtype(kind))
        return pd.DataFrame(columns)


def _element_type(name: str, dtype: np.dtype[Any] | None) -> pa.DataType:
    """Return Arrow's type of an output's elements, which holds each of them exactly.

    Raises
    ------
    InputError
        The output is a sequence or a map, or its type does not follow from the graph.
    """
    if dtype is None:
        raise InputError(
            f"output {name!r} has no dtype that a column can have",
            "pass a list or a bag of pictures, or choose another output: outputs=",
            option="outputs",
            suggestions=[Suggestion("outputs")],
        )
    if dtype.kind == "O":
        return pa.string()
    # Half precision, and the small types of ml_dtypes, which Arrow or pandas lack.
    is_small = dtype == np.float16 or dtype.isbuiltin != 1
    return pa.float32() if is_small else pa.from_numpy_dtype(dtype)


def _single(name: str, row: Any) -> Any:
    """Return the one element of an output for a picture.

    Raises
    ------
    InputError
        There are several.
    """
    if row.size != 1:
        raise InputError(
            f"output {name!r} has {row.size} numbers for a picture, and the graph says one",
            "choose another output: outputs=, or correct the output's shape in the model",
            option="outputs",
            numbers={"numbers": row.size, "expected_numbers": 1},
            suggestions=[Suggestion("outputs")],
        )
    return row.reshape(-1)[0].item()


def _row_count(result: ImageResult | None) -> int:
    if result is None:
        return 1
    return len(result.boxes if result.boxes is not None else _labels(result))


def _labels(result: ImageResult | None) -> Any:
    if result is None:
        return np.zeros(1, np.int64)
    return result.boxes.labels if result.boxes is not None else result.labels


def _names(result: ImageResult | None) -> Sequence[str | None]:
    return (None,) if result is None else result.names


def _scores(result: ImageResult | None) -> Any:
    if result is None:
        return np.full(1, np.nan, np.float32)
    return result.boxes.scores if result.boxes is not None else result.scores


def _corners(result: ImageResult | None) -> Any:
    if result is None or result.boxes is None:
        return np.full((1, 4), np.nan, np.float32)
    return result.boxes.boxes


def _texts(results: Sequence[ImageResult | None]) -> pd.DataFrame:
    """Return a row for each picture: its text, and the mean score of its characters."""
    texts = [None if result is None else result.text for result in results]
    scores = [
        np.nan if r is None else float(np.mean(r.scores)) if r.scores is not None and r.text else 0
        for r in results
    ]
    columns = {"text": pd.array(texts, dtype=TEXT), "score": np.array(scores, np.float32)}
    return pd.DataFrame(columns)


def _details(detail: str, results: Sequence[ImageResult | None]) -> dict[str, Any]:
    """Return the columns of lists that details of objects become, by name."""
    if not detail:
        return {}
    rows: list[tuple[Any, ...]] = []
    for result in results:
        if result is None:
            rows.append((None, None))
        elif result.masks is not None:
            size = result.geometry.picture
            rows += [(mask.run_lengths(size), np.array(size)) for mask in result.masks]
        else:
            values = result.points if detail == "points" else result.corners
            rows += [(each.reshape(-1),) for each in (() if values is None else values)]
    names = {"masks": ("mask", "mask_size"), "points": ("points",), "angles": ("corners",)}[detail]
    kind = pa.list_(pa.int64() if detail == "masks" else pa.float32())
    return {
        name: pd.array(pa.array([row[place] for row in rows], kind), dtype=pd.ArrowDtype(kind))
        for place, name in enumerate(names)
    }


def _joined(parts: Sequence[Any]) -> Any:
    return np.concatenate([part.reshape(-1) for part in parts] or [np.empty(0, np.float32)])


@dataclass(frozen=True, slots=True, eq=False)
class PictureColumn(PictureTask):
    """Function that `map_partitions` calls: the model on the pictures of one partition."""

    columns: ResultColumns
    column: Any
    """Label of the column of pictures; None for a Series."""
    append: tuple[Any, ...]
    """Columns of the table that the result keeps."""

    def __call__(
        self, part: Any, *supplies: Any, partition_info: dict[str, Any] | None = None
    ) -> Any:
        """Return the results of a partition, or a cell with these and its bad rows.

        Parameters
        ----------
        part : Series or DataFrame
        supplies
            Results of the tasks that bring the model here.
        partition_info : dict, optional
            Number of the partition, given by Dask.
        """
        where = f"partition {partition_info['number']}, " if partition_info else ""
        found = self.finish(part, self.runner(self.sources(part), *supplies), where)
        return as_cell(found) if isinstance(found, CheckedPart) else found

    def sources(self, part: Any) -> list[Any]:
        """Return the pictures of a partition."""
        return list(part if self.column is None else part[self.column])

    def finish(self, part: Any, found: Found, where: str) -> Any:
        """Return the result as a DataFrame or CheckedPart, or raise the first error.

        Parameters
        ----------
        part : Series or DataFrame
        found : Found
        where : str
            Location that precedes the messages of errors.
        """
        sources, count = self.sources(part), len(part)

        def place_of(place: int) -> str:
            return f"{where}row {place:,} of {count:,}, {name_of(sources[place], place, count)}"

        self.runner.raise_first(found, place_of, count)
        if self.runner.rows.on_error == "split":
            good = self.result(part.iloc[found.good], results_of(found))
            return CheckedPart(good, bad_rows(as_table(part, "picture"), found))
        return self.result(part, in_order(found))

    def result(self, part: Any, results: Sequence[ImageResult | None]) -> pd.DataFrame:
        """Return the rows of results with the index and the kept columns of their pictures."""
        frame, sources = self.columns.frame(results)
        frame.index = part.index[sources]
        kept = [part[name].iloc[sources] for name in self.append]
        return pd.concat([*kept, frame], axis=1) if kept else frame

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (
            *self.runner.__dask_tokenize__(),
            repr(self.columns),
            str(self.column),
            tuple(map(str, self.append)),
        )


def predict_pictures(
    x: Any,
    part: PictureColumn,
    compute: Callable[[list[Any]], Found],
    supplies: Sequence[Delayed],
) -> Any:
    """Return the results for a column of pictures: pandas at once, Dask lazily.

    Parameters
    ----------
    x : Series or DataFrame of pandas or Dask
        Paths, URLs or bytes.
    part : PictureColumn
        Function for one partition.
    compute : callable
        Runs a list of pictures at once.
    supplies : sequence of Delayed
        Tasks that bring the model to the workers.

    Returns
    -------
    DataFrame, or tuple of two
        Of the kind of `x`; for "split" the results, and a DataFrame of the bad rows.
    """
    if not hasattr(x, "map_partitions"):
        found = part.finish(x, compute(part.sources(x)), "")
        return (found.good, found.bad) if isinstance(found, CheckedPart) else found
    meta = part.result(meta_of(x), [])
    is_split = part.runner.rows.on_error == "split"
    lazy = x.map_partitions(part, *supplies, meta=CELL_META if is_split else meta)
    if is_split:
        return take_apart(lazy, meta, as_table(meta_of(x), "picture"))
    # The rows of pictures are sorted like these, but several rows may have one index.
    return lazy


def check_columns(
    x: Any, column: Any, append: bool | Sequence[Any], new: Sequence[str]
) -> tuple[Any, ...]:
    """Return the columns of a table that the result keeps.

    Parameters
    ----------
    x : Series or DataFrame
    column : hashable or None
        Label of the column of pictures.
    append : bool or sequence of labels
    new : sequence of str
        Columns of the results.

    Raises
    ------
    InputError
        A column is missing, or a name is taken.
    """
    next_step = "name the column of pictures, paths or bytes: column='file', or pass ddf['file']"
    check_named_column(x, column, next_step)
    if x.ndim == 1:
        if append:
            raise InputError(
                f"append is {append!r}, and a Series was given",
                "leave it out",
                option="append",
                suggestions=[Suggestion("append")],
            )
        return ()
    kept = TableOptions(append=append).kept(list(x.columns))
    taken = [name for name in kept if name in new or name == ERROR]
    if taken:
        raise InputError(
            f"column {taken[0]!r} that append names has the name of a column of the results",
            "rename it, or leave it out",
            option="append",
            column=str(taken[0]),
        )
    return kept
