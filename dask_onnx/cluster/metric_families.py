"""Metrics of this package for Prometheus: names, labels and values, as data.

Names are completed by `prometheus_collectors`, with Dask's own namespace in front:
``dask_onnx_scheduler_rows_total`` on the scheduler, ``dask_onnx_worker_rows_total`` on a worker.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dask_onnx.core.meters import PREFIX

Kind = Literal["counter", "gauge", "histogram"]


class Family(NamedTuple):
    """Series of one name."""

    name: str
    """Name without prefix, with its unit; Prometheus adds ``_total`` to that of a counter."""
    kind: Kind
    text: str
    """Meaning of what is counted or measured."""
    labels: tuple[str, ...] = ()


class Series(NamedTuple):
    """Value of one series."""

    family: str
    """Name of its family."""
    labels: tuple[str, ...]
    """Values of its labels, in the order of the family."""
    value: float


_STAGE = ("stage", "model")
FROM_DIGESTS: tuple[Family, ...] = (
    Family(
        "phase_seconds",
        "counter",
        "Seconds that tasks spent in a phase: run, session, weights, convert, read or write",
        (*_STAGE, "phase"),
    ),
    Family("rows", "counter", "Rows that stages computed", _STAGE),
    Family("runs", "counter", "Calls of sessions", _STAGE),
    Family("batches", "counter", "Tasks of stages that returned", _STAGE),
    Family("errors", "counter", "Tasks of stages that raised, by class", (*_STAGE, "kind")),
    Family("input_bytes", "counter", "Bytes of the inputs of stages", _STAGE),
    Family("output_bytes", "counter", "Bytes of the outputs of stages", _STAGE),
    Family(
        "coding_seconds",
        "counter",
        "Seconds spent on encoding values that are sent, and on decoding them",
        ("direction",),
    ),
    Family(
        "transfer_bytes",
        "counter",
        "Bytes of values that were sent to other hosts: in memory, and on the wire",
        ("form",),
    ),
    Family(
        "transfer_batches",
        "counter",
        "Values of micro-batches that were sent, packed or as they are",
        ("packed",),
    ),
)
"""Families of scheduler and workers, which come from Dask's fine performance metrics."""
OF_SCHEDULER: tuple[Family, ...] = (
    Family("tasks", "gauge", "Tasks of stages by state", (*_STAGE, "state")),
    Family("tasks_ended", "counter", "Attempts at tasks of stages", (*_STAGE, "outcome")),
    Family("task_seconds", "histogram", "Seconds of tasks of stages", _STAGE),
    Family(
        "wait_seconds",
        "histogram",
        "Seconds from the time at which a task's inputs exist to its start, transfers included",
        _STAGE,
    ),
    Family("worker_groups", "gauge", "Worker groups that have a worker, or wait", ("state",)),
    Family(
        "link_bytes",
        "counter",
        "Bytes of values that a worker has sent to another process: in memory, and on the wire",
        ("sender", "receiver", "form"),
    ),
    Family(
        "link_bytes_per_second",
        "gauge",
        "Rate of recent transfers between two workers",
        ("sender", "receiver"),
    ),
)
OF_WORKER: tuple[Family, ...] = (
    Family("sessions", "gauge", "Sessions that are kept"),
    Family("cache_entries", "gauge", "Entries of each cache of the process", ("cache",)),
    Family("peak_memory_bytes", "gauge", "Largest resident bytes of the process"),
)
_PHASES = frozenset({"run", "session", "weights", "convert", "read", "write", "stage"})
_PLAIN = frozenset({"rows", "runs", "batches"})
_ERROR = "error-"
_CODING = {"encode": ("get-data", "encode"), "decode": ("gather-dep", "decode")}


def series_of_digests(
    digests: Iterable[tuple[Any, float]],
) -> list[Series]:
    """Return the series that Dask's fine performance metrics make.

    Parameters
    ----------
    digests : iterable of (tuple, float)
        Metrics of a worker, by context, span, prefix of tasks, label and unit; those of a
        scheduler, by context, stage with model (`StageNames.metrics`), label and unit. Others are
        left out. A worker knows no models: its series have no such label.

    Returns
    -------
    list of Series
        Sums over all that have the same labels.
    """
    found: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for key, value in digests:
        if not isinstance(key, tuple) or len(key) < 3 or not str(key[-2]).startswith(PREFIX):
            continue
        context, label, unit = key[0], str(key[-2])[len(PREFIX) :], key[-1]
        if context == "execute":
            series = _of_task(label, unit, key[1] if len(key) == 4 else (str(key[2]),))
        else:
            series = _of_transfer(context, label, unit)
        if series is not None:
            found[series] += value
    return [Series(family, labels, value) for (family, labels), value in sorted(found.items())]


def _of_task(label: str, unit: str, stage: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    if unit == "seconds" and label in _PHASES:
        return "phase_seconds", (*stage, label)
    if unit == "count" and label in _PLAIN:
        return label, stage
    if unit == "count" and label.startswith(_ERROR):
        return "errors", (*stage, label.removeprefix(_ERROR))
    if unit == "bytes" and label in ("input", "output"):
        return f"{label}_bytes", stage
    return None


def _of_transfer(context: str, label: str, unit: str) -> tuple[str, tuple[str, ...]] | None:
    if unit == "seconds" and label in _CODING and _CODING[label][0] == context:
        return "coding_seconds", (label,)
    if context != "get-data":
        return None  # the receiver counts the same bytes once more
    if unit == "bytes" and label in ("plain", "wire"):
        return "transfer_bytes", ("memory" if label == "plain" else "wire",)
    if unit == "count" and label in ("packed", "unpacked"):
        return "transfer_batches", ("true" if label == "packed" else "false",)
    return None


BOUNDS: Sequence[float] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""Upper bounds of the buckets of histograms, in seconds; the last one has none."""


@dataclass(slots=True)
class Histogram:
    """Distribution of some seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    """Number in each bucket of `BOUNDS`, and above all bounds."""
    total: float = 0.0
    """Sum of all seconds."""

    def add(self, seconds: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the bound of each bucket and the number of values up to it, as Prometheus has."""
        found, count = [], 0
        for bound, own in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            count += own
            found.append((bound, float(count)))
        return found


def without_model(families: Iterable[Family]) -> tuple[Family, ...]:
    """Return families as a worker has them, which does not know the names of models."""
    return tuple(
        each._replace(labels=tuple(label for label in each.labels if label != "model"))
        for each in families
    )


def full_names(families: Iterable[Family], prefix: str) -> list[str]:
    """Return the names of families as they are scraped."""
    return [
        f"{prefix}{family.name}{'_total' if family.kind == 'counter' else ''}"
        for family in families
    ]
