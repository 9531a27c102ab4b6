"""Schedules of micro-batches through the stages of a plan, and the barriers that enforce them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_count
from dask_onnx.planning.plan_options import parse_whole_number

Mode = Literal["async", "sync", "hybrid"]

_MODES: tuple[Mode, ...] = ("async", "sync", "hybrid")
_IN_FLIGHT_PER_STAGE = 2
"""Default number of micro-batches in flight for each stage: one at work and one waiting."""

Item = TypeVar("Item", bound=Hashable)
"""Work of one stage on one micro-batch: a task's key, or a (stage, micro-batch) pair."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Order in which micro-batches go through the stages of a plan. It changes no result.

    Parameters
    ----------
    mode : {"async", "sync", "hybrid"}
        "async": a micro-batch starts when the one `in_flight` places before it has been through
        all stages. "sync": micro-batches go in waves of `in_flight`; all of a wave finish a stage
        before any of them starts the next one, and a wave finishes before the next one starts.
        "hybrid": only the latter, a barrier every `in_flight` micro-batches.
    in_flight : int, optional
        Most micro-batches between their first and their last stage; by default two per stage.

    Raises
    ------
    PlanError
        `mode` is unknown, or `in_flight` is below 1.
    """

    mode: Mode = "async"
    """Rule for the start of a micro-batch."""
    in_flight: int | None = None
    """Most micro-batches in flight; None stands for two per stage."""

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise PlanError(
                f"{self.mode!r} is no schedule",
                f"choose one of {', '.join(map(repr, _MODES))}",
                option="mode",
                suggestions=[Suggestion("mode", mode) for mode in _MODES],
            )
        if self.in_flight is not None:
            parse_whole_number("in_flight", self.in_flight)

    def limit(self, stages: int) -> int:
        """Return the most micro-batches in flight in a plan of `stages` stages."""
        return self.in_flight or _IN_FLIGHT_PER_STAGE * stages

    def binds(self, stages: int, chunks: int) -> bool:
        """Return whether the schedule delays any of `chunks` micro-batches."""
        return chunks > (1 if self.mode == "sync" else self.limit(stages))

    def describe(self, stages: int) -> str:
        """Return the schedule of a plan of `stages` stages as a line of text."""
        batches = format_count(self.limit(stages), "micro-batch", "es")
        if self.mode == "async":
            return f"async, {batches} in flight at most"
        if self.mode == "sync":
            return f"sync, a barrier after each stage of {batches}"
        return f"hybrid, a barrier every {batches}"


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[Item]):
    """Items of one micro-batch, each the work of one stage, by level."""

    levels: Mapping[Item, int]
    """Number of items of the micro-batch before each item, along the longest path."""
    sinks: tuple[Item, ...]
    """Items that no other item of the micro-batch depends on."""

    @property
    def sources(self) -> list[Item]:
        """Items that depend on no other item of the micro-batch."""
        return [item for item, level in self.levels.items() if level == 0]

    @classmethod
    def from_dependencies(cls, dependencies: Mapping[Item, Sequence[Item]]) -> MicroBatch[Item]:
        """Build a micro-batch from each item's dependencies, in topological order."""
        levels: dict[Item, int] = {}
        for item, before in dependencies.items():
            levels[item] = max((levels[each] + 1 for each in before), default=0)
        needed = {each for before in dependencies.values() for each in before}
        return cls(levels, tuple(item for item in dependencies if item not in needed))


@dataclass(frozen=True, slots=True)
class Barrier(Generic[Item]):
    """Barrier between items: none of `before` starts until all of `after` are done."""

    after: tuple[Item, ...]
    """Items that the barrier waits for."""
    before: tuple[Item, ...]
    """Items that wait for the barrier."""


def barriers(
    schedule: Schedule, stages: int, micro_batches: Sequence[MicroBatch[Item]]
) -> Iterator[Barrier[Item]]:
    """Yield the barriers that `schedule` puts among micro-batches, which are in order."""
    limit = schedule.limit(stages)
    if schedule.mode == "async":
        for early, late in zip(micro_batches, micro_batches[limit:], strict=False):
            yield Barrier(early.sinks, tuple(late.sources))
        return
    waves = [micro_batches[start : start + limit] for start in range(0, len(micro_batches), limit)]
    for number, wave in enumerate(waves):
        if number:
            sinks = [item for each in waves[number - 1] for item in each.sinks]
            yield Barrier(tuple(sinks), tuple(item for each in wave for item in each.sources))
        if schedule.mode == "sync":
            yield from _barriers_between_levels(wave)


def _barriers_between_levels(wave: Sequence[MicroBatch[Item]]) -> Iterator[Barrier[Item]]:
    by_level: defaultdict[int, list[Item]] = defaultdict(list)
    for micro_batch in wave:
        for item, level in micro_batch.levels.items():
            by_level[level].append(item)
    for level in range(len(by_level) - 1):
        yield Barrier(tuple(by_level[level]), tuple(by_level[level + 1]))
