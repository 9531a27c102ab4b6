"""A stage graph as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.core.formatting import (
    as_number,
    format_bytes,
    format_flops,
    format_seconds,
    format_shapes,
)
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Link:
    """All values that go from one stage to another."""

    producer: int
    consumer: int
    values: tuple[str, ...]
    bytes: int


def links(stages: StageGraph) -> list[Link]:
    """The edges, those between the same two stages as one."""
    grouped: defaultdict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for edge in stages.edges:
        grouped[edge.producer, edge.consumer].append((edge.value, edge.bytes))
    return [
        Link(producer, consumer, tuple(v for v, _ in values), sum(b for _, b in values))
        for (producer, consumer), values in grouped.items()
    ]


def explain(
    stages: StageGraph,
    strategy: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    is_assumed: bool,
    basis: str,
    measured: Measured | None = None,
) -> str:
    """Stages with their predicted cost, what they took, and what travels between them.

    Parameters
    ----------
    basis : what the prediction goes by
    measured : what is known after a run
    """
    assumed = " (open dimensions assumed)" if is_assumed else ""
    count = len(stages.stages)
    total = sum(edge.bytes for edge in stages.edges)
    lines = [
        f"strategy {strategy}: {count} {'stage' if count == 1 else 'stages'}, "
        f"{len(stages.edges)} {'edge' if len(stages.edges) == 1 else 'edges'}, "
        f"{format_bytes(total)} between stages",
        f"predicted on one core for {format_shapes(shapes)}{assumed}: "
        f"{format_seconds(stages.seconds)}, {basis}",
        *([] if measured is None else after_run(stages, measured)),
        "",
    ]
    kernels = {stage.kernel for stage in stages.stages}
    width = max([len(stage.label) for stage in stages.stages] + [len("stage")])
    digits = max(len(str(count - 1)), 1)
    lines.append(
        f"{'#':>{digits}}  {'stage':<{width}}  nodes  {'compute':>12}  {'time':>9}  "
        + ("" if measured is None else f"{'measured':>9}  ")
        + f"{'weights':>10}  {'gives':>10}"
        + ("" if kernels == {"onnxruntime"} else "  runs on")
    )
    for i, stage in enumerate(stages.stages):
        cost = stage.cost
        lines.append(
            f"{i:>{digits}}  {stage.label:<{width}}  {len(stage.nodes):>5}  "
            f"{format_flops(cost.flops):>12}  {format_seconds(cost.seconds):>9}  "
            + ("" if measured is None else f"{_or_blank(measured.seconds[i]):>9}  ")
            + f"{format_bytes(cost.parameter_bytes):>10}  {format_bytes(cost.activation_bytes):>10}"
            + ("" if kernels == {"onnxruntime"} else f"  {stage.kernel}")
        )
    if stages.edges:
        lines += ["", "edges"]
        lines += [
            f"{link.producer:>{digits}} -> {link.consumer:<{digits}}  "
            f"{format_bytes(link.bytes):>10}  {values_of(link)}"
            for link in links(stages)
        ]
    return "\n".join(lines)


def after_run(stages: StageGraph, measured: Measured) -> list[str]:
    """What the runs were that were measured, and how far off the prediction is."""
    workers = {each for times in measured.stages if times is not None for each in times.workers}
    where = "in this process" if workers == {""} else f"on {as_number(len(workers), 'worker')}"
    rows = "" if measured.rows is None else f" of {as_number(round(measured.rows), 'row')}"
    total, each = measured.error(stages)
    beside = f", a stage by {each:.0%} (median)" if len(stages.stages) > 1 else ""
    return [
        f"measured {where}, {as_number(measured.runs, 'run')}{rows}: the prediction is off by "
        f"{total:+.0%}{beside}"
    ]


def _or_blank(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)


_COLUMNS = 64
"""Of a timetable: each is a slice of the time."""


def timetable(course: Timeline) -> list[str]:
    """A line for each worker: the last digit of the micro-batch that has most of each slice of the
    time, a dot where none is at work."""
    step = course.busy_seconds / _COLUMNS or 1.0
    shares: list[list[defaultdict[int, float]]] = [
        [defaultdict(float) for _ in range(_COLUMNS)] for _ in range(course.workers)
    ]
    for span in course.spans:
        first, last = int(span.start / step), min(int(span.stop / step), _COLUMNS - 1)
        for column in range(first, last + 1):
            inside = min(span.stop, (column + 1) * step) - max(span.start, column * step)
            shares[span.worker][column][span.chunk] += inside
    digits = len(str(course.workers - 1))
    return [
        f"    worker {worker:>{digits}}  "
        + "".join(
            str(max(slot, key=slot.__getitem__) % 10) if sum(slot.values()) >= step / 2 else "."
            for slot in slots
        )
        for worker, slots in enumerate(shares)
    ]


def values_of(link: Link) -> str:
    shown = ", ".join(link.values[:3])
    return f"{shown} and {len(link.values) - 3} more" if len(link.values) > 3 else shown
