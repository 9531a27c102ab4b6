"""Pipeline stages: contiguous, as equal as they can be, each within a memory limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.planning.borders import Load, best_borders
from dask_onnx.planning.cutting import CutInputs, chains_of, crossing_bytes, stage_graph_of
from dask_onnx.planning.footprint import bytes_of, reach_within
from dask_onnx.planning.stages import StageGraph


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
    order. The least time of the slowest stage is found by bisection, exactly (Pinar and Aykanat,
    "Fast optimal load balancing algorithms for 1D partitioning", 2004, with costs of borders
    added; `dask_onnx.planning.borders` says why counting the fewest and the most stages is enough).

    Of the many cuts whose slowest stage is that fast, one with even stages is taken: each border in
    turn as near as can be to an even share of what is ahead, where a chain that takes more than a
    share is a stage of its own (an even spread has the least sum of squares, and with it the least
    wait behind a stage that happens to be late). Borders that differ by less than 5 % of the stage
    are about as near; of these the one that the fewest bytes cross is taken.

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
