"""How Dask is told what our tasks may ask for: today, how often they are repeated.

Annotations do that for graphs that are ours alone. dask.array drops annotations when it optimises,
and fuses our tasks into others; so the scheduler is taught to read the wish off the task itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dask.task_spec import GraphNode, Task
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx import config

if TYPE_CHECKING:
    from distributed import Client, Scheduler

PLUGIN_NAME = "dask_onnx-retries"


def effective_retries(retries: int | None) -> int:
    """The caller's number, or ``dask_onnx.retries``."""
    return int(config.get("retries")) if retries is None else retries


class RetriesPlugin(SchedulerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Gives tasks that hold a dask_onnx callable the retries that it names."""

    name = PLUGIN_NAME
    idempotent = True

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is not None:
                wanted = max(wished_retries(state.run_spec), default=0)
                state.retries = max(state.retries, wanted)


def wished_retries(spec: Any) -> Iterator[int]:
    """Every number of retries that a task, or a task fused into it, carries."""
    if not isinstance(spec, Task):
        return
    for holder in (spec.func, *spec.args[:1]):
        wish = getattr(holder, "retries", None)
        if isinstance(wish, int):
            yield wish
    for argument in spec.args:
        if isinstance(argument, dict):
            for inner in argument.values():
                yield from wished_retries(inner)
        elif isinstance(argument, GraphNode):
            yield from wished_retries(argument)


def configure(client: Client) -> None:
    """Set a cluster up for dask_onnx: retries reach the tasks of lazy collections too.

    Call it once for a cluster that you did not start through dask_onnx; calling it again does
    nothing. The scheduler must be able to import dask_onnx.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.
    """
    client.register_plugin(RetriesPlugin(), name=PLUGIN_NAME)
