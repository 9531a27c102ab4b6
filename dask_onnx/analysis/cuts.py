"""Places where a graph may be cut: borders between chains of nodes, and what crosses them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.analysis.cost import value_bytes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import public_op_type

_NAMES_KEPT = 4
"""Largest number of crossing values whose names a cut lists."""


_FUSED_INTO_PRODUCER = frozenset(
    (
        "Add BatchNormalization Clip Elu HardSigmoid HardSwish LeakyRelu Mul PRelu Relu "
        "Sigmoid Softplus Sub Tanh DequantizeLinear QuantizeLinear Cast Gelu"
    ).split()
)
"""Operators that ONNX Runtime can fuse into the node before them."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A border in the depth-first order of the nodes: no node before it needs one behind it."""

    after: str
    """Name of the last node before the border."""
    values: int
    """Number of values that cross the border."""
    names: tuple[str, ...]
    """Names of those values, empty if they are many; ``at_values([cut.names])`` cuts there."""
    bytes: int
    """Bytes of those values, at the shapes of the analysis."""
    share: float
    """Share of the predicted time that comes before the border, from 0 to 1."""


def chains_of(facts: GraphFacts, nodes: Iterable[int], outputs: Collection[str]) -> list[list[int]]:
    """Return nodes in depth-first order, grouped into chains that no cut should divide.

    A chain is what ONNX Runtime fuses into one kernel, or a node with the nodes that prepare its
    weights.

    Parameters
    ----------
    facts : GraphFacts
    nodes : iterable of int
        Node positions.
    outputs : collection of str
        Values that have to exist: no chain goes past them.
    """
    chains: list[list[int]] = []
    for index in facts.depth_first_order(nodes):
        before = chains[-1][-1] if chains else -1
        if chains and (before in facts.constant_nodes or _continues(facts, before, index, outputs)):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _continues(facts: GraphFacts, before: int, node: int, outputs: Collection[str]) -> bool:
    """Return whether ONNX Runtime may fuse `node` into `before`.

    That is the case if `node` works element by element, `before` is its only producer, and it is
    the only consumer of `before`.
    """
    if facts.predecessors[node] != [before] or facts.successors[before] != [node]:
        return False
    if any(name in outputs for name in facts.nodes[before].outputs):
        return False
    return public_op_type(facts.nodes[node]) in _FUSED_INTO_PRODUCER


def crossing_bytes(
    facts: GraphFacts, specs: Mapping[str, TensorSpec], chains: Sequence[Sequence[int]]
) -> list[int]:
    """Return the bytes that cross each border, the border between chains i and i + 1 at i."""
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
    """Return all borders, in order.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
    outputs : sequence of str
        Values whose ancestors are cut.
    seconds : sequence of float
        Predicted seconds of each node.
    """
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
    """Yield each value that later chains read, with its producing chain and its last consumer."""
    place = {node: i for i, chain in enumerate(chains) for node in chain}
    for node, position in place.items():
        for name in facts.nodes[node].outputs:
            consumers = [place[i] for i in facts.consumers.get(name, ()) if i in place]
            last = max(consumers, default=position)
            if last > position:
                yield name, position, last
