"""Runs of a model on single items, such as crops, of which those of one shape run together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.collections.inline import InlineGraph, inline_graph, supply_collections
from dask_onnx.collections.partitions import partition_request
from dask_onnx.collections.request_checks import check_arrays, resolve_feeds
from dask_onnx.collections.run_options import BatchSize, RunOptions
from dask_onnx.composites.chain_errors import at_step
from dask_onnx.core.errors import DaskOnnxError, InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.runtime.input_values import as_input

_Feeds = dict[str, Any]
_MOST_TOGETHER = 256
"""Rows that are joined, at most, where the task chooses the rows of its runs: a copy of them."""
_ROWS_OF_A_RUN = 16
"""Rows of a run, at most, where neither the caller nor measurements say it: rows are declared."""


@dataclass(frozen=True, slots=True)
class ItemModel:
    """A model as the function of a task on items."""

    graph: InlineGraph
    specs: tuple[TensorSpec, ...]
    """Inputs of the model."""
    known: tuple[TensorSpec, ...]
    """Inputs that an item may have: those of all models of the step."""
    input_axes: Mapping[str, int | None]
    """Batch axis of each input."""
    output_axes: Mapping[str, int | None]
    """Batch axis of each output."""
    most_together: int
    """Rows that are joined, at most; 1 if they are not proven independent."""
    n_supplies: int
    """Tasks that bring the model to workers."""

    @property
    def has_rows(self) -> bool:
        """True if every input and output has a batch axis."""
        axes = [*(self.input_axes[s.name] for s in self.specs), *self.output_axes.values()]
        return all(axis is not None for axis in axes)

    def run(
        self,
        step: str,
        items: Sequence[Any],
        numbers: Sequence[int | None],
        supplies: Sequence[Any],
    ) -> list[_Feeds]:
        """Return the outputs for each item.

        Parameters
        ----------
        step : str
            Name of the step, for errors.
        items : sequence of array_like, or of mapping of str to array_like
            With the model's batch axis, or as one row without it.
        numbers : sequence of int or None
            Frame of each item, for errors.
        supplies : sequence
            Results of the tasks that bring the model here.

        Raises
        ------
        InputError, StageError
            An item does not fit, or the model failed on it; with the step and the frame.
        """
        groups: dict[Any, list[int]] = {}
        feeds: list[tuple[_Feeds, bool]] = []
        for place, (item, number) in enumerate(zip(items, numbers, strict=True)):
            try:
                feeds.append(self._feeds(item))
            except DaskOnnxError as error:
                raise at_step(error, step, number) from error
            groups.setdefault(self._signature(place, *feeds[-1]), []).append(place)
        found: list[_Feeds] = [{} for _ in items]
        for places in groups.values():
            for some in self._runs(places, feeds):
                given = [feeds[place][0] for place in some]
                results = self._run_located(step, given, [numbers[p] for p in some], supplies)
                for place, result in zip(some, results, strict=True):
                    found[place] = self._as_item(result, is_row=feeds[place][1])
        return found

    def _feeds(self, item: Any) -> tuple[_Feeds, bool]:
        """Return the inputs of an item with their batch axis first, and whether it has none."""
        if isinstance(item, list | tuple):
            raise InputError(
                f"an item of a list is a {type(item).__name__}",
                "make each item an array, or a dict of arrays by input",
                option="x",
            )
        given = resolve_feeds(item, self.known, [spec.name for spec in self.specs])
        arrays = {spec.name: as_input(given[spec.name], spec) for spec in self.specs}
        rows = {
            spec.name: spec.rank is not None and np.ndim(arrays[spec.name]) == spec.rank - 1
            for spec in self.specs
            if self.input_axes[spec.name] is not None
        }
        is_row = bool(rows) and all(rows.values())
        placed = {
            name: np.expand_dims(a, self.input_axes[name] or 0) if is_row and name in rows else a
            for name, a in arrays.items()
        }
        check_arrays(placed, self.specs, self.input_axes)
        if is_row and any(axis is None for axis in self.output_axes.values()):
            raise InputError(
                "an item has no batch axis, and outputs of the model have no rows",
                "pass items with all axes of the model's input",
                option="x",
            )
        return {
            name: np.moveaxis(array, axis, 0) if (axis := self.input_axes[name]) else array
            for name, array in placed.items()
        }, is_row

    def _signature(self, place: int, feeds: _Feeds, is_row: bool) -> Any:
        """Return a key that items share which may run together."""
        if not self.has_rows or self.most_together == 1:
            return place
        if len({len(array) for array in feeds.values()}) > 1:  # the model joins them by itself
            return place
        return is_row, tuple(array.shape[1:] for array in feeds.values())

    def _runs(self, places: Sequence[int], feeds: Sequence[tuple[_Feeds, bool]]) -> list[list[int]]:
        """Return items that share a run: as many as their rows allow, one at least."""
        runs: list[list[int]] = []
        rows = 0
        for place in places:
            own = _rows(feeds[place][0]) if self.has_rows else 1
            if not runs or rows + own > self.most_together:
                runs.append([])
                rows = 0
            runs[-1].append(place)
            rows += own
        return runs

    def _run_located(
        self,
        step: str,
        given: Sequence[_Feeds],
        numbers: Sequence[int | None],
        supplies: Sequence[Any],
    ) -> list[_Feeds]:
        try:
            return self._run_together(given, supplies)
        except Exception as error:  # it is raised again, with the step and the frame
            if len(given) > 1:
                for feeds, number in zip(given, numbers, strict=True):
                    self._run_located(step, [feeds], [number], supplies)
            number = numbers[0] if len(set(numbers)) == 1 else None
            raise at_step(error, step, number) from error

    def _run_together(self, given: Sequence[_Feeds], supplies: Sequence[Any]) -> list[_Feeds]:
        if self.has_rows and not any(_rows(feeds) for feeds in given):
            return [self._of_no_rows(feeds, supplies) for feeds in given]
        if len(given) == 1:
            return [self.graph.run(given[0], supplies)]
        arrays = {name: np.concatenate([feeds[name] for feeds in given]) for name in given[0]}
        results = self.graph.run(arrays, supplies)
        found: list[_Feeds] = []
        start = 0
        for feeds in given:
            stop = start + _rows(feeds)
            found.append({name: array[start:stop] for name, array in results.items()})
            start = stop
        return found

    def _of_no_rows(self, feeds: _Feeds, supplies: Sequence[Any]) -> _Feeds:
        """Return outputs without rows: kernels differ in what they do with empty tensors."""
        made_up = {
            name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in feeds.items()
        }
        return {name: array[:0] for name, array in self.graph.run(made_up, supplies).items()}

    def _as_item(self, result: _Feeds, *, is_row: bool) -> _Feeds:
        """Return outputs with their batch axis in place, or without it for a row."""
        if is_row:
            return {name: array[0] for name, array in result.items()}
        return {
            name: np.moveaxis(array, 0, axis)
            if (axis := self.output_axes[name]) and isinstance(array, np.ndarray)
            else array
            for name, array in result.items()
        }


def _rows_together(batch_size: BatchSize, *, is_measured: bool) -> int:
    """Return how many independent rows are joined, at most."""
    if isinstance(batch_size, int):
        return batch_size
    return _MOST_TOGETHER if is_measured else _ROWS_OF_A_RUN


def _rows(feeds: _Feeds) -> int:
    return int(next(iter(feeds.values())).shape[0])


def item_model(
    facts: ModelFacts, known: tuple[TensorSpec, ...], batch_size: BatchSize
) -> tuple[ItemModel, list[Any]]:
    """Return a model as the function of a task, and the Delayed that bring it to workers.

    Parameters
    ----------
    facts : ModelFacts
    known : tuple of TensorSpec
        Inputs that an item may have.
    batch_size : int or "auto"
        Rows of one run, at most; "auto" leaves it to the task, which measures what runs fastest.

    Raises
    ------
    InputError, PlanError, ModelError
        The model cannot run inside a task.
    """
    names = list(facts.graph.outputs)
    is_auto = batch_size == "auto"
    request = partition_request(facts, RunOptions(names, "auto" if is_auto else None))
    specs = tuple(request.stages.inputs)
    graph = inline_graph(request, [spec.name for spec in specs], names)
    batch = request.batch
    is_free = batch.is_declared or not (batch.dependent or batch.opaque or batch.random)
    is_free = is_free and batch.fixed_rows is None
    most = _rows_together(batch_size, is_measured=request.batching.is_auto)
    model = ItemModel(
        graph,
        specs,
        known,
        {spec.name: batch.input_axes[spec.name] for spec in specs},
        {name: batch.output_axes[name] for name in names},
        most if is_free else 1,
        len(graph.supplies),
    )
    return model, supply_collections(request)
