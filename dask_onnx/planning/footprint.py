"""What contiguous pieces of a graph need of a worker's memory: weights, and activations at work."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dask_onnx.planning.cutting import CutInputs


def bytes_of(cut: CutInputs, nodes: Collection[int]) -> int:
    """What a stage of these nodes needs: its weights, each once, and the most that is alive of the
    values that it makes."""
    inside = set(nodes)
    leaving = [
        name
        for node in nodes
        for name in cut.facts.nodes[node].outputs
        if name in cut.outputs or not inside.issuperset(cut.readers(name))
    ]
    return cut.weight_bytes(nodes) + cut.working_bytes(nodes, leaving)


def reach_within(
    cut: CutInputs, chains: Sequence[Sequence[int]], limit: float
) -> npt.NDArray[np.int64]:
    """For each border between chains the furthest one that a stage from it can end at.

    A window goes over the chains: what a stage needs only grows with what it has, so that neither
    of its ends ever goes back. A weight counts in every stage that reads it; a value that the stage
    makes is alive until its last reader has run, and if that is in another stage, until the stage
    ends.

    Parameters
    ----------
    chains : in an order in which they can run
    limit : bytes of weights and of activations that a stage may need

    Returns
    -------
    array of int64, shape (chains + 1,); at a border from which not even one chain fits, the border
    itself
    """
    window = _Window(cut, chains)
    reach = np.full(len(chains) + 1, len(chains), np.int64)
    end = 0
    for start in range(len(chains)):
        window.start_at(start)
        end = max(end, start)
        while end < len(chains) and window.bytes_with(end) <= limit:
            window.take(end)
            end += 1
        reach[start] = end
    return reach


@dataclass
class _Window:
    """Some chains that follow one another, as a stage."""

    cut: CutInputs
    chains: Sequence[Sequence[int]]
    start: int = 0
    end: int = 0
    weights: int = 0
    working: int = 0
    """The most that is alive at once of what the chains in it make."""
    readers: Counter[str] = field(default_factory=Counter)
    """Weight to the number of chains in the window that read it."""

    def __post_init__(self) -> None:
        order = list(itertools.chain.from_iterable(self.chains))
        self.place = {node: i for i, node in enumerate(order)}
        self.borders = [0, *itertools.accumulate(map(len, self.chains))]
        self.alive = np.zeros(len(order) + 1, np.int64)
        """While each node runs: bytes of the values made by then, from the start of the window, and
        still to be read."""
        for node in order:
            self._let_live(node, 1)

    def _let_live(self, node: int, sign: int) -> None:
        for name in self.cut.facts.nodes[node].outputs:
            size = self.cut.sizes.get(name, 0)
            if size:
                self.alive[self.place[node] : self._last(name, node) + 1] += sign * size

    def _last(self, name: str, node: int) -> int:
        """Where a value is read last; what the caller wants lives to the end."""
        if name in self.cut.outputs:
            return len(self.place) - 1
        return max((self.place[i] for i in self.cut.readers(name)), default=self.place[node])

    def start_at(self, start: int) -> None:
        """Let go of the chains before."""
        for chain in self.chains[self.start : start]:
            for node in chain:
                self._let_live(node, -1)
        for number in range(self.start, min(start, self.end)):
            self.weights -= self._own(number)
            for name in self._reads(number):
                self.readers[name] -= 1
                if not self.readers[name]:
                    self.weights -= self.cut.initializer_bytes[name]
        self.start, self.end = start, max(self.end, start)
        self.working = self._most(start, self.end)

    def bytes_with(self, number: int) -> int:
        """What the window would need with one more chain, the one behind it."""
        new = sum(self.cut.initializer_bytes[n] for n in self._reads(number) if not self.readers[n])
        working = max(self.working, self._most(number, number + 1))
        return self.weights + self._own(number) + new + working

    def take(self, number: int) -> None:
        for name in self._reads(number):
            if not self.readers[name]:
                self.weights += self.cut.initializer_bytes[name]
            self.readers[name] += 1
        self.weights += self._own(number)
        self.working = max(self.working, self._most(number, number + 1))
        self.end = number + 1

    def _most(self, start: int, end: int) -> int:
        return int(self.alive[self.borders[start] : self.borders[end]].max(initial=0))

    def _reads(self, number: int) -> Iterable[str]:
        """Weights of the main graph that a chain reads, each once."""
        names = {n for node in self.chains[number] for n in self.cut.facts.nodes[node].reads}
        return names & self.cut.initializer_bytes.keys()

    def _own(self, number: int) -> int:
        return sum(self.cut.node_costs[node].own_bytes for node in self.chains[number])
