"""Memory budget of tiles: projected bytes of activations, and the largest tile that fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dask.utils import format_bytes, parse_bytes

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.planning.resources import Cluster
from dask_onnx.tiles.groups import Component, Group
from dask_onnx.tiles.tile_plan import TilePlan
from dask_onnx.tiles.tiling_analysis import TilingAnalysis

_MEMORY_SHARE = 0.5
"""Share of a worker thread's memory for its task; the rest is for waiting tiles and for Dask."""
_KEPT_SHARE = 0.25
"""Share of the memory of all workers for what tiles keep between passes."""
_MAX_UNKNOWN_ROOM = 2.0**48
"""Bytes that replace an infinite limit, so that the arithmetic stays in integers."""
_LARGEST_TILE = 4096
"""Pixels of a side; larger tiles save hardly anything and leave workers idle."""
_SMALLEST_PARALLEL_TILE = 256
"""Pixels of a side below which tiles are not made smaller only to keep all workers busy."""
_ALL_TILES_BELOW = 8
"""Tiles along an axis up to which each is projected; see `_sample`."""


def task_limit(memory_limit: int | str | None, cluster: Cluster) -> int:
    """Return the bytes of activations that one task may take.

    Parameters
    ----------
    memory_limit : int, str or None
        What the caller allows, in bytes or as text such as "2GiB"; None for half of the memory
        that a worker has for each thread.
    cluster : Cluster

    Raises
    ------
    InputError
        `memory_limit` is not a positive number of bytes.
    """
    if memory_limit is None:
        room = min(max(cluster.room, 0.0), _MAX_UNKNOWN_ROOM)
        return int(room * _MEMORY_SHARE / max(cluster.threads, 1))
    return _bytes_of("memory_limit", memory_limit, least=1)


def kept_limit(keep_limit: int | str | None, cluster: Cluster) -> int:
    """Return the bytes that all tiles together may keep between passes.

    Parameters
    ----------
    keep_limit : int, str or None
        What the caller allows; None for a quarter of the memory of all workers.
    cluster : Cluster

    Raises
    ------
    InputError
        `keep_limit` is not a number of bytes.
    """
    if keep_limit is None:
        room = min(max(sum(cluster.rooms), 0.0), _MAX_UNKNOWN_ROOM)
        return int(room * _KEPT_SHARE)
    return _bytes_of("keep_limit", keep_limit, least=0)


def _bytes_of(option: str, value: int | str, *, least: int) -> int:
    """Return a number of bytes that the caller gave, or refuse it."""
    try:
        found = int(parse_bytes(value))
        reason = None
    except (ValueError, TypeError) as error:
        found, reason = least - 1, str(error)
    if found < least:
        raise InputError(
            f"{option} is {value!r}, which is not a positive number of bytes",
            'give a number of bytes, or text such as "2GiB"',
            option=option,
            reason=reason,
        )
    return found


def peak_bytes(plan: TilePlan, part: Component) -> float:
    """Return the peak bytes of live activations while a component runs on the whole image.

    Nodes run in the order of the file, and a value is freed after its last consumer.
    """
    flow = plan.flow
    last_use: dict[str, int] = {}
    for position, index in enumerate(part.nodes):
        for edge in flow.steps[index].edges:
            last_use[edge.value] = position
    targets = set(part.targets)
    alive = {
        feed.value: value_bytes(flow.specs.get(feed.value)) for feed in part.feeds if feed.places
    }
    peak = sum(alive.values())
    for position, index in enumerate(part.nodes):
        for name in flow.steps[index].node.outputs:
            alive[name] = value_bytes(flow.specs.get(name))
        peak = max(peak, sum(alive.values()))
        freed = [n for n in alive if last_use.get(n, -1) <= position and n not in targets]
        for name in freed:
            del alive[name]
    return float(peak)


def projected_bytes(plan: TilePlan) -> float:
    """Return the projected bytes of activations of a plan's largest tile.

    They are the peak of live activations on its crop, and the values that it receives untiled.
    """
    return max(
        (sum(_tile_bytes(plan, group, part) for part in group.components) for group in plan.groups),
        default=0.0,
    )


def _tile_bytes(plan: TilePlan, group: Group, part: Component) -> float:
    share = 1.0
    for k in group.axes:
        grid = plan.grids[k]
        crops = (plan.span(part, k, i) for i in _sample(len(grid.tiles)))
        share *= max(crop.stop - crop.start for crop in crops) / grid.size
    untiled = sum(
        value_bytes(plan.flow.specs.get(feed.value)) for feed in part.feeds if not feed.places
    )
    return share * peak_bytes(plan, part) + untiled


def _sample(count: int) -> Sequence[int]:
    """Return the tiles at both ends and in the middle, among which is the largest crop."""
    if count < _ALL_TILES_BELOW:
        return range(count)
    return [0, 1, count // 2, count - 2, count - 1]


def automatic_tile(
    analysis: TilingAnalysis, outputs: tuple[str, ...], limit: int, slots: int
) -> Mapping[int, int]:
    """Return the largest tile that a task can take and that keeps all workers busy.

    Parameters
    ----------
    analysis : TilingAnalysis
    outputs : tuple of str
        Values to compute.
    limit : int
        Bytes of activations that a task may take.
    slots : int
        Tasks that the workers run at a time.

    Returns
    -------
    mapping of int to int
        Tiled axis to pixels.

    Raises
    ------
    InputError
        Not even the smallest tile fits; its numbers say what it would take.
    """
    axes = analysis.flow.axes
    align = {k: analysis.align(k) for k in axes}
    side = _LARGEST_TILE
    while True:
        tiles = {
            k: min(max(side // a, 1) * a, -(-analysis.shape[k] // a) * a) for k, a in align.items()
        }
        is_smallest = all(tiles[k] <= align[k] for k in axes)
        plan = analysis.plan(tiles, outputs)
        needed = projected_bytes(plan)
        count = math.prod(len(grid.tiles) for grid in plan.grids.values())
        is_parallel = count >= slots or side <= _SMALLEST_PARALLEL_TILE
        if needed <= limit and (is_parallel or is_smallest):
            return tiles
        if is_smallest:
            raise InputError(
                f"the smallest tile, of {' x '.join(map(str, tiles.values()))} pixels, takes about "
                f"{format_bytes(int(needed))} of activations including the pixels around it; a "
                f"task may take {format_bytes(limit)}",
                "give workers more memory or fewer threads each, or raise memory_limit",
                option="memory_limit",
                numbers={"needed_bytes": needed, "limit_bytes": limit},
                suggestions=[Suggestion("memory_limit", math.ceil(needed))],
            )
        side = max(side // 2, 1)


def check_tile(plan: TilePlan, limit: int) -> None:
    """Compare the projected memory of a plan's tiles with the caller's limit.

    Parameters
    ----------
    plan : TilePlan
    limit : int
        Bytes of activations that a task may take.

    Raises
    ------
    InputError
        A tile takes more.
    """
    needed = projected_bytes(plan)
    if needed > limit:
        raise InputError(
            f"a tile takes about {format_bytes(int(needed))} of activations including the pixels "
            f"around it; memory_limit allows {format_bytes(limit)}",
            'choose a smaller tile, or tile="auto"',
            option="tile",
            numbers={"needed_bytes": needed, "limit_bytes": limit},
            suggestions=[Suggestion("tile", "auto")],
        )
