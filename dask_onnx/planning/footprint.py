"""Memory that contiguous pieces of a graph need of a worker: weights and live activations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dask_onnx.planning.cutting import CutInputs


def memory_need(cut: CutInputs, nodes: Collection[int]) -> int:
    """Return the bytes that a stage of these nodes needs.

    These are its weights, each counted once, and the peak of the values that it produces.
    """
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
    """Return, for each border between chains, the furthest border where a stage from it may end.

    A window slides over the chains: the need of a stage only grows with its chains, so that neither
    end of the window ever goes back. A weight counts in every stage that reads it. A value is alive
    until its last consumer has run, and until the stage ends if that is in another stage.

    Parameters
    ----------
    cut : CutInputs
        The graph, its sizes and its outputs.
    chains : sequence of sequence of int
        Unbreakable chains of nodes, in topological order.
    limit : float
        Bytes of weights and of activations that a stage may need.

    Returns
    -------
    ndarray of int64, shape (len(chains) + 1,)
        A border from which not even one chain fits has itself.
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
    """Consecutive chains, from `start` up to but without `end`, seen as one stage."""

    cut: CutInputs
    chains: Sequence[Sequence[int]]
    start: int = 0
    end: int = 0
    weights: int = 0
    """Bytes of the weights that chains in the window read, each counted once."""
    working: int = 0
    """Peak bytes alive at once of the values that chains in the window produce."""
    readers: Counter[str] = field(default_factory=Counter)
    """Number of chains in the window that read each weight, by the weight's name."""

    def __post_init__(self) -> None:
        order = list(itertools.chain.from_iterable(self.chains))
        self.place = {node: i for i, node in enumerate(order)}
        self.borders = [0, *itertools.accumulate(map(len, self.chains))]
        # Not int64, in which sums of impossible sizes would wrap around.
        self.alive = np.zeros(len(order) + 1)
        """Bytes, while each node runs, of values produced in the window and still to be read."""
        for node in order:
            self._count_values(node, 1)

    def _count_values(self, node: int, sign: int) -> None:
        """Add a node's values to `alive` while they live, or remove them where `sign` is -1."""
        for name in self.cut.facts.nodes[node].outputs:
            size = self.cut.sizes.get(name, 0)
            if size:
                self.alive[self.place[node] : self._last_place(name, node) + 1] += sign * size

    def _last_place(self, name: str, node: int) -> int:
        """Return the position of a value's last consumer; the last position for graph outputs."""
        if name in self.cut.outputs:
            return len(self.place) - 1
        return max((self.place[i] for i in self.cut.readers(name)), default=self.place[node])

    def start_at(self, start: int) -> None:
        """Remove the chains before `start` from the window."""
        for chain in self.chains[self.start : start]:
            for node in chain:
                self._count_values(node, -1)
        for number in range(self.start, min(start, self.end)):
            self.weights -= self._own_bytes(number)
            for name in self._weights_read(number):
                self.readers[name] -= 1
                if not self.readers[name]:
                    self.weights -= self.cut.initializer_bytes[name]
        self.start, self.end = start, max(self.end, start)
        self.working = self._peak(start, self.end)

    def bytes_with(self, number: int) -> int:
        """Return the need of the window with the next chain, `number`, added."""
        sizes = self.cut.initializer_bytes
        new = sum(sizes[name] for name in self._weights_read(number) if not self.readers[name])
        working = max(self.working, self._peak(number, number + 1))
        return self.weights + self._own_bytes(number) + new + working

    def take(self, number: int) -> None:
        """Add the next chain, `number`, to the window."""
        for name in self._weights_read(number):
            if not self.readers[name]:
                self.weights += self.cut.initializer_bytes[name]
            self.readers[name] += 1
        self.weights += self._own_bytes(number)
        self.working = max(self.working, self._peak(number, number + 1))
        self.end = number + 1

    def _peak(self, start: int, end: int) -> int:
        return int(self.alive[self.borders[start] : self.borders[end]].max(initial=0))

    def _weights_read(self, number: int) -> Iterable[str]:
        """Return the main graph's weights that a chain reads, each once."""
        names = {n for node in self.chains[number] for n in self.cut.facts.nodes[node].reads}
        return names & self.cut.initializer_bytes.keys()

    def _own_bytes(self, number: int) -> int:
        """Return the bytes of weights that a chain's nodes carry in attributes and bodies."""
        return sum(self.cut.node_costs[node].own_bytes for node in self.chains[number])
