"""Pipeline stages: contiguous, as equal as they can be, each within a memory limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dask_onnx.errors import PlanError
from dask_onnx.planning.cutting import CutInputs, chains_of, crossing_bytes, stage_graph_of
from dask_onnx.planning.explain import format_bytes
from dask_onnx.planning.footprint import bytes_of, reach_within
from dask_onnx.planning.stages import StageGraph

_BISECTIONS = 60
"""Of the slowest stage's time: as many as a float64 can tell apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What contiguous pieces of the chain of chains would take; n pieces have n + 1 borders."""

    done: npt.NDArray[np.float64]
    """Seconds of all pieces before each border: (n + 1,)."""
    arriving: npt.NDArray[np.float64]
    """Seconds that a stage which begins at a border spends on what crosses it: (n + 1,)."""

    @property
    def pieces(self) -> int:
        return len(self.done) - 1


class Pieces:
    """What a pipeline can be cut into: chains that ONNX Runtime would run as one kernel, in
    depth-first order. Made once for all pipelines of a cut that are to be compared."""

    def __init__(self, cut: CutInputs) -> None:
        self.cut = cut
        self.chains = chains_of(cut)
        self.crossing = crossing_bytes(cut, self.chains)
        """Bytes that cross the border behind each chain but the last."""
        self._reaches: dict[float, npt.NDArray[np.int64]] = {}

    @cached_property
    def load(self) -> Load:
        cut = self.cut
        seconds = [sum(map(cut.seconds, chain)) for chain in self.chains]
        inputs = sum(cut.sizes.get(name, 0) for name in cut.facts.inputs)
        arriving = [cut.costs.hop_seconds(size) for size in (inputs, *self.crossing)]
        return Load(
            done=np.concatenate([[0.0], np.cumsum(seconds)]),
            arriving=np.asarray([*arriving, 0.0][: len(self.chains) + 1]),
        )

    def reach(self, limit: float) -> npt.NDArray[np.int64]:
        """For each border the furthest one that a stage from it can end at, by its memory."""
        if limit not in self._reaches:
            if math.isinf(limit):
                self._reaches[limit] = np.full(len(self.chains) + 1, len(self.chains), np.int64)
            else:
                self._reaches[limit] = reach_within(self.cut, self.chains, limit)
        return self._reaches[limit]

    def fewest_stages(self, limit: float) -> int:
        """So many stages keep within `limit` bytes of weights and activations each.

        Raises
        ------
        PlanError
            One chain of nodes alone is too large.
        """
        reach, border, stages = self.reach(limit), 0, 0
        while border < len(self.chains):
            if reach[border] == border:
                chain = self.chains[border]
                raise PlanError(
                    f"node {self.cut.facts.nodes[chain[0]].name!r} alone needs "
                    f"{format_bytes(bytes_of(self.cut, chain))} of weights and activations; the "
                    f"limit is {format_bytes(max(limit, 0))}",
                    "raise memory_limit, or plan for fewer rows: shapes={...}",
                )
            border, stages = int(reach[border]), stages + 1
        return max(stages, 1)

    def stages_between(self, borders: Sequence[int]) -> list[list[int]]:
        """Nodes of each stage."""
        return [
            sorted(itertools.chain.from_iterable(self.chains[a:b]))
            for a, b in itertools.pairwise(borders)
        ]

    def pipeline(self, n_stages: int | None, memory_limit: int | None) -> StageGraph:
        """See `pipeline`."""
        most = max(len(self.chains), 1)
        if n_stages is not None and not 1 <= n_stages <= most:
            raise PlanError(
                f"{n_stages} stages were asked for; the model can be cut into 1 to {most}",
                "choose n_stages in that range",
            )
        limit = math.inf if memory_limit is None else float(memory_limit)
        fewest = self.fewest_stages(limit)
        if n_stages is not None and n_stages < fewest:
            raise self._too_few(n_stages, fewest, limit)
        borders = best_borders(self.load, n_stages or fewest, self.crossing, self.reach(limit))
        return stage_graph_of(self.cut, self.stages_between(borders))

    def _too_few(self, n_stages: int, fewest: int, limit: float) -> PlanError:
        groups = self.stages_between(best_borders(self.load, n_stages, self.crossing))
        sizes = [bytes_of(self.cut, group) for group in groups]
        worst = int(np.argmax(sizes))
        name = self.cut.facts.nodes[min(groups[worst], key=self.cut.places.__getitem__)].name
        return PlanError(
            f"stage {worst} of {n_stages}, from node {name!r}, needs {format_bytes(sizes[worst])} "
            f"of weights and activations; the limit is {format_bytes(limit)}",
            f"the smallest n_stages that keeps within it is {fewest}",
        )


def pipeline(
    cut: CutInputs, *, n_stages: int | None = None, memory_limit: int | None = None
) -> StageGraph:
    """Contiguous stages in topological order, the slowest of them as fast as possible.

    A stage's time is its nodes' and what it takes to receive the values that cross its first
    border. Borders are between chains that ONNX Runtime would run as one kernel, in depth-first
    order. The least time of the slowest stage is found by bisection, each time asking which borders
    can be reached in so many stages that are all within it: exact to the last digit of a float, in
    time linear in the nodes (the parametric search of Pinar and Aykanat, "Fast optimal load
    balancing algorithms for 1D partitioning", 2004, with costs of borders added). Of the cuts that
    are equally good the one that sends the fewest bytes is taken.

    Parameters
    ----------
    n_stages : int, optional
        How many; without it the fewest that `memory_limit` allows.
    memory_limit : int, optional
        Bytes of weights and of activations (at the plan's shapes) that a stage may have: weights
        that several stages read count in each, values until their last reader has run.

    Raises
    ------
    PlanError
        Neither is given; more stages than there are pieces; no cut keeps within the limit, with the
        stage that is too large, what it needs and how many stages would do.
    """
    if n_stages is None and memory_limit is None:
        raise PlanError("a pipeline of how many stages?", "give n_stages=2, or memory_limit=bytes")
    return Pieces(cut).pipeline(n_stages, memory_limit)


def best_borders(
    load: Load,
    n_stages: int,
    crossing: Sequence[int],
    within: npt.NDArray[np.int64] | None = None,
) -> list[int]:
    """Borders of exactly `n_stages` stages, from 0 to the number of pieces.

    Parameters
    ----------
    crossing : bytes that cross the border behind each piece but the last
    within : for each border the furthest one that a stage from it may end at, by its memory
    """
    if within is None:
        within = np.full(load.pieces + 1, load.pieces, np.int64)
    low, high = 0.0, float(load.done[-1] + load.arriving.max(initial=0.0)) * (1 + 1e-12)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _reached(load, n_stages, middle, within)[-1][-1]:
            high = middle
        else:
            low = middle
    reached = _reached(load, n_stages, high, within)
    reach = np.minimum(_time_reach(load, high), within)
    sizes = np.concatenate([[0], np.asarray(crossing, float)])
    borders = [load.pieces]
    for stages in range(n_stages - 1, 0, -1):
        before = np.flatnonzero(reached[stages] & (reach >= borders[-1]))
        before = before[before < borders[-1]]
        borders.append(int(before[np.argmin(sizes[before])]))
    return [0, *borders[::-1]] if n_stages else [0]


def _reached(
    load: Load, n_stages: int, seconds: float, within: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.bool_]]:
    """For 0, 1, ... `n_stages` stages the borders that they can end at, none slower than
    `seconds`."""
    reach = np.minimum(_time_reach(load, seconds), within)
    size = load.pieces + 1
    found = [np.zeros(size, bool)]
    found[0][0] = True
    for _ in range(n_stages):
        starts = np.flatnonzero(found[-1])
        starts = starts[reach[starts] > starts]
        change = np.zeros(size + 1, np.int64)
        np.add.at(change, starts + 1, 1)
        np.add.at(change, reach[starts] + 1, -1)
        found.append(np.cumsum(change[:size]) > 0)
    return found


def _time_reach(load: Load, seconds: float) -> npt.NDArray[np.int64]:
    """For each border the furthest one that a stage from it can end at within `seconds`."""
    ends = load.done + seconds - load.arriving
    return np.searchsorted(load.done, ends, side="right").astype(np.int64) - 1
