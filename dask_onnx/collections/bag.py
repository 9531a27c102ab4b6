"""Predictions for a dask.bag of rows: the rows of each partition run together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.bag as db
import numpy as np

from dask_onnx.collections.bad_rows import ERROR, located, message, run_rows
from dask_onnx.collections.inline import (
    InlineGraph,
    InlineTask,
    inline_graph,
    supply_collections,
)
from dask_onnx.collections.output_forms import OutputForm, computed_values
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.collections.row_checks import check_joins, check_rows_feed
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec, is_floating
from dask_onnx.core.stage_tasks import digest
from dask_onnx.runtime.input_values import as_input


@dataclass(frozen=True, slots=True, eq=False)
class BagPredictor(InlineTask):
    """Function that `Bag.map_partitions` calls: the model on the rows of one partition."""

    graph: InlineGraph
    """Stages to run."""
    inputs: tuple[TensorSpec, ...]
    """Inputs of the model."""
    wanted: Wanted
    """Outputs, and the form of each result."""
    forms: Mapping[str, OutputForm]
    """Output to the values that hold it."""
    rows: RowOptions
    """Treatment of bad rows."""
    optional: tuple[str, ...]
    """Optional inputs of the model, which rows cannot feed."""
    is_independent: bool
    """False if rows are not proven to be independent, so that those of a partition run together."""
    token: str
    """Digest of all of the above."""

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.graph

    def __call__(self, rows: Iterable[Any], *supplies: Any) -> list[Any]:
        """Return the result of each row, or a `Checked` of each row for "split"."""
        given = list(rows)
        items: list[dict[str, np.ndarray]] = []
        places: list[int] = []
        results: list[Any] = [None] * len(given)
        errors: dict[int, Exception] = {}
        for place, row in enumerate(given):
            try:
                items.append(self._by_name(row))
                places.append(place)
            except ValueError as error:
                errors[place] = error
                if self.rows.on_error == "raise":
                    break
        groups = _alike(items)
        if len(groups) > 1 and not self.is_independent:
            raise InputError(
                f"a partition has rows of {len(groups)} different shapes, which cannot run "
                "together, and the rows of this model are not proven to be independent",
                "give rows of one shape; or, if rows are independent, declare it: dx.load(..., "
                "rows='independent')",
                option="rows",
                numbers={"shapes": len(groups)},
                suggestions=[Suggestion("rows", "independent")],
            )
        for alike in groups:
            if errors and self.rows.on_error == "raise":
                break
            self._run(
                [items[n] for n in alike], [places[n] for n in alike], supplies, results, errors
            )
        if self.rows.on_error == "raise" and errors:
            first = min(errors)
            where = f"row {first:,} of the {len(given):,} of its partition: "
            raise located(errors[first], where, first, len(given)) from None
        if self.rows.on_error != "split":
            return results
        return [
            Checked(result, _as_bad(row, errors.get(place)))
            for place, (row, result) in enumerate(zip(given, results, strict=True))
        ]

    def _run(
        self,
        items: Sequence[Mapping[str, np.ndarray]],
        places: Sequence[int],
        supplies: Sequence[Any],
        results: list[Any],
        errors: dict[int, Exception],
    ) -> None:
        """Run rows of the same shapes, and store each result or error at the row's place."""
        arrays = {spec.name: np.stack([item[spec.name] for item in items]) for spec in self.inputs}
        found = run_rows(
            len(items),
            lambda positions: (
                arrays
                if positions is None
                else {name: array[positions] for name, array in arrays.items()}
            ),
            lambda feeds: _row_by_row(self.graph.run(feeds, supplies), feeds),
            stops=self.rows.on_error == "raise",
            is_independent=self.is_independent,
        )
        for number, position in enumerate(found.good):
            assert found.values is not None
            row = {name: value[number] for name, value in found.values.items()}
            outputs = {name: form.of_row(row) for name, form in self.forms.items()}
            results[places[position]] = self.wanted.shape_result(outputs)
        errors |= {places[position]: error for position, error in found.errors.items()}

    def _by_name(self, row: Any) -> dict[str, np.ndarray]:
        """Return the arrays of a row by input name, checked and converted.

        Each row is checked by itself, so that a bad one does not fail the rows beside it.
        """
        if not isinstance(row, Mapping):
            if len(self.inputs) > 1:
                names = ", ".join(repr(spec.name) for spec in self.inputs)
                raise InputError(
                    f"a row of the bag is a {type(row).__name__}; the model takes inputs {names}",
                    "make each row a dict by input name",
                    numbers={"inputs": len(self.inputs)},
                )
            row = {self.inputs[0].name: row}
        missing = [spec.name for spec in self.inputs if spec.name not in row]
        if missing:
            raise InputError(
                f"a row of the bag has no {missing[0]!r}; it has {', '.join(map(repr, row))}",
                "make each row a dict by input name",
                input=missing[0],
            )
        dropped = [name for name in self.optional if name in row]
        if dropped:
            raise InputError(
                f"a row of the bag has {dropped[0]!r}, an optional input of the model, which has "
                "one value for all rows",
                "leave it out of the rows; feed it with arrays, or rename it if it is another",
                input=dropped[0],
            )
        found = {spec.name: self._converted(row[spec.name], spec) for spec in self.inputs}
        for spec in self.inputs:
            self._check(found[spec.name], spec)
        return found

    def _row_shape(self, spec: TensorSpec) -> tuple[Any, ...]:
        """Return the shape of a row for an input of known rank: without the batch axis."""
        shape = spec.shape or ()
        axis = self.graph.input_axes.get(spec.name, 0)
        return (*shape[:axis], *shape[axis + 1 :])

    def _converted(self, value: Any, spec: TensorSpec) -> Any:
        """Return a value as the model takes it; a single one as an array of one, as in tables."""
        array = as_input(value, spec)
        shape = self._row_shape(spec)
        is_single = shape and all(dim == 1 for dim in shape)
        return array.reshape(shape) if is_single and np.ndim(array) == 0 else array

    def _check(self, array: np.ndarray, spec: TensorSpec) -> None:
        if spec.dtype is None or spec.shape is None:
            return
        shape = self._row_shape(spec)
        fits = len(array.shape) == len(shape) and all(
            not isinstance(dim, int) or dim == size
            for dim, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            row = replace(spec, shape=shape)
            raise InputError(
                f"a row has shape {array.shape} for input {spec.name!r}; the model takes {row}",
                "make each row an array without the batch axis",
                input=spec.name,
                numbers={"rank": array.ndim, "expected_rank": len(shape)},
            )
        if (
            self.rows.require_finite
            and is_floating(array.dtype)
            and (count := int((~np.isfinite(array)).sum()))
        ):
            raise InputError(
                f"input {spec.name!r} must be finite; the row has a NaN or an infinity",
                "fill it or drop the row",
                input=spec.name,
                numbers={"values_not_finite": count},
            )

    def __dask_tokenize__(self) -> str:
        return self.token


def _row_by_row(values: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with one entry for each row: sequences of tensors as a list of each row's."""
    count = len(next(iter(feeds.values())))
    return {
        name: [[item[row] for item in value] for row in range(count)]
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }


def _alike(items: list[dict[str, np.ndarray]]) -> list[list[int]]:
    """Return groups of positions of rows that have the same shapes, and so can run together."""
    groups: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        shapes = tuple(array.shape for array in item.values())
        groups.setdefault(shapes, []).append(place)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of a row, or its error."""

    result: Any
    """Result; None for a bad row."""
    bad: dict[str, Any] | None
    """For a bad row a dict of ``row`` and ``error``; None for a good one."""


def _as_bad(row: Any, error: Exception | None) -> dict[str, Any] | None:
    return None if error is None else {"row": row, ERROR: message(error)}


def _good(rows: Iterable[Checked]) -> list[Any]:
    return [row.result for row in rows if row.bad is None]


def _bad(rows: Iterable[Checked]) -> list[Any]:
    return [row.bad for row in rows if row.bad is not None]


def predict_bag(
    request: Request,
    bag: db.Bag,
    rows: RowOptions,
    optional: Sequence[str],
    forms: Mapping[str, OutputForm],
) -> Any:
    """Return a lazy bag with the result of each row; two bags if the bad rows are split off.

    Parameters
    ----------
    request : Request
        Checked request, whose inputs are placeholders.
    bag : dask.bag.Bag
        Each item is a row: an array, or a dict of arrays by input name, without the batch axis.
        Where the model takes one value a row, it may be given as it is, rather than in an array.
    rows : RowOptions
        Treatment of bad rows.
    optional : sequence of str
        Names of the model's optional inputs; a row that has one of them is a bad row.
    forms : mapping of str to OutputForm
        Output to the values that hold it.

    Returns
    -------
    Bag, or tuple of two
        For "split" the results of the good rows, and dicts of ``row`` and ``error`` of the bad
        ones.

    Raises
    ------
    InputError
        An input or output has no rows, or rows are not proven to be independent.
    """
    values = computed_values(forms)
    for name in values:
        if request.batch.output_axes[name] is None:
            raise InputError(
                f"output {name!r} has no rows, so it cannot be split into items of a bag",
                "name other outputs: outputs=[...]",
                option="outputs",
            )
    check_rows_feed(request.batch, request.stages.inputs, "a bag of dicts")
    check_joins(
        request.batch,
        values,
        model=request.model.token,
        chunks=bag.npartitions,
        rows_per_run=request.batching.rows_per_run,
    )
    inputs = tuple(request.stages.inputs)
    graph = inline_graph(request, [spec.name for spec in inputs], values)
    keys = sorted(map(str, graph.tasks))
    options = (repr(rows), list(optional), request.options.salt)
    token = digest(keys, repr(forms), request.wanted.is_bare, *options)
    proven = request.batch.is_proven
    predictor = BagPredictor(
        graph, inputs, request.wanted, forms, rows, tuple(optional), proven, token
    )
    lazy: db.Bag = bag.map_partitions(predictor, *supply_collections(request))
    if rows.on_error != "split":
        return lazy
    return lazy.map_partitions(_good), lazy.map_partitions(_bad)
