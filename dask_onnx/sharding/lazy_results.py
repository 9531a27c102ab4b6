"""Lazy results of sharded plans: the high-level graph of a request, and the arrays made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Alias

from dask_onnx.core.errors import InputError
from dask_onnx.core.stage_tasks import Key


def layered_graph(
    name: str, tasks: Mapping[Key, Any], sources: Iterable[Any], retries: int
) -> HighLevelGraph:
    """Return a graph with the tasks of a request as one layer on top of its input collections.

    Parameters
    ----------
    name : str
        Name of the layer that holds `tasks`.
    sources : iterable of Dask collections
        Lazy inputs that the tasks refer to.
    retries : int
        Attempts after a failure, as an annotation of the layer.
    """
    layers: dict[str, Any] = {}
    dependencies: dict[str, set[str]] = {}
    roots: set[str] = set()
    for source in sources:
        graph = source.__dask_graph__()
        layers.update(graph.layers)
        dependencies.update({key: set(needs) for key, needs in graph.dependencies.items()})
        roots.update(source.__dask_layers__())
    layers[name] = MaterializedLayer(dict(tasks), annotations={"retries": retries})
    dependencies[name] = roots
    return HighLevelGraph(layers, dependencies)


def lazy_array(
    name: str,
    graph: HighLevelGraph,
    layer: str,
    keys: Sequence[Key],
    chunks: Sequence[tuple[float, ...]],
    axis: int | None,
    dtype: npt.DTypeLike,
) -> da.Array:
    """Return an array whose chunks along one axis are the results of given tasks.

    Parameters
    ----------
    name : str
        Name of the array and of its layer.
    graph : HighLevelGraph
        Graph with the tasks.
    layer : str
        Name of the layer that holds them.
    keys : sequence of keys
        Tasks that return the chunks, in order along `axis`.
    chunks : sequence of tuple of int
        Chunk sizes of every axis.
    axis : int or None
        Axis that `keys` lie along; None for an array of one chunk.
    dtype : dtype
        Type of the elements.
    """
    aliases: dict[Any, Any] = {}
    for number, key in enumerate(keys):
        chunk: Any = (name, *(number if i == axis else 0 for i in range(len(chunks))))
        aliases[chunk] = Alias(chunk, key)
    full = HighLevelGraph(
        {**graph.layers, name: MaterializedLayer(aliases)}, {**graph.dependencies, name: {layer}}
    )
    meta = np.empty((0,) * len(chunks), dtype)
    return da.Array(full, name, tuple(chunks), dtype=dtype, meta=meta)


def unknown_shape(output: str) -> InputError:
    """Return the error for an output whose shape or dtype a dask.array would need to know."""
    return InputError(
        f"the shape of output {output!r} does not follow from the graph",
        "pass Delayed instead of a dask.array",
        input=output,
    )
