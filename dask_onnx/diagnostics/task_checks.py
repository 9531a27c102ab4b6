"""Checks of a cluster's tasks: what waits, for what, and what takes longer than expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask_onnx.cluster.cluster_probe import ClusterAnswers
from dask_onnx.core.formatting import format_count, format_seconds
from dask_onnx.diagnostics.findings import Finding

_STRAGGLER_FACTOR, _STRAGGLER_SECONDS = 5.0, 5.0
"""A task is a straggler if it has run so many times as long as others of its name, and so long."""
_MOST_SHOWN = 5
"""Tasks of one kind that are listed."""


def check_tasks(answers: ClusterAnswers) -> Iterator[Finding]:
    """Yield tasks that no worker may run, that failed, that wait without end, and stragglers."""
    if answers.scheduler is None or answers.scheduler.error:
        return
    details = answers.scheduler.details
    states: Mapping[str, int] = details["states"]
    found = [*_unrunnable(details), *_erred(details), *_stuck(details), *_stragglers(details)]
    yield from found
    if not found:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        yield Finding("ok", "tasks", "", counts or "none", "", dict(states))


def _unrunnable(details: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield tasks in state "no-worker"."""
    total = details["states"].get("no-worker", 0)
    for key, wants in details["no_worker"][:_MOST_SHOWN]:
        cause, step = _why_unrunnable(wants, details["workers"])
        yield Finding("broken", "tasks", key, f"no worker may run it: {cause}", step)
    yield from _more(total, "tasks that no worker may run")


def _why_unrunnable(wants: Mapping[str, Any], workers: Mapping[str, Any]) -> tuple[str, str]:
    if not workers:
        return "there are no workers", "start some"
    gone = [each for each in wants["workers"] if each not in workers]
    if gone:
        cause = f"it is bound to {', '.join(gone[:3])}, which is gone"
        return cause, "bring the worker back, or cancel the task; a placement moves after 10 s"
    idle = [each for each in wants["workers"] if workers[each]["status"] != "running"]
    if idle:
        return f"it is bound to {', '.join(idle[:3])}, which takes no tasks", "see that worker"
    if wants["resources"]:
        need = ", ".join(f"{name}={amount:g}" for name, amount in wants["resources"].items())
        return f"it needs {need}", "start a worker with --resources, or leave resources= out"
    if wants["hosts"]:
        return f"it is bound to the hosts {', '.join(wants['hosts'][:3])}", "start a worker there"
    stopped = [address for address, worker in workers.items() if worker["status"] != "running"]
    if len(stopped) == len(workers):
        return "no worker takes tasks", "see the workers above"
    return "no worker fits", "see the workers above"


def _erred(details: Mapping[str, Any]) -> Iterator[Finding]:
    for key, text in details["erred"][:_MOST_SHOWN]:
        step = "its result has the traceback: future.result()"
        yield Finding("note", "tasks", key, f"failed: {text.strip() or 'no text'}", step)
    yield from _more(details["states"].get("erred", 0), "failed tasks", "note")


def _stuck(details: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield tasks that wait while nothing runs, and that would therefore wait for ever."""
    states = details["states"]
    waiting = states.get("waiting", 0)
    is_moving = states.get("processing", 0) or states.get("queued", 0)
    if not waiting or is_moving:
        return
    for key, on in details["waiting"][:_MOST_SHOWN]:
        others = ", ".join(f"{other} ({state})" for other, state in on) or "nothing that is left"
        step = "cancel and submit again; what it waits for is named first in this list"
        yield Finding("broken", "tasks", key, f"waits for {others}, and nothing runs", step)
    yield from _more(waiting, "waiting tasks")


def _stragglers(details: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield tasks that have run much longer than others of their name."""
    found: list[tuple[float, str, str, float]] = []
    for address, worker in details["workers"].items():
        for key, (name, seconds) in worker["running"].items():
            expected = details["expected"].get(name)
            is_long = expected is not None and seconds > _STRAGGLER_FACTOR * expected
            if expected is not None and is_long and seconds > _STRAGGLER_SECONDS:
                found.append((seconds, key, address, expected))
    for seconds, key, address, expected in sorted(found, reverse=True)[:_MOST_SHOWN]:
        yield Finding(
            "note",
            "stragglers",
            key,
            f"has run for {format_seconds(seconds)} on {address}; others of its name take "
            f"{format_seconds(expected)}",
            "client.call_stack(keys=[...]) shows where it is",
            {"seconds": seconds, "expected_seconds": expected},
        )
    yield from _more(len(found), "stragglers", "note")


def _more(total: int, what: str, level: str = "broken") -> Sequence[Finding]:
    left = total - _MOST_SHOWN
    if left <= 0:
        return ()
    cause = f"{format_count(left, 'more', '')} {what}"
    return (Finding("note" if level == "note" else "broken", "tasks", "", cause),)
