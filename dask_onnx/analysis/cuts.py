"""Where a graph may be cut: borders between chains of nodes, and what crosses each."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import TensorSpec

_NAMES_KEPT = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """A border in the depth-first order of the nodes: what is before it needs nothing behind it."""

    after: str
    """The last node before it."""
    values: int
    """How many values cross it."""
    names: tuple[str, ...]
    """Which, if they are few; `dask_onnx.at_values` cuts there: ``at_values([cut.names])``."""
    bytes: int
    """Of these values, at the shapes of the analysis."""
    share: float
    """Of the predicted time so much comes before it."""


def chains_of(facts: GraphFacts, nodes: Iterable[int], outputs: Collection[str]) -> list[list[int]]:
    """Nodes in depth-first order, grouped where a cut would tear what ONNX Runtime runs as one
    kernel, or what becomes of a weight from who reads it."""
    chains: list[list[int]] = []
    for index in facts.depth_first_order(nodes):
        before = chains[-1][-1] if chains else -1
        if chains and (before in facts.constant_nodes or _continues(facts, before, index, outputs)):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _continues(facts: GraphFacts, before: int, node: int, outputs: Collection[str]) -> bool:
    """Whether `node` takes nothing computed but what `before` gives to it alone, and changes it
    element by element."""
    if facts.predecessors[node] != [before] or facts.successors[before] != [node]:
        return False
    if any(name in outputs for name in facts.nodes[before].outputs):
        return False
    return facts.nodes[node].op_type in _FUSED_INTO_PRODUCER


_FUSED_INTO_PRODUCER = frozenset(
    (
        "Add BatchNormalization Clip Elu HardSigmoid HardSwish LeakyRelu Mul PRelu Relu "
        "Sigmoid Softplus Sub Tanh DequantizeLinear QuantizeLinear Cast Gelu"
    ).split()
)


def crossing_bytes(
    facts: GraphFacts, specs: Mapping[str, TensorSpec], chains: Sequence[Sequence[int]]
) -> list[int]:
    """For each border between chains i and i + 1 the bytes of the values that cross it."""
    change = [0] * (len(chains) + 1)
    for name, first, last in _spans(facts, chains):
        size = value_bytes(specs.get(name))
        change[first] += size
        change[last] -= size
    return list(itertools.accumulate(change))[: max(len(chains) - 1, 0)]


def legal_cuts(
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    outputs: Sequence[str],
    seconds: Sequence[float],
) -> tuple[Cut, ...]:
    """All borders, in order. Linear in the nodes, but for those that few values cross."""
    chains = chains_of(facts, facts.ancestors(outputs), outputs)
    sizes = crossing_bytes(facts, specs, chains)
    begins: dict[int, list[str]] = {}
    ends: dict[int, list[str]] = {}
    for name, first, last in _spans(facts, chains):
        begins.setdefault(first, []).append(name)
        ends.setdefault(last, []).append(name)
    done = list(itertools.accumulate(sum(seconds[i] for i in chain) for chain in chains))
    alive: dict[str, None] = {}
    cuts = []
    for border, size in enumerate(sizes):
        for name in ends.get(border, ()):
            del alive[name]
        alive.update(dict.fromkeys(begins.get(border, ())))
        names = tuple(alive) if len(alive) <= _NAMES_KEPT else ()
        share = done[border] / done[-1] if done[-1] else 0.0
        cuts.append(Cut(facts.nodes[chains[border][-1]].name, len(alive), names, size, share))
    return tuple(cuts)


def _spans(facts: GraphFacts, chains: Sequence[Sequence[int]]) -> Iterable[tuple[str, int, int]]:
    """Values that later chains read: with the chain that makes each and the last that reads it."""
    place = {node: i for i, chain in enumerate(chains) for node in chain}
    for node, position in place.items():
        for name in facts.nodes[node].outputs:
            readers = [place[i] for i in facts.consumers.get(name, ()) if i in place]
            last = max(readers, default=position)
            if last > position:
                yield name, position, last
