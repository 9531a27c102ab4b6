"""Strategies by name: each is a function that cuts a graph into a stage graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.planning.annotations import from_annotations
from dask_onnx.planning.branch_stages import branches
from dask_onnx.planning.cutting import (
    CutInputs,
    chains_of,
    crossing_bytes,
    stage_graph_of,
)
from dask_onnx.planning.pipeline import pipeline, wrong_stage_count
from dask_onnx.planning.stage_labels import identifier
from dask_onnx.planning.stages import StageGraph

_BYTES_OF_A_HOP = 256 * 1024
"""Bytes whose transfer between two processes takes about as long as the hop itself."""


def whole(cut: CutInputs) -> StageGraph:
    """Return the model as one stage: the default, unless there is a reason to split."""
    return stage_graph_of(cut, [cut.nodes], [identifier(cut.facts.model.name)])


def per_node(cut: CutInputs) -> StageGraph:
    """Return a stage for each node, to inspect a model or to find its slow nodes."""
    return stage_graph_of(cut, [[index] for index in cut.nodes])


def fused(cut: CutInputs, *, n_stages: int | None = None, min_seconds: float = 0.05) -> StageGraph:
    """Cut the graph into convex regions of about equal predicted time, where few bytes cross.

    The nodes are put into a depth-first topological order, whose intervals are convex. Chains that
    ONNX Runtime fuses (a Conv and its activation) are kept in one piece. The order is cut near
    equal shares of the predicted time, within half a share at the place where the fewest bytes
    cross. Linear in the number of nodes.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    n_stages : int, optional
        Number of stages; at most one for each unbreakable chain.
    min_seconds : float
        Without `n_stages`: least predicted seconds that each stage should compute.

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
        raise wrong_stage_count(n_stages, max(len(chains), 1))
    borders = _borders(seconds, _cut_costs(cut, chains), n_stages)
    groups = [
        sorted(itertools.chain.from_iterable(chains[start:stop]))
        for start, stop in itertools.pairwise([0, *borders, len(chains)])
    ]
    return stage_graph_of(cut, groups)


def at_values(cut: CutInputs, *, values: Sequence[str | Sequence[str]]) -> StageGraph:
    """Cut the graph where the caller says: a stage ends where its values have been produced.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    values : sequence of str or of sequence of str
        Names of values, in the order of the stages; a sequence of names ends one stage together.

    Raises
    ------
    PlanError
        A name is no value that the outputs need, or no node is left for a stage.
    """
    facts, needed = cut.facts, set(cut.nodes)
    groups: list[list[int]] = []
    done: set[int] = set()
    for ends in ([value] if isinstance(value, str) else list(value) for value in values):
        unknown = [name for name in ends if facts.producer.get(name) not in needed]
        if unknown:
            is_value = facts.is_known(unknown[0])
            raise PlanError(
                f"{unknown[0]!r} is "
                + ("no value that a node produces for these outputs" if is_value else "no value"),
                "look the names up with plan('per_node').explain()",
                option="values",
                input=unknown[0],
                suggestions=[Suggestion("strategy", "per_node")],
            )
        group = [node for node in facts.ancestors(ends) if node not in done]
        if not group:
            raise PlanError(
                f"no node is left for a stage that ends at {', '.join(map(repr, ends))}",
                "give the values in the order in which they are produced, each once",
                option="values",
                input=ends[0],
                suggestions=[Suggestion("values")],
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
"""Function of each strategy, by its name; "auto" chooses among them."""


def _cut_costs(cut: CutInputs, chains: Sequence[Sequence[int]]) -> list[tuple[int, bool, int]]:
    """Return the cost of cutting at each border, as a tuple to compare.

    First come the bytes that cross, in steps of what a hop between processes costs anyway; then
    whether the border is inside a branch, where a cut makes the two stages wait for each other;
    then the exact bytes.
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
    seconds: Sequence[float], cut_costs: Sequence[tuple[int, bool, int]], n_stages: int
) -> list[int]:
    """Return the `n_stages` - 1 positions where a stage after the first starts, ascending."""
    done = list(itertools.accumulate(seconds))
    share = done[-1] / n_stages if done else 0.0
    ends = np.asarray(done)
    borders: list[int] = []
    for number in range(1, n_stages):
        # Every stage needs a chain of its own: leave enough for those before and after.
        first = (borders[-1] if borders else 0) + 1
        last = len(seconds) - (n_stages - number)
        ideal = share * number
        low = int(np.searchsorted(ends, ideal - share / 2)) + 1
        high = int(np.searchsorted(ends, ideal + share / 2)) + 1
        low, high = min(max(low, first), last), min(max(high, first), last)
        borders.append(
            min(range(low, high + 1), key=lambda i: (cut_costs[i - 1], abs(done[i - 1] - ideal)))
        )
    return borders
