"""What the task of one tile is told: which regions it is given, which parts of them it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dask_onnx.tiles.groups import Component, Feed, Group
from dask_onnx.tiles.local_shapes import told_values
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.places import Interval
from dask_onnx.tiles.reduce import KIND_OF
from dask_onnx.tiles.tile_plan import Span, TilePlan
from dask_onnx.tiles.tile_tasks import KeepSpec

Spans = Mapping[int, Span]
"""Tiled axis to the crop of the picture along it."""
Tile = Mapping[int, int]
"""Tiled axis to the number of the tile along it."""


def spans_of(plan: TilePlan, part: Component, tile: Tile) -> dict[int, Span]:
    """Return the crop of the picture that a tile is computed from."""
    return {k: plan.span(part, k, number) for k, number in tile.items()}


def region_of(plan: TilePlan, feed: Feed, spans: Spans) -> tuple[list[Interval], tuple[int, ...]]:
    """Return what a tile is given of a value: the region, with the tiled axes apart, and the shape
    that it has for the model."""
    layout = plan.layout(feed.value)
    at = {k: plan.local(feed.value, k, spans[k]) for k in feed.places}
    region = [(0, size) if k is None else at[k] for size, k in layout.flat]
    return region, layout.joined({k: length(interval) for k, interval in at.items()})


def told_of(
    plan: TilePlan, parts: Parts, part: Component, spans: Spans, inputs: frozenset[str]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the inputs that say shapes, and their numbers on a tile."""
    sizes = _LocalSizes(plan, spans)
    return tuple(
        (name, tuple(values.tolist()))
        for index in part.nodes
        if parts.told.get(index)
        for name, values in told_values(plan, plan.flow.steps[index], sizes).items()
        if name in inputs
    )


def keeps_of(plan: TilePlan, part: Component, spans: Spans, tile: Tile) -> tuple[KeepSpec, ...]:
    """Return what a tile keeps: its own part of some values, and partial statistics."""
    kept = [_keep(plan, value, spans, tile) for value in part.wanted]
    return (*kept, *(_measure(plan, index, spans, tile) for index in part.statistics))


def label_of_tiles(plan: TilePlan, group: Group) -> str:
    """Return what the dashboard calls the tiles of a group: by its nodes."""
    nodes = plan.flow.facts.nodes
    names = [nodes[index].name for index in group.nodes]
    names = names or [value for part in group.components for value in part.ends]
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def length(interval: Interval) -> int:
    """Return the positions of an interval."""
    return interval[1] - interval[0]


def _keep(plan: TilePlan, value: str, spans: Spans, tile: Tile) -> KeepSpec:
    layout = plan.layout(value)
    inline = {k: plan.local(value, k, spans[k]) for k in plan.places(value)}
    sizes = {k: length(interval) for k, interval in inline.items()}
    slices = []
    for _, k in layout.flat:
        if k is None:
            slices.append(slice(None))
            continue
        start, stop = plan.tile(value, k, tile[k])
        slices.append(slice(start - inline[k][0], stop - inline[k][0]))
    return KeepSpec(value, layout.joined(sizes), layout.apart(sizes), tuple(slices))


def _measure(plan: TilePlan, index: int, spans: Spans, tile: Tile) -> KeepSpec:
    value = plan.flow.steps[index].edges[0].value
    keep = _keep(plan, value, spans, tile)
    axes = _reduced_axes(plan, index)
    owner = [axis for axis, parts in enumerate(plan.layout(value).factors) for _ in parts]
    reduced = tuple(i for i, axis in enumerate(owner) if axis in axes)
    return KeepSpec(
        keep.name, keep.joined, keep.apart, keep.slices, statistic_of(plan, index), reduced
    )


def statistic_of(plan: TilePlan, index: int) -> str:
    """Return the statistic that a node takes, as `reduce` calls it."""
    node = plan.flow.steps[index].node
    return "variance" if node.outputs[0] in plan.flow.variances else KIND_OF[node.op_type]


def _reduced_axes(plan: TilePlan, index: int) -> set[int]:
    """The axes of its input that a node's statistic reduces."""
    flow = plan.flow
    node, proto = flow.steps[index].node, flow.facts.proto.graph.node[index]
    rank = len(flow.shape(node.inputs[0]))
    if node.op_type.startswith("Global"):
        return set(range(2, rank))
    named: Iterable[int] = next((a.ints for a in proto.attribute if a.name == "axes"), ())
    if len(node.inputs) > 1 and node.inputs[1]:
        known = flow.constant(node.inputs[1])
        named = () if known is None else [int(a) for a in known.array.reshape(-1)]
    return {a % rank for a in named} or set(range(rank))


class _LocalSizes(Mapping[str, Mapping[int, int]]):
    """Positions that values have on a crop, worked out when they are asked for."""

    def __init__(self, plan: TilePlan, spans: Spans) -> None:
        self.plan, self.spans = plan, spans

    def __getitem__(self, value: str) -> dict[int, int]:
        return {
            k: length(self.plan.local(value, k, self.spans[k])) for k in self.plan.places(value)
        }

    def __iter__(self) -> Any:
        return iter(self.plan.flow.values)

    def __len__(self) -> int:
        return len(self.plan.flow.values)
