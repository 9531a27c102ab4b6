"""Strategies: ways to cut a model into stages. Each is a function of the facts to a StageGraph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dask_onnx.core.errors import PlanError
from dask_onnx.planning.annotations import from_annotations
from dask_onnx.planning.branch_stages import branches
from dask_onnx.planning.cutting import (
    CutInputs,
    chains_of,
    crossing_bytes,
    identifier,
    stage_graph_of,
)
from dask_onnx.planning.pipeline import pipeline
from dask_onnx.planning.stages import StageGraph

_BYTES_OF_A_HOP = 256 * 1024
"""Bytes that take about as long between two processes as saying that they are there."""


def whole(cut: CutInputs) -> StageGraph:
    """The model as one stage: what a cluster wants unless there is a reason to split."""
    return stage_graph_of(cut, [cut.nodes], [identifier(cut.facts.model.name)])


def per_node(cut: CutInputs) -> StageGraph:
    """A stage for each node: to look at, to test with, to find the slow one."""
    return stage_graph_of(cut, [[index] for index in cut.nodes])


def fused(cut: CutInputs, *, n_stages: int | None = None, min_seconds: float = 0.05) -> StageGraph:
    """Convex regions of about equal predicted time, cut where little has to travel.

    The nodes are put into a depth-first topological order, an interval of which is convex by
    construction, and chains that ORT fuses (a Conv and its activation) are kept in one piece. The
    order is then cut near equal shares of the predicted time, within half a share at the place
    where the fewest bytes cross. Linear in the number of nodes.

    Parameters
    ----------
    n_stages : int, optional
        How many stages; at most one for each unbreakable chain.
    min_seconds : float
        Without `n_stages`: what each stage should compute at least, in predicted seconds.

    Raises
    ------
    PlanError
        `n_stages` is not between 1 and the number of chains.
    """
    chains = chains_of(cut)
    seconds = [sum(map(cut.seconds, chain)) for chain in chains]
    if n_stages is None:
        n_stages = max(1, min(len(chains), int(sum(seconds) / min_seconds)))
    if not 1 <= n_stages <= max(len(chains), 1):
        raise PlanError(
            f"{n_stages} stages were asked for; the model can be cut into 1 to {len(chains)}",
            "choose n_stages in that range, or strategy 'per_node'",
        )
    borders = _borders(seconds, _tears(cut, chains), n_stages)
    groups = [
        sorted(itertools.chain.from_iterable(chains[start:stop]))
        for start, stop in itertools.pairwise([0, *borders, len(chains)])
    ]
    return stage_graph_of(cut, groups)


def at_values(cut: CutInputs, *, values: Sequence[str | Sequence[str]]) -> StageGraph:
    """The caller's own cuts: a stage ends where a value, or each of several, has been made.

    Parameters
    ----------
    values : names, or sequences of names that end a stage together, in the order of the stages

    Raises
    ------
    PlanError
        No such value in what the outputs need; nothing is left for a stage.
    """
    facts, needed = cut.facts, set(cut.nodes)
    groups: list[list[int]] = []
    done: set[int] = set()
    for ends in ([value] if isinstance(value, str) else list(value) for value in values):
        unknown = [name for name in ends if facts.producer.get(name) not in needed]
        if unknown:
            made = facts.is_known(unknown[0])
            raise PlanError(
                f"{unknown[0]!r} is "
                + ("no value that a node makes for these outputs" if made else "no value"),
                "look the names up with plan('per_node').explain()",
            )
        group = [node for node in facts.ancestors(ends) if node not in done]
        if not group:
            raise PlanError(
                f"nothing is left for a stage that ends at {', '.join(map(repr, ends))}",
                "give the values in the order in which they are made, each once",
            )
        groups.append(group)
        done.update(group)
    rest = [node for node in cut.nodes if node not in done]
    return stage_graph_of(cut, [*groups, *([rest] if rest else [])])


STRATEGIES: Mapping[str, Callable[..., StageGraph]] = {
    "whole": whole,
    "per_node": per_node,
    "fused": fused,
    "branches": branches,
    "pipeline": pipeline,
    "at_values": at_values,
    "from_annotations": from_annotations,
}


def _tears(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[tuple[int, bool, int]]:
    """For each border how bad it is to cut there, to be compared as a tuple.

    Bytes come first, but only in steps that weigh as much as a hop between processes does anyway;
    then whether the border is inside a branch, where a cut makes the two stages wait for each
    other; then bytes to the last.
    """
    crossing = crossing_bytes(cut, chains)
    inside = [
        any(before in set(earlier) for node in later for before in cut.facts.predecessors[node])
        for earlier, later in itertools.pairwise(chains)
    ]
    return [
        (size // _BYTES_OF_A_HOP, is_inside, size)
        for size, is_inside in zip(crossing, inside, strict=True)
    ]


def _borders(
    seconds: Sequence[float], tears: Sequence[tuple[int, bool, int]], n_stages: int
) -> list[int]:
    """Where to cut: n_stages - 1 positions, each the start of a stage, strictly ascending."""
    done = list(itertools.accumulate(seconds))
    share = done[-1] / n_stages if done else 0.0
    ends = np.asarray(done)
    borders: list[int] = []
    for number in range(1, n_stages):
        # Every stage needs a chain of its own: so many are left for those before and after.
        first = (borders[-1] if borders else 0) + 1
        last = len(seconds) - (n_stages - number)
        ideal = share * number
        low = int(np.searchsorted(ends, ideal - share / 2)) + 1
        high = int(np.searchsorted(ends, ideal + share / 2)) + 1
        low, high = min(max(low, first), last), min(max(high, first), last)
        borders.append(
            min(range(low, high + 1), key=lambda i: (tears[i - 1], abs(done[i - 1] - ideal)))
        )
    return borders
