"""Seconds that frames take on the cluster: asked of the scheduler, counted by stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core.stream_records import STREAMS_TOPIC

_LEAST_FRAMES = 8
"""Frames of one measurement, at least: single ones vary."""
_NEWEST = 0.5
"""Weight of the newest measurement in the mean seconds of a frame."""


def report_and_ask(
    reports: Sequence[Mapping[str, Any]],
    requests: Sequence[str],
    dask_scheduler: Any = None,
) -> dict[str, float]:
    """Note on the scheduler what streams count, and return the seconds that their tasks have run.

    Parameters
    ----------
    reports : sequence of mapping
        `StreamRecord.as_dict` of each stream of a client; empty to note nothing.
    requests : sequence of str
        Tokens of prepared requests, with which the names of their groups of tasks end.
    dask_scheduler : distributed.Scheduler
        Given by Dask.

    Returns
    -------
    dict of str to float
        For each request the seconds of threads in its tasks so far. Dask forgets them with a
        request's last task.
    """
    if reports:
        dask_scheduler.log_event(STREAMS_TOPIC, list(reports))
    wanted = dict.fromkeys(requests, 0.0)
    for name, group in dask_scheduler.task_groups.items() if requests else ():
        token = name.rpartition("-")[2]
        if token in wanted:
            wanted[token] += group.all_durations.get("compute", 0.0)
    return wanted


def shared_costs(kinds: Mapping[int, Any], costs: Mapping[int, float | None]) -> dict[int, float]:
    """Return the seconds of a frame of each stream, which are equal for streams of one kind.

    Measured times vary with the load of the workers, which is no difference between streams.

    Parameters
    ----------
    kinds : mapping of int to object
        Stream to a key of its model and the shapes of its frames.
    costs : mapping of int to float or None
        Stream to its measured seconds of a frame; None where they are unknown.
    """
    known: defaultdict[Any, list[float]] = defaultdict(list)
    for stream, cost in costs.items():
        if cost is not None:
            known[kinds[stream]].append(cost)
    means = {kind: sum(found) / len(found) for kind, found in known.items()}
    return {stream: means[kind] for stream, kind in kinds.items() if kind in means}


@dataclass(slots=True)
class FrameCost:
    """Mean seconds of a thread that one frame of a stream takes. Pure logic."""

    seconds: float | None = None
    """Mean over recent frames; None before the first measurement."""
    _total: float = 0.0
    """Seconds of all tasks at the last look."""
    _finished: int = 0
    """Frames that had finished then."""
    _requests: frozenset[str] = field(default_factory=frozenset)
    """Requests that were asked about then."""

    def update(self, requests: frozenset[str], total: float, finished: int) -> None:
        """Take a measurement.

        Parameters
        ----------
        requests : frozenset of str
            Tokens of the stream's requests; others after a swap.
        total : float
            Seconds that tasks of these requests have run so far.
        finished : int
            Frames of the stream that have finished so far.
        """
        frames, seconds = finished - self._finished, total - self._total
        # The first frames build sessions; or Dask has forgotten the tasks in between.
        is_new = requests != self._requests or seconds < 0
        if total == 0 or (not is_new and frames < _LEAST_FRAMES):
            return
        self._total, self._finished, self._requests = total, finished, requests
        if is_new or seconds == 0:
            return
        new = seconds / frames
        old = new if self.seconds is None else self.seconds
        self.seconds = _NEWEST * new + (1 - _NEWEST) * old
