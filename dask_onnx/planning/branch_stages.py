"""Independent branches side by side: balanced over workers, joined where little has to travel."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dask_onnx.analysis.branches import Region, find_regions, free_nodes, needed
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.planning.cutting import CutInputs, label_of, stage_graph_of
from dask_onnx.planning.stages import StageGraph

_FREE_SHARES = (0.0, 0.001, 0.01, 0.05)
"""Of the model's time so much may be repeated by each branch: the best of these is taken."""


@dataclass(frozen=True, slots=True)
class Step:
    """What runs side by side: the nodes of each stage, those that it repeats left out."""

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to cut, and what it is predicted to take if each stage has a worker."""

    steps: tuple[Step, ...]
    free: frozenset[int]
    seconds: float

    @property
    def is_cut(self) -> bool:
        return any(len(step.groups) > 1 for step in self.steps)


def branches(cut: CutInputs, *, n_workers: int = 2) -> StageGraph:
    """Independent regions of the graph on different workers, the rest in between.

    Parts of the graph that do not read each other (`dask_onnx.analysis.branches`) are shared out
    over the workers, the longest first to whoever has least (Graham, "Bounds on multiprocessing
    timing anomalies", 1969); parts that meet early may stay together, so that one value leaves them
    instead of many. Cheap nodes that several need are repeated in each. A region is cut only where
    that gains more than a hop between processes takes; if none does, the best one is. A graph
    without branches stays one stage.

    Parameters
    ----------
    n_workers : int
        At most so many stages side by side; 1 or more.
    """
    unseeded = set(random_nodes(cut.facts, cut.outputs)[1])
    fixed = [node for node in cut.nodes if cut.facts.nodes[node].name in unseeded]
    return _stages(cut, _best_candidate(cut, n_workers, fixed))


def _best_candidate(cut: CutInputs, workers: int, fixed: Sequence[int]) -> Candidate:
    """The best of some shares that may be repeated, and with those that parts joined early."""
    seconds = {node: cut.seconds(node) for node in cut.nodes}
    # Several shares may allow the same nodes.
    repeated = {free_nodes(cut.facts, seconds, share, fixed): share for share in _FREE_SHARES}
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
    # Whoever asks for branches wants to see them, even where one worker would be as fast.
    return not candidate.is_cut, candidate.seconds


def _candidate(
    cut: CutInputs, regions: Sequence[Region], free: frozenset[int], workers: int
) -> Candidate:
    shares = [_share_out(region, workers) for region in regions]
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
    """Regions that gain more than a hop if they are shared out; if none does, the one that gains
    most, if any gains at all."""
    hop = cut.costs.seconds_per_hop
    worth: set[int] = set()
    most, dearest = 0.0, -1
    # What nodes repeat only makes a gain smaller, so that those that promise most come first and
    # few have to be looked at.
    promised = [
        sum(region.seconds) - max((sum(map(cut.seconds, group)) for group in groups), default=0.0)
        for region, groups in zip(regions, shares, strict=True)
    ]
    for i in sorted(range(len(regions)), key=lambda i: -promised[i]):
        if promised[i] <= (hop if worth else most):
            break
        gain = sum(regions[i].seconds) - max(_seconds(cut, group, free) for group in shares[i])
        if gain > hop:
            worth.add(i)
        elif gain > most:
            most, dearest = gain, i
    return worth or ({dearest} if dearest >= 0 else set())


def _share_out(region: Region, workers: int) -> tuple[tuple[int, ...], ...]:
    """The parts of a region as at most `workers` groups of about equal time."""
    groups: list[list[int]] = [[] for _ in range(min(workers, len(region.parts)))]
    loads = [(0.0, i) for i in range(len(groups))]
    order = sorted(range(len(region.parts)), key=lambda i: -region.seconds[i])
    for part in order:
        load, group = heapq.heappop(loads)
        groups[group] += region.parts[part]
        heapq.heappush(loads, (load + region.seconds[part], group))
    return tuple(tuple(sorted(group)) for group in groups)


def _seconds(cut: CutInputs, group: Sequence[int], free: frozenset[int]) -> float:
    return sum(map(cut.seconds, needed(cut.facts, group, free)))


def _arriving(cut: CutInputs, step: Step, free: frozenset[int]) -> int:
    """Bytes that the stages of a step have to receive."""
    total = 0
    for group in step.groups:
        own = set(needed(cut.facts, group, free))
        reads = {n for node in own for n in cut.facts.nodes[node].reads}
        total += sum(
            cut.sizes.get(name, 0)
            for name in reads
            if cut.facts.producer.get(name) not in own and name not in cut.facts.initializers
        )
    return total


def _stages(cut: CutInputs, candidate: Candidate) -> StageGraph:
    bound = [group for step in candidate.steps for group in step.groups] or [()]
    groups = [needed(cut.facts, group, candidate.free) for group in bound]
    # The last stage makes what only the caller needs of the free nodes.
    loose = set(cut.nodes).difference(*groups)
    groups[-1] = needed(cut.facts, {*groups[-1], *loose}, candidate.free)
    return stage_graph_of(
        cut, groups, [label_of(cut, own or nodes) for own, nodes in zip(bound, groups, strict=True)]
    )
