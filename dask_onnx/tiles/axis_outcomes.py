"""Outcomes of one node along all tiled axes: the axes that it carries, and what breaks one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.tiles.tile_rules import AxisOutcome


def carried_axes(
    outcomes: Mapping[int, Sequence[AxisOutcome]],
) -> dict[int, Sequence[AxisOutcome]]:
    """Return the outcomes of the tiled axes that some input carries."""
    return {k: found for k, found in outcomes.items() if found}


def broken_dependence(outcomes: Sequence[AxisOutcome]) -> Dependence | None:
    """Return the dependence that prevents cutting along an axis, or None."""
    for outcome in outcomes:
        if outcome.dep.is_broken:
            return outcome.dep
        if outcome.dep.coupled:
            return Dependence(Kind.REDUCED, node=outcome.dep.coupled, how="quantisation range")
    return None
