"""Bound on what tiles keep between passes; beyond it, later passes compute it again.

A value that a later pass reads is kept by its tiles until that pass has run, so that all tiles
together hold a whole map: its bytes grow with the image. Where that is too much, the later pass
computes the value again, from values that are still kept or from the image itself. Time grows with
the number of passes then, while memory is that of the tiles in work and of the statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.tiles.flow import Flow
from dask_onnx.tiles.groups import gathered_values, kept_values
from dask_onnx.tiles.tile_plan import TilePlan


def with_bounded_tiles(plan: TilePlan, limit: int) -> TilePlan:
    """Return the plan with fewer values kept between passes, so that they fit in a limit.

    Of the values that are held at the worst moment, the largest is computed again first, until all
    others fit. Values that tasks need as a whole are always kept.

    Parameters
    ----------
    plan : TilePlan
    limit : int
        Bytes that all tiles together may keep.

    Returns
    -------
    TilePlan
        The same object if everything fits.
    """
    flow = plan.flow
    kept = set(kept_values(flow, plan.outputs))
    removable = kept - gathered_values(flow)
    found = plan
    while True:
        held = _held(found, kept)
        worst = max(held.values(), key=lambda names: _bytes(flow, names), default=())
        candidates = [name for name in worst if name in removable]
        if _bytes(flow, worst) <= limit or not candidates:
            return found
        largest = max(candidates, key=lambda name: _bytes(flow, [name]))
        kept.discard(largest)
        removable.discard(largest)
        found = replace(plan, flow=replace(flow, kept=frozenset(kept)), spans={})


def kept_bytes(plan: TilePlan) -> int:
    """Return the largest number of bytes that tiles keep at a time for later passes."""
    held = _held(plan, set(kept_values(plan.flow, plan.outputs)))
    return max((_bytes(plan.flow, names) for names in held.values()), default=0)


def _held(plan: TilePlan, kept: Collection[str]) -> Mapping[int, Sequence[str]]:
    """Return the kept values that are held while each pass runs."""
    last: dict[str, int] = {}
    tasks = [*plan.untiled_tasks]
    parts = [(group.level, part.feeds) for group in plan.groups for part in group.components]
    for level, feeds in (*((task.level, task.feeds) for task in tasks), *parts):
        for feed in feeds:
            if feed.value in kept:
                last[feed.value] = max(last.get(feed.value, 0), level)
    held: defaultdict[int, list[str]] = defaultdict(list)
    for name, end in last.items():
        for level in range(plan.flow.values[name].level, end + 1):
            held[level].append(name)
    return held


def _bytes(flow: Flow, names: Collection[str]) -> int:
    return sum(value_bytes(flow.specs.get(name)) for name in names)
