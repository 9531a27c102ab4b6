"""Pipeline stages: contiguous, as equal as they can be, each within a memory limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.errors import PlanError
from dask_onnx.planning.cutting import CutInputs, chains_of, crossing_bytes, stage_graph_of
from dask_onnx.planning.explain import format_bytes
from dask_onnx.planning.stages import StageGraph

_BISECTIONS = 60
"""Of the slowest stage's time: as many as a float64 can tell apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What contiguous pieces of the chain of chains would cost; n pieces have n + 1 borders."""

    done: npt.NDArray[np.float64]
    """Seconds of all pieces before each border: (n + 1,)."""
    arriving: npt.NDArray[np.float64]
    """Seconds that a stage which begins at a border spends on what crosses it: (n + 1,)."""
    held: npt.NDArray[np.float64]
    """Bytes of weights of all pieces before each border: (n + 1,)."""
    working: npt.NDArray[np.float64]
    """The most bytes of activations that a piece has while it runs: (n,)."""

    @property
    def pieces(self) -> int:
        return len(self.done) - 1


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
        Bytes of weights and of activations (at the plan's shapes) that a stage may have.

    Raises
    ------
    PlanError
        Neither is given; more stages than there are pieces; no cut keeps within the limit, with the
        stage that is too large, what it needs and how many stages would do.
    """
    if n_stages is None and memory_limit is None:
        raise PlanError("a pipeline of how many stages?", "give n_stages=2, or memory_limit=bytes")
    chains = chains_of(cut)
    if n_stages is not None and not 1 <= n_stages <= max(len(chains), 1):
        raise PlanError(
            f"{n_stages} stages were asked for; the model can be cut into 1 to {len(chains)}",
            "choose n_stages in that range",
        )
    crossing = crossing_bytes(cut, chains)
    load = _load(cut, chains, crossing)
    limit = math.inf if memory_limit is None else float(memory_limit)
    fewest = _fewest_stages(cut, chains, load, limit)
    if n_stages is not None and n_stages < fewest:
        borders = best_borders(load, n_stages, math.inf, crossing)
        sizes = [_bytes(load, a, b) for a, b in itertools.pairwise(borders)]
        worst = int(np.argmax(sizes))
        name = cut.facts.nodes[chains[borders[worst]][0]].name
        raise PlanError(
            f"stage {worst} of {n_stages}, from node {name!r}, needs {format_bytes(sizes[worst])} "
            f"of weights and activations; the limit is {format_bytes(limit)}",
            f"the smallest n_stages that keeps within it is {fewest}",
        )
    borders = best_borders(load, n_stages or fewest, limit, crossing)
    groups = [
        sorted(itertools.chain.from_iterable(chains[a:b])) for a, b in itertools.pairwise(borders)
    ]
    return stage_graph_of(cut, groups)


def fewest_stages(cut: CutInputs, limit: float) -> int:
    """So many stages keep within `limit` bytes of weights and activations each.

    Raises
    ------
    PlanError
        One node alone is too large.
    """
    chains = chains_of(cut)
    return _fewest_stages(cut, chains, _load(cut, chains, crossing_bytes(cut, chains)), limit)


def best_borders(load: Load, n_stages: int, limit: float, crossing: Sequence[int]) -> list[int]:
    """Borders of exactly `n_stages` stages, from 0 to the number of pieces.

    Parameters
    ----------
    crossing : bytes that cross the border behind each piece but the last
    """
    low, high = 0.0, float(load.done[-1] + load.arriving.max(initial=0.0)) * (1 + 1e-12)
    by_memory = _memory_reach(load, limit)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _reached(load, n_stages, middle, by_memory)[-1][-1]:
            high = middle
        else:
            low = middle
    reached = _reached(load, n_stages, high, by_memory)
    reach = np.minimum(_time_reach(load, high), by_memory)
    sizes = np.concatenate([[0], np.asarray(crossing, float)])
    borders = [load.pieces]
    for stages in range(n_stages - 1, 0, -1):
        before = np.flatnonzero(reached[stages] & (reach >= borders[-1]))
        before = before[before < borders[-1]]
        borders.append(int(before[np.argmin(sizes[before])]))
    return [0, *borders[::-1]] if n_stages else [0]


def _reached(
    load: Load, n_stages: int, seconds: float, by_memory: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.bool_]]:
    """For 0, 1, ... `n_stages` stages the borders that they can end at, none slower than
    `seconds`."""
    reach = np.minimum(_time_reach(load, seconds), by_memory)
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


def _memory_reach(load: Load, limit: float) -> npt.NDArray[np.int64]:
    """The same within a number of bytes."""
    size = load.pieces + 1
    if math.isinf(limit):
        return np.full(size, load.pieces, np.int64)
    reach = np.searchsorted(load.held, load.held + limit, side="right").astype(np.int64) - 1
    # Activations of the largest piece count too, which only makes a stage end earlier.
    for start in range(load.pieces):
        end = int(reach[start])
        while end > start and _bytes(load, start, end) > limit:
            end -= 1
        reach[start] = end
    return np.maximum(reach, 0)


def _bytes(load: Load, start: int, end: int) -> float:
    """Of a stage between two borders: its weights, and the most that one of its pieces works on."""
    working = load.working[start:end].max(initial=0.0)
    return float(load.held[end] - load.held[start] + working)


def _fewest_stages(
    cut: CutInputs, chains: Sequence[Sequence[int]], load: Load, limit: float
) -> int:
    reach = _memory_reach(load, limit)
    border, stages = 0, 0
    while border < load.pieces:
        if reach[border] == border:
            need = _bytes(load, border, border + 1)
            name = cut.facts.nodes[chains[border][0]].name
            raise PlanError(
                f"node {name!r} alone needs {format_bytes(need)} of weights and activations; the "
                f"limit is {format_bytes(max(limit, 0))}",
                "raise memory_limit, or plan for fewer rows: shapes={...}",
            )
        border, stages = int(reach[border]), stages + 1
    return max(stages, 1)


def _load(cut: CutInputs, chains: Sequence[Sequence[int]], crossing: Sequence[int]) -> Load:
    seconds = [sum(map(cut.seconds, chain)) for chain in chains]
    weights, seen = [], set[str]()
    for chain in chains:
        # What several nodes read counts where it is read first.
        names = {name for node in chain for name in cut.facts.nodes[node].reads} - seen
        seen |= names & cut.facts.initializers
        weights.append(sum(cut.initializer_bytes.get(name, 0) for name in names))
    working = [
        max(cut.node_costs[node].activation_bytes for node in chain) if chain else 0
        for chain in chains
    ]
    inputs = sum(value_bytes(cut.specs.get(name)) for name in cut.facts.inputs)
    arriving = [cut.costs.hop_seconds(size) for size in (inputs, *crossing)]
    return Load(
        done=np.concatenate([[0.0], np.cumsum(seconds)]),
        arriving=np.asarray([*arriving, 0.0][: len(chains) + 1]),
        held=np.concatenate([[0.0], np.cumsum(weights, dtype=float)]),
        working=np.asarray(working, float),
    )
