"""Tables, bags and labelled arrays: what a model does with rows that come in partitions."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.collections.kinds import Placeholder
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import Outputs, RowOptions, RunOptions, TableOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts


class RowModel(Protocol):
    """What is needed of a `Model`, which stands a layer above."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def facts(self) -> GraphFacts: ...

    @property
    def _facts(self) -> ModelFacts: ...

    def _request(
        self, x: Any, run: RunOptions, *, inline: bool = False
    ) -> tuple[Request, dict[str, Any], str]: ...

    @property
    def predict(self) -> Any: ...

    @property
    def __call__(self) -> Any: ...


def of_table(
    model: RowModel,
    x: Any,
    run: RunOptions,
    table: TableOptions,
    rows: RowOptions,
    *,
    inline: bool = False,
) -> Any:
    """A table for a table; two of them where `rows` sets the bad ones apart.

    Parameters
    ----------
    here : in this thread, not on Dask's scheduler
    """
    tables = _tables()
    _refuse_cut(run.plan, "a table")
    wanted = resolve_outputs(run.outputs, model.facts.outputs, model._facts.known_values).names

    def make_request(feeds: Mapping[str, Any], names: list[str]) -> Request:
        return model._request(feeds, dataclasses.replace(run, outputs=names))[0]

    def of_arrays(arrays: Mapping[str, Any], names: list[str]) -> Any:
        if inline:
            return model(arrays, outputs=names, batch_size=run.batch_size)
        return model.predict(arrays, **run.keywords(names))

    return tables.predict_table(
        model._facts, x, wanted, table, rows, make_request=make_request, run=of_arrays
    )


def meta_of_table(
    model: RowModel, x: Any, outputs: Outputs, table: TableOptions, rows: RowOptions
) -> Any:
    """The same without rows; nothing runs."""
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values).names
    meta = getattr(x, "_meta", x)
    frame = meta.to_frame() if meta.ndim == 1 else meta
    return _tables().plan_layout(model._facts, frame, wanted, table, rows).meta(frame)


def of_bag(model: RowModel, x: Any, run: RunOptions, rows: RowOptions) -> Any:
    """A bag for a bag; two of them where `rows` sets the bad ones apart."""
    bags = importlib.import_module("dask_onnx.collections.bag")
    return bags.predict_bag(row_request(model, run), x, rows)


def of_dataarray(model: RowModel, x: Any, run: RunOptions) -> Any:
    """A DataArray for a DataArray, or several by name."""
    labelled = importlib.import_module("dask_onnx.collections.labelled_arrays")
    wanted = resolve_outputs(run.outputs, model.facts.outputs, model._facts.known_values)
    needed = [spec.name for spec in model._facts.inputs_of(wanted.names)]
    (name,) = resolve_feeds(x, model.inputs, needed)
    batch = model._facts.batch_at(wanted.names, {name: tuple(x.shape)})

    def of_array(array: Any) -> Any:
        return model.predict(array, **run.keywords(list(wanted.names)))

    axes = {output: batch.output_axes[output] for output in wanted.names}
    return wanted.shape_result(
        labelled.predict_dataarray(x, batch.input_axes[name], axes, of_array)
    )


def row_request(model: RowModel, run: RunOptions) -> Request:
    """A request whose rows come later, in partitions."""
    _refuse_cut(run.plan, "a bag")
    wanted = resolve_outputs(run.outputs, model.facts.outputs, model._facts.known_values)
    feeds = {
        spec.name: Placeholder(
            spec.dtype or np.dtype(object),
            tuple(
                dim if isinstance(dim, int) and axis else math.nan
                for axis, dim in enumerate(spec.shape or ())
            ),
        )
        for spec in model._facts.inputs_of(wanted.names)
    }
    run = dataclasses.replace(run, outputs=list(wanted.names))
    return dataclasses.replace(model._request(feeds, run)[0], wanted=wanted)


def _refuse_cut(plan: Any, what: str) -> None:
    if plan is not None and plan.recipe.strategy != "whole":
        raise InputError(
            f"a plan by {plan.recipe.strategy!r} cannot run on {what}, whose partitions are tasks "
            "of their own",
            "leave the plan out, or go through to_delayed()",
        )


def _tables() -> Any:
    """The module for tables, which needs pandas: nobody else pays for that."""
    try:
        return importlib.import_module("dask_onnx.collections.dataframe")
    except ImportError as error:
        raise InputError(
            f"tables need {error.name}, which is not installed",
            "pip install 'dask-onnx[dataframe]'",
        ) from error
