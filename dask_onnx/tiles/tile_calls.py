"""The record of one tile's task: the regions that it receives, and the parts that it returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from dask_onnx.tiles.groups import Component, Feed, Group
from dask_onnx.tiles.local_shapes import shape_input_values
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.places import Interval
from dask_onnx.tiles.reduce import STATISTIC_OF
from dask_onnx.tiles.tile_plan import Span, TilePlan
from dask_onnx.tiles.tile_tasks import TileOutput

Spans = Mapping[int, Span]
"""Tiled axis to the crop of the image along it."""
Tile = Mapping[int, int]
"""Tiled axis to the number of the tile along it."""


def spans_of(plan: TilePlan, part: Component, tile: Tile) -> dict[int, Span]:
    """Return the crop of the image from which a tile is computed."""
    return {k: plan.span(part, k, number) for k, number in tile.items()}


def region_of(plan: TilePlan, feed: Feed, spans: Spans) -> tuple[list[Interval], tuple[int, ...]]:
    """Return the region of a feed that a tile receives.

    Parameters
    ----------
    plan : TilePlan
    feed : Feed
    spans : Spans
        Crop of the image for the tile.

    Returns
    -------
    region : list of Interval
        One for each axis of the value's split layout.
    shape : tuple of int
        Shape of the region with joined axes, as the part of the model takes it.
    """
    layout = plan.layout(feed.value)
    at = {k: plan.local(feed.value, k, spans[k]) for k in feed.places}
    region = [(0, size) if k is None else at[k] for size, k in layout.flat]
    return region, layout.joined_shape({k: length(interval) for k, interval in at.items()})


def shape_inputs_of(
    plan: TilePlan, parts: Parts, part: Component, spans: Spans, inputs: frozenset[str]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and values of a part's shape inputs on a tile.

    Parameters
    ----------
    plan : TilePlan
    parts : Parts
    part : Component
    spans : Spans
        Crop of the image for the tile.
    inputs : frozenset of str
        Inputs of the part of the model; others are left out.
    """
    sizes = _LocalSizes(plan, spans)
    return tuple(
        (name, tuple(values.tolist()))
        for index in part.nodes
        if parts.shape_inputs.get(index)
        for name, values in shape_input_values(plan, plan.flow.steps[index], sizes).items()
        if name in inputs
    )


def tile_outputs(
    plan: TilePlan, part: Component, spans: Spans, tile: Tile
) -> tuple[TileOutput, ...]:
    """Return what a tile returns: its own part of some values, then partial statistics."""
    values = [_own_part(plan, value, spans, tile) for value in part.wanted]
    return (*values, *(_statistic_output(plan, index, spans, tile) for index in part.statistics))


def label_of_tiles(plan: TilePlan, group: Group) -> str:
    """Return the label of a group's tiles in the dashboard: its first and last node."""
    nodes = plan.flow.facts.nodes
    names = [nodes[index].name for index in group.nodes]
    names = names or [value for part in group.components for value in part.targets]
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def length(interval: Interval) -> int:
    """Return the number of positions in an interval."""
    return interval[1] - interval[0]


def _own_part(plan: TilePlan, value: str, spans: Spans, tile: Tile) -> TileOutput:
    layout = plan.layout(value)
    local = {k: plan.local(value, k, spans[k]) for k in plan.places(value)}
    sizes = {k: length(interval) for k, interval in local.items()}
    slices = []
    for _, k in layout.flat:
        if k is None:
            slices.append(slice(None))
            continue
        start, stop = plan.tile(value, k, tile[k])
        slices.append(slice(start - local[k][0], stop - local[k][0]))
    return TileOutput(value, layout.joined_shape(sizes), layout.split_shape(sizes), tuple(slices))


def _statistic_output(plan: TilePlan, index: int, spans: Spans, tile: Tile) -> TileOutput:
    value = plan.flow.steps[index].edges[0].value
    reduced = _reduced_axes(plan, index)
    axis_of = [axis for axis, factors in enumerate(plan.layout(value).factors) for _ in factors]
    return replace(
        _own_part(plan, value, spans, tile),
        statistic=statistic_of(plan, index),
        axes=tuple(i for i, axis in enumerate(axis_of) if axis in reduced),
    )


def statistic_of(plan: TilePlan, index: int) -> str:
    """Return the statistic that a node computes, one of `reduce.KINDS`."""
    node = plan.flow.steps[index].node
    return "variance" if node.outputs[0] in plan.flow.variances else STATISTIC_OF[node.op_type]


def _reduced_axes(plan: TilePlan, index: int) -> set[int]:
    """Return the axes of its input that a node reduces."""
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
    """Numbers of positions that values have on a crop, computed when they are read."""

    def __init__(self, plan: TilePlan, spans: Spans) -> None:
        self.plan, self.spans = plan, spans

    def __getitem__(self, value: str) -> dict[int, int]:
        return {
            k: length(self.plan.local(value, k, self.spans[k])) for k in self.plan.places(value)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.flow.values)

    def __len__(self) -> int:
        return len(self.plan.flow.values)
