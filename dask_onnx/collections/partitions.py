"""Tables, bags and labelled arrays: collections whose rows come in partitions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.inline import rows_first
from dask_onnx.collections.kinds import Placeholder, shapes_of, with_rows_in_place
from dask_onnx.collections.observed_types import observe_types
from dask_onnx.collections.output_forms import computed_values, output_forms
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_builder import build_request, check_run_options
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.row_checks import check_joins, resolve_batching
from dask_onnx.collections.run_options import Outputs, RowOptions, RunOptions, TableOptions
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import StagedModel


def predict_tables(
    facts: ModelFacts,
    x: Any,
    run: RunOptions,
    table: TableOptions,
    rows: RowOptions,
    *,
    inline: bool = False,
) -> Any:
    """Return a table for a table; two tables if `rows` splits off the bad rows.

    Parameters
    ----------
    facts : ModelFacts
    x : DataFrame or Series of pandas or Dask
    run, table, rows
        Options of the request.
    inline : bool
        True to run in this thread rather than on Dask's scheduler.

    Raises
    ------
    InputError
        The plan's strategy is not "whole", or the columns or options do not fit the model.
    """
    refuse_cut(run.plan, "a table")
    check_run_options(facts, run)
    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values).ordered
    observe_types(facts, computed_values(output_forms(facts, wanted)))

    axes, _ = facts.input_axes

    def check_runs(feeds: Mapping[str, Any], names: list[str]) -> None:
        # Before any row runs, where an error would be taken for one of the row.
        shapes = shapes_of(with_rows_in_place(feeds, axes), facts.inputs)
        batch = facts.batch_at(tuple(names), shapes, first_axis_only=True)
        per_run = resolve_batching(batch, names, run.batch_size).rows_per_run
        check_joins(batch, names, model=facts.onnx.token, chunks=1, rows_per_run=per_run)

    def make_request(feeds: Mapping[str, Any], names: list[str]) -> Request:
        feeds = with_rows_in_place(feeds, axes)
        return build_request(facts, feeds, dataclasses.replace(run, outputs=names))[0]

    def of_arrays(arrays: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
        named = dataclasses.replace(run, outputs=names)
        placed = with_rows_in_place(arrays, axes)
        request, feeds, _ = build_request(facts, placed, named, inline=inline)
        found = predict_eager(request, feeds, inline=inline)
        places = request.batch.output_axes
        return {name: rows_first(value, places[name]) for name, value in found.items()}

    return _tables().predict_table(
        facts,
        x,
        wanted,
        table,
        rows,
        make_request=make_request,
        check_runs=check_runs,
        run=of_arrays,
    )


def meta_of_table(
    facts: ModelFacts, x: Any, outputs: Outputs, table: TableOptions, rows: RowOptions
) -> Any:
    """Return the result of `predict_tables` without rows. Runs nothing on a cluster."""
    wanted = resolve_outputs(outputs, facts.graph.outputs, facts.known_values).ordered
    observe_types(facts, computed_values(output_forms(facts, wanted)))
    meta = meta_of(x)
    frame = meta.to_frame() if meta.ndim == 1 else meta
    return _tables().plan_layout(facts, frame, wanted, table, rows).meta(frame)


def predict_bags(facts: ModelFacts, x: Any, run: RunOptions, rows: RowOptions) -> Any:
    """Return a bag for a bag; two bags if `rows` splits off the bad rows."""
    from dask_onnx.collections import bag as bags  # dask.bag is loaded by those who use it

    optional = [spec.name for spec in facts.onnx.defaults]
    request = partition_request(facts, run)
    forms = output_forms(facts, request.wanted.names)
    return bags.predict_bag(request, x, rows, optional, forms)


def partition_request(facts: ModelFacts, run: RunOptions, *, may_be_cut: bool = False) -> Request:
    """Return a request for rows that are known only inside tasks, partition by partition.

    Parameters
    ----------
    facts : ModelFacts
    run : RunOptions
    may_be_cut : bool
        True if the caller runs the stages of a plan itself.
    """
    if not may_be_cut:
        refuse_cut(run.plan, "a bag")
    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
    values = computed_values(output_forms(facts, wanted.names))
    observe_types(facts, values)
    axes, _ = facts.input_axes
    feeds = {
        spec.name: Placeholder(
            spec.dtype or np.dtype(object),
            tuple(
                dim if isinstance(dim, int) and place != (axes[spec.name] or 0) else math.nan
                for place, dim in enumerate(spec.shape or ())
            ),
            has_rows_first=any(axis is not None for axis in axes.values()),
        )
        for spec in facts.inputs_of(tuple(values))
    }
    run = dataclasses.replace(run, outputs=values)
    return dataclasses.replace(build_request(facts, feeds, run)[0], wanted=wanted)


def predict_labelled(facts: ModelFacts, x: Any, run: RunOptions, of_array: Any) -> Any:
    """Return an xarray.DataArray for a DataArray, or several by output name.

    Parameters
    ----------
    facts : ModelFacts
    x : xarray.DataArray
        The one input.
    run : RunOptions
    of_array : function of an array and `RunOptions`
        Prediction for the array inside `x`, as a dict by output name.
    """
    from dask_onnx.collections import labelled_arrays as labelled  # needs xarray

    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
    forms = output_forms(facts, wanted.names)
    values = tuple(computed_values(forms))
    needed = [spec.name for spec in facts.inputs_of(values)]
    (name,) = resolve_feeds(x, facts.inputs, needed)
    batch = facts.batch_at(values, shapes_of({name: x.data}, facts.inputs))
    named = dataclasses.replace(run, outputs=list(values))
    axes = {value: batch.output_axes[value] for value in values}
    found = labelled.predict_dataarray(
        x, facts, name, batch.input_axes[name], axes, lambda array: of_array(array, named)
    )
    return wanted.shape_result({output: form.of_arrays(found) for output, form in forms.items()})


def refuse_cut(plan: Any, what: str) -> None:
    """Raise an InputError if a plan has another strategy than "whole".

    Parameters
    ----------
    plan : StagedModel, or whatever else a caller gave
    what : str
        Collection whose partitions are one task each, such as "a table".
    """
    if isinstance(plan, StagedModel) and plan.recipe.strategy != "whole":
        raise InputError(
            f"a plan with strategy {plan.recipe.strategy!r} cannot run on {what}: each of its "
            "partitions is one task",
            "leave the plan out, or convert with to_delayed()",
            option="plan",
            suggestions=[Suggestion("plan")],
        )


def _tables() -> Any:
    """Return the module for tables; imported when needed, since it needs pandas."""
    try:
        from dask_onnx.collections import dataframe
    except ImportError as error:
        raise InputError(
            f"tables need {error.name}, which is not installed",
            "pip install 'dask-onnx[dataframe]'",
            reason=str(error),
        ) from error
    return dataframe
