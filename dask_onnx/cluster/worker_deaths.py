"""Tasks that were on workers that died: what the next worker is told, and when to give up.

Dask gives a task up after a number of deaths (``distributed.scheduler.allowed-failures``) of
workers that had it, whether it ran there or waited. A task of ours that ran is repeated in a
subprocess (`runtime.guarded_runs`), so it ends no second worker; one that waited is innocent. So of
graphs with our tasks only those tasks are given up that are likely to have run at so many deaths,
and with an error of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask.task_spec import Alias, DataNode, Task
from distributed import KilledWorker

from dask_onnx.core.dask_internals import annotate, count_deaths_from, replace_task
from dask_onnx.core.errors import StageError, Suggestion
from dask_onnx.core.stage_tasks import SUSPICION, Key, block_number

if TYPE_CHECKING:
    from distributed import Scheduler

_MOST_DEATHS = 16
"""Deaths after which a task is given up in any case, for each that Dask allows."""
_SPARE = 8
"""Deaths for which a task that only raises an error is repeated."""


@dataclass(slots=True)
class WatchedTask:
    """Deaths of workers that had a task."""

    allowed: int
    """Deaths of workers that ran it after which the next one is the last."""
    first_count: int
    """Dask's count of deaths before the first one."""
    is_stage: bool
    """True if the task runs a stage."""
    deaths: int = 0
    """Workers that died while they had it."""
    strikes: int = 0
    """Those of them that are likely to have run it."""


@dataclass(slots=True)
class WorkerDeaths:
    """Tasks of our graphs, and what they were before they were given up."""

    watched: dict[Key, WatchedTask] = field(default_factory=dict)
    """Tasks of graphs that have stages."""
    given_up: dict[Key, tuple[Any, int]] = field(default_factory=dict)
    """Original computation and retries of a task that was given up."""
    threads: dict[str, int] = field(default_factory=dict)
    """Threads of each worker, by address."""
    _released: list[Any] = field(default_factory=list)
    """Tasks of the worker that has just died."""

    def watch(self, scheduler: Scheduler, states: Iterable[Any], stages: set[Key]) -> None:
        """Watch the tasks of a graph.

        Parameters
        ----------
        scheduler : Scheduler
        states : iterable of TaskState
            Tasks of the graph.
        stages : set of key
            Those of them that run stages.
        """
        allowed = scheduler.allowed_failures
        first = allowed - _MOST_DEATHS * (allowed + 1) - _SPARE
        for state in states:
            if state.key not in self.watched:
                self.watched[state.key] = WatchedTask(allowed, first, state.key in stages)
                count_deaths_from(state, first)

    def released(self, state: Any) -> None:
        """Tell the next worker that others died that had a task; give the task up in the end."""
        known = self.watched.get(state.key)
        deaths = 0 if known is None else state.suspicious - known.first_count
        if known is None or deaths == known.deaths:
            return  # stolen, or its worker has retired
        known.deaths = deaths
        self._released.append(state)
        if known.is_stage:
            annotate(state, SUSPICION, deaths)
        is_over = known.strikes >= known.allowed or deaths >= _MOST_DEATHS * (known.allowed + 1)
        if is_over and state.key not in self.given_up:
            self.given_up[state.key] = state.run_spec, state.retries
            workers = known.strikes + 1 if known.strikes >= known.allowed else deaths
            error = deaths_error(state.prefix.name, state.key, workers)
            replace_task(state, Task(state.key, raise_error, error), retries=0)

    def removed(self, worker: str) -> None:
        """Note which tasks a worker that died is likely to have run: the first by priority."""
        threads = self.threads.pop(worker, 1)
        # Aliases take no time: the scheduler has only not heard yet that they are done.
        working = [s for s in self._released if not isinstance(s.run_spec, Alias | DataNode)]
        working.sort(key=lambda state: state.priority)
        for state in working[:threads]:
            if (known := self.watched.get(state.key)) is not None:
                known.strikes += 1
        self._released.clear()

    def ended(self, state: Any) -> None:
        """Restore a task that was given up, so that it can be tried again."""
        spec = self.given_up.pop(state.key, None)
        if spec is not None:
            replace_task(state, spec[0], retries=spec[1])
            known = self.watched[state.key]
            count_deaths_from(state, known.first_count)
            known.deaths = known.strikes = 0
            annotate(state, SUSPICION, 0)

    def forget(self, key: Key) -> None:
        """Forget a task that the scheduler has forgotten."""
        self.watched.pop(key, None)
        self.given_up.pop(key, None)


def raise_error(error: Exception) -> None:
    """Raise an error: what a task does that was given up."""
    raise error


def deaths_error(
    label: str, key: Key, workers: int, suggestions: Sequence[Suggestion] = ()
) -> StageError:
    """Return the error about a task that is given up since workers that had it died.

    Parameters
    ----------
    label : str
        Name of the task's kind, as on the dashboard.
    key : Key
        Dask's key.
    workers : int
        Workers that died.
    suggestions : sequence of Suggestion
        Options that reduce the memory of a task.
    """
    block = block_number(key)
    numbers: dict[str, float] = {"workers": workers}
    numbers |= {} if block is None else {"block": block}
    names = " or ".join(each.option for each in suggestions) or "the size of chunks"
    return StageError(
        f"{workers} workers died while they had task {label}"
        f"{'' if block is None else f' of block {block:,}'}",
        f"their logs tell why; if memory was short, change {names} or give each worker more; if "
        "code of yours in the same task crashed, run it by itself",
        stage=label,
        numbers=numbers,
        suggestions=suggestions,
    )


def killed_worker_error(error: KilledWorker, suggestions: Sequence[Suggestion] = ()) -> StageError:
    """Return Dask's error about a task that was given up as an error of ours.

    Parameters
    ----------
    error : KilledWorker
    suggestions : sequence of Suggestion
        Options that reduce the memory of a task.
    """
    key = error.task
    name = key[0] if isinstance(key, tuple) else key
    label = str(name).rpartition("-")[0] or str(name)
    return deaths_error(label, key, error.allowed_failures + 1, suggestions)
