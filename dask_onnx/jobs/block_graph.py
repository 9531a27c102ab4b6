"""Graph of the blocks of a job, whose tasks run in the order of the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.base import optimize
from dask.core import flatten
from distributed import Client, Future

from dask_onnx.core.dask_internals import convert_legacy_graph, submit_tasks


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """Optimised tasks, and the keys of consecutive blocks in order."""

    tasks: Mapping[Any, Any]
    keys: Sequence[Any]
    first: int = 0
    """Number of the first of the blocks."""

    @classmethod
    def of(cls, collections: Sequence[Any], first: int = 0) -> BlockGraph:
        """Return the graph of lazy collections; computes nothing.

        Parameters
        ----------
        collections : sequence of Dask collections
            One array of all blocks, or a collection for each block.
        first : int
            Number of the first of the blocks.
        """
        optimised = optimize(*collections)
        # Dask merges the graphs of collections that are optimised together.
        tasks = convert_legacy_graph(dict(optimised[0].__dask_graph__()))
        keys = [key for each in optimised for key in flatten(each.__dask_keys__())]
        return cls(tasks, keys, first)

    def part(self, blocks: range) -> BlockGraph:
        """Return the graph of some of the blocks.

        Parameters
        ----------
        blocks : range
            Positions of the blocks, the last axis first.
        """
        return BlockGraph(self.tasks, self.keys[blocks.start : blocks.stop], blocks.start)

    def ranks(self) -> dict[Any, float]:
        """Return a rank for each task that the blocks need: those of earlier blocks come first.

        The whole part of a rank is the number of the first block that needs the task. Tasks that
        others of a block depend on come before these.
        """
        found: dict[Any, float] = {}
        step = 1.0 / (len(self.tasks) + 1)
        for number, key in enumerate(self.keys, self.first):
            waiting = [key]
            while waiting:
                at = waiting[-1]
                missing = [each for each in self.tasks[at].dependencies if each not in found]
                if missing and at not in found:
                    waiting += missing
                else:
                    found.setdefault(waiting.pop(), number + len(found) * step)
        return found

    def submit(self, client: Client, retries: int = 0) -> list[Future]:
        """Start the blocks; return a future for each.

        Parameters
        ----------
        client : Client
        retries : int
            Times that a task is repeated if it raises.
        """
        ranks = self.ranks()
        tasks = {key: self.tasks[key] for key in ranks}
        return submit_tasks(client, tasks, self.keys, ranks, retries)
