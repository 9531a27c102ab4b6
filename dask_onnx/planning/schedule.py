"""How micro-batches follow one another through the stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from dask_onnx.core.errors import PlanError
from dask_onnx.planning.plan_options import whole_number

Mode = Literal["async", "sync", "hybrid"]

_PER_STAGE = 2
"""Micro-batches in flight for each stage: one at work and one that waits for its turn."""

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How micro-batches follow one another through the stages of a plan. It changes no result.

    Parameters
    ----------
    mode : {"async", "sync", "hybrid"}
        "async": a micro-batch starts as soon as the one that is `in_flight` places before it has
        been through all stages. "sync": micro-batches go in waves of `in_flight`; all of a wave
        finish a stage before any of them starts the next, and the wave before the next one starts.
        "hybrid": only the latter, a barrier every `in_flight` micro-batches.
    in_flight : int, optional
        Micro-batches that are between their first and their last stage at most; two for each stage
        if left out.

    Raises
    ------
    PlanError
        There is no such mode; fewer than one in flight.
    """

    mode: Mode = "async"
    in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("async", "sync", "hybrid"):
            raise PlanError(
                f"there is no schedule {self.mode!r}", "choose 'async', 'sync' or 'hybrid'"
            )
        if self.in_flight is not None:
            whole_number("in_flight", self.in_flight)

    def limit(self, stages: int) -> int:
        """Micro-batches in flight at most, in a plan of so many stages."""
        return self.in_flight or _PER_STAGE * stages

    def binds(self, stages: int, chunks: int) -> bool:
        """Whether it asks anything of so many micro-batches."""
        return chunks > (1 if self.mode == "sync" else self.limit(stages))

    def describe(self, stages: int) -> str:
        limit = self.limit(stages)
        batches = f"{limit} {'micro-batch' if limit == 1 else 'micro-batches'}"
        if self.mode == "async":
            return f"async, {batches} in flight at most"
        if self.mode == "sync":
            return f"sync, a barrier after each stage of {batches}"
        return f"hybrid, a barrier every {batches}"


@dataclass(frozen=True, slots=True)
class Passage(Generic[Item]):
    """One micro-batch: its items, a stage's work each, by level."""

    levels: Mapping[Item, int]
    """How many of the micro-batch's stages are on the longest way to it."""
    sinks: tuple[Item, ...]
    """Items that nothing of the micro-batch waits for."""

    @property
    def sources(self) -> list[Item]:
        return [item for item, level in self.levels.items() if level == 0]

    @classmethod
    def of(cls, needs: Mapping[Item, Sequence[Item]]) -> Passage[Item]:
        """From each item's needs within the micro-batch, in an order in which they can run."""
        levels: dict[Item, int] = {}
        for item, before in needs.items():
            levels[item] = max((levels[each] + 1 for each in before), default=0)
        needed = {each for before in needs.values() for each in before}
        return cls(levels, tuple(item for item in needs if item not in needed))


@dataclass(frozen=True, slots=True)
class Barrier(Generic[Item]):
    """None of `before` starts until all of `after` are done."""

    after: tuple[Item, ...]
    before: tuple[Item, ...]


def barriers(
    schedule: Schedule, stages: int, passages: Sequence[Passage[Item]]
) -> Iterator[Barrier[Item]]:
    """What a schedule asks of micro-batches, which are in order."""
    limit = schedule.limit(stages)
    if schedule.mode == "async":
        for early, late in zip(passages, passages[limit:], strict=False):
            yield Barrier(early.sinks, tuple(late.sources))
        return
    waves = [passages[start : start + limit] for start in range(0, len(passages), limit)]
    for number, wave in enumerate(waves):
        if number:
            sinks = [item for passage in waves[number - 1] for item in passage.sinks]
            yield Barrier(tuple(sinks), tuple(item for p in wave for item in p.sources))
        if schedule.mode == "sync":
            yield from _between_levels(wave)


def _between_levels(wave: Sequence[Passage[Item]]) -> Iterator[Barrier[Item]]:
    by_level: defaultdict[int, list[Item]] = defaultdict(list)
    for passage in wave:
        for item, level in passage.levels.items():
            by_level[level].append(item)
    for level in range(len(by_level) - 1):
        yield Barrier(tuple(by_level[level]), tuple(by_level[level + 1]))
