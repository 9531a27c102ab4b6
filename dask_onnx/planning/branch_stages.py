"""Stages of independent branches: balanced over workers, joined where few bytes travel."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dask_onnx.analysis.branches import Region, find_regions, free_nodes, with_free_ancestors
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.planning.cutting import CutInputs, label_of, stage_graph_of
from dask_onnx.planning.stages import StageGraph

_REPEATED_SHARES = (0.0, 0.001, 0.01, 0.05)
"""Shares of the model's time that each branch may repeat; the best of these is taken."""


@dataclass(frozen=True, slots=True)
class Step:
    """Stages that run side by side."""

    groups: tuple[tuple[int, ...], ...]
    """Nodes of each stage, without those that it repeats."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to cut, with its predicted time."""

    steps: tuple[Step, ...]
    """Steps that follow one another."""
    free: frozenset[int]
    """Cheap nodes that each stage may repeat instead of receiving their values."""
    seconds: float
    """Predicted seconds of one run if each stage of a step has a worker of its own."""

    @property
    def is_cut(self) -> bool:
        """True if any step has stages side by side."""
        return any(len(step.groups) > 1 for step in self.steps)


def branches(cut: CutInputs, *, n_workers: int = 2) -> StageGraph:
    """Cut independent regions of the graph into stages that run side by side.

    Parts of the graph that do not read each other (`dask_onnx.analysis.branches`) are distributed
    over the workers, the longest first to the worker with the least work (Graham, "Bounds on
    multiprocessing timing anomalies", 1969). Parts that meet early may stay together, so that one
    value leaves them instead of many. Cheap nodes that several parts need are repeated in each. A
    region is cut only where that gains more than a hop between processes takes; if no region does,
    the one that gains most is cut. A graph without branches stays one stage.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    n_workers : int
        Most stages side by side; 1 or more.

    Returns
    -------
    StageGraph
        The stages between regions run alone.
    """
    unseeded = set(random_nodes(cut.facts, cut.outputs)[1])
    fixed = [node for node in cut.nodes if cut.facts.nodes[node].name in unseeded]
    return _stages(cut, _best_candidate(cut, n_workers, fixed))


def _best_candidate(cut: CutInputs, workers: int, fixed: Sequence[int]) -> Candidate:
    """Return the fastest candidate over the repeated shares, with and without early joins."""
    seconds = {node: cut.seconds(node) for node in cut.nodes}
    # Several shares may allow the same nodes; each set is tried once.
    repeated = {free_nodes(cut.facts, seconds, share, fixed): share for share in _REPEATED_SHARES}
    apart = min(
        (
            _candidate(cut, find_regions(cut.facts, seconds, free), free, workers)
            for free in repeated
        ),
        key=_rank,
    )
    joined = find_regions(cut.facts, seconds, apart.free, join_share=1 / workers)
    return min(apart, _candidate(cut, joined, apart.free, workers), key=_rank)


def _rank(candidate: Candidate) -> tuple[bool, float]:
    # A caller who asks for branches expects a cut, even where one worker would be as fast.
    return not candidate.is_cut, candidate.seconds


def _candidate(
    cut: CutInputs, regions: Sequence[Region], free: frozenset[int], workers: int
) -> Candidate:
    shares = [_balance(region, workers) for region in regions]
    hop = cut.costs.seconds_per_hop
    worth = _worth_cutting(cut, regions, shares, free)
    steps: list[Step] = []
    for is_cut, found in itertools.groupby(range(len(shares)), key=worth.__contains__):
        if is_cut:
            steps += [Step(shares[i]) for i in found]
        else:
            serial = itertools.chain.from_iterable(regions[i].nodes for i in found)
            steps.append(Step((tuple(sorted(serial)),)))
    seconds = sum(
        max((_seconds(cut, group, free) for group in step.groups), default=0.0)
        + (hop + _arriving(cut, step, free) / cut.costs.link_bytes_per_second if i else 0.0)
        for i, step in enumerate(steps)
    )
    return Candidate(tuple(steps), free, seconds)


def _worth_cutting(
    cut: CutInputs,
    regions: Sequence[Region],
    shares: Sequence[Sequence[Sequence[int]]],
    free: frozenset[int],
) -> set[int]:
    """Return the positions of the regions that gain more than a hop if they are cut.

    If no region does, return the one that gains most, if any gains at all.
    """
    hop = cut.costs.seconds_per_hop
    worth: set[int] = set()
    most, best = 0.0, -1
    # Repeated nodes only make a gain smaller, so the gain without them is an upper bound: regions
    # are tried in its order, and few have to be examined.
    upper_bounds = [
        sum(region.seconds) - max((sum(map(cut.seconds, group)) for group in groups), default=0.0)
        for region, groups in zip(regions, shares, strict=True)
    ]
    for i in sorted(range(len(regions)), key=lambda i: -upper_bounds[i]):
        if upper_bounds[i] <= (hop if worth else most):
            break
        gain = sum(regions[i].seconds) - max(_seconds(cut, group, free) for group in shares[i])
        if gain > hop:
            worth.add(i)
        elif gain > most:
            most, best = gain, i
    return worth or ({best} if best >= 0 else set())


def _balance(region: Region, workers: int) -> tuple[tuple[int, ...], ...]:
    """Return the parts of a region as at most `workers` groups of about equal time."""
    groups: list[list[int]] = [[] for _ in range(min(workers, len(region.parts)))]
    loads = [(0.0, i) for i in range(len(groups))]
    order = sorted(range(len(region.parts)), key=lambda i: -region.seconds[i])
    for part in order:
        load, group = heapq.heappop(loads)
        groups[group] += region.parts[part]
        heapq.heappush(loads, (load + region.seconds[part], group))
    return tuple(tuple(sorted(group)) for group in groups)


def _seconds(cut: CutInputs, group: Sequence[int], free: frozenset[int]) -> float:
    return sum(map(cut.seconds, with_free_ancestors(cut.facts, group, free)))


def _arriving(cut: CutInputs, step: Step, free: frozenset[int]) -> int:
    """Return the bytes that the stages of a step receive from other stages."""
    total = 0
    for group in step.groups:
        own = set(with_free_ancestors(cut.facts, group, free))
        reads = {n for node in own for n in cut.facts.nodes[node].reads}
        total += sum(
            cut.sizes.get(name, 0)
            for name in reads
            if cut.facts.producer.get(name) not in own and name not in cut.facts.initializers
        )
    return total


def _stages(cut: CutInputs, candidate: Candidate) -> StageGraph:
    bound = [group for step in candidate.steps for group in step.groups] or [()]
    groups = [with_free_ancestors(cut.facts, group, candidate.free) for group in bound]
    # Repeated nodes that only the caller reads belong to the last stage.
    loose = set(cut.nodes).difference(*groups)
    groups[-1] = with_free_ancestors(cut.facts, {*groups[-1], *loose}, candidate.free)
    return stage_graph_of(
        cut, groups, [label_of(cut, own or nodes) for own, nodes in zip(bound, groups, strict=True)]
    )
