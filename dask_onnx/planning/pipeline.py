"""Pipeline stages: contiguous, of equal time as far as possible, each within a memory limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_bytes, format_count
from dask_onnx.planning.borders import PieceTimes, best_borders
from dask_onnx.planning.cutting import (
    CutInputs,
    chains_of,
    crossing_bytes,
    label_of,
    stage_graph_of,
)
from dask_onnx.planning.footprint import memory_need, reach_within
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.stages import StageGraph


class Pieces:
    """Pieces that a pipeline can be cut into, made once for all pipelines that are compared.

    A piece is a chain of nodes that ONNX Runtime would run as one kernel. Pieces are in depth-first
    order, so that any interval of them is convex.
    """

    def __init__(self, cut: CutInputs) -> None:
        self.cut = cut
        """The graph and what its nodes cost."""
        self.chains = chains_of(cut)
        """Nodes of each piece."""
        self.crossing = crossing_bytes(cut, self.chains)
        """Bytes that cross the border behind each piece but the last."""
        self._reaches: dict[float, npt.NDArray[np.int64]] = {}

    @cached_property
    def times(self) -> PieceTimes:
        """Seconds of the pieces, and of receiving what crosses each border."""
        cut = self.cut
        seconds = [sum(map(cut.seconds, chain)) for chain in self.chains]
        inputs = sum(cut.sizes.get(name, 0) for name in cut.facts.inputs)
        arriving = [cut.costs.hop_seconds(size) for size in (inputs, *self.crossing)]
        return PieceTimes(
            done=np.concatenate([[0.0], np.cumsum(seconds)]),
            arriving=np.asarray([*arriving, 0.0][: len(self.chains) + 1]),
        )

    @property
    def most_stages(self) -> int:
        """Largest number of stages that the model can be cut into."""
        return max(len(self.chains), 1)

    def reach(self, limit: float) -> npt.NDArray[np.int64]:
        """Return the furthest border where a stage of `limit` bytes from each border may end."""
        if limit not in self._reaches:
            if math.isinf(limit):
                self._reaches[limit] = np.full(len(self.chains) + 1, len(self.chains), np.int64)
            else:
                self._reaches[limit] = reach_within(self.cut, self.chains, limit)
        return self._reaches[limit]

    def fewest_stages(self, limit: float) -> int:
        """Return the fewest stages that need at most `limit` bytes each.

        Parameters
        ----------
        limit : float
            Bytes of weights and activations that a stage may need.

        Raises
        ------
        PlanError
            One piece alone needs more than that.
        """
        reach, border, stages = self.reach(limit), 0, 0
        while border < len(self.chains):
            if reach[border] == border:
                raise self._too_large(limit)
            border, stages = int(reach[border]), stages + 1
        return max(stages, 1)

    def stages_between(self, borders: Sequence[int]) -> list[list[int]]:
        """Return the nodes of each stage between two borders, in the order of the file."""
        return [
            sorted(itertools.chain.from_iterable(self.chains[a:b]))
            for a, b in itertools.pairwise(borders)
        ]

    def pipeline(self, n_stages: int | None, memory_limit: int | None) -> StageGraph:
        """Cut the pieces into stages; see the function `pipeline`."""
        if n_stages is not None and not 1 <= n_stages <= self.most_stages:
            raise wrong_stage_count(n_stages, self.most_stages)
        limit = math.inf if memory_limit is None else float(memory_limit)
        fewest = self.fewest_stages(limit)
        if n_stages is not None and n_stages < fewest:
            raise self._too_few(n_stages, fewest, limit)
        borders = best_borders(self.times, n_stages or fewest, self.crossing, self.reach(limit))
        return stage_graph_of(self.cut, self.stages_between(borders))

    def _too_large(self, limit: float) -> PlanError:
        needs = [memory_need(self.cut, chain) for chain in self.chains]
        largest = int(np.argmax(needs))
        node = self.cut.facts.nodes[self.chains[largest][0]].name
        return PlanError(
            f"node {node!r} alone needs {format_bytes(needs[largest])} of weights and activations; "
            f"the limit is {format_bytes(max(limit, 0))}",
            f"raise memory_limit to {needs[largest]}, or plan for fewer rows: shapes={{...}}",
            option="memory_limit",
            node=node,
            numbers={"needed_bytes": needs[largest], "limit_bytes": max(limit, 0)},
            suggestions=[Suggestion("memory_limit", needs[largest]), Suggestion("shapes")],
        )

    def _too_few(self, n_stages: int, fewest: int, limit: float) -> PlanError:
        groups = self.stages_between(best_borders(self.times, n_stages, self.crossing))
        needs = [memory_need(self.cut, group) for group in groups]
        worst = int(np.argmax(needs))
        first = min(groups[worst], key=self.cut.places.__getitem__)
        node = self.cut.facts.nodes[first].name
        return PlanError(
            f"stage {worst} of {n_stages}, from node {node!r}, needs {format_bytes(needs[worst])} "
            f"of weights and activations; the limit is {format_bytes(limit)}",
            f"the smallest n_stages that keeps within it is {fewest}",
            option="n_stages",
            stage=label_of(self.cut, groups[worst]),
            node=node,
            numbers={
                "n_stages": n_stages,
                "fewest_stages": fewest,
                "needed_bytes": needs[worst],
                "limit_bytes": limit,
            },
            suggestions=[
                Suggestion("n_stages", fewest),
                Suggestion("memory_limit", needs[worst]),
            ],
        )


def wrong_stage_count(n_stages: int, most: int) -> PlanError:
    """Return the error for a number of stages that the model cannot be cut into."""
    return PlanError(
        f"{format_count(n_stages, 'stage')} asked for; the model can be cut into 1 to {most}",
        "choose n_stages in that range",
        option="n_stages",
        numbers={"n_stages": n_stages, "most_stages": most},
        suggestions=[Suggestion("n_stages", most)],
    )


def pipeline(
    cut: CutInputs, *, n_stages: int | None = None, memory_limit: int | None = None
) -> StageGraph:
    """Cut the graph into contiguous stages, the slowest of them as fast as possible.

    The time of a stage is that of its nodes plus that of receiving the values that cross its first
    border. Borders lie between chains that ONNX Runtime would run as one kernel, in depth-first
    order. The least time of the slowest stage is found by bisection, exactly (Pinar and Aykanat,
    "Fast optimal load balancing algorithms for 1D partitioning", 2004, with costs of borders
    added; `dask_onnx.planning.borders` proves that it is enough to count the fewest and the most
    stages).

    Many cuts may have a slowest stage that is this fast; one with even stages is taken. Each border
    in turn is as near as possible to an even share of what is ahead, where a chain that takes more
    than a share is a stage of its own. (Even stages have the least sum of squares, and with it the
    least wait behind a stage that happens to be late.) Borders that differ by less than 5 % of the
    stage count as equally near; of these, the one that the fewest bytes cross is taken.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    n_stages : int, optional
        Number of stages; by default the fewest that `memory_limit` allows.
    memory_limit : int, optional
        Bytes of weights and of activations, at the plan's shapes, that a stage may need. Weights
        that several stages read count in each; values count until their last consumer has run.

    Raises
    ------
    PlanError
        Neither option is given, there are more stages than pieces, or no cut keeps within the
        limit. The error then has the stage that is too large, its need and the stages that suffice.

    See Also
    --------
    size_for : choose both options for a cluster.
    """
    if n_stages is None and memory_limit is None:
        raise PlanError(
            "a pipeline needs a number of stages, or a memory limit for each of them",
            "give n_stages=2, or memory_limit=bytes",
            option="n_stages",
            suggestions=[Suggestion("n_stages", 2), Suggestion("memory_limit")],
        )
    return Pieces(cut).pipeline(n_stages, memory_limit)


@dataclass(frozen=True, slots=True)
class PipelineSize:
    """Options of a pipeline that were chosen for a cluster."""

    n_stages: int
    """Number of stages."""
    memory_limit: int | None
    """Bytes that a stage may need; None where the whole model fits every worker."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `pipeline`, without those that are None."""
        options = {"n_stages": self.n_stages, "memory_limit": self.memory_limit}
        return {name: value for name, value in options.items() if value is not None}


def size_for(pieces: Pieces, cluster: Cluster) -> PipelineSize:
    """Return the number of stages of a pipeline for a cluster where the caller gave none.

    Where the whole model does not fit a worker, these are the fewest stages that fit, with the
    worker's room as their limit. Else there is a stage for each worker (in this process, for each
    thread), as far as the model can be cut into so many.

    Parameters
    ----------
    pieces : Pieces
        What the pipeline can be cut into.
    cluster : Cluster
        The workers, as data; nothing is asked or measured.

    Raises
    ------
    PlanError
        One piece alone needs more than any worker has room for.
    """
    workers = min(max(cluster.parallel_workers, 1), pieces.most_stages)
    rooms = sorted(set(cluster.rooms))
    # Any stage should fit any worker. Only where the smallest worker has no room for some piece,
    # the larger ones share the stages.
    for room in rooms:
        try:
            fewest = pieces.fewest_stages(room)
        except PlanError:
            if room == rooms[-1]:
                raise
            continue
        if fewest == 1 and room == rooms[0]:
            return PipelineSize(workers, None)
        return PipelineSize(fewest, None if math.isinf(room) else max(int(room), 1))
    return PipelineSize(workers, None)
