"""Stages and the edges between them as tables, and predicted schedules as lines of characters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dask_onnx.core.formatting import format_bytes, format_flops, format_seconds, printable
from dask_onnx.diagnostics.sections import Column, Table
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Timeline

_TIMETABLE_COLUMNS = 64
"""Characters of a line, each a slice of the time."""
_MOST_VALUES = 3
"""Names of values that an edge lists."""


@dataclass(frozen=True, slots=True)
class StageLink:
    """All values that go from one stage to another."""

    producer: int
    consumer: int
    values: tuple[str, ...]
    """Names of the values."""
    bytes: int

    @property
    def value_names(self) -> str:
        """The first names, printable, and how many follow."""
        shown = ", ".join(map(printable, self.values[:_MOST_VALUES]))
        more = len(self.values) - _MOST_VALUES
        return f"{shown} and {more} more" if more > 0 else shown


def stage_links(stages: StageGraph) -> list[StageLink]:
    """Return the edges, with those between the same two stages joined."""
    grouped: defaultdict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for edge in stages.edges:
        grouped[edge.producer, edge.consumer].append((edge.value, edge.bytes))
    return [
        StageLink(producer, consumer, tuple(v for v, _ in values), sum(b for _, b in values))
        for (producer, consumer), values in grouped.items()
    ]


def stage_table(
    stages: StageGraph,
    *,
    worker_groups: Sequence[int] | None = None,
    measured: Sequence[float | None] | None = None,
    as_ran: Sequence[float] | None = None,
) -> Table:
    """Return a row for each stage: its cost, and what is known of where it runs.

    Parameters
    ----------
    stages : StageGraph
    worker_groups : sequence of int, optional
        Worker group of each stage.
    measured : sequence of float or None, optional
        Seconds that each stage took, None where that is not known.
    as_ran : sequence of float, optional
        Predicted seconds of each stage for the shapes that `measured` is for, where the plan was
        made for others.
    """
    every = stages.stages
    columns = [
        _numbers("#", map(str, range(len(every)))),
        _words("stage", (stage.label for stage in every)),
        _numbers("nodes", (str(len(stage.nodes)) for stage in every)),
        _numbers("compute", (format_flops(stage.cost.flops) for stage in every)),
        _numbers("predicted", (format_seconds(stage.cost.seconds) for stage in every)),
    ]
    if as_ran is not None:
        columns.append(_numbers("predicted as run", map(format_seconds, as_ran)))
    if measured is not None:
        times = ("" if seconds is None else format_seconds(seconds) for seconds in measured)
        columns.append(_numbers("measured", times))
    columns += [
        _numbers("weights", (format_bytes(stage.cost.parameter_bytes) for stage in every)),
        _numbers("outputs", (format_bytes(stage.cost.activation_bytes) for stage in every)),
    ]
    if worker_groups is not None:
        columns.append(_numbers("worker", map(str, worker_groups)))
    if any(stage.kernel != "onnxruntime" for stage in every):
        columns.append(_words("runs on", (stage.kernel for stage in every)))
    return Table(tuple(columns))


def edge_table(stages: StageGraph) -> Table:
    """Return a row for each pair of stages with values between them."""
    links = stage_links(stages)
    return Table(
        (
            _numbers("from", (str(link.producer) for link in links)),
            _numbers("to", (str(link.consumer) for link in links)),
            _numbers("bytes", (format_bytes(link.bytes) for link in links)),
            _words("values", (link.value_names for link in links)),
        )
    )


def _numbers(head: str, cells: Iterable[str]) -> Column:
    return Column(head, tuple(cells))


def _words(head: str, cells: Iterable[str]) -> Column:
    return Column(head, tuple(cells), is_text=True)


def timetable(timeline: Timeline) -> list[str]:
    """Return a line for each worker, in which each character is a slice of the time.

    It is the last digit of the micro-batch that takes most of the slice, or a dot where the worker
    is at work for less than half of its own average: so the strip shows where the work is also if
    nearly all of the time is bubble.
    """
    step = _slice_seconds(timeline)
    shares: list[list[defaultdict[int, float]]] = [
        [defaultdict(float) for _ in range(_TIMETABLE_COLUMNS)] for _ in range(timeline.workers)
    ]
    for span in timeline.spans:
        first, last = int(span.start / step), min(int(span.stop / step), _TIMETABLE_COLUMNS - 1)
        for column in range(first, last + 1):
            inside = min(span.stop, (column + 1) * step) - max(span.start, column * step)
            shares[span.worker][column][span.chunk] += inside
    digits = len(str(timeline.workers - 1))
    return [f"worker {worker:>{digits}}  {_strip(slots)}" for worker, slots in enumerate(shares)]


def _strip(slots: Sequence[defaultdict[int, float]]) -> str:
    """Return the characters of one worker."""
    least = sum(sum(slot.values()) for slot in slots) / len(slots) / 2
    return "".join(
        str(max(slot, key=slot.__getitem__) % 10) if slot and sum(slot.values()) >= least else "."
        for slot in slots
    )


def timetable_key(timeline: Timeline) -> str:
    """Return what the characters of a timetable mean."""
    return (
        f"a character is {format_seconds(_slice_seconds(timeline))}: the micro-batch at work, or a "
        "dot where the worker does less than half of its average"
    )


def _slice_seconds(timeline: Timeline) -> float:
    return timeline.busy_seconds / _TIMETABLE_COLUMNS or 1.0
