"""View of a cluster at work for a terminal: models with their stages, workers and links."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dask_onnx.cluster.cluster_snapshot import (
    LinkActivity,
    Snapshot,
    StageActivity,
    WorkerActivity,
)
from dask_onnx.cluster.page_facts import tasks_left, tasks_waiting
from dask_onnx.core.dashboard_internals import colour_of
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds, printable
from dask_onnx.core.lettering import shorten_label

_NAME_CHARACTERS = 32
_MOST_STAGES, _MOST_WORKERS, _MOST_LINKS = 30, 24, 12
_MOST_MEMORY_SHARE = 0.8


def render_snapshot(now: Snapshot, before: Snapshot | None = None) -> Group:
    """Return what a terminal shows of a cluster.

    Parameters
    ----------
    now : Snapshot
    before : Snapshot, optional
        An earlier snapshot, for rates; without one they are left open.

    Returns
    -------
    rich.console.Group
        A headline and a table each of stages, workers and links.
    """
    rates = _rates(now, before)
    parts: list[RenderableType] = [_headline(now, rates)]
    parts += [_stage_table(now.stages, rates), _worker_table(now.workers)]
    if now.links:
        parts.append(_link_table(now.links))
    return Group(*parts)


def _rates(now: Snapshot, before: Snapshot | None) -> dict[str, float]:
    """Return tasks per second by name, from two snapshots."""
    if before is None or now.time <= before.time:
        return {}
    past = {each.name: each.completed for each in before.stages}
    seconds = now.time - before.time
    return {
        each.name: max(each.completed - past.get(each.name, 0), 0) / seconds for each in now.stages
    }


def _headline(now: Snapshot, rates: Mapping[str, float]) -> Text:
    counts = {
        kind: sum(each.states.get(kind, 0) for each in now.stages)
        for kind in ("processing", "memory", "erred")
    }
    waiting = sum(map(tasks_waiting, now.stages))
    threads = sum(worker.threads for worker in now.workers)
    clock = time.strftime("%H:%M:%S", time.localtime(now.time))
    parts = [
        now.address,
        clock,
        f"{format_count(len(now.workers), 'worker')}, {format_count(threads, 'thread')}",
        f"{counts['processing']:,} processing, {waiting:,} waiting, {counts['memory']:,} in memory",
    ]
    if counts["erred"]:
        parts.append(f"{counts['erred']:,} failed")
    end = seconds_left(now, rates)
    if end is not None:
        parts.append(f"about {format_seconds(end)} left")
    return Text("  ".join(map(printable, parts)), style="bold")


def seconds_left(now: Snapshot, rates: Mapping[str, float]) -> float | None:
    """Return the predicted seconds to the end of all tasks; None where nothing is known.

    The slowest of the stages at their present rates; those that have not begun are left out.
    """
    found = [
        tasks_left(each) / rates[each.name]
        for each in now.stages
        if tasks_left(each) and rates.get(each.name)
    ]
    return max(found, default=None)


def _stage_table(stages: Sequence[StageActivity], rates: Mapping[str, float]) -> Table:
    table = _table("model", "stage", "run", "wait", "done", "failed", "rate", "a task", "results")
    active = [each for each in stages if each.states or each.completed]
    order = sorted(
        active, key=lambda each: (not each.model, each.model, -tasks_left(each), each.name)
    )
    last = None
    for each in order[:_MOST_STAGES]:
        rate = rates.get(each.name)
        table.add_row(
            Text(_short(each.model) if each.model != last else ""),
            Text(_short(each.name), style=colour_of(each.name)),
            f"{each.states.get('processing', 0):,}",
            f"{tasks_waiting(each):,}",
            f"{each.completed:,}",
            Text(f"{each.states.get('erred', 0):,}", style="red" if _has_failed(each) else ""),
            "" if rate is None else f"{rate:,.1f}/s",
            format_seconds(each.seconds) if each.seconds else "",
            format_bytes(each.bytes),
        )
        last = each.model
    _add_rest(table, len(order) - _MOST_STAGES, "names", 9)
    return table


def _has_failed(each: StageActivity) -> bool:
    return each.states.get("erred", 0) > 0


def _worker_table(workers: Sequence[WorkerActivity]) -> Table:
    table = _table(
        "worker", "status", "run", "queue", "cpu", "memory", "spilled", "in", "out", "at work on"
    )
    for each in workers[:_MOST_WORKERS]:
        is_full = each.memory_limit and each.memory > _MOST_MEMORY_SHARE * each.memory_limit
        limit = f" / {format_bytes(each.memory_limit)}" if each.memory_limit else ""
        table.add_row(
            Text(printable(each.address)),
            Text(each.status, style="" if each.status == "running" else "red"),
            f"{len(each.running)}/{each.threads}",
            f"{max(each.processing - len(each.running), 0):,}",
            f"{each.cpu:.0f}%",
            Text(f"{format_bytes(each.memory)}{limit}", style="red" if is_full else ""),
            format_bytes(each.spilled) if each.spilled else "",
            f"{format_bytes(each.read_rate)}/s",
            f"{format_bytes(each.write_rate)}/s",
            _names(each.running),
        )
    _add_rest(table, len(workers) - _MOST_WORKERS, "workers", 10)
    return table


def _names(running: Iterable[str]) -> Text:
    found = Text()
    for name in dict.fromkeys(running):
        found.append(", " if found else "")
        found.append(_short(name), style=colour_of(name))
    return found


def _link_table(links: Sequence[LinkActivity]) -> Table:
    table = _table("from", "to", "MiB/s")
    order = sorted(links, key=lambda each: each.rate)
    for each in order[:_MOST_LINKS]:
        sender, receiver = Text(printable(each.sender)), Text(printable(each.receiver))
        table.add_row(sender, receiver, f"{each.rate / 2**20:,.1f}")
    _add_rest(table, len(order) - _MOST_LINKS, "faster links", 3)
    return table


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=False, pad_edge=False)
    for head in heads:
        is_text = head in ("model", "stage", "worker", "status", "at work on", "from", "to")
        table.add_column(head, justify="left" if is_text else "right", no_wrap=is_text)
    return table


def _add_rest(table: Table, count: int, noun: str, columns: int) -> None:
    if count > 0:
        table.add_row(f"and {count:,} more {noun}", *[""] * (columns - 1))


def _short(name: str) -> str:
    return shorten_label(printable(name), _NAME_CHARACTERS * 0.6, 1)
