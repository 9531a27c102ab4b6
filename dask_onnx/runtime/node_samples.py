"""Times of nodes inside stages, from a sample of a profile's tasks.

Recording keeps the inputs of a few tasks of each stage, chosen at random. When the profile ends
they run again on a session that times its kernels, so that nothing is slower while it records. A
profile of all nodes has such sessions from the start (`kernel_timing`).
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.dask_internals import running_task_key
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.meters import recording_of, recordings_of
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.calibration import saved_calibration
from dask_onnx.runtime.kernel_timing import TimedSession, take_inline
from dask_onnx.runtime.onnxruntime_internals import KernelCall, contrib_schemas
from dask_onnx.runtime.row_runs import Computed, compute_rows
from dask_onnx.runtime.stage_calls import StageCall
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.runtime.stage_sessions import stage_proto

_REPLACED = re.compile(r"(_nchwc|_fused|/\w+Fusion/?)+$")
"""Endings of the names of nodes that ORT has put in the place of others."""
_MAX_FUSED = 4
"""Nodes that ORT puts into one, among those that are named after the last."""
_KEPT_TASKS = 2
"""Tasks of a stage that a recording keeps."""
_MAX_REPEATS, _REPLAY_SECONDS = 10, 2.0
"""Number of times that kept tasks run again, and seconds after which they do not once more."""
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
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs of one run."""
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
    """Standard error of the mean seconds of a call, relative to it; infinite below three calls."""


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


def keep_sample(call: StageCall, values: Sequence[Any], computed: Computed) -> None:
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
        task = _kept(call, values, computed)
        held = sum(each.nbytes for tasks in recording.samples.values() for each in tasks)
        if place < len(kept):
            if held - kept[place].nbytes + task.nbytes <= _KEPT_BYTES:
                kept[place] = task
        elif held + task.nbytes <= _KEPT_BYTES:
            kept.append(task)


def _kept(call: StageCall, values: Sequence[Any], computed: Computed) -> KeptTask:
    size = sum(_bytes(value) for value in values)
    rows = computed.split.rows or 1
    per_run = math.ceil(rows / max(len(computed.results), 1))
    shapes = []
    for value, axis in zip(values, call.row_axes, strict=True):
        shape = list(_shape(value))
        if axis is not None and not isinstance(value, MicroBatches) and shape:
            shape[axis] = min(per_run, shape[axis])
        shapes.append(tuple(shape))
    return KeptTask(call, tuple(values), rows, tuple(shapes), size)


def _shape(value: Any) -> tuple[int, ...]:
    first = value.pieces[0] if isinstance(value, MicroBatches) else value
    return tuple(getattr(first, "shape", ()))


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
                found.append(_summary(timed.stage, kept, timed, calls, timed.runs, 0))
            elif kept:
                found.append(_replayed(kept))
        except DaskOnnxError:  # the tasks themselves ran; their nodes stay untimed
            continue
    return found


def _replayed(kept: Sequence[KeptTask]) -> SampledStage:
    call = kept[0].call
    timed = TimedSession(call.stage, call.options.session)
    repeats = 0
    try:
        compute_rows(kept[0].call, call.stage, kept[0].values, session=timed)  # warms up
        warm_runs = timed.runs
        timed.seconds = 0.0
        while repeats == 0 or (repeats < _MAX_REPEATS and timed.seconds < _REPLAY_SECONDS):
            for task in kept:
                compute_rows(task.call, call.stage, task.values, session=timed)
            repeats += 1
    except BaseException:
        timed.finish()
        raise
    calls = [each for each in timed.finish() if each.run >= warm_runs]
    return _summary(call.stage, kept, timed, calls, timed.runs - warm_runs, repeats)


def _summary(
    stage: StageRef,
    kept: Sequence[KeptTask],
    timed: TimedSession,
    calls: Iterable[KernelCall],
    runs: int,
    repeats: int,
) -> SampledStage:
    """Return the times of kernels by node.

    Parameters
    ----------
    stage : StageRef
    kept : sequence of KeptTask
        Tasks of the sample.
    timed : TimedSession
        Session that ran them.
    calls : iterable of KernelCall
    runs : int
        Number of its runs.
    repeats : int
        Number of times that it ran each task; 0 if it ran all tasks as they came.
    """
    proto = stage_proto(stage)
    costs = _costs(stage, proto, kept)
    names = {} if proto is None else dict(zip(stage.indices, proto.graph.node, strict=True))
    fusions = _Fusions(names)
    calls = list(calls)
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
            seconds=_total([call.seconds for call in own], is_robust=repeats > 0),
            moved_bytes=sum(call.moved_bytes for call in own),
            flops=sum(costs[index].flops for index in members if index in costs) * len(own),
            error=_relative_error([call.seconds for call in own]),
        )
        for (members, name, op_type), own in by_kernel.items()
    ]
    table = saved_calibration() or CostTable()
    predicted = sum(table.seconds(cost, stage.kernel) for cost in costs.values()) * runs
    return SampledStage(
        stage.token,
        len(kept) if repeats else 0,
        sum(task.rows for task in kept) if repeats else 0,
        repeats or 1,
        _of_kernels(timed.seconds, calls, nodes),
        predicted if costs else None,
        tuple(sorted(nodes, key=lambda node: -node.seconds)),
    )


def _of_kernels(seconds: float, calls: Sequence[KernelCall], nodes: Sequence[SampledNode]) -> float:
    """Return the seconds of runs, less the time for which other work has stopped their kernels."""
    as_run = sum(call.seconds for call in calls)
    return seconds * sum(node.seconds for node in nodes) / as_run if as_run else seconds


def _total(seconds: Sequence[float], *, is_robust: bool) -> float:
    """Return the seconds of all calls; by their lower quartile where the same calls were repeated.

    Other work on the host stops calls, some of them for longer than they take.
    """
    if not is_robust:
        return sum(seconds)
    return sorted(seconds)[(len(seconds) - 1) // 4] * len(seconds)


def _relative_error(seconds: Sequence[float]) -> float:
    """Return the standard error of the median of some calls, relative to it."""
    if len(seconds) < 3 or not any(seconds):
        return math.inf
    middle = statistics.median(seconds)
    deviation = _MAD_SIGMA * statistics.median(abs(value - middle) for value in seconds)
    error = math.sqrt(math.pi / 2) * deviation / math.sqrt(len(seconds))
    return error / middle if middle else math.inf


class _Fusions:
    """The nodes of a stage that each kernel of ORT stands for.

    Parameters
    ----------
    nodes : mapping of int to NodeProto
        Nodes of the stage by their positions.
    """

    def __init__(self, nodes: Mapping[int, onnx.NodeProto]) -> None:
        self.nodes = nodes
        self.made = {name: i for i, node in nodes.items() for name in node.output if name}

    def members(self, call: KernelCall) -> tuple[int, ...]:
        """Return the nodes of a kernel, the one that names it first; none for one that ORT added.

        ORT names a node that it has put in the place of others after the first of them, or after
        the value that the last one makes: a Conv with a Relu after it by the Relu's result.
        """
        index = call.node
        if index is None:
            index = self.made.get(_REPLACED.sub("", call.name))
        if index is None:
            return ()
        if index not in self.nodes:
            return (index,)
        path = [index]
        wanted = call.op_type.removeprefix("Fused")
        for _ in range(_MAX_FUSED):
            if self.nodes[path[-1]].op_type == wanted:
                return tuple(reversed(path))
            before = [self.made[name] for name in self.nodes[path[-1]].input if name in self.made]
            fitting = [i for i in before if self.nodes[i].op_type == wanted]
            if not fitting and len(before) != 1:
                break
            path.append(fitting[0] if fitting else before[0])
        return (index,)


def _costs(
    stage: StageRef, proto: onnx.ModelProto | None, kept: Sequence[KeptTask]
) -> Mapping[int, NodeCost]:
    """Return the cost of each node at the shapes of a run; empty if they cannot be inferred."""
    if proto is None or not kept:
        return {}
    model = OnnxModel(
        proto=proto.SerializeToString(),
        token=stage.token,
        name=stage.label,
        inputs=stage.inputs,
        outputs=stage.outputs,
        defaults=(),
        opsets={each.domain: each.version for each in proto.opset_import},
        ir_version=proto.ir_version,
        parameters=0,
        parameter_bytes=0,
    )
    shapes = {
        spec.name: shape
        for spec, shape, value in zip(stage.inputs, kept[0].shapes, kept[0].values, strict=True)
        if isinstance(value, np.ndarray | MicroBatches)
    }
    try:
        facts = GraphFacts(model)
        each = node_costs(facts, infer_shapes(facts, shapes, contrib_schemas()))
    except Exception:  # whatever ONNX's inference raises on a part of a graph: no numbers then
        return {}
    return dict(zip(stage.indices, each, strict=True))
