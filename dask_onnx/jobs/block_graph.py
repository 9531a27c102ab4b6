"""Graph of all blocks of a lazy array, of which a few blocks are computed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
from dask.base import optimize
from dask.core import flatten
from distributed import Client, Future


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """Optimised tasks of a lazy array, and the keys of its blocks in order."""

    tasks: Mapping[Any, Any]
    keys: Sequence[Any]

    @classmethod
    def of(cls, array: da.Array) -> BlockGraph:
        """Return the graph of an array; computes nothing."""
        (optimised,) = optimize(array)
        tasks = dict(optimised.__dask_graph__())
        return cls(tasks, list(flatten(optimised.__dask_keys__())))

    def part(self, blocks: range) -> dict[Any, Any]:
        """Return the tasks that some blocks need.

        Parameters
        ----------
        blocks : range
            Positions of the blocks, the last axis first.
        """
        found: dict[Any, Any] = {}
        waiting = list(self.keys[blocks.start : blocks.stop])
        while waiting:
            key = waiting.pop()
            if key not in found:
                found[key] = self.tasks[key]
                waiting.extend(found[key].dependencies)
        return found

    def submit(self, client: Client, blocks: range) -> list[Future]:
        """Start some blocks; return a future for each."""
        keys = list(self.keys[blocks.start : blocks.stop])
        futures: list[Future] = client.get(self.part(blocks), keys, sync=False)
        return futures
