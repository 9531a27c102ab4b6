"""Times of nodes inside stages, from a sample of a profile's tasks.

Recording keeps the inputs of a few tasks of each stage, chosen at random. When the profile ends
they run again on a session that times its kernels, so that nothing is slower while it records. A
profile of all nodes has such sessions from the start (`kernel_timing`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask_onnx.core.dask_internals import running_task_key
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.meters import recording_of, recordings_of
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.kernel_fusions import Fusions
from dask_onnx.runtime.kernel_timing import TimedSession, take_inline
from dask_onnx.runtime.onnxruntime_internals import KernelCall
from dask_onnx.runtime.row_runs import Computed, compute_rows
from dask_onnx.runtime.run_costs import RunCosts
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_sessions import stage_proto

_KEPT_TASKS = 2
"""Tasks of a stage that a recording keeps."""
_MAX_REPEATS, _REPLAY_SECONDS = 15, 1.0
"""Number of times that kept tasks of a stage run again, and seconds of its thread's CPU time after
which they do not once more: under load a thread gets few of the seconds that pass."""
_STAGE_SECONDS, _ALL_SECONDS = 3.0, 15.0
"""Seconds after which the tasks of a stage, and of all stages together, do not run once more."""
_MAD_SIGMA = 1.4826
"""Standard deviation of a normal distribution, divided by its median absolute deviation."""
_KEPT_BYTES = 64 * 2**20
"""Bytes of the inputs of all tasks that a recording keeps."""


@dataclass(frozen=True, slots=True)
class KeptTask:
    """Task whose inputs are kept."""

    call: StageCall
    values: Sequence[Any]
    """Inputs of the stage."""
    rows: int
    """Rows of its runs; 1 where no input has rows."""
    sizes: tuple[int, ...]
    """Rows of each run, where the task chose them itself."""
    threads: int
    """Threads that its runs could use."""
    nbytes: int
    """Bytes of the inputs."""


@dataclass(frozen=True, slots=True)
class SampledNode:
    """One kernel of a stage in the sampled tasks, all calls together."""

    node: int | None
    """Position in the weightless proto; None for a kernel that ORT has added."""
    name: str
    """Name in the model; ORT's own for a kernel that it has added."""
    op_type: str
    """Operator as it ran, such as "FusedConv"."""
    calls: int
    """Number of calls."""
    seconds: float
    """Seconds of all calls."""
    moved_bytes: int
    """Bytes of weights, inputs and outputs of all calls."""
    flops: int
    """Operations of all calls; 0 where they are not known."""
    error: float
    """Standard error of the seconds, relative to them; infinite below three calls with the same
    data."""


@dataclass(frozen=True, slots=True)
class SampledStage:
    """Kernels of a stage in the sampled tasks."""

    token: str
    """Token of the stage."""
    tasks: int
    """Number of tasks in the sample; 0 for all of them."""
    rows: int
    """Rows of these tasks; one for each task where no input has rows. 0 for all."""
    repeats: int
    """Number of times that each of them ran."""
    seconds: float
    """Seconds of all these runs, as long as those of `nodes`."""
    predicted_seconds: float | None
    """The same on one thread as predicted for their shapes; None where these are not known."""
    nodes: tuple[SampledNode, ...]


def keep_sample(
    call: StageCall, values: Sequence[Any], computed: Computed, rows: int | None
) -> None:
    """Keep a task's inputs in the recordings that sample nodes, if it is chosen.

    Each task of a stage has the same chance (Vitter's reservoir, 1985).

    Parameters
    ----------
    call : StageCall
        Call of the stage.
    values : sequence of ndarray or MicroBatches
        Inputs of the stage.
    computed : Computed
        Result of its runs.
    rows : int or None
        Rows of its runs.
    """
    owner, _ = running_task_key()
    for recording in recordings_of(owner):
        if recording.nodes == "none":
            continue
        token = call.stage.token
        kept = recording.samples.setdefault(token, [])
        seen = recording.seen[token] = recording.seen.get(token, 0) + 1
        place = len(kept) if len(kept) < _KEPT_TASKS else recording.chance.randrange(seen)
        if place >= _KEPT_TASKS:
            continue
        nbytes = sum(map(_bytes, values))
        task = KeptTask(call, tuple(values), rows or 1, computed.sizes, computed.threads, nbytes)
        held = sum(each.nbytes for tasks in recording.samples.values() for each in tasks)
        if place < len(kept):
            if held - kept[place].nbytes + task.nbytes <= _KEPT_BYTES:
                kept[place] = task
        elif held + task.nbytes <= _KEPT_BYTES:
            kept.append(task)


def _bytes(value: Any) -> int:
    pieces = value.pieces if isinstance(value, MicroBatches) else (value,)
    return sum(int(getattr(piece, "nbytes", 0)) for piece in pieces)


def replay_samples(profile: str, owner: str, tokens: Sequence[str]) -> list[SampledStage]:
    """Run the kept tasks of some stages again, and return the times of their kernels.

    For a profile of all nodes nothing runs: the times are those of the tasks themselves.

    Parameters
    ----------
    profile : str
        Identifier of the profile.
    owner : str
        Address of the worker; empty for this process outside workers.
    tokens : sequence of str
        Tokens of the stages.

    Returns
    -------
    list of SampledStage
        Stages that were not sampled here, or cannot run again, are missing.
    """
    recording = recording_of(profile, owner)
    if recording is None:
        return []
    found = []
    inline = {each.stage.token: each for each in take_inline(profile, owner)}
    for token in tokens:
        kept: list[KeptTask] = list(recording.samples.get(token, ()))
        try:
            if token in inline:
                timed = inline[token]
                calls = timed.finish()
                found.append(_summary(kept, timed, calls, 0))
            elif kept:
                share = _ALL_SECONDS / len(tokens)
                found.append(_replayed(kept, min(_STAGE_SECONDS, share)))
        except DaskOnnxError:  # the tasks themselves ran; their nodes stay untimed
            continue
    return found


def _replayed(kept: Sequence[KeptTask], most_seconds: float) -> SampledStage:
    # Dask's threads share the cores among them; the thread of a replay may have them all.
    spec = replace(kept[0].call.options.session, intra_op_num_threads=kept[0].threads)
    timed = TimedSession(kept[0].call.stage, spec)
    repeats = 0
    try:
        warm_runs = _warm_up(timed, kept)
        timed.seconds = 0.0
        began, used = time.perf_counter(), time.thread_time()
        is_over = False
        while not is_over:
            for task in kept:
                _run_again(timed, task)
            repeats += 1
            is_over = (
                repeats >= _MAX_REPEATS
                or time.thread_time() - used >= min(_REPLAY_SECONDS, most_seconds)
                or time.perf_counter() - began >= most_seconds
            )
    except BaseException:
        timed.finish()
        raise
    calls = [each for each in timed.finish() if each.run >= warm_runs]
    return _summary(kept, timed, calls, repeats, warm_runs)


def _warm_up(timed: TimedSession, kept: Iterable[KeptTask]) -> int:
    """Run one task of each number of rows, and return the number of runs.

    The first run of a shape plans its memory, and gets it from the operating system.
    """
    for task in {task.rows: task for task in kept}.values():
        _run_again(timed, task)
    return timed.runs


def _run_again(timed: TimedSession, task: KeptTask) -> None:
    compute_rows(task.call, task.call.stage, task.values, session=timed, sizes=task.sizes)


def _summary(
    kept: Sequence[KeptTask],
    timed: TimedSession,
    calls: Sequence[KernelCall],
    repeats: int,
    warm_runs: int = 0,
) -> SampledStage:
    """Return the times of kernels by node.

    Parameters
    ----------
    kept : sequence of KeptTask
        Tasks of the sample.
    timed : TimedSession
        Session that ran them.
    calls : sequence of KernelCall
        Calls that count.
    repeats : int
        Number of times that it ran each task; 0 if it ran all tasks as they came.
    warm_runs : int
        Number of its first runs, in each thread, that do not count.
    """
    stage = timed.stage
    proto = stage_proto(stage)
    costs = RunCosts(stage, proto)
    names = {} if proto is None else dict(zip(stage.indices, proto.graph.node, strict=True))
    fusions = Fusions(names)
    runs = [shapes for own in timed.shapes.values() for shapes in own[warm_runs:]]
    costs.count(runs)
    # Where memory was short in some repeats, runs differ.
    period = len(runs) // repeats if repeats and not len(runs) % repeats else 0
    by_kernel: defaultdict[tuple[tuple[int, ...], str, str], list[KernelCall]] = defaultdict(list)
    for call in calls:
        members = fusions.members(call)
        by_kernel[members, "" if members else call.name, call.op_type].append(call)
    nodes = [
        SampledNode(
            node=members[0] if members else None,
            name=names[members[0]].name if members and members[0] in names else name,
            op_type=op_type,
            calls=len(own),
            seconds=_total(own, period) if period else sum(call.seconds for call in own),
            moved_bytes=sum(call.moved_bytes for call in own),
            flops=costs.flops(members, own, timed),
            error=_relative_error(own, period),
        )
        for (members, name, op_type), own in by_kernel.items()
    ]
    return SampledStage(
        stage.token,
        len(kept) if repeats else 0,
        sum(task.rows for task in kept) if repeats else 0,
        repeats or 1,
        _of_kernels(timed.seconds, calls, nodes),
        costs.seconds(runs),
        tuple(sorted(nodes, key=lambda node: -node.seconds)),
    )


def _of_kernels(seconds: float, calls: Sequence[KernelCall], nodes: Sequence[SampledNode]) -> float:
    """Return the seconds of runs, less the time for which other work has stopped their kernels."""
    as_run = sum(call.seconds for call in calls)
    return seconds * sum(node.seconds for node in nodes) / as_run if as_run else seconds


def _of_equal_work(calls: Iterable[KernelCall], runs_of_repeat: int) -> list[list[float]]:
    """Return the seconds of calls of one kernel, those with the same data together.

    Parameters
    ----------
    calls : iterable of KernelCall
        Calls in their order.
    runs_of_repeat : int
        Number of runs after which the same data come again; 0 if they do not: then those that move
        as many bytes are together.
    """
    found: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    in_run: Counter[int] = Counter()
    for call in calls:
        in_run[call.run] += 1  # a body is called for each iteration
        if runs_of_repeat:
            place = call.run % runs_of_repeat, in_run[call.run]
        else:
            place = call.moved_bytes, 0
        found[place].append(call.seconds)
    return list(found.values())


def _total(calls: Iterable[KernelCall], runs_of_repeat: int) -> float:
    """Return the seconds of repeated calls of one kernel, by the fastest of those with equal data.

    Other work on the host stops kernels. It nearly always stops those that take longer than the
    host's scheduler gives at a time, and rarely others, so that under load shares of medians are
    those of the longest kernels: 70 % instead of 30 % of PP-OCR's detector, at a load of 25 on two
    cores. The fastest calls have the shares of an idle host.
    """
    return sum(min(own) * len(own) for own in _of_equal_work(calls, runs_of_repeat))


def _relative_error(calls: Iterable[KernelCall], runs_of_repeat: int) -> float:
    """Return the standard error of the seconds of all calls of a kernel, relative to them.

    By the deviation of those with equal data from their median; infinite where none of these are
    three or more.
    """
    variance = total = 0.0
    is_known = False
    for own in _of_equal_work(calls, runs_of_repeat):
        middle = statistics.median(own)
        total += middle * len(own)
        if len(own) >= 3:
            is_known = True
            deviation = _MAD_SIGMA * statistics.median(abs(value - middle) for value in own)
            variance += math.pi / 2 * deviation**2 * len(own)
    return math.sqrt(variance) / total if is_known and total else math.inf
