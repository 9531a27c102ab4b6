"""What all graphs of ours are made of: keys, and tasks that Dask leaves as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dask.task_spec import GraphNode, Task, TaskRef

Key = Any
"""Dask's own key type: a string, or a tuple of a string and numbers."""


WorkerGroup = tuple[str, int]
"""A plan, and the number of a share of the cluster in it."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What Dask's scheduler may know of a task that runs a stage; no part of what it computes."""

    retries: int = 0
    """How often Dask may repeat it."""
    request: str = ""
    """What it belongs to."""
    seconds: float = 0.0
    """Predicted; 0 if nothing is."""
    left: float = 0.0
    """Seconds from its start to the end of the request, over the longest way; what they are told
    apart by, whatever the rows."""
    worker_group: WorkerGroup | None = None
    """The share of the cluster that it is for."""
    is_loose: bool = False
    """Other workers may take it too, in Dask's sense of loose restrictions."""
    group_bytes: int = 0
    """Weights of all stages of the worker group."""


class StageTask(Task):
    """A task that Dask's array optimisation leaves alone, so that each stage can be seen."""

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        return True


def hints_of(spec: Any) -> Iterator[Hints]:
    """What a task, or a task fused into it, says of itself."""
    if not isinstance(spec, Task):
        return
    for holder in (spec.func, *spec.args[:1], spec.kwargs.get("_func")):
        if isinstance(hints := getattr(holder, "hints", None), Hints):
            yield hints
    for argument in spec.args:
        if isinstance(argument, dict):
            for inner in argument.values():
                yield from hints_of(inner)
        elif isinstance(argument, GraphNode):
            yield from hints_of(argument)


AFTER = "after"
"""The argument of a stage's task that says what it waits for, and that is not used."""


def barrier_key_of(spec: Any) -> Key | None:
    """What a stage's task waits for besides its inputs; None if for nothing."""
    waited = spec.kwargs.get(AFTER) if isinstance(spec, StageTask) else None
    return waited.key if isinstance(waited, TaskRef) else None


def passed(*results: Any) -> None:
    """The function of a gate: what it is given is there."""


def digest(*parts: Any) -> str:
    """A content digest of plain values and frozen records; not of Dask's tasks."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
