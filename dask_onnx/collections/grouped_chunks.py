"""Several consecutive chunks of a lazy array in one task, where Dask's scheduler is the limit."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph, Layer
from dask.task_spec import Task, TaskRef

from dask_onnx.core.dask_internals import convert_legacy_graph
from dask_onnx.core.stage_tasks import Key, digest

_are_kept: ContextVar[bool] = ContextVar("dask_onnx_chunks_are_kept", default=False)
"""True while predictions must have the chunks of their inputs, whatever the plan says."""


@contextlib.contextmanager
def chunks_kept() -> Iterator[None]:
    """Let predictions have the chunks of their inputs, as writers of blocks and checkpoints need.

    A plan of "auto" may group them by the cluster of the moment.
    """
    token = _are_kept.set(True)
    try:
        yield
    finally:
        _are_kept.reset(token)


def are_chunks_kept() -> bool:
    """Return whether a prediction must have the chunks of its inputs; see `chunks_kept`."""
    return _are_kept.get()


@dataclass(frozen=True, slots=True)
class JoinChunks:
    """Function that joins the results of a group's chunks along their rows."""

    axis: int
    """Axis of the rows."""

    def __call__(self, *blocks: Any) -> Any:
        """Return the joined array."""
        return np.concatenate(blocks, axis=self.axis)


@dataclass(frozen=True, slots=True)
class Groups:
    """Division of the chunks of an array into groups."""

    source: str
    """Name of the array whose chunks are grouped."""
    ndim: int
    """Number of its axes."""
    axis: int
    """Axis along which it is chunked; the others have one chunk."""
    chunks: int
    """Number of chunks."""
    size: int
    """Chunks of a group; the last one may have fewer."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return -(-self.chunks // self.size)

    def key(self, name: str, place: int) -> Key:
        """Return the key of a block of an array of this layout."""
        return (name, *(place if axis == self.axis else 0 for axis in range(self.ndim)))

    def members(self, group: int) -> list[Key]:
        """Return the keys of the chunks of a group."""
        first = group * self.size
        last = min(first + self.size, self.chunks)
        return [self.key(self.source, chunk) for chunk in range(first, last)]


class GroupedChunks(Layer):
    """Layer of tasks that each compute a group of chunks, inputs included, and join the results.

    The tasks are made where the graph is read, on a cluster by the scheduler: until then, and on
    the way there, the layer is as small as the graph of the chunks. Each chunk is a run of its own,
    as without groups, so that results are equal.
    """

    def __init__(
        self,
        name: str,
        groups: Groups,
        graph: HighLevelGraph,
        wanted: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.groups, self.graph = name, groups, graph
        self._wanted = wanted
        self._tasks: dict[Key, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupedChunks, (self.name, self.groups, self.graph, self._wanted)

    @property
    def wanted(self) -> tuple[int, ...]:
        """Groups that are computed."""
        return tuple(range(self.groups.count)) if self._wanted is None else self._wanted

    @property
    def has_legacy_tasks(self) -> bool:
        """False: no task is a tuple. Dask would look at each of them."""
        return False

    def is_materialized(self) -> bool:
        """Return whether the tasks have been made."""
        return self._tasks is not None

    def get_output_keys(self) -> Set[Key]:
        """Return the keys of the groups; makes no task."""
        return {self.groups.key(self.name, group) for group in self.wanted}

    def cull(
        self, keys: Set[Key], all_hlg_keys: Collection[Key]
    ) -> tuple[GroupedChunks, dict[Key, set[Key]]]:
        """Return the layer with only the groups that `keys` need; makes no task."""
        place = self.groups.axis + 1
        wanted = tuple(sorted({key[place] for key in self.get_output_keys() & keys}))
        layer = GroupedChunks(self.name, self.groups, self.graph, wanted)
        return layer, {self.groups.key(self.name, group): set() for group in wanted}

    @property
    def tasks(self) -> Mapping[Key, Any]:
        """Tasks of the groups, and of what several groups read; made once."""
        if self._tasks is None:
            self._tasks = grouped_tasks(self.name, self.groups, self.graph, self.wanted)
        return self._tasks

    def __getitem__(self, key: Key) -> Any:
        return self.tasks[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def grouped_tasks(
    name: str, groups: Groups, graph: HighLevelGraph, wanted: tuple[int, ...]
) -> dict[Key, Any]:
    """Return tasks that compute groups of chunks.

    A task that only one group reads, and that reads nothing itself, such as one that loads a chunk
    of the input, becomes a part of the group's task. All others stay tasks of their own.

    Parameters
    ----------
    name : str
        Name of the layer of the groups.
    groups : Groups
        Division of the chunks.
    graph : HighLevelGraph
        Graph of the chunks.
    wanted : tuple of int
        Groups to compute.
    """
    members = {group: groups.members(group) for group in wanted}
    keys = [key for own in members.values() for key in own]
    tasks = convert_legacy_graph(dict(da.optimize(graph, keys)))
    readers: dict[Key, Any] = {}
    """Group that alone reads a task; None where others do too."""
    owner = {key: group for group, own in members.items() for key in own}
    for key, task in tasks.items():
        for each in task.dependencies:
            reader = owner.get(key)
            readers[each] = reader if readers.get(each, reader) == reader else None
    made: dict[Key, Any] = {}
    for group, own in members.items():
        parts = [tasks.pop(key) for key in own]
        loads = {
            each
            for part in parts
            for each in part.dependencies
            if readers.get(each) == group and each in tasks and not tasks[each].dependencies
        }
        parts += [tasks.pop(each) for each in loads]
        key = groups.key(name, group)
        join = Task(key, JoinChunks(groups.axis), *map(TaskRef, own))
        made[key] = Task.fuse(join, *parts)
    return {**tasks, **made}


def group_chunks(array: da.Array, axis: int, size: int) -> da.Array:
    """Return an array whose blocks are groups of an array's chunks, each computed by one task.

    Parameters
    ----------
    array : dask.array
        Array that is chunked along `axis` only.
    axis : int
        Axis of the chunks.
    size : int
        Chunks of a group; with 1 the array is returned as it is.
    """
    groups = Groups(array.name, array.ndim, axis, array.numblocks[axis], size)
    if size <= 1 or groups.chunks <= 1:
        return array
    label = array.name.rpartition("-")[0] or array.name
    name = f"{label}-{digest(array.name, groups)}"
    own = array.chunks[axis]
    joined = tuple(sum(own[first : first + size]) for first in range(0, groups.chunks, size))
    chunks = tuple(joined if i == axis else each for i, each in enumerate(array.chunks))
    graph = HighLevelGraph({name: GroupedChunks(name, groups, array.dask)}, {name: set()})
    return da.Array(graph, name, chunks, dtype=array.dtype, meta=array._meta)
