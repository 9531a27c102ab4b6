"""Predictions for tables: pandas at once, dask.dataframe lazily, partition by partition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_onnx.collections.bad_rows import Found, located, run_rows
from dask_onnx.collections.checked_partitions import (
    CELL_META,
    CheckedPart,
    as_cell,
    bad_rows,
    take_apart,
)
from dask_onnx.collections.column_dtypes import without_views
from dask_onnx.collections.frame_layout import FrameLayout, placeholder, plan_layout
from dask_onnx.collections.frames import (
    empty_frame,
    spread,
    to_frame,
)
from dask_onnx.collections.inline import (
    InlineGraph,
    InlineTask,
    inline_graph,
    supply_collections,
)
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.ragged import run_by_length
from dask_onnx.collections.row_checks import check_joins
from dask_onnx.collections.run_options import RowOptions, TableOptions
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.stage_tasks import digest
from dask_onnx.facts.model_facts import ModelFacts

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Function that takes arrays by input name, and returns arrays by value."""


def predict_part(part: pd.DataFrame, layout: FrameLayout, run: Run, where: str) -> Any:
    """Return the prediction for one partition, or one pandas table.

    Parameters
    ----------
    part : pandas DataFrame
        Rows.
    layout : FrameLayout
        Columns, and the treatment of bad rows.
    run : callable
        See `Run`.
    where : str
        Location that precedes the messages of errors, such as "partition 0, ".

    Returns
    -------
    DataFrame, or CheckedPart
        CheckedPart if bad rows are split off.

    Raises
    ------
    InputError, StageError
        The first bad row's, if bad rows are errors.
    """
    if layout.is_ragged:
        run = _RunRagged(layout, run)
    part = without_views(part)

    def convert(positions: np.ndarray | None) -> dict[str, Any]:
        return layout.arrays(part if positions is None else part.iloc[positions])

    mode = layout.rows.on_error
    if len(part):
        found = run_rows(
            len(part), convert, run, stops=mode == "raise", is_independent=layout.is_independent
        )
    else:
        found = Found(None, np.empty(0, np.int64), {})
    if mode == "raise" and found.errors:
        ((position, error),) = found.errors.items()
        label = part.index[position]
        row = f"{where}row {position:,} of {len(part):,}, with index {label!r}: "
        raise located(error, row, position, len(part)) from None
    index = part.index if len(found.good) == len(part) else part.index[found.good]
    if found.values is None:
        result = empty_frame(layout.outputs, index)
    else:
        result = to_frame(found.values, layout.outputs, index)
    if mode == "null" and found.errors:
        result = spread(result, found.good, part.index)
    if mode == "split":
        good = part if not found.errors else part.iloc[found.good]
        return CheckedPart(layout.join(good, result), bad_rows(part, found))
    return layout.join(part, result)


@dataclass(frozen=True, slots=True)
class _RunRagged:
    """Function that runs rows of about the same length together."""

    layout: FrameLayout
    """Layout with lists of several lengths."""
    run: Run
    """Function for arrays of one length."""

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        trimmed = frozenset(o.value for o in self.layout.outputs if o.is_ragged)
        return run_by_length(arrays, self.layout.length_buckets, self.run, trimmed)


@dataclass(frozen=True, slots=True, eq=False)
class FramePredictor(InlineTask):
    """Function that `map_partitions` calls: the model on one partition."""

    layout: FrameLayout
    """Columns, and the treatment of bad rows."""
    graph: InlineGraph
    """Stages to run."""
    token: str
    """Digest of both."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.graph

    def __call__(
        self, part: pd.DataFrame, *supplies: Any, partition_info: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the result of a partition, or a cell with its results and bad rows.

        Parameters
        ----------
        part : pandas DataFrame
            Partition.
        supplies
            Results of the tasks that bring the model here.
        partition_info : mapping, optional
            Number of the partition, given by Dask.
        """
        where = f"partition {partition_info['number']}, " if partition_info else ""
        found = predict_part(part, self.layout, lambda a: self.graph.run(a, supplies), where)
        return as_cell(found) if isinstance(found, CheckedPart) else found

    def __dask_tokenize__(self) -> str:
        return self.token


def predict_dask_frame(request: Request, table: dd.DataFrame, layout: FrameLayout) -> Any:
    """Return the lazy prediction for a Dask table: one table, or two if bad rows are split off.

    Nothing runs: the meta follows from the graph.
    """
    check_joins(
        request.batch,
        [output.value for output in layout.outputs],
        model=request.model.token,
        chunks=table.npartitions,
        rows_per_run=request.batching.rows_per_run,
    )
    names = [target.spec.name for target in layout.inputs]
    graph = inline_graph(request, names, layout.values)
    predictor = FramePredictor(
        layout, graph, digest(sorted(map(str, graph.tasks)), repr(layout), request.options.salt)
    )
    is_split = layout.rows.on_error == "split"
    needed = dict.fromkeys([*layout.used, *layout.kept])
    if not is_split and len(needed) < len(table.columns):
        table = table[list(needed)]
    meta = layout.meta(meta_of(table))
    lazy = table.map_partitions(
        predictor, *supply_collections(request), meta=CELL_META if is_split else meta
    )
    return take_apart(lazy, meta, meta_of(table)) if is_split else lazy


def predict_table(
    facts: ModelFacts,
    x: Any,
    wanted: Sequence[str],
    options: TableOptions,
    rows: RowOptions,
    *,
    make_request: Callable[[Mapping[str, Any], list[str]], Request],
    check_runs: Callable[[Mapping[str, Any], list[str]], None],
    run: Callable[[Mapping[str, Any], list[str]], Mapping[str, Any]],
) -> Any:
    """Return a table of predictions for a table: pandas at once, Dask lazily.

    Parameters
    ----------
    facts : ModelFacts
        The model.
    x : DataFrame or Series of pandas or Dask
        Table.
    wanted : sequence of str
        Names of the outputs.
    options : TableOptions
        Columns that go in and come out.
    rows : RowOptions
        Treatment of bad rows.
    make_request : callable
        Takes placeholders by input name and names of values; returns a checked request.
    check_runs : callable
        Takes the same; raises an error if a table in memory cannot run as the options say.
    run : callable
        Takes arrays by input name and names of values; computes these.

    Returns
    -------
    DataFrame, or tuple of two
        For "split" the results of the good rows, and the bad rows.

    Raises
    ------
    InputError
        The table does not fit the model or the options; see `Model.predict`.
    """
    table = x.to_frame() if isinstance(x, pd.Series | dd.Series) else x
    is_lazy = isinstance(table, dd.DataFrame)
    layout = plan_layout(facts, meta_of(table) if is_lazy else table, wanted, options, rows)
    feeds = {target.spec.name: placeholder(target) for target in layout.inputs}
    if is_lazy:
        return predict_dask_frame(make_request(feeds, layout.values), table, layout)
    check_runs(feeds, layout.values)
    found = predict_part(table, layout, lambda arrays: run(arrays, layout.values), "")
    return (found.good, found.bad) if isinstance(found, CheckedPart) else found
