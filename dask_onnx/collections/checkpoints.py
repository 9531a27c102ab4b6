"""Predictions whose finished chunks are kept in a folder, and taken up again.

The result of any lazy prediction is rewritten chunk by chunk. A chunk that is in the folder becomes
a task that reads it, which depends on nothing. The task of any other chunk looks again when it
runs, and keeps what it computes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import dask.array as da
import dask.local
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.sizeof import sizeof
from dask.task_spec import Alias, DataNode, GraphNode, Task, TaskRef

from dask_onnx.collections.array import BarrierLayer
from dask_onnx.collections.blocks import TakeOutput
from dask_onnx.collections.kinds import is_bag, is_dataarray, is_table
from dask_onnx.core.dask_internals import convert_legacy_graph
from dask_onnx.core.errors import InputError, OutputError
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.io.kept_chunks import MISSING, ChunkStore

_MOST_TASKS = 200
"""Tasks of a chunk up to which a task that reads it can compute it anew."""
_SHARED_BYTES = 2**16
"""Bytes of a task that several chunks need, up to which each of them carries it."""


@dataclass(frozen=True, slots=True, eq=False)
class ComputeAndKeep:
    """Function of a task that computes a chunk, unless it has been kept since the graph was built.

    The task takes the arguments of the one that it replaces.
    """

    store: ChunkStore
    name: str
    """Name of the chunk."""
    function: Callable[..., Any]
    """Function of the task that this one replaces."""
    as_list: bool = False
    """True if the result may be an iterator, as in a bag."""

    @property
    def hints(self) -> Hints | None:
        """Facts for Dask's scheduler about the task that this one replaces."""
        return getattr(self.function, "hints", None)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return the chunk."""
        found = self.store.read(self.name)
        if found is not MISSING:
            return found
        found = self.function(*arguments, **options)
        found = list(found) if self.as_list else found
        self.store.write(self.name, found)
        return found

    def __dask_tokenize__(self) -> Any:
        return (*self.store.__dask_tokenize__(), self.name)


@dataclass(frozen=True, slots=True, eq=False)
class KeepResult:
    """Function of a task that keeps the chunk that another task has computed."""

    store: ChunkStore
    name: str
    """Name of the chunk."""

    def __call__(self, found: Any) -> Any:
        """Return the chunk."""
        self.store.write(self.name, found)
        return found

    def __dask_tokenize__(self) -> Any:
        return (*self.store.__dask_tokenize__(), self.name)


@dataclass(frozen=True, slots=True, eq=False)
class ReadKept:
    """Function of a task that reads a chunk, and computes it anew if the file is damaged."""

    store: ChunkStore
    name: str
    """Name of the chunk."""
    key: Key
    """Key of the chunk in `graph`."""
    graph: Mapping[Key, GraphNode] | None
    """Tasks that compute the chunk; None if these are too large to travel with each chunk."""
    as_list: bool = False
    """True if the result may be an iterator, as in a bag."""

    def __call__(self) -> Any:
        """Return the chunk.

        Raises
        ------
        OutputError
            The file is damaged or gone, and the chunk cannot be computed here.
        """
        found = self.store.read(self.name)
        if found is not MISSING:
            return found
        if self.graph is None:
            raise OutputError(
                f"chunk {self.name} of the checkpoint {self.store.folder} is damaged or gone since "
                "this prediction was built",
                "call predict again with this checkpoint: it computes the chunk anew",
                option="checkpoint",
                reason=self.name,
            )
        found = dask.local.get_sync(dict(self.graph), self.key)
        found = list(found) if self.as_list else found
        self.store.write(self.name, found)
        return found

    def __dask_tokenize__(self) -> Any:
        return (*self.store.__dask_tokenize__(), self.name)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Chunks of one collection."""

    store: ChunkStore
    complete: frozenset[str]
    """Names of the chunks that are in the folder."""
    output: int
    """Position of the collection among those of the prediction."""
    old: Sequence[Key]
    """Keys of the chunks in the graph of the prediction."""
    prefix: str
    """Name of the collection."""
    division: Any
    """Division of the collection into chunks."""
    as_list: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the chunks in the folder."""
        # Dask's optimisation may divide tables otherwise, by settings that no token covers.
        division = digest(repr(self.division))[:8]
        return [f"{self.output:02d}-{number:06d}-{division}" for number in range(len(self.old))]

    @property
    def name(self) -> str:
        """Name of the collection of kept chunks; another one if other chunks are missing."""
        label = self.prefix.rpartition("-")[0] or self.prefix
        present = sorted(self.complete.intersection(self.names))
        return f"{label}-{digest(self.prefix, *self.store.__dask_tokenize__(), present)}"

    @property
    def missing(self) -> list[Key]:
        """Keys of the chunks that are not in the folder."""
        return [k for k, n in zip(self.old, self.names, strict=True) if n not in self.complete]

    def tasks(
        self, graph: Callable[[], Mapping[Key, GraphNode]], node: Callable[[Key], Any]
    ) -> dict[Key, Task]:
        """Return the tasks of the kept chunks.

        Parameters
        ----------
        graph : callable
            Returns all tasks of the prediction; called only where chunks are in the folder.
        node : callable
            Returns the task of a key.
        """
        found: dict[Key, Task] = {}
        own, names = self.name, self.names
        present = [k for k, n in zip(self.old, names, strict=True) if n in self.complete]
        recipes = recompute_graphs(graph(), present) if present else {}
        for old, name in zip(self.old, names, strict=True):
            key = (own, *old[1:]) if isinstance(old, tuple) else own
            if name in self.complete:
                read = ReadKept(self.store, name, old, recipes.get(old), self.as_list)
                found[key] = Task(key, read)
                continue
            made = node(old)
            if isinstance(made, Task) and not isinstance(made, StageTask):
                keep = ComputeAndKeep(self.store, name, made.func, self.as_list)
                found[key] = Task(key, keep, *made.args, **made.kwargs)
            else:
                found[key] = Task(key, KeepResult(self.store, name), TaskRef(old))
        return found


def keep_result(result: Any, store: ChunkStore) -> Any:
    """Return the result of a lazy prediction with its finished chunks kept. Runs nothing.

    Parameters
    ----------
    result : dask.array, DataFrame, Series, Bag or xarray.DataArray; or dict or list of these
        Result of a prediction.
    store : ChunkStore

    Raises
    ------
    InputError
        The result is of another kind.
    """
    complete, counter = store.complete(), itertools.count()

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(each) for name, each in value.items()}
        if isinstance(value, list):
            return [kept(each) for each in value]
        if is_dataarray(value) and isinstance(value.data, da.Array):
            return value.copy(data=_keep_array(value.data, store, complete, next(counter)))
        if isinstance(value, da.Array):
            return _keep_array(value, store, complete, next(counter))
        if is_bag(value):
            return _keep_bag(value, store, complete, next(counter))
        if is_table(value) and hasattr(value, "to_delayed"):
            return _keep_table(value, store, complete, next(counter))
        raise refuse_kind(value)

    return kept(result)


def refuse_kind(value: Any) -> InputError:
    """Return the error about a collection whose chunks cannot be kept."""
    return InputError(
        f"checkpoint keeps the chunks of dask arrays, tables and bags, and of numpy arrays; "
        f"{type(value).__name__} was given",
        "convert it: dd.from_pandas(table, npartitions=8), dask.bag.from_sequence(rows, "
        "npartitions=8), da.from_array(array); or leave checkpoint out",
        option="checkpoint",
    )


def _keep_array(
    array: da.Array, store: ChunkStore, complete: frozenset[str], output: int
) -> da.Array:
    keys = list(itertools.product([array.name], *map(range, array.numblocks)))
    chunks = _Chunks(store, complete, output, keys, array.name, array.chunks)
    graph = _kept_graph(array.dask, chunks)
    # The meta of masked arrays is one, by which the next prediction knows of their masks.
    return da.Array(graph, chunks.name, array.chunks, dtype=array.dtype, meta=array._meta)


def _keep_bag(bag: Any, store: ChunkStore, complete: frozenset[str], output: int) -> Any:
    keys = [(bag.name, number) for number in range(bag.npartitions)]
    chunks = _Chunks(store, complete, output, keys, bag.name, len(keys), as_list=True)
    return type(bag)(_kept_graph(bag.dask, chunks), chunks.name, bag.npartitions)


def _keep_table(table: Any, store: ChunkStore, complete: frozenset[str], output: int) -> Any:
    from dask.dataframe import from_graph  # loaded by those who use it

    # Partitions of a table are those of its optimised graph, as in `to_delayed`.
    optimised = table.optimize()
    graph = convert_legacy_graph(dict(optimised.__dask_graph__()))
    keys = optimised.__dask_keys__()
    division = len(keys), optimised.divisions
    chunks = _Chunks(store, complete, output, keys, optimised._name, division)
    tasks = chunks.tasks(lambda: graph, lambda key: _followed(key, graph.get))
    needed = _closure(graph, (d for task in tasks.values() for d in task.dependencies))
    layer = {**{key: graph[key] for key in needed}, **tasks}
    return from_graph(layer, optimised._meta, optimised.divisions, list(tasks), chunks.name)


def _kept_graph(graph: HighLevelGraph, chunks: _Chunks) -> HighLevelGraph:
    """Return a graph with a further layer of kept chunks; that layer alone if none is missing."""

    def all_tasks() -> Mapping[Key, GraphNode]:
        tasks: dict[Key, Any] = {}
        for layer in graph.layers.values():
            # Barriers would bind a chunk to those before it.
            tasks.update(layer.without_barriers if isinstance(layer, BarrierLayer) else layer)
        return dict(convert_legacy_graph(tasks))

    def task_of(key: Key) -> Any:
        layer = graph.layers.get(key[0])
        return None if layer is None else dict(convert_legacy_graph({key: layer[key]}))[key]

    missing = bool(chunks.missing)
    tasks = chunks.tasks(all_tasks, lambda key: _followed(key, task_of))
    kept = MaterializedLayer(tasks)
    if not missing:
        return HighLevelGraph({chunks.name: kept}, {chunks.name: set()})
    # Not on all layers: Dask would not fuse those that nothing else seems to depend on.
    names = {d[0] if isinstance(d, tuple) else d for t in tasks.values() for d in t.dependencies}
    needed = min(names, set(graph.layers))
    return HighLevelGraph(
        {**graph.layers, chunks.name: kept}, {**graph.dependencies, chunks.name: needed}
    )


def _followed(key: Key, task_of: Callable[[Key], Any]) -> Any:
    """Return the task behind a key and its aliases; None if it is no task of its own."""
    node = task_of(key)
    while isinstance(node, Alias):
        node = task_of(node.target)
    # A task that only takes one output of several would compute them all first.
    return (
        None if node is not None and isinstance(getattr(node, "func", None), TakeOutput) else node
    )


def recompute_graphs(
    graph: Mapping[Key, GraphNode], keys: Sequence[Key]
) -> dict[Key, Mapping[Key, GraphNode]]:
    """Return the tasks that compute each of some chunks by itself.

    Chunks that need many tasks, or large ones that others need too (such as weights that travel
    with the graph), are left out.

    Parameters
    ----------
    graph : mapping of key to task
    keys : sequence of key
        Keys of the chunks.
    """
    needs = {key: needed for key in keys if (needed := _closure(graph, [key], _MOST_TASKS))}
    uses = Counter(itertools.chain.from_iterable(needs.values()))
    heavy = {key for key, count in uses.items() if count > 1 and _is_heavy(graph[key])}
    return {
        key: {each: graph[each] for each in needed}
        for key, needed in needs.items()
        if not heavy.intersection(needed)
    }


def _closure(
    graph: Mapping[Key, GraphNode], keys: Iterable[Key], most: int | None = None
) -> set[Key]:
    """Return keys and all that they need; nothing if these are more than `most`."""
    found: set[Key] = set()
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key in found or key not in graph:
            continue
        found.add(key)
        if most is not None and len(found) > most:
            return set()
        pending += graph[key].dependencies
    return found


def _is_heavy(node: GraphNode) -> bool:
    if isinstance(node, DataNode) and sizeof(node.value) > _SHARED_BYTES:
        return True
    return len(cloudpickle.dumps(node)) > _SHARED_BYTES
