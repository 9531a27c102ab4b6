"""Predictions for a collection of any kind; the result is a collection of the same kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dask.base import is_dask_collection
from dask.delayed import Delayed
from dask.task_spec import Alias

from dask_onnx.collections.array import predict_arrays
from dask_onnx.collections.arrow_tables import as_given, as_pandas, is_arrow_data
from dask_onnx.collections.delayed import as_delayed, predict_delayed
from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.feeds import convert_feeds
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table, kind_of, shapes_of
from dask_onnx.collections.masked_rows import has_masks, mask_results
from dask_onnx.collections.observed_types import observe_types
from dask_onnx.collections.output_forms import OutputForm, computed_values, output_forms
from dask_onnx.collections.partitions import (
    meta_of_table,
    partition_request,
    predict_bags,
    predict_labelled,
    predict_tables,
    refuse_cut,
)
from dask_onnx.collections.path_inputs import refuse_paths
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_builder import build_request, check_inputs, check_run_options
from dask_onnx.collections.request_checks import resolve_feeds, resolve_outputs
from dask_onnx.collections.run_options import BatchSize, RowOptions, RunOptions, TableOptions
from dask_onnx.core.errors import InputError
from dask_onnx.core.structured_logs import log_event
from dask_onnx.core.tracing import span
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import StagedModel
from dask_onnx.runtime.input_values import as_input

log = logging.getLogger(__name__)

_PREDICT: Mapping[str, Callable[[Request, Mapping[str, Any]], Mapping[str, Any]]] = {
    "eager": predict_eager,
    "array": predict_arrays,
    "delayed": predict_delayed,
}
"""Kind of collection, as `kinds.kind_of` names it, to the function that predicts for it."""


def predict(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, rows: RowOptions
) -> Any:
    """Run a model on a collection; see `Model.predict`."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    log_event(log, logging.DEBUG, "request", model=facts.name, input=kind)
    with span("predict", model=facts.name, input=kind):
        return _predict(facts, x, run, table, rows)


def _predict(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, rows: RowOptions
) -> Any:
    if is_arrow_data(x):
        return as_given(predict(facts, as_pandas(x), run, table, rows), x)
    refuse_paths(x, facts.inputs)
    if is_table(x):
        return predict_tables(facts, x, run, table, rows)
    table.refuse(x)
    if is_bag(x):
        return predict_bags(facts, x, run, rows)
    rows.refuse(x)
    if is_dataarray(x):
        return predict_labelled(
            facts, x, run, lambda array, named: _arrays(facts, array, named, is_masked=False)
        )
    return _arrays(facts, x, run)


def predict_checked(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, *, require_finite: bool
) -> tuple[Any, Any]:
    """Return the results of the good rows, and the bad rows; see `Model.predict_checked`.

    Raises
    ------
    InputError
        `x` is neither a table nor a bag.
    """
    if is_arrow_data(x):
        frame = as_pandas(x)
        good, bad = predict_checked(facts, frame, run, table, require_finite=require_finite)
        return as_given(good, x), as_given(bad, x)
    refuse_paths(x, facts.inputs)
    rows = RowOptions("split", require_finite)
    if is_table(x):
        good, bad = predict_tables(facts, x, run, table, rows)
    elif is_bag(x):
        good, bad = predict_bags(facts, x, run, rows)
    else:
        raise InputError(
            f"predict_checked checks the rows of tables and bags; {type(x).__name__} was given",
            "pass a DataFrame or a bag",
            option="x",
        )
    return good, bad


def predict_inline(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, rows: RowOptions
) -> Any:
    """Run a model on arrays or a pandas table in this thread; see `Model.__call__`.

    Raises
    ------
    InputError
        `x` is lazy, or does not fit the model; options for tables are given for arrays.
    """
    if is_arrow_data(x):
        return as_given(predict_inline(facts, as_pandas(x), run, table, rows), x)
    refuse_paths(x, facts.inputs)
    if is_table(x) and not is_dask_collection(x):
        return predict_tables(facts, x, run, table, rows, inline=True)
    table.refuse(x)
    rows.refuse(x)
    return _arrays(facts, x, run, inline=True)


def check(
    facts: ModelFacts, x: Any, run: RunOptions, table: TableOptions, rows: RowOptions
) -> None:
    """Compare a collection with a model, as far as is possible without running anything.

    Raises
    ------
    InputError, PlanError
        Those that `predict` raises before any work.
    """
    if is_arrow_data(x):
        x = as_pandas(x)
    refuse_paths(x, facts.inputs)
    check_run_options(facts, run)
    if is_table(x):
        refuse_cut(run.plan, "a table")
        meta_of_table(facts, x, run.outputs, table, rows)
        return
    table.refuse(x)
    if is_bag(x):
        partition_request(facts, run)
        return
    rows.refuse(x)
    check_inputs(facts, x.data if is_dataarray(x) else x, run.outputs)


def as_lazy_inputs(facts: ModelFacts, x: Any) -> Any:
    """Return inputs as Delayed values, in the form in which they were given.

    Parameters
    ----------
    facts : ModelFacts
    x : array or Delayed; or mapping of str to these
        The first input of the model, or inputs by name.

    Raises
    ------
    InputError
        A value in memory does not fit its input, or the model has no input.
    """
    refuse_paths(x, facts.inputs)
    if not facts.inputs and not isinstance(x, Mapping):
        resolve_feeds(x, facts.inputs, [])  # refuses it: there is no input that it could be
    specs = {spec.name: spec for spec in (*facts.inputs, *facts.onnx.defaults)}

    def as_lazy(name: str, value: Any) -> Any:
        is_in_memory = name in specs and not is_dask_collection(value)
        return as_delayed(name, as_input(value, specs[name]) if is_in_memory else value)

    if isinstance(x, Mapping):
        return {name: as_lazy(name, value) for name, value in x.items()}
    return as_lazy(facts.inputs[0].name, x)


def task_graph(staged: StagedModel, x: Any, batch_size: BatchSize) -> dict[Any, Any]:
    """Return the Dask graph of one request, inputs included; see `Plan.graph`."""
    facts = with_fed_defaults(staged.facts, x)
    if facts is not staged.facts:
        return task_graph(staged.on(facts), x, batch_size)
    feeds = resolve_feeds(x, facts.inputs, [spec.name for spec in staged.stage_graph.inputs])
    outputs = [spec.name for spec in staged.stage_graph.outputs]
    feeds = convert_feeds(feeds, staged.stage_graph.inputs)
    if kind_of(feeds) == "eager":
        check_inputs(facts, feeds, outputs)
        feeds = {name: as_delayed(name, value) for name, value in feeds.items()}
    run = RunOptions(outputs, batch_size, replace(staged, chunk_groups=None))
    tasks: dict[Any, Any] = {}
    for name, found in predict(facts, feeds, run, TableOptions(), RowOptions()).items():
        for collection in found if isinstance(found, list) else [found]:
            tasks.update(collection.__dask_graph__())
            if isinstance(collection, Delayed):
                tasks[name] = Alias(name, collection.key)
    return tasks


def _is_lazy_array(x: Any) -> bool:
    """Return whether the prediction for `x` is a dask.array, whose type must be known at once."""
    return kind_of(x if isinstance(x, Mapping) else {"": x}) == "array"


def _arrays(
    facts: ModelFacts, x: Any, run: RunOptions, *, inline: bool = False, is_masked: bool = True
) -> Any:
    """Run a model on arrays or Delayed; the outputs come in the forms of `output_forms`.

    Results of masked arrays are masked, unless `is_masked` is false: DataArrays hold no masks.
    """
    wanted = resolve_outputs(run.outputs, facts.graph.outputs, facts.known_values)
    forms = output_forms(facts, wanted.names)
    named = replace(run, outputs=computed_values(forms))
    fed = with_fed_defaults(facts, x)
    if isinstance(run.batch_size, int) or _is_lazy_array(x):
        observe_types(fed, computed_values(forms))
    request, feeds, kind = build_request(facts, x, named, inline=inline)
    if is_masked and has_masks(x):
        request = replace(request, chunk_groups=None)  # masks have the chunks of the input
    if not inline:
        found = _PREDICT[kind](request, feeds)
    elif kind == "eager":
        found = predict_eager(request, feeds, inline=True)
    else:
        raise InputError(
            "a model called like a function takes arrays in memory, not lazy collections",
            "use model.predict(...), which stays lazy",
            option="x",
        )
    if is_masked and kind != "delayed" and has_masks(x):
        needed = [spec.name for spec in request.stages.inputs]
        # One run of all rows needs no proof of them, but masks do.
        batch = fed.batch_at(request.wanted.names, shapes_of(feeds, fed.inputs))
        found = mask_results(found, x, fed.inputs, needed, batch)
    as_output = OutputForm.of_delayed if kind == "delayed" else OutputForm.of_arrays
    return wanted.shape_result({name: as_output(form, found) for name, form in forms.items()})
