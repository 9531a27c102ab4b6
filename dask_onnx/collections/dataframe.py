"""Tables in, tables out: pandas now, dask.dataframe lazily, partition by partition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_onnx.analysis.labels import class_labels, unzipped
from dask_onnx.collections.columns import ColumnInput, resolve_columns, to_arrays
from dask_onnx.collections.context import Request
from dask_onnx.collections.frames import OutputColumns, empty_frame, output_columns, to_frame
from dask_onnx.collections.here import HereGraph, here_graph, supply_collections
from dask_onnx.collections.kinds import Placeholder
from dask_onnx.collections.request import MAX_COLUMNS, Columns, check_joins
from dask_onnx.errors import InputError
from dask_onnx.lower import digest
from dask_onnx.model_facts import ModelFacts
from dask_onnx.specs import Dim


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """How a table goes through the model."""

    inputs: tuple[ColumnInput, ...]
    outputs: tuple[OutputColumns, ...]
    append: bool
    """The caller's columns stay, before those of the model."""

    @property
    def used(self) -> list[Any]:
        """Columns that the model reads."""
        return list(dict.fromkeys(name for target in self.inputs for name in target.columns))

    def meta(self, table: pd.DataFrame) -> pd.DataFrame:
        """The result without rows, of a table whose rows do not count."""
        return self.join(table.iloc[:0], empty_frame(self.outputs, table.index))

    def join(self, table: pd.DataFrame, result: pd.DataFrame) -> pd.DataFrame:
        if not self.append:
            return result
        twice = [name for name in result.columns if name in table.columns]
        if twice:
            raise InputError(
                f"append=True, and the table has a column {twice[0]!r} already",
                "rename it, or choose outputs by other names",
            )
        return pd.concat([table, result], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class FramePredictor:
    """The model on one partition; what `map_partitions` calls."""

    layout: FrameLayout
    graph: HereGraph
    token: str

    def __call__(self, part: pd.DataFrame, *supplies: Any) -> pd.DataFrame:
        if not len(part):
            return self.layout.meta(part)
        values = self.graph.run(to_arrays(part, self.layout.inputs), supplies)
        return self.layout.join(part, to_frame(values, self.layout.outputs, part.index))

    def __dask_tokenize__(self) -> str:
        return self.token


def predict_dask_frame(request: Request, table: dd.DataFrame, layout: FrameLayout) -> dd.DataFrame:
    """A lazy table; nothing runs, and what Dask asks of the meta comes from the graph."""
    check_joins(
        request.batch,
        [output.value for output in layout.outputs],
        model=request.model.token,
        chunks=table.npartitions,
        rows_per_run=request.batching.rows_per_run,
    )
    names = [target.spec.name for target in layout.inputs]
    graph = here_graph(request, names, _values(layout))
    predictor = FramePredictor(
        layout, graph, digest(sorted(map(str, graph.tasks)), repr(layout), request.salt)
    )
    if not layout.append:
        table = table[layout.used]
    meta = layout.meta(table._meta)
    lazy: dd.DataFrame = table.map_partitions(predictor, *supply_collections(request), meta=meta)
    return lazy


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How a caller wants a table to go in and come out."""

    columns: Columns = None
    append: bool = False
    max_columns: int = MAX_COLUMNS


def predict_table(
    facts: ModelFacts,
    x: Any,
    wanted: Sequence[str],
    options: TableOptions,
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
    if not isinstance(table, dd.DataFrame):
        layout = plan_layout(facts, table, wanted, options)
        if not len(table):
            return layout.meta(table)
        values = run(to_arrays(table, layout.inputs), _values(layout))
        return layout.join(table, to_frame(values, layout.outputs, table.index))
    layout = plan_layout(facts, table._meta, wanted, options)
    feeds = {target.spec.name: _placeholder(target) for target in layout.inputs}
    return predict_dask_frame(make_request(feeds, _values(layout)), table, layout)


def plan_layout(
    facts: ModelFacts, meta: pd.DataFrame, wanted: Sequence[str], options: TableOptions
) -> FrameLayout:
    """Which columns go in, and which come out; of the table only its columns count."""
    values = {name: unzipped(facts.graph, name) for name in wanted}
    names = tuple(values.values())
    needed = facts.inputs_of(names)
    inputs = resolve_columns(meta, needed, options.columns)
    shapes = {t.spec.name: _dims(_placeholder(t)) for t in inputs}
    batch = facts.batch_for(names, shapes)
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
            )
        )
    return FrameLayout(inputs, tuple(outputs), options.append)


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
