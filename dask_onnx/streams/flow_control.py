"""Flow control of one stream: which frame starts, which is dropped, which is handed over when.

Pure logic: events come in with their time, instructions go out. Nothing here waits, runs or sends.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Late = Literal["drop", "keep", "latest"]
"""Treatment of frames that are late, or that newer ones have overtaken."""
DropReason = Literal["deadline", "newer"]
"""Reason why a frame has no result: its deadline passed, or a newer frame took its place."""


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Options of a stream that decide on the flow of its frames."""

    window: int
    """Largest number of frames between the source and the consumer."""
    is_ordered: bool = True
    """True to hand results over in the order of the frames."""
    deadline: float | None = None
    """Seconds from the arrival of a frame until its result is late; None for no limit."""
    late: Late = "keep"
    """Treatment of late frames."""
    keeps_running: bool = False
    """True if a frame that has started is not dropped, since later ones need its state."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Instruction: the result of a frame that runs is not wanted any more."""

    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Instruction: tell the consumer that a frame has no result."""

    index: int
    reason: DropReason
    seconds: float
    """Age of the frame."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Instruction: give the consumer the result of a frame, or the news that there is none."""

    index: int


Instruction = Cancel | Drop | HandOver


@dataclass(slots=True)
class FlowControl:
    """State of the frames of one stream between its source and its consumer.

    A frame arrives, waits, starts, finishes, is handed over and is taken by the consumer. With
    ``late="latest"`` the source is not held back: one frame waits at most, the newest.
    """

    options: FlowOptions
    waiting: deque[int] = field(default_factory=deque)
    """Frames that have arrived and not started, oldest first."""
    running: set[int] = field(default_factory=set)
    """Frames that have started and not finished."""
    arrivals: dict[int, float] = field(default_factory=dict)
    """Arrival time of each frame that has not finished."""
    untaken: int = 0
    """Results, without those of dropped frames, that the consumer has not taken."""
    count: int = 0
    """Frames that have arrived."""
    _next: int = 0
    """Next frame to hand over, in order."""
    _ready: set[int] = field(default_factory=set)
    """Frames that have a result or are dropped, and wait for earlier ones."""
    _deadlines: list[tuple[float, int]] = field(default_factory=list)
    """Heap of deadlines of frames."""

    @property
    def is_live(self) -> bool:
        """True if the source is not held back."""
        return self.options.late == "latest"

    @property
    def is_idle(self) -> bool:
        """True if every frame that has arrived has a result."""
        return not self.waiting and not self.running

    def arrive(self, now: float) -> tuple[int, list[Instruction]]:
        """Return the index of a frame that the source has given, and what follows from it."""
        index = self.count
        self.count += 1
        self.arrivals[index] = now
        if self.options.deadline is not None:
            heapq.heappush(self._deadlines, (now + self.options.deadline, index))
        instructions: list[Instruction] = []
        if self.is_live:
            for old in list(self.waiting):
                instructions += self._drop(old, "newer", now)
        self.waiting.append(index)
        return index, instructions

    def startable(self) -> int | None:
        """Return the frame that may start next; None if none waits, or the window is full."""
        if not self.waiting:
            return None
        # The reader of any other source stops at the window by itself.
        is_full = self.is_live and len(self.running) + self.untaken >= self.options.window
        return None if is_full else self.waiting[0]

    def start(self, index: int) -> None:
        """Note that a waiting frame has started."""
        self.waiting.remove(index)
        self.running.add(index)

    def restart(self, indices: Sequence[int]) -> None:
        """Let frames that run wait again, in their order; dropped ones are forgotten."""
        for index in sorted(indices, reverse=True):
            self.running.discard(index)
            if index in self.arrivals:
                self.waiting.appendleft(index)

    def finish(self, index: int, now: float) -> tuple[float | None, list[Instruction]]:
        """Note that a frame has a result, and return its age in seconds and what follows.

        The age is None for a frame that has been dropped meanwhile: its result is not wanted.
        """
        if index not in self.arrivals:
            self.running.discard(index)
            return None, []
        age = now - self.arrivals.pop(index)
        self.running.discard(index)
        if index in self.waiting:  # it failed before it started
            self.waiting.remove(index)
        self.untaken += 1
        return age, self._hand_over(index)

    def expire(self, now: float) -> list[Instruction]:
        """Drop the frames whose deadline has passed, where late frames are dropped."""
        instructions: list[Instruction] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, index = heapq.heappop(self._deadlines)
            is_kept = self.options.keeps_running and index in self.running
            if index in self.arrivals and self.options.late != "keep" and not is_kept:
                instructions += self._drop(index, "deadline", now)
        return instructions

    def next_deadline(self) -> float | None:
        """Return the time of the next call of `expire`; None if there is none."""
        if self.options.late == "keep":
            return None
        while self._deadlines and self._deadlines[0][1] not in self.arrivals:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def take(self) -> None:
        """Note that the consumer has taken a result."""
        self.untaken -= 1

    def unfinished(self) -> Iterator[int]:
        """Yield the frames that have arrived and have no result, oldest first."""
        yield from sorted(self.arrivals)

    def is_late(self, age: float) -> bool:
        """Return whether a result of some age is late."""
        return self.options.deadline is not None and age > self.options.deadline

    def _drop(self, index: int, reason: DropReason, now: float) -> list[Instruction]:
        age = now - self.arrivals.pop(index)
        instructions: list[Instruction] = [Drop(index, reason, age)]
        if index in self.running:
            instructions.append(Cancel(index))
            self.running.discard(index)
        else:
            self.waiting.remove(index)
        return instructions + self._hand_over(index)

    def _hand_over(self, index: int) -> list[Instruction]:
        if not self.options.is_ordered:
            return [HandOver(index)]
        self._ready.add(index)
        instructions: list[Instruction] = []
        while self._next in self._ready:
            self._ready.discard(self._next)
            instructions.append(HandOver(self._next))
            self._next += 1
        return instructions
