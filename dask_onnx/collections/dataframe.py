"""Tables in, tables out: pandas now, dask.dataframe lazily, partition by partition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.analysis.labels import class_labels, unzipped
from dask_onnx.collections.bad_rows import ERROR, Found, located, run_rows
from dask_onnx.collections.checked_partitions import (
    CELL_META,
    CheckedPart,
    as_cell,
    bad_rows,
    take_apart,
)
from dask_onnx.collections.columns import ColumnInput, resolve_columns, to_arrays
from dask_onnx.collections.frames import (
    OutputColumns,
    empty_frame,
    output_columns,
    spread,
    to_frame,
)
from dask_onnx.collections.inline import InlineGraph, inline_graph, supply_collections
from dask_onnx.collections.kinds import Placeholder
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.ragged import check_lengths, run_by_length
from dask_onnx.collections.request_checks import check_joins, unproven
from dask_onnx.collections.run_options import RowOptions, TableOptions
from dask_onnx.collections.text.text_columns import check_kept
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim
from dask_onnx.core.stage_tasks import Hints, digest
from dask_onnx.facts.model_facts import ModelFacts

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_LENGTHS = (13, 29)
"""Two lengths of rows: what changes between them is as long as its input."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """How a table goes through the model."""

    inputs: tuple[ColumnInput, ...]
    outputs: tuple[OutputColumns, ...]
    kept: tuple[Any, ...]
    """The caller's columns that stay, before those of the model."""
    rows: RowOptions
    length_buckets: tuple[int, ...] = ()

    @property
    def used(self) -> list[Any]:
        """Columns that the model reads."""
        return list(dict.fromkeys(name for target in self.inputs for name in target.columns))

    @property
    def is_ragged(self) -> bool:
        return any(target.is_ragged for target in self.inputs)

    def meta(self, table: pd.DataFrame) -> pd.DataFrame:
        """The result without rows, of a table whose rows do not count."""
        return self.join(table.iloc[:0], empty_frame(self.outputs, table.index))

    def join(self, table: pd.DataFrame, result: pd.DataFrame) -> pd.DataFrame:
        if not self.kept:
            return result
        twice = [name for name in result.columns if name in self.kept]
        if twice:
            raise InputError(
                f"append keeps the table's column {twice[0]!r}, and the model makes one too",
                "rename it, or choose outputs by other names",
            )
        return pd.concat([self.beside(table), result], axis=1)

    def beside(self, table: pd.DataFrame) -> pd.DataFrame:
        """The caller's columns that stay."""
        return table if self.kept == tuple(table.columns) else table[list(self.kept)]

    def arrays(self, table: pd.DataFrame) -> dict[str, Any]:
        """The model's inputs."""
        found = to_arrays(table, self.inputs, require_finite=self.rows.require_finite)
        check_lengths(found, self.length_buckets)
        if self.kept:
            check_kept(self.beside(table), _text_columns(self.inputs))
        return found


def predict_part(part: pd.DataFrame, layout: FrameLayout, run: Run, where: str) -> Any:
    """A table through the model, its bad rows as `layout` says.

    Parameters
    ----------
    run : function of arrays by input that gives arrays by value
    where : in front of what an error says

    Returns
    -------
    DataFrame, or for "split" a CheckedPart
    """
    if layout.is_ragged:
        run = _RunRagged(layout, run)

    def convert(positions: np.ndarray | None) -> dict[str, Any]:
        return layout.arrays(part if positions is None else part.iloc[positions])

    mode = layout.rows.on_error
    if len(part):
        found = run_rows(len(part), convert, run, stops=mode == "raise")
    else:
        found = Found(None, np.empty(0, np.int64), {})
    if mode == "raise" and found.errors:
        ((position, error),) = found.errors.items()
        label = part.index[position]
        raise located(
            error, f"{where}row {position:,} of {len(part):,}, with index {label!r}: "
        ) from None
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
    """Runs rows of about one length together."""

    layout: FrameLayout
    run: Run

    def __call__(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        trimmed = frozenset(o.value for o in self.layout.outputs if o.is_ragged)
        return run_by_length(arrays, self.layout.length_buckets, self.run, trimmed)


@dataclass(frozen=True, slots=True, eq=False)
class FramePredictor:
    """The model on one partition; what `map_partitions` calls."""

    layout: FrameLayout
    graph: InlineGraph
    token: str

    @property
    def __name__(self) -> str:
        """What the dashboard calls the task."""
        return self.graph.label

    @property
    def hints(self) -> Hints:
        return self.graph.hints

    def __call__(
        self, part: pd.DataFrame, *supplies: Any, partition_info: Mapping[str, Any] | None = None
    ) -> Any:
        where = f"partition {partition_info['number']}, " if partition_info else ""
        found = predict_part(part, self.layout, lambda a: self.graph.run(a, supplies), where)
        return as_cell(found) if isinstance(found, CheckedPart) else found

    def __dask_tokenize__(self) -> str:
        return self.token


def predict_dask_frame(request: Request, table: dd.DataFrame, layout: FrameLayout) -> Any:
    """A lazy table, or two of them; nothing runs, and what Dask asks of the meta comes from the
    graph."""
    check_joins(
        request.batch,
        [output.value for output in layout.outputs],
        model=request.model.token,
        chunks=table.npartitions,
        rows_per_run=request.batching.rows_per_run,
    )
    names = [target.spec.name for target in layout.inputs]
    graph = inline_graph(request, names, _values(layout))
    predictor = FramePredictor(
        layout, graph, digest(sorted(map(str, graph.tasks)), repr(layout), request.salt)
    )
    is_split = layout.rows.on_error == "split"
    needed = dict.fromkeys([*layout.used, *layout.kept])
    if not is_split and len(needed) < len(table.columns):
        table = table[list(needed)]
    meta = layout.meta(table._meta)
    lazy = table.map_partitions(
        predictor, *supply_collections(request), meta=CELL_META if is_split else meta
    )
    return take_apart(lazy, meta, table._meta) if is_split else lazy


def predict_table(
    facts: ModelFacts,
    x: Any,
    wanted: Sequence[str],
    options: TableOptions,
    rows: RowOptions,
    *,
    make_request: Callable[[Mapping[str, Any], list[str]], Request],
    run: Callable[[Mapping[str, Any], list[str]], Mapping[str, Any]],
) -> Any:
    """A table for a table: pandas now, dask lazily.

    Parameters
    ----------
    x : DataFrame or Series of pandas or dask
    wanted : outputs
    make_request, run : functions of inputs by name and of the values that are wanted
        The first checks and plans, the second computes.
    """
    table = x.to_frame() if isinstance(x, pd.Series | dd.Series) else x
    is_lazy = isinstance(table, dd.DataFrame)
    layout = plan_layout(facts, table._meta if is_lazy else table, wanted, options, rows)
    if is_lazy:
        feeds = {target.spec.name: _placeholder(target) for target in layout.inputs}
        return predict_dask_frame(make_request(feeds, _values(layout)), table, layout)
    found = predict_part(table, layout, lambda arrays: run(arrays, _values(layout)), "")
    return (found.good, found.bad) if isinstance(found, CheckedPart) else found


def plan_layout(
    facts: ModelFacts,
    meta: pd.DataFrame,
    wanted: Sequence[str],
    options: TableOptions,
    rows: RowOptions,
) -> FrameLayout:
    """Which columns go in, and which come out; of the table only its columns count."""
    if rows.on_error == "split" and ERROR in meta.columns:
        raise InputError(
            f"the table has a column {ERROR!r}, which is what bad rows get", "rename that column"
        )
    values = {name: unzipped(facts.graph, name) for name in wanted}
    names = tuple(values.values())
    needed = facts.inputs_of(names)
    buckets = tuple(options.length_buckets or ())
    inputs = resolve_columns(meta, needed, options.columns, ragged=bool(buckets))
    shapes = {t.spec.name: _dims(_placeholder(t)) for t in inputs}
    batch = facts.batch_at(names, shapes, first_axis_only=True)
    if buckets and not batch.is_proven:
        raise unproven(batch, "length_buckets runs rows of one length together")
    long = _as_long_as_inputs(facts, names, inputs)
    outputs = []
    for name, value in values.items():
        if batch.output_axes[value] != 0:
            axis = batch.output_axes[value]
            where = "has no rows" if axis is None else f"has its rows on axis {axis}"
            raise InputError(
                f"output {name!r} {where}, so it cannot be columns of a table",
                "name other outputs: outputs=[...]",
            )
        outputs.append(
            output_columns(
                name,
                value,
                facts.typed(value).dtype or np.dtype(object),
                batch.sizes[value],
                class_labels(facts.graph, name),
                options.max_columns,
                is_nullable=rows.on_error == "null",
                is_ragged=value in long,
            )
        )
    return FrameLayout(inputs, tuple(outputs), options.kept(meta.columns), rows, buckets)


def _as_long_as_inputs(
    facts: ModelFacts, names: tuple[str, ...], inputs: Sequence[ColumnInput]
) -> set[str]:
    """Values whose axis 1 has the length of the ragged inputs: seen by asking for two lengths."""
    if not any(target.is_ragged for target in inputs):
        return set()

    def sizes(length: int) -> BatchFacts:
        return facts.batch_at(
            names,
            {
                t.spec.name: (None, length) if t.is_ragged else _dims(_placeholder(t))
                for t in inputs
            },
            first_axis_only=True,
        )

    few, many = (sizes(length).sizes for length in _LENGTHS)
    return {
        name
        for name in names
        if len(few[name] or ()) > 1
        and len(many[name] or ()) > 1
        and ((few[name] or ())[1], (many[name] or ())[1]) == _LENGTHS
    }


def _text_columns(inputs: Sequence[ColumnInput]) -> list[Any]:
    """Columns whose text is looked at when it becomes an input."""
    return [name for target in inputs if target.takes_text for name in target.columns]


def _values(layout: FrameLayout) -> list[str]:
    return list(dict.fromkeys(output.value for output in layout.outputs))


def _placeholder(target: ColumnInput) -> Placeholder:
    assert target.spec.dtype is not None
    if target.spec.rank == 1:
        return Placeholder(target.spec.dtype, (math.nan,))
    width = target.row_width
    return Placeholder(target.spec.dtype, (math.nan, math.nan if width is None else width))


def _dims(placeholder: Placeholder) -> tuple[Dim, ...]:
    return tuple(None if math.isnan(size) else int(size) for size in placeholder.shape)
