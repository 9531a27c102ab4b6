"""Keys, tasks and scheduling hints that all graphs of this package are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dask.task_spec import GraphNode, Task, TaskRef

from dask_onnx.core.tracing import Carrier

Key = Any
"""Dask's own key type: a string, or a tuple of a string and numbers."""


WorkerGroup = tuple[str, int]
"""Token of a plan and index of one of its worker groups."""


@dataclass(frozen=True, slots=True)
class Hints:
    """Facts about a stage's task for Dask's scheduler, which do not change its result."""

    retries: int = 0
    """Number of times that Dask may repeat the task."""
    request: str = ""
    """Token of the request that the task belongs to."""
    seconds: float = 0.0
    """Predicted duration of the task; 0 if nothing is predicted."""
    seconds_left: float = 0.0
    """Predicted seconds from the task's start to the end of the request, along the longest path.
    The same for any number of rows; ranks the stages of one micro-batch."""
    worker_group: WorkerGroup | None = None
    """Worker group that the task is meant for; None if any worker will do."""
    is_loose: bool = False
    """True if other workers may run it too (Dask's loose restrictions)."""
    group_bytes: int = 0
    """Bytes of the weights of all stages of the worker group."""
    stage: str = ""
    """Label of the stage, under which people look for the task; empty if its key says all."""
    model: str = ""
    """Name of the model that the stage is of."""
    trace: Carrier = ()
    """Context of the trace that the request belongs to; empty if nothing records it."""


class StageTask(Task):
    """A task that Dask's array optimisation does not fuse, so that each stage stays visible."""

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        """True: Dask leaves the task as it is."""
        return True


def hints_of(spec: Any) -> Iterator[Hints]:
    """Yield the hints of a task and of the tasks that Dask has fused into it."""
    for holder in _holders(spec):
        if isinstance(hints := getattr(holder, "hints", None), Hints):
            yield hints


def stage_tokens_of(spec: Any) -> Iterator[str]:
    """Yield the token of each stage that a task is known to run, fused ones included."""
    for holder in _holders(spec):
        call = getattr(holder, "call", holder)
        token = getattr(getattr(call, "stage", None), "token", None)
        if isinstance(token, str):
            yield token


def _holders(spec: Any) -> Iterator[Any]:
    """Yield what may hold hints or a stage, in a task and in those that are fused into it."""
    if not isinstance(spec, Task):
        return
    yield from (spec.func, *spec.args[:1], spec.kwargs.get("_func"))
    for argument in spec.args:
        if isinstance(argument, dict):  # the inner graph of a fused task
            for inner in argument.values():
                yield from _holders(inner)
        elif isinstance(argument, GraphNode):
            yield from _holders(argument)


AFTER = "after"
"""Name of a stage task's argument that refers to its barrier; its value is not used."""


def barrier_key_of(spec: Any) -> Key | None:
    """Return the key of the barrier that a stage's task waits for; None if there is none."""
    barrier = spec.kwargs.get(AFTER) if isinstance(spec, StageTask) else None
    return barrier.key if isinstance(barrier, TaskRef) else None


def block_number(key: Key) -> int | None:
    """Return the position along the rows of the block that a task computes; None if unknown."""
    places = [each for each in key[1:] if isinstance(each, int)] if isinstance(key, tuple) else []
    return sum(places) if places else None  # other axes have one block, 0


SUSPICION = "dask-onnx-deaths"
"""Name of the annotation with which the scheduler tells a task how many workers died that had it.
"""


def pass_barrier(*results: Any) -> None:
    """Return None once all `results` exist: the function of a barrier's task."""


def digest(*parts: Any) -> str:
    """Return a content digest of plain values and frozen records.

    Parameters
    ----------
    *parts
        Values whose ``repr`` depends on their content only. Not Dask's tasks, whose ``repr`` is no
        identity.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
