"""Nodes inside stages: samples of their times, scaled to all runs of a profile."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.meters import StageNote
from dask_onnx.diagnostics.profiling.run_profile import (
    THIS_PROCESS,
    NodeRecord,
    StageRecord,
    WorkerRecord,
)
from dask_onnx.lowering.lowered_plans import projected_bytes
from dask_onnx.planning.resources import thread_gain
from dask_onnx.runtime.host_speed import HostSpeed, host_speed
from dask_onnx.runtime.node_samples import SampledStage, replay_samples


@dataclass(frozen=True, slots=True)
class Sample:
    """Times of kernels on one worker."""

    stages: tuple[SampledStage, ...]
    speed: HostSpeed | None
    """Measured speed of its host; None if that could not be measured."""

    @classmethod
    def take(cls, profile: str, owner: str, tokens: Sequence[str]) -> Sample:
        """Replay the kept tasks of some stages in this process, and measure its host.

        Parameters
        ----------
        profile : str
            Identifier of the profile.
        owner : str
            Address of the worker; empty for this process outside workers.
        tokens : sequence of str
            Tokens of the stages.
        """
        found = tuple(replay_samples(profile, owner, tokens))
        try:
            return cls(found, host_speed())
        except DaskOnnxError:
            return cls(found, None)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Records that samples add to."""

    workers: tuple[WorkerRecord, ...]
    stages: tuple[StageRecord, ...]
    nodes: tuple[NodeRecord, ...]


def sampling_plan(stages: Iterable[StageNote], workers: Sequence[str]) -> dict[str, list[str]]:
    """Return the stages to replay on each worker: each once, where it ran most, evenly shared.

    Parameters
    ----------
    stages : iterable of StageNote
    workers : sequence of str
        Workers that are still there.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for note in stages:
        if not note.error and note.owner in workers:
            counts[note.token][note.owner] += 1
    plan: defaultdict[str, list[str]] = defaultdict(list)
    for token, own in counts.items():
        most = max(own.values())
        # Where it ran half as often, it was kept as well; the worker with the least work replays.
        fitting = [worker for worker, count in own.items() if 2 * count >= most]
        plan[min(fitting, key=lambda worker: (len(plan[worker]), worker))].append(token)
    return {worker: tokens for worker, tokens in plan.items() if tokens}


def take_samples(
    stages: Sequence[StageRecord],
    notes: Sequence[StageNote],
    workers: Sequence[WorkerRecord],
    samples: Mapping[str, Sample],
) -> Sampled:
    """Return the records of workers and stages with what samples say, and those of nodes.

    Parameters
    ----------
    stages : sequence of StageRecord
    notes : sequence of StageNote
        Work of all tasks on stages.
    workers : sequence of WorkerRecord
    samples : mapping of str to Sample
        Samples by the worker that took them.
    """
    speeds = {worker: sample.speed for worker, sample in samples.items() if sample.speed}
    fast = [
        replace(
            each,
            flops_per_second=speeds[each.name].flops_per_second,
            bytes_per_second=speeds[each.name].bytes_per_second,
        )
        if each.name in speeds
        else each
        for each in workers
    ]
    ran: defaultdict[str, set[str]] = defaultdict(set)
    for note in notes:
        ran[note.owner or THIS_PROCESS].add(note.token)
    fast = [replace(each, projected_bytes=projected_bytes(ran[each.name])) for each in fast]
    found = {
        stage.token: (worker, stage)
        for worker, sample in samples.items()
        for stage in sample.stages
    }
    nodes: list[NodeRecord] = []
    complete = []
    for stage in stages:
        if stage.token not in found:
            complete.append(stage)
            continue
        worker, sample = found[stage.token]
        own = [note for note in notes if note.token == stage.token and not note.error]
        scale = _scale(own, sample)
        rows = sum(note.rows or 1 for note in own)
        predicted = sample.predicted_seconds
        complete.append(
            replace(
                stage,
                predicted_seconds=(
                    None
                    if predicted is None
                    else predicted * _rows_scale(own, sample) / thread_gain(stage.threads)
                ),
                sampled_share=min(sample.rows / rows, 1.0) if sample.rows and rows else 1.0,
            )
        )
        nodes += _nodes(stage, worker, sample, scale, speeds.get(worker))
    return Sampled(tuple(fast), tuple(complete), tuple(nodes))


def _scale(notes: Sequence[StageNote], sample: SampledStage) -> float:
    """Return the seconds of all runs of a stage, divided by those of the sampled ones."""
    return sum(note.run_seconds for note in notes) / sample.seconds if sample.seconds else 0.0


def _rows_scale(notes: Sequence[StageNote], sample: SampledStage) -> float:
    """Return the rows of all runs of a stage, divided by those of the sampled ones."""
    rows = sum(note.rows or 1 for note in notes)
    return rows / (sample.rows * sample.repeats) if sample.rows else 1.0


def _nodes(
    stage: StageRecord,
    worker: str,
    sample: SampledStage,
    scale: float,
    speed: HostSpeed | None,
) -> list[NodeRecord]:
    found = []
    for node in sample.nodes:
        record = NodeRecord(
            stage=stage.token,
            stage_label=stage.label,
            worker=worker,
            name=node.name,
            op_type=node.op_type,
            calls=node.calls,
            seconds=node.seconds * scale,
            sampled_seconds=node.seconds,
            flops=node.flops,
            moved_bytes=node.moved_bytes,
            roofline=0.0,
            error=node.error if math.isfinite(node.error) else None,
        )
        if speed is not None:
            record = replace(record, roofline=_roofline(record, stage.threads, speed))
        found.append(record)
    return found


def _roofline(node: NodeRecord, threads: int, speed: HostSpeed) -> float:
    """Return the share of its limit that a kernel reaches (Williams et al., "Roofline", 2009)."""
    by_arithmetic = node.flops_per_second / (speed.flops_per_second * threads)
    by_memory = node.bytes_per_second / (speed.bytes_per_second * threads)
    return min(max(by_arithmetic, by_memory), 1.0)
