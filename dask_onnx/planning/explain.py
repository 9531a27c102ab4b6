"""A stage graph as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.planning.stages import StageGraph


def format_bytes(size: float) -> str:
    """``1.5 MiB``; bytes below 1 KiB as they are."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_flops(flops: float) -> str:
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if flops < 1000 or unit == "TFLOP":
            return f"{flops:.0f} {unit}" if unit == "FLOP" else f"{flops:.1f} {unit}"
        flops /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def format_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, s)) or 'scalar'}" for name, s in shapes.items())


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
) -> str:
    """Stages with their predicted cost, and what travels between them.

    Parameters
    ----------
    basis : what the prediction goes by
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
        "",
    ]
    kernels = {stage.kernel for stage in stages.stages}
    width = max([len(stage.label) for stage in stages.stages] + [len("stage")])
    digits = max(len(str(count - 1)), 1)
    lines.append(
        f"{'#':>{digits}}  {'stage':<{width}}  nodes  {'compute':>12}  {'time':>9}  "
        f"{'weights':>10}  {'gives':>10}" + ("" if kernels == {"onnxruntime"} else "  runs on")
    )
    for i, stage in enumerate(stages.stages):
        cost = stage.cost
        lines.append(
            f"{i:>{digits}}  {stage.label:<{width}}  {len(stage.nodes):>5}  "
            f"{format_flops(cost.flops):>12}  {format_seconds(cost.seconds):>9}  "
            f"{format_bytes(cost.parameter_bytes):>10}  {format_bytes(cost.activation_bytes):>10}"
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


def values_of(link: Link) -> str:
    shown = ", ".join(link.values[:3])
    return f"{shown} and {len(link.values) - 3} more" if len(link.values) > 3 else shown
