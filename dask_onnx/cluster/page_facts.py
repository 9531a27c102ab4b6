"""Facts for the dashboard's page on models, read off the scheduler: plain rows, no charts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dask_onnx.cluster.cluster_snapshot import (
    LinkActivity,
    StageActivity,
    WorkerActivity,
    snapshot_question,
)
from dask_onnx.cluster.link_bytes import LinkBytes
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME, is_barrier
from dask_onnx.core.stage_tasks import block_number

PAGE_NAME = "dask_onnx-page"
"""Name of the scheduler plugin that adds the page."""
WORKER_METRIC = "dask_onnx"
"""Name of what workers tell of themselves with each heartbeat."""
_WAITING = ("waiting", "queued", "no-worker")
_STREAM_SECONDS = 5.0
"""Seconds without news after which the client of a stream is taken to be gone."""
_MOST_FAILED = 100
"""Failed tasks that are shown."""
_MOST_TASKS = 50_000
"""Tasks of workers that are looked at to count micro-batches."""
_MOST_GROUPS = 5000
"""Groups of tasks whose dependencies are followed."""


class Failure(NamedTuple):
    """A task of a stage, or after one, that failed for good."""

    key: str
    stage: str
    worker: str
    """Address of the last worker that had it."""
    error: str
    """First line of the exception."""


@dataclass(frozen=True, slots=True)
class PageFacts:
    """State of a cluster's models at a moment."""

    time: float
    """Seconds since the epoch."""
    stages: tuple[StageActivity, ...]
    """Stages of models; other tasks are left out."""
    edges: frozenset[tuple[str, str]]
    """Names of stages, of which the second reads results of the first."""
    workers: tuple[WorkerActivity, ...]
    links: tuple[LinkActivity, ...]
    own: Mapping[str, Mapping[str, Any]]
    """Facts of each worker about its sessions and its store, by address."""
    sent: Mapping[tuple[str, str], LinkBytes]
    """Bytes that went over each link, by sender and receiver."""
    streams: tuple[Mapping[str, Any], ...]
    """Streams of all clients, the newest first: the fields of `StreamStatistics`, with their last
    dead letters (`core.stream_records`)."""
    transfer_seconds: Mapping[str, float]
    """Seconds that inputs of each stage's tasks were on their way."""
    in_flight: int
    """Micro-batches between their first stage and their last one."""
    failures: tuple[Failure, ...]
    seconds_left: float
    """Predicted seconds to the end of all tasks that are known, of models and others; 0 without
    any."""
    gone: tuple[tuple[float, str], ...]
    """Time at which each worker left that is not there any more, and its address; newest first."""


def page_facts(
    scheduler: Any,
    gone: Iterable[tuple[float, str]] = (),
    streams: Iterable[Mapping[str, Any]] = (),
) -> PageFacts:
    """Return what a scheduler's cluster does for models; must run in the scheduler's event loop.

    Parameters
    ----------
    scheduler : distributed.Scheduler
    gone : iterable of (float, str)
        Time at which each worker left, and its address.
    streams : iterable of mapping
        What clients have told last of each of their streams.
    """
    found = snapshot_question()(PLUGIN_NAME, dask_scheduler=scheduler)
    groups = tuple(StageActivity(**each) for each in found["stages"])
    stages = tuple(each for each in groups if each.model)
    workers = tuple(WorkerActivity(**each) for each in found["workers"])
    names = frozenset(each.name for each in stages)
    prefixes = scheduler.task_prefixes
    return PageFacts(
        time=time.time(),
        stages=stages,
        edges=stage_edges(scheduler.task_groups.values(), names),
        workers=workers,
        links=tuple(LinkActivity(*each) for each in found["links"]),
        own={
            state.address: state.metrics.get(WORKER_METRIC) or {}
            for state in scheduler.workers.values()
        },
        sent={(sender, to): moved for sender, to, moved in sent_over_links(scheduler)},
        streams=tuple(sorted(streams, key=lambda each: -each["started"])),
        transfer_seconds={
            name: prefixes[name].all_durations.get("transfer", 0.0) for name in names
        },
        in_flight=_in_flight(scheduler, names),
        failures=tuple(_failures(scheduler)),
        gone=tuple(sorted(gone, reverse=True)),
        seconds_left=seconds_left(groups, sum(worker.threads for worker in workers)),
    )


def sent_over_links(scheduler: Any) -> Iterator[tuple[str, str, LinkBytes]]:
    """Yield sender, receiver and bytes of each link, as workers told with their last heartbeats.

    Dask's scheduler fetches results for clients, so that it is a receiver too.
    """
    for state in scheduler.workers.values():
        own = state.metrics.get(WORKER_METRIC) or {}
        for receiver, moved in own.get("sent", {}).items():
            yield state.address, receiver, LinkBytes(*moved)


def tasks_left(stage: StageActivity) -> int:
    """Return the tasks of a stage that have not run."""
    # Those in state "released" have run, and their results are not needed any more.
    return tasks_waiting(stage) + stage.states.get("processing", 0)


def tasks_waiting(stage: StageActivity) -> int:
    """Return the tasks of a stage that wait for inputs or for a worker."""
    return sum(stage.states.get(kind, 0) for kind in _WAITING)


def seconds_left(stages: Iterable[StageActivity], threads: int) -> float:
    """Return the predicted seconds until all tasks of some stages have run.

    All threads are taken to be busy. A stage that has not run yet takes what its plan predicts.
    """
    work = sum(tasks_left(stage) * stage.seconds for stage in stages)
    return work / threads if threads else 0.0


def stage_edges(groups: Iterable[Any], names: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Return the edges among some names of groups of tasks, past all other groups."""
    found: set[tuple[str, str]] = set()
    known: dict[str, frozenset[str]] = {}
    for number, group in enumerate(list(groups)):
        if number >= _MOST_GROUPS:
            break
        if group.prefix.name in names:
            found |= {
                (source, group.prefix.name)
                for each in group.dependencies
                for source in _sources(each, names, known)
                if source != group.prefix.name
            }
    return frozenset(found)


def _sources(group: Any, names: frozenset[str], known: dict[str, frozenset[str]]) -> frozenset[str]:
    """Return the nearest of some names at or before a group."""
    if group.prefix.name in names:
        return frozenset({group.prefix.name})
    if group.name not in known:
        known[group.name] = frozenset()  # a circle of groups ends here
        reached: set[str] = set()
        pending, seen = [*group.dependencies], {group.name}
        while pending:
            each = pending.pop()
            if each.prefix.name in names:
                reached.add(each.prefix.name)
            elif each.name not in seen:
                seen.add(each.name)
                pending += each.dependencies
        known[group.name] = frozenset(reached)
    return known[group.name]


def _in_flight(scheduler: Any, names: frozenset[str]) -> int:
    """Return the number of micro-batches that a stage works on, or that a stage waits for."""
    found: set[tuple[str, int]] = set()
    looked = 0
    for worker in scheduler.workers.values():
        for state in (*worker.processing, *worker.has_what):
            looked += 1
            if looked > _MOST_TASKS:
                return len(found)
            if state.prefix.name not in names or is_barrier(state.run_spec):
                continue
            is_done = state.state == "memory" and not state.waiters
            number = block_number(state.key)
            if not is_done and number is not None:
                found.add((state.group.span_id or "", number))
    return len(found)


def _failures(scheduler: Any) -> Iterable[Failure]:
    """Yield the tasks that failed by themselves, the newest first; not those that depend on them.

    A failed task that nobody wants any more is forgotten by the scheduler too.
    """
    models = getattr(scheduler.plugins.get(PLUGIN_NAME), "models", {})
    failed = {name for name in models if _has_failed(scheduler.task_prefixes.get(name))}
    shown = 0
    for state in reversed(scheduler.tasks.values() if failed else ()):
        is_own = state.state == "erred" and state.exception_blame is state
        if is_own and state.prefix.name in failed and shown < _MOST_FAILED:
            shown += 1
            workers = sorted(map(str, state.erred_on or ()))
            text = (state.exception_text or "").partition("\n")[0]
            yield Failure(str(state.key), state.prefix.name, ", ".join(workers), text)


def _has_failed(prefix: Any) -> bool:
    return prefix is not None and prefix.states.get("erred", 0) > 0


def stream_state(stream: Mapping[str, Any], now: float) -> str:
    """Return "running", "ended", or "gone" for a stream whose client has not been heard of.

    Parameters
    ----------
    stream : mapping
        One of `PageFacts.streams`.
    now : float
        Seconds since the epoch, by the scheduler's clock.
    """
    if stream["ended"] is not None:
        return "ended"
    return "gone" if now - stream["told"] > _STREAM_SECONDS else "running"


def rates_of(now: PageFacts, before: PageFacts | None) -> dict[str, float]:
    """Return tasks per second by stage, from two moments; empty without an earlier one."""
    if before is None or now.time <= before.time:
        return {}
    past = {each.name: each.completed for each in before.stages}
    seconds = now.time - before.time
    return {
        each.name: max(each.completed - past.get(each.name, 0), 0) / seconds for each in now.stages
    }


def columns_of(edges: Iterable[tuple[str, str]], names: Iterable[str]) -> list[list[str]]:
    """Return names in columns, each to the right of all that it reads from.

    Circles are cut where they close.
    """
    before: defaultdict[str, set[str]] = defaultdict(set)
    for source, target in edges:
        before[target].add(source)
    depth: dict[str, int] = {}

    def place(first: str) -> None:
        pending = [(first, iter(sorted(before[first])))]
        open_names = {first}
        while pending:
            name, rest = pending[-1]
            following = next((e for e in rest if e not in depth and e not in open_names), None)
            if following is None:
                known = (depth[e] for e in before[name] if e in depth)
                depth[name] = 1 + max(known, default=-1)
                open_names.discard(name)
                pending.pop()
            else:
                open_names.add(following)
                pending.append((following, iter(sorted(before[following]))))

    order = list(names)
    for name in order:
        if name not in depth:
            place(name)
    columns: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name in order:
        columns[depth[name]].append(name)
    return columns
