"""Advice from a profile: the changes that would save most, with what each is predicted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dask_onnx.core.formatting import format_bytes, format_seconds, printable
from dask_onnx.diagnostics.profiling.run_profile import CLIENT, RunProfile
from dask_onnx.diagnostics.profiling.time_shares import (
    DASK,
    IDLE,
    MODEL,
    OTHER_TASKS,
    READING,
    SESSIONS,
    TRANSFER,
    WAITING,
    WRITING,
    TimeShares,
)

_LEAST_SHARE = 0.02
"""Share of the time that advice must be predicted to save."""
_COUNT = 3
"""Number of changes that are told."""
_SLOW_ROOFLINE = 0.25
"""Share of the host's limit below which a kernel is called slow."""
_LONG_TASK_SECONDS = 0.1
"""Seconds of a task at which what Dask adds to it is small."""
_UNEVEN = 1.2
"""Seconds of the slowest stage, relative to their mean, from which on stages are uneven."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A change that is predicted to make a run faster."""

    what: str
    """The change, as an instruction."""
    why: str
    """Measured times and bytes."""
    seconds: float
    """Seconds of the wall time that it is predicted to save."""
    share: float
    """The same as a share of the wall time."""

    def __str__(self) -> str:
        gain = f"saves about {format_seconds(self.seconds)}, {self.share:.0%}"
        return f"{self.what} ({gain}): {self.why}"


def advice_on(profile: RunProfile, shares: TimeShares) -> tuple[Advice, ...]:
    """Return the changes that are predicted to save most time, the best first; three at most.

    A prediction assumes that the slots that the change frees have other work of the same run, so
    that seconds of slots count as so many seconds of the run divided by the number of slots.

    Parameters
    ----------
    profile : RunProfile
    shares : TimeShares
        Shares of the same profile.
    """
    found = [advice for rule in _RULES for advice in rule(profile, shares)]
    worth = [advice for advice in found if advice.share >= _LEAST_SHARE]
    return tuple(sorted(worth, key=lambda advice: -advice.seconds)[:_COUNT])


def _advice(profile: RunProfile, slot_seconds: float, what: str, why: str) -> Advice:
    share = slot_seconds / profile.slot_seconds if profile.slot_seconds else 0.0
    return Advice(what, why, share * profile.wall, share)


def _sessions(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    seconds = shares.seconds[SESSIONS]
    built = sum(
        phase.name == "session" and phase.own_seconds > 1e-3
        for task in profile.tasks
        for phase in task.phases
    )
    if built:
        yield _advice(
            profile,
            seconds,
            "run the model once before, or more rows on the same workers: sessions are then there",
            f"{built} sessions took {format_seconds(seconds)} to build",
        )


def _transfers(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    sizes: defaultdict[str, int] = defaultdict(int)
    times: defaultdict[str, float] = defaultdict(float)
    for each in profile.transfers:
        if each.receiver != CLIENT:
            sizes[each.stage] += each.wire_bytes or each.plain_bytes
            times[each.stage] += each.seconds
    if not times:
        return
    dearest = max(times, key=lambda stage: times[stage])
    part = shares.seconds[TRANSFER] * times[dearest] / sum(times.values())
    yield _advice(
        profile,
        part,
        f"keep what reads {printable(dearest)} on its worker: join the two stages, or place them "
        "together (dx.Placement)",
        f"its results are {format_bytes(sizes[dearest])} on the wire, and workers wait for them",
    )


def _uneven_stages(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    # A pipeline is as fast as the worker with the most work.
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in profile.tasks:
        if task.stage:
            seconds[task.label] += task.seconds
    if len(seconds) < 2:
        return
    busiest = max(seconds, key=lambda label: seconds[label])
    mean = sum(seconds.values()) / len(seconds)
    if seconds[busiest] > _UNEVEN * mean:
        part = min(shares.seconds[WAITING], shares.seconds[WAITING] * (1 - mean / seconds[busiest]))
        yield _advice(
            profile,
            part,
            f"cut stage {printable(busiest)} further, or let idle workers run it too "
            "(allow_other_workers=True)",
            f"it took {seconds[busiest] / sum(seconds.values()):.0%} of the time of all stages",
        )
    else:
        yield _advice(
            profile,
            shares.seconds[WAITING] / 2,
            "have more micro-batches, or more of them in flight (plan.with_schedule)",
            "workers wait for stages before theirs, although stages take about the same time",
        )


def _few_tasks(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    tasks = [task for task in profile.tasks if task.category == "model"]
    slots = profile.slots
    idle = shares.seconds[WAITING] + shares.seconds[IDLE]
    stages = {task.stage for task in tasks}
    if tasks and len(stages) == 1 and len(tasks) < 4 * slots:
        yield _advice(
            profile,
            idle * max(1 - len(tasks) / (4 * slots), 0.25),
            f"make smaller chunks: {4 * slots} or more for {slots} slots",
            f"{len(tasks)} tasks leave slots without work at the end",
        )


def _short_tasks(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    tasks = [task.seconds for task in profile.tasks if task.category == "model"]
    if not tasks:
        return
    middle = sorted(tasks)[len(tasks) // 2]
    if middle < _LONG_TASK_SECONDS:
        factor = min(_LONG_TASK_SECONDS / max(middle, 1e-4), len(tasks) / (2 * profile.slots))
        if factor > 1:
            yield _advice(
                profile,
                shares.seconds[DASK] * (1 - 1 / factor),
                f"give each task about {factor:.0f} times as many rows (larger chunks)",
                f"a task takes {format_seconds(middle)}, and Dask has work for each of them",
            )


def _files(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    for category, what in (
        (READING, "read less or faster: a columnar format, fewer columns, files near the workers"),
        (WRITING, "write less or faster: a binary format, larger blocks, a disk of its own"),
    ):
        seconds = shares.seconds[category]
        share = shares.share(category)
        yield _advice(profile, seconds / 2, what, f"{category} takes {share:.0%} of the time")


def _kernels(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    known = [node for node in profile.nodes if node.roofline]
    if not known:
        return
    slow = [node for node in known if node.roofline < _SLOW_ROOFLINE]
    if slow:
        node = max(slow, key=lambda each: each.seconds)
        whole = sum(each.seconds for each in profile.nodes)
        part = shares.seconds[MODEL] * node.seconds / whole if whole else 0.0
        yield _advice(
            profile,
            part * (1 - node.roofline / _SLOW_ROOFLINE),
            f"look at node {printable(node.name)} ({node.op_type}): its operator, layout and type",
            f"it reaches {node.roofline:.0%} of what the host can do, and takes "
            f"{node.seconds / whole:.0%} of the model's time",
        )


def _other_tasks(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in profile.tasks:
        if task.category == "other":
            seconds[task.name] += task.seconds
    if seconds:
        name = max(seconds, key=lambda each: seconds[each])
        part = shares.seconds[OTHER_TASKS] * seconds[name] / sum(seconds.values())
        yield _advice(
            profile,
            part / 2,
            f"make the tasks {printable(name)} faster, or put them into the model",
            f"they take {part / profile.slot_seconds:.0%} of the time" if part else "",
        )


def _stragglers(profile: RunProfile, shares: TimeShares) -> Iterator[Advice]:
    # A worker may take longer than others for the same stage.
    times: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task in profile.tasks:
        if task.stage and not task.error:
            times[task.label][task.worker].append(task.seconds_of("run") / (task.rows or 1))
    for label, by_worker in times.items():
        middles = {w: sorted(v)[len(v) // 2] for w, v in by_worker.items() if len(v) > 2}
        if len(middles) < 2:
            continue
        slowest = max(middles, key=lambda worker: middles[worker])
        best = min(middles.values())
        if best > 0 and middles[slowest] > 1.5 * best:
            own = sum(t.seconds for t in profile.tasks if (t.label, t.worker) == (label, slowest))
            yield _advice(
                profile,
                own * (1 - best / middles[slowest]),
                f"look at worker {slowest}: other work on its host, fewer cores, a slower clock",
                f"stage {printable(label)} takes {middles[slowest] / best:.1f} times as long there",
            )


_RULES = (
    *(_sessions, _transfers, _uneven_stages, _few_tasks, _short_tasks),
    *(_files, _kernels, _other_tasks, _stragglers),
)
"""Functions that look for one kind of waste each."""
