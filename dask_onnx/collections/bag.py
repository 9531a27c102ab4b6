"""Bags of rows in, bags of results out: each partition's rows run together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.bag as db
import numpy as np

from dask_onnx.collections.context import Request
from dask_onnx.collections.here import HereGraph, here_graph, supply_collections
from dask_onnx.collections.kinds import as_array
from dask_onnx.collections.request import Wanted, check_joins
from dask_onnx.errors import InputError
from dask_onnx.lower import digest
from dask_onnx.specs import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class BagPredictor:
    """The model on the rows of one partition; what `Bag.map_partitions` calls."""

    graph: HereGraph
    inputs: tuple[TensorSpec, ...]
    wanted: Wanted
    token: str

    def __call__(self, rows: Iterable[Any], *supplies: Any) -> list[Any]:
        items = [self._by_name(row) for row in rows]
        results: list[Any] = [None] * len(items)
        for places in _alike(items):
            arrays = {
                spec.name: np.stack([items[place][spec.name] for place in places])
                for spec in self.inputs
            }
            values = self.graph.run(arrays, supplies)
            for number, place in enumerate(places):
                row = {name: value[number] for name, value in values.items()}
                results[place] = self.wanted.shape_result(row)
        return results

    def _by_name(self, row: Any) -> dict[str, np.ndarray]:
        if not isinstance(row, Mapping):
            if len(self.inputs) > 1:
                names = ", ".join(repr(spec.name) for spec in self.inputs)
                raise InputError(
                    f"a row of the bag is {type(row).__name__}; the model takes {names}",
                    "make each row a dict by input name",
                )
            row = {self.inputs[0].name: row}
        lacking = [spec.name for spec in self.inputs if spec.name not in row]
        if lacking:
            raise InputError(
                f"a row of the bag has no {lacking[0]!r}; it has {', '.join(map(repr, row))}",
                "make each row a dict by input name",
            )
        return {spec.name: as_array(row[spec.name], spec) for spec in self.inputs}

    def __dask_tokenize__(self) -> str:
        return self.token


def _alike(items: list[dict[str, np.ndarray]]) -> list[list[int]]:
    """Positions of the rows that have the same shapes, which can run together."""
    groups: dict[Any, list[int]] = {}
    for place, item in enumerate(items):
        shapes = tuple(array.shape for array in item.values())
        groups.setdefault(shapes, []).append(place)
    return list(groups.values())


def predict_bag(request: Request, bag: db.Bag) -> db.Bag:
    """A lazy bag: for each row, an array or a dict of them by input name without the batch axis,
    the outputs of that row."""
    values = list(request.wanted.names)
    for name in values:
        if request.batch.output_axes[name] != 0:
            raise InputError(
                f"output {name!r} has no rows on axis 0, so it cannot be taken apart",
                "name other outputs: outputs=[...]",
            )
    check_joins(
        request.batch,
        values,
        model=request.model.token,
        chunks=bag.npartitions,
        rows_per_run=request.batching.rows_per_run,
    )
    inputs = tuple(request.stages.inputs)
    graph = here_graph(request, [spec.name for spec in inputs], values)
    token = digest(sorted(map(str, graph.tasks)), values, request.wanted.is_bare, request.salt)
    predictor = BagPredictor(graph, inputs, request.wanted, token)
    lazy: db.Bag = bag.map_partitions(predictor, *supply_collections(request))
    return lazy
