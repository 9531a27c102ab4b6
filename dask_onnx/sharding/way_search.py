"""Which way each node runs: a search over the graph for what takes the least predicted time.

A node that its rule leaves alone on shards runs on shards. Where it does not, some of its inputs
are made whole; which of them is decided by what follows, so that a few partial plans are kept side
by side (a beam search). A value that follows cheaply from the graph's inputs, without weights, such
as a mask, is computed whole rather than gathered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dask_onnx.analysis.cost import CostTable, NodeCost, value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.sharding.node_ways import Way, Ways
from dask_onnx.sharding.shard_layout import Layout

_BEAM = 12
"""Partial plans that are kept at each node."""
_LIGHT_BYTES = 4096
"""Weights that a node may have and be computed once more, whole."""
_LIGHT_FAMILIES = frozenset(("elementwise", "layout", "reduction", "axis", "shape"))
"""Families of operators that do little with each element."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The way of every node, and how values are made whole."""

    ways: Mapping[int, Way | None]
    """Number of each needed node to its way on shards; None where it runs whole, once."""
    layouts: Mapping[str, Layout]
    """Values that are there in shards, and where the positions lie in them."""
    recomputed: frozenset[str]
    """Values that are computed once more as a whole where that is cheaper than to gather them."""


@dataclass(frozen=True, slots=True)
class _State:
    """A partial plan: what is alive behind a node."""

    layouts: Mapping[str, Layout]
    wholes: frozenset[str]
    """Values in shards that have been made whole too."""
    seconds: float
    choice: tuple[int, Way | None] | None = None
    before: _State | None = None


def find_ways(
    ways: Ways,
    outputs: Sequence[str],
    n: int,
    costs: CostTable,
    node_costs: Sequence[NodeCost],
) -> Chosen:
    """Return how every node that `outputs` need runs on `n` shards."""
    search = _Search(ways, outputs, n, costs, node_costs)
    best = search.run()
    found: dict[int, Way | None] = {}
    state: _State | None = best
    while state is not None:
        if state.choice is not None:
            found[state.choice[0]] = state.choice[1]
        state = state.before
    layouts = {name: Layout(axis) for name, axis in ways.seeds.items()}
    for index, way in found.items():
        names = ways.facts.proto.graph.node[index].output
        layouts.update(given_layouts(names, way))
    return Chosen(dict(sorted(found.items())), layouts, frozenset(search.recomputed & set(layouts)))


def given_layouts(names: Sequence[str], way: Way | None) -> dict[str, Layout]:
    """Return where the positions lie in the outputs of a node that runs in some way."""
    given = zip(names, way.gives, strict=True) if way is not None else ()
    return {name: layout for name, layout in given if layout is not None and name}


class _Search:
    def __init__(
        self,
        ways: Ways,
        outputs: Sequence[str],
        n: int,
        costs: CostTable,
        node_costs: Sequence[NodeCost],
    ) -> None:
        self.ways, self.facts, self.n, self.costs = ways, ways.facts, n, costs
        self.seconds = [costs.seconds(cost) for cost in node_costs]
        self.is_light = [
            cost.parameter_bytes <= _LIGHT_BYTES and ways.family(index) in _LIGHT_FAMILIES
            for index, cost in enumerate(node_costs)
        ]
        self.nodes = needed_nodes(ways, outputs)
        self.outputs = frozenset(outputs)
        self.last = self._last_readers()
        self.recomputed: set[str] = set()
        self._gathers: dict[str, float] = {}

    def _last_readers(self) -> dict[int, list[str]]:
        """Node to the values that nothing behind it reads."""
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
        start = {name: Layout(axis) for name, axis in self.ways.seeds.items()}
        beam = [_State(start, frozenset(), 0.0)]
        for index in self.nodes:
            states = [after for state in beam for after in self._after(state, index)]
            beam = _best([self._forget(state, index) for state in states])
        return beam[0]

    def _forget(self, state: _State, index: int) -> _State:
        ends = self.last.get(index)
        if not ends:
            return state
        layouts = {name: layout for name, layout in state.layouts.items() if name not in ends}
        return replace(state, layouts=layouts, wholes=state.wholes.difference(ends))

    def _after(self, state: _State, index: int) -> list[_State]:
        """Every way to run a node behind a partial plan."""
        reads = self.facts.nodes[index].reads
        carried = [name for name in reads if name in state.layouts]
        if not carried:
            return [self._extended(state, index, None, ())]
        found = []
        for way in self.ways.options(index, state.layouts, self._wanted(index)):
            gathered = self._gathered(index, way, state.layouts)
            found.append(self._extended(state, index, way, gathered))
            if not gathered:
                return found
        return [*found, self._extended(state, index, None, carried)]

    def _wanted(self, index: int) -> list[bool]:
        names = self.facts.proto.graph.node[index].output
        return [
            bool(name) and (name in self.outputs or bool(self.facts.consumers.get(name)))
            for name in names
        ]

    def _gathered(self, index: int, way: Way, layouts: Mapping[str, Layout]) -> list[str]:
        names = self.facts.proto.graph.node[index].input
        return [
            name
            for name, layout in zip(names, way.takes, strict=True)
            if layout is None and name in layouts
        ]

    def _extended(
        self, state: _State, index: int, way: Way | None, gathered: Collection[str]
    ) -> _State:
        new = set(gathered) - state.wholes
        seconds = self.seconds[index] / (1 if way is None else self.n)
        seconds += sum(self._gather_seconds(name) for name in new)
        layouts = dict(state.layouts)
        layouts.update(given_layouts(self.facts.proto.graph.node[index].output, way))
        return _State(layouts, state.wholes | new, state.seconds + seconds, (index, way), state)

    def _gather_seconds(self, name: str) -> float:
        """What it takes to have a value whole; notes whether it is computed anew for that."""
        if name not in self._gathers:
            size = value_bytes(self.ways.specs.get(name))
            sent = self.costs.seconds_per_hop + 2 * size / self.costs.link_bytes_per_second
            anew = recompute_seconds(self.ways, name, self.seconds, self.is_light, sent)
            if anew < sent:
                self.recomputed.add(name)
            self._gathers[name] = min(anew, sent)
        return self._gathers[name]


def _best(states: Sequence[_State]) -> list[_State]:
    """The cheapest of those that leave the same values alive, and of these the cheapest few."""
    cheapest: dict[object, _State] = {}
    for state in states:
        key = (frozenset(state.layouts.items()), state.wholes)
        if key not in cheapest or state.seconds < cheapest[key].seconds:
            cheapest[key] = state
    return sorted(cheapest.values(), key=lambda state: state.seconds)[:_BEAM]


def needed_nodes(ways: Ways, outputs: Sequence[str]) -> list[int]:
    """Return the nodes that outputs need, without those whose values are given: by weights alone,
    or worked out from shapes."""
    facts = ways.facts
    pending = [name for name in outputs if not ways.is_given(name)]
    found: set[int] = set()
    while pending:
        index = facts.producer.get(pending.pop())
        if index is None or index in found:
            continue
        found.add(index)
        pending += [name for name in facts.nodes[index].reads if not ways.is_given(name)]
    return sorted(found)


def recompute_seconds(
    ways: Ways, name: str, seconds: Sequence[float], is_light: Sequence[bool], most: float
) -> float:
    """Return what it takes to compute a value whole from the graph's inputs by light nodes alone;
    inf above `most`, or where that is not possible."""
    total, pending, seen = 0.0, [name], set[int]()
    facts: GraphFacts = ways.facts
    while pending:
        index = facts.producer.get(pending.pop())
        if index is None or index in seen:
            continue
        seen.add(index)
        total += seconds[index]
        if total > most or not is_light[index] or ways.stays_whole(index):
            return float("inf")
        pending += [each for each in facts.nodes[index].reads if not ways.is_given(each)]
    return total
