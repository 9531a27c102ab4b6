"""Recording of a profile on a cluster: plugins are registered first, and notes fetched at last."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from distributed import Client, wait

from dask_onnx.cluster.links import PRIORITY, new_key
from dask_onnx.cluster.profile_scheduler_plugin import (
    ProfileSchedulerPlugin,
    SchedulerNotes,
    plugin_name,
    read_clock,
    scheduler_notes,
)
from dask_onnx.cluster.profile_worker_plugin import (
    ProfileWorkerPlugin,
    WorkerNotes,
    worker_notes,
)
from dask_onnx.core.errors import ClusterError
from dask_onnx.core.meters import NodesMode
from dask_onnx.diagnostics.profiling.node_records import Sample, sampling_plan, take_samples
from dask_onnx.diagnostics.profiling.profile_assembly import (
    Notes,
    digests_of_notes,
    error_records,
    gauges_of,
    sent_notes,
    stage_notes,
    stage_records,
    task_records,
    worker_records,
)
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.transfer_matching import transfer_records

log = logging.getLogger(__name__)

_SAMPLE_SECONDS = 60.0
"""Longest wait for the replay of samples."""
_CLOCK_ROUNDS = 5


class ClusterRecorder:
    """Recorder of one profile on the cluster of a client.

    Parameters
    ----------
    client : distributed.Client
        Synchronous client of the cluster.
    profile : str
        Identifier of the profile.
    nodes : {"sample", "all", "none"}
        Tasks whose nodes are timed.
    span : str
        Identifier of the span that the profile's graphs are submitted in.

    Raises
    ------
    ClusterError
        The scheduler or a worker cannot import dask_onnx, or the cluster is gone.
    """

    def __init__(self, client: Client, profile: str, nodes: NodesMode, span: str) -> None:
        self.client, self.profile, self.nodes = client, profile, nodes
        try:
            client.register_plugin(ProfileSchedulerPlugin(profile, client.id, span))
            client.register_plugin(ProfileWorkerPlugin(profile, nodes))
            self.ahead = _clock_offset(client)
        except Exception as error:  # whatever it raises while the plugin is unpickled there
            self.abandon()
            raise ClusterError(
                f"the cluster at {client.scheduler.address} cannot be profiled: {error}",
                "install the same dask_onnx in the environments of the scheduler and the workers",
                reason=f"{type(error).__name__}: {error}",
            ) from error
        self.began = time.time()

    def finish(self) -> RunProfile:
        """Stop recording, and return the record.

        Raises
        ------
        ClusterError
            The cluster was closed before the profile ended.
        """
        ended = time.time()
        try:
            notes = self._notes(ended)
        except Exception as error:  # a closed client raises several types
            raise ClusterError(
                f"the cluster was gone before its profile ended: {type(error).__name__}: {error}",
                "close the client and the cluster after the block of dx.profile",
                reason=str(error),
            ) from error
        try:
            return self._record(notes)
        finally:
            self._remove()

    def abandon(self) -> None:
        """Stop recording without a result; the cluster may be gone."""
        try:
            self._remove()
        except Exception:
            log.debug("the plugins of a profile were not removed", exc_info=True)

    def _remove(self) -> None:
        name = plugin_name(self.profile)
        self.client.unregister_worker_plugin(name)
        self.client.unregister_scheduler_plugin(name)

    def _notes(self, ended: float) -> Notes:
        client = self.client
        found: dict[str, WorkerNotes | None] = client.run(
            worker_notes, self.profile, on_error="ignore"
        )
        seen: SchedulerNotes = client.run_on_scheduler(scheduler_notes, self.profile)
        workers = {address: own for address, own in found.items() if own is not None}
        for address, message in seen.messages.items():
            if address not in workers:
                workers[address] = sent_notes(message)
        return Notes(self.began - self.ahead, ended - self.began, seen, workers)

    def _record(self, notes: Notes) -> RunProfile:
        stages = stage_notes(notes)
        tasks = task_records(notes)
        labels = {task.key: task.label for task in tasks}
        records = stage_records(stages)
        alive = [worker.name for worker in worker_records(notes) if worker.left >= notes.wall]
        plan = sampling_plan(stages, alive) if self.nodes != "none" else {}
        samples, missing = self._samples(plan)
        sampled = take_samples(records, stages, worker_records(notes), samples)
        return RunProfile(
            id=self.profile,
            started=notes.started,
            wall=notes.wall,
            mode=self.nodes,
            scheduler=self.client.scheduler.address,
            workers=sampled.workers,
            stages=sampled.stages,
            tasks=tuple(tasks),
            transfers=tuple(transfer_records(notes, labels)),
            nodes=sampled.nodes,
            gauges=tuple(gauges_of(notes)),
            digests=tuple(digests_of_notes(notes)),
            errors=tuple(error_records(notes)),
            others=tuple(
                (worker, *notes.span_of(worker, start, stop))
                for worker, start, stop in notes.scheduler.others
            ),
            edges=tuple(notes.scheduler.edges),
            notes=(*_shortcomings(notes), *missing),
        )

    def _samples(self, plan: dict[str, list[str]]) -> tuple[dict[str, Sample], list[str]]:
        """Replay the samples of stages, each on one worker, and tell which did not answer."""
        futures = {
            worker: self.client.submit(
                _replay,
                self.profile,
                worker,
                tokens,
                key=new_key(),
                workers=[worker],
                priority=PRIORITY,
                pure=False,
            )
            for worker, tokens in plan.items()
        }
        if futures:
            try:
                wait(list(futures.values()), timeout=_SAMPLE_SECONDS)
            except TimeoutError:
                log.info("some samples of nodes were not timed within %d s", _SAMPLE_SECONDS)
        found, missing = {}, []
        for worker, future in futures.items():
            if future.status == "finished":
                found[worker] = future.result()
            else:
                missing.append(f"nodes were not timed on {worker}: it did not answer, or failed")
                future.cancel()
        return found, missing


def _replay(profile: str, worker: str, tokens: Sequence[str]) -> Sample:
    return Sample.take(profile, worker, tokens)


def _clock_offset(client: Client) -> float:
    """Return the seconds by which this clock is ahead of the scheduler's."""
    found = []
    for _ in range(_CLOCK_ROUNDS):
        asked = time.time()
        told: float = client.run_on_scheduler(read_clock)
        answered = time.time()
        found.append((answered - asked, (asked + answered) / 2 - told))
    return min(found)[1]


def _shortcomings(notes: Notes) -> Iterable[str]:
    """Yield what the record lacks, and why."""
    lost = [
        each[0]
        for each in notes.scheduler.presence
        if each[-1] and each[0] in notes.workers and notes.workers[each[0]].executing is not None
    ]
    for address in lost:
        yield (
            f"{address} left before the profile ended; what it noted in its last second may be "
            "missing"
        )
    counts: defaultdict[str, int] = defaultdict(int)
    for each in notes.scheduler.presence:
        if each[0] not in notes.workers:
            counts[each[0]] += 1
    for address in counts:
        yield f"nothing was heard of {address}: its phases, transfers and memory are missing"
    dropped = notes.scheduler.dropped + sum(own.dropped for own in notes.workers.values())
    if dropped:
        yield f"{dropped:,} notes were not kept, since there were too many"
    for address, own in notes.workers.items():
        if own.has_missed:
            yield (
                f"{address} made more transfers at a time than Dask keeps: some are missing (set "
                "distributed.admin.low-level-log-length higher there)"
            )
    running = sum(attempt.outcome == "processing" for attempt in notes.scheduler.attempts)
    if running:
        yield f"{running:,} tasks had not ended when the profile did"
