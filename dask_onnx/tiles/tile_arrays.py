"""Outputs of a tiled prediction as lazy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef

from dask_onnx.cluster.placement import effective_retries
from dask_onnx.tiles.tile_graph import TileGraph
from dask_onnx.tiles.tile_tasks import take_value


def as_arrays(
    graph: TileGraph, images: Sequence[da.Array], outputs: Sequence[str]
) -> dict[str, da.Array]:
    """Return a lazy array for each output, with a chunk for each tile.

    Outputs whose rows and columns share an axis have a chunk for each row of tiles.

    Parameters
    ----------
    graph : TileGraph
        Built.
    images : sequence of dask.array
        The images that it was built for.
    outputs : sequence of str
    """
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    for image in images:
        given: Any = image.__dask_graph__()
        layers |= given.layers
        dependencies |= {name: set(deps) for name, deps in given.dependencies.items()}
    for key, tasks in graph.supplies.items():
        layers[key], dependencies[key] = MaterializedLayer(tasks), set()
    base = f"tiles-{graph.token}"
    roots = {*(image.name for image in images), *graph.supplies}
    annotations = {"retries": effective_retries(None)}
    layers[base] = MaterializedLayer(graph.tasks, annotations=annotations)
    dependencies[base] = roots
    found = {}
    for value in outputs:
        name, chunks = _output_layer(graph, value, base, layers, dependencies)
        dtype = graph.plan.flow.specs[value].dtype
        split = da.Array(
            HighLevelGraph(dict(layers), dict(dependencies)),
            name,
            chunks,
            dtype=dtype,
            meta=np.empty((0,) * len(chunks), dtype),
        )
        found[value] = _joined(graph, value, split)
    return found


def _output_layer(
    graph: TileGraph,
    value: str,
    base: str,
    layers: dict[str, Any],
    dependencies: dict[str, set[str]],
) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Add a layer that gives an output's pieces the keys of an array; return name and chunks."""
    name = graph.name(f"tiled_{value}")
    source = graph.source(value)
    counts = [range(len(borders) - 1) for borders in source.borders]
    tasks = {
        (name, *place): Task(
            (name, *place), take_value, TaskRef(source.key(place)), source.position
        )
        for place in itertools.product(*counts)
    }
    layers[name], dependencies[name] = MaterializedLayer(tasks), {base}
    return name, tuple(tuple(np.diff(borders).tolist()) for borders in source.borders)


def _joined(graph: TileGraph, value: str, array: da.Array) -> da.Array:
    """Return an output in its own shape: join axes that are split in the pieces."""
    if value not in graph.plan.flow.values:
        return array
    layout = graph.plan.layout(value)
    if layout.is_split and array.ndim == len(layout.factors):
        return array
    # dask.array reshapes without rechunking only if all axes behind the first one are whole: the
    # chunks of the first tiled axis (rows) are kept, those of the others are joined.
    tiled = [i for i, (_, k) in enumerate(layout.flat) if k is not None]
    array = array.rechunk(dict.fromkeys(tiled[1:], -1))
    joined: da.Array = array.reshape(layout.joined_shape(graph.plan.full(value)))
    return joined
