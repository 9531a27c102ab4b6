"""How many bytes a tile takes, and how large tiles may be."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dask.utils import format_bytes, parse_bytes

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.core.errors import InputError
from dask_onnx.planning.resources import Cluster
from dask_onnx.tiles.groups import Component, Group
from dask_onnx.tiles.survey import Survey
from dask_onnx.tiles.tile_plan import TilePlan

_SHARE = 0.5
"""Of what a worker's thread has for its task; the rest is for tiles that wait, and for Dask."""
_LARGEST_TILE = 4096
"""Pixels of a side; larger tiles save hardly anything and leave workers idle."""
_WORTH_A_TASK = 256
"""Pixels of a side, below which tiles are not made smaller only to keep all workers busy."""


def task_limit(memory_limit: int | str | None, cluster: Cluster) -> int:
    """Return the bytes that one task may take.

    Parameters
    ----------
    memory_limit : what the caller allows a task; None for a share of what the workers have
    """
    if memory_limit is not None:
        try:
            limit = parse_bytes(memory_limit)
        except (ValueError, TypeError):
            limit = 0
        if limit < 1:
            raise InputError(
                f"memory_limit is {memory_limit!r}", 'give bytes, or text such as "2GiB"'
            )
        return int(limit)
    room = min(max(cluster.room, 0.0), 2.0**48)
    return int(room * _SHARE / max(cluster.threads, 1))


def peak_bytes(plan: TilePlan, part: Component) -> float:
    """Return the most bytes of activations alive at once while nodes run on the whole picture, in
    the order of the file."""
    flow = plan.flow
    last: dict[str, int] = {}
    for position, index in enumerate(part.nodes):
        for edge in flow.steps[index].edges:
            last[edge.value] = position
    ends = set(part.ends)
    alive = {
        feed.value: value_bytes(flow.specs.get(feed.value)) for feed in part.feeds if feed.places
    }
    most = sum(alive.values())
    for position, index in enumerate(part.nodes):
        for name in flow.steps[index].node.outputs:
            alive[name] = value_bytes(flow.specs.get(name))
        most = max(most, sum(alive.values()))
        gone = [n for n in alive if last.get(n, -1) <= position and n not in ends]
        for name in gone:
            del alive[name]
    return float(most)


def projected_bytes(plan: TilePlan) -> float:
    """Return the bytes of activations that the largest tile of a plan takes: those alive at once,
    and what is given whole."""
    return max(
        (sum(_tile_bytes(plan, group, part) for part in group.components) for group in plan.groups),
        default=0.0,
    )


def _tile_bytes(plan: TilePlan, group: Group, part: Component) -> float:
    share = 1.0
    for k in group.axes:
        grid = plan.grids[k]
        crops = (plan.span(part, k, i) for i in _some(len(grid.tiles)))
        share *= max(crop.stop - crop.start for crop in crops) / grid.size
    whole = sum(
        value_bytes(plan.flow.specs.get(feed.value)) for feed in part.feeds if not feed.places
    )
    return share * peak_bytes(plan, part) + whole


def _some(count: int) -> range | list[int]:
    """Tiles at both ends and in the middle: the largest crop is among them."""
    return range(count) if count < 8 else [0, 1, count // 2, count - 2, count - 1]


def automatic_tile(
    survey: Survey, outputs: tuple[str, ...], limit: int, slots: int
) -> Mapping[int, int]:
    """Return the largest tile that a task can take and that keeps all workers busy.

    Parameters
    ----------
    limit : bytes that a task may take
    slots : tasks that run at a time

    Raises
    ------
    InputError
        Not even the smallest tile fits; says what it would take.
    """
    axes = survey.flow.axes
    least = {k: survey.align(k) for k in axes}
    side = _LARGEST_TILE
    while True:
        tiles = {
            k: min(max(side // a, 1) * a, -(-survey.shape[k] // a) * a) for k, a in least.items()
        }
        is_smallest = all(tiles[k] <= least[k] for k in axes)
        plan = survey.plan(tiles, outputs)
        needed = projected_bytes(plan)
        count = math.prod(len(grid.tiles) for grid in plan.grids.values())
        is_enough = count >= slots or side <= _WORTH_A_TASK
        if needed <= limit and is_enough:
            return tiles
        if is_smallest:
            if needed <= limit:
                return tiles
            raise InputError(
                f"the smallest tile, of {' x '.join(map(str, tiles.values()))} pixels, takes about "
                f"{format_bytes(int(needed))} of activations with what it needs around it; a task "
                f"may take {format_bytes(limit)}",
                "give workers more memory, or fewer threads each, or memory_limit=",
            )
        side = max(side // 2, 1)


def check_tile(plan: TilePlan, limit: int) -> None:
    """Compare a tile with what the caller allows a task.

    Raises
    ------
    InputError
        With the projection.
    """
    needed = projected_bytes(plan)
    if needed > limit:
        raise InputError(
            f"a tile takes about {format_bytes(int(needed))} of activations with what it needs "
            f"around it; memory_limit allows {format_bytes(limit)}",
            'choose a smaller tile, or tile="auto"',
        )
