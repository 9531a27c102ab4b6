"""Search for the layouts of all nodes with the least predicted time.

A node whose rule allows it runs on shards. Where it does not, some of its inputs are gathered;
which of them is best depends on later nodes, so that a beam search keeps several partial plans. A
value that follows cheaply from the graph's inputs, without weights, such as a mask, is recomputed
whole rather than gathered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dask_onnx.analysis.cost import CostTable, NodeCost, value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.sharding.layout_candidates import LayoutCandidate, LayoutCandidates
from dask_onnx.sharding.shard_layout import Layout

_BEAM = 12
"""Partial plans that are kept at each node."""
_LIGHT_BYTES = 4096
"""Most bytes of weights of a node that may be recomputed whole."""
_LIGHT_FAMILIES = frozenset(("elementwise", "layout", "reduction", "axis", "shape"))
"""Families of operators with little work per element, which may be recomputed whole."""


@dataclass(frozen=True, slots=True)
class LayoutAssignment:
    """Layout candidate of every needed node, and how values are made whole."""

    candidates: Mapping[int, LayoutCandidate | None]
    """Needed nodes, by position, to their candidate; None where a node runs once on whole
    values."""
    layouts: Mapping[str, Layout]
    """Values that are available in shards, to their layouts."""
    recomputed: frozenset[str]
    """Values in shards that are computed again as a whole, where that is cheaper than gathering."""


@dataclass(frozen=True, slots=True)
class _State:
    """Partial plan up to a node."""

    layouts: Mapping[str, Layout]
    """Values in shards that later nodes read."""
    wholes: frozenset[str]
    """Values in shards that are available whole too."""
    seconds: float
    """Predicted seconds so far."""
    choice: tuple[int, LayoutCandidate | None] | None = None
    """Last node and its candidate."""
    before: _State | None = None
    """Partial plan that this one extends."""


def assign_layouts(
    candidates: LayoutCandidates,
    outputs: Sequence[str],
    n: int,
    costs: CostTable,
    node_costs: Sequence[NodeCost],
) -> LayoutAssignment:
    """Return the layouts with which the nodes that `outputs` need run on `n` shards.

    Parameters
    ----------
    node_costs : sequence of NodeCost
        Costs of all nodes of the graph, in its order.
    """
    search = _Search(candidates, outputs, n, costs, node_costs)
    best = search.run()
    found: dict[int, LayoutCandidate | None] = {}
    state: _State | None = best
    while state is not None:
        if state.choice is not None:
            found[state.choice[0]] = state.choice[1]
        state = state.before
    layouts = {name: Layout(axis) for name, axis in candidates.seeds.items()}
    for index, candidate in found.items():
        names = candidates.facts.proto.graph.node[index].output
        layouts.update(layouts_written(names, candidate))
    return LayoutAssignment(
        dict(sorted(found.items())), layouts, frozenset(search.recomputed & set(layouts))
    )


def layouts_written(names: Sequence[str], candidate: LayoutCandidate | None) -> dict[str, Layout]:
    """Return the layouts of a node's outputs under a candidate."""
    given = zip(names, candidate.output_layouts, strict=True) if candidate is not None else ()
    return {name: layout for name, layout in given if layout is not None and name}


class _Search:
    """Beam search over the nodes in graph order."""

    def __init__(
        self,
        candidates: LayoutCandidates,
        outputs: Sequence[str],
        n: int,
        costs: CostTable,
        node_costs: Sequence[NodeCost],
    ) -> None:
        self.candidates, self.facts, self.n, self.costs = candidates, candidates.facts, n, costs
        self.seconds = [costs.seconds(cost) for cost in node_costs]
        self.is_light = [
            cost.parameter_bytes <= _LIGHT_BYTES and candidates.family(index) in _LIGHT_FAMILIES
            for index, cost in enumerate(node_costs)
        ]
        self.nodes = needed_nodes(candidates, outputs)
        self.outputs = frozenset(outputs)
        self.last = self._last_readers()
        self.recomputed: set[str] = set()
        self._gathers: dict[str, float] = {}

    def _last_readers(self) -> dict[int, list[str]]:
        """Return for each node the values that no later node reads."""
        last: dict[str, int] = {}
        for index in self.nodes:
            for name in self.facts.nodes[index].reads:
                last[name] = index
        ends: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in self.outputs:
                ends.setdefault(index, []).append(name)
        return ends

    def run(self) -> _State:
        """Return the cheapest plan."""
        start = {name: Layout(axis) for name, axis in self.candidates.seeds.items()}
        beam = [_State(start, frozenset(), 0.0)]
        for index in self.nodes:
            states = [after for state in beam for after in self._after(state, index)]
            beam = _best([self._forget(state, index) for state in states])
        return beam[0]

    def _forget(self, state: _State, index: int) -> _State:
        """Drop values that no later node reads, so that equivalent states compare equal."""
        ends = self.last.get(index)
        if not ends:
            return state
        layouts = {name: layout for name, layout in state.layouts.items() if name not in ends}
        return replace(state, layouts=layouts, wholes=state.wholes.difference(ends))

    def _after(self, state: _State, index: int) -> list[_State]:
        """Return the extensions of a partial plan by one node.

        Candidates come in the order of what they gather: the first that gathers nothing ends the
        list.
        """
        reads = self.facts.nodes[index].reads
        carried = [name for name in reads if name in state.layouts]
        if not carried:
            return [self._extended(state, index, None, ())]
        found = []
        for candidate in self.candidates.options(index, state.layouts, self._wanted(index)):
            gathered = self._gathered(index, candidate, state.layouts)
            found.append(self._extended(state, index, candidate, gathered))
            if not gathered:
                return found
        return [*found, self._extended(state, index, None, carried)]

    def _wanted(self, index: int) -> list[bool]:
        names = self.facts.proto.graph.node[index].output
        return [
            bool(name) and (name in self.outputs or bool(self.facts.consumers.get(name)))
            for name in names
        ]

    def _gathered(
        self, index: int, candidate: LayoutCandidate, layouts: Mapping[str, Layout]
    ) -> list[str]:
        names = self.facts.proto.graph.node[index].input
        return [
            name
            for name, layout in zip(names, candidate.input_layouts, strict=True)
            if layout is None and name in layouts
        ]

    def _extended(
        self,
        state: _State,
        index: int,
        candidate: LayoutCandidate | None,
        gathered: Collection[str],
    ) -> _State:
        new = set(gathered) - state.wholes
        seconds = self.seconds[index] / (1 if candidate is None else self.n)
        seconds += sum(self._gather_seconds(name) for name in new)
        layouts = dict(state.layouts)
        layouts.update(layouts_written(self.facts.proto.graph.node[index].output, candidate))
        return _State(
            layouts, state.wholes | new, state.seconds + seconds, (index, candidate), state
        )

    def _gather_seconds(self, name: str) -> float:
        """Return the seconds to make a value whole.

        Records the value as recomputed where that is cheaper than sending it.
        """
        if name not in self._gathers:
            size = value_bytes(self.candidates.specs.get(name))
            # The shards travel to the gathering task, and the whole from there to the consumers.
            sent = self.costs.seconds_per_hop + 2 * size / self.costs.link_bytes_per_second
            recomputed = recompute_seconds(self.candidates, name, self.seconds, self.is_light, sent)
            if recomputed < sent:
                self.recomputed.add(name)
            self._gathers[name] = min(recomputed, sent)
        return self._gathers[name]


def _best(states: Sequence[_State]) -> list[_State]:
    """Return the cheapest states, at most `_BEAM`.

    Of states with the same available values only the cheapest is kept.
    """
    cheapest: dict[object, _State] = {}
    for state in states:
        key = (frozenset(state.layouts.items()), state.wholes)
        if key not in cheapest or state.seconds < cheapest[key].seconds:
            cheapest[key] = state
    return sorted(cheapest.values(), key=lambda state: state.seconds)[:_BEAM]


def needed_nodes(candidates: LayoutCandidates, outputs: Sequence[str]) -> list[int]:
    """Return the nodes that outputs need.

    Nodes whose values follow from weights or shapes alone are left out.
    """
    facts = candidates.facts
    pending = [name for name in outputs if not candidates.is_given(name)]
    found: set[int] = set()
    while pending:
        index = facts.producer.get(pending.pop())
        if index is None or index in found:
            continue
        found.add(index)
        pending += [name for name in facts.nodes[index].reads if not candidates.is_given(name)]
    return sorted(found)


def recompute_seconds(
    candidates: LayoutCandidates,
    name: str,
    seconds: Sequence[float],
    is_light: Sequence[bool],
    most: float,
) -> float:
    """Return the seconds to compute a value whole from the graph's inputs with light nodes only.

    Returns inf above `most` seconds, or where another kind of node is needed.
    """
    total, pending, seen = 0.0, [name], set[int]()
    facts: GraphFacts = candidates.facts
    while pending:
        index = facts.producer.get(pending.pop())
        if index is None or index in seen:
            continue
        seen.add(index)
        total += seconds[index]
        if total > most or not is_light[index] or candidates.stays_whole(index):
            return float("inf")
        pending += [each for each in facts.nodes[index].reads if not candidates.is_given(each)]
    return total
