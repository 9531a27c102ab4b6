"""Rounds of `chaos`: which there are, how one ended, and figures of many."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from chaos_faults import FAULTS
from chaos_plans import RESUMED
from common import print_table

_MIXED_EVERY = 4
"""Each round of so many has two faults."""


@dataclasses.dataclass(frozen=True)
class Round:
    """Outcome of one round."""

    number: int
    plan: str
    faults: tuple[str, ...]
    end: str
    """"equal", "late" (equal, but beyond the bound), "wrong", "error" or "hang"."""
    seconds: float
    lost_seconds: float
    """Seconds more than the undisturbed run."""
    bound_seconds: float
    """Seconds after which the round counts as late."""
    repeated: int
    """Tasks that ran again; -1 where the scheduler could not be asked."""
    detail: str = ""
    """Text of an error, or states of the tasks of a round that hangs."""


def schedule_of(
    rounds: int, seed: int, plans: Sequence[str], faults: Sequence[str]
) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield the number, the plan and the faults of each round: every pair before any repeats."""
    every = [(plan, fault) for plan in plans for fault in possible_faults(plan, faults)]
    pairs: list[tuple[str, str]] = []
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        if not pairs:
            pairs = list(every)
            rng.shuffle(pairs)
        plan, fault = pairs.pop()
        chosen = [str(fault)]
        if number % _MIXED_EVERY == _MIXED_EVERY - 1:
            others = possible_faults(plan, faults)
            if FAULTS[str(fault)].loses_host:
                # No request survives both hosts: it ends with an error, as it should.
                others = [name for name in others if not FAULTS[name].loses_host] or others
            chosen.append(str(rng.choice(others)))
        yield number, str(plan), tuple(chosen)


def possible_faults(plan: str, faults: Sequence[str]) -> list[str]:
    """Return the faults that a plan is to survive."""
    return [name for name in faults if plan in RESUMED or not FAULTS[name].ends_requests]


def summary(rounds: Sequence[Round], by: str) -> list[dict[str, Any]]:
    """Return figures of the rounds of each plan, or of each fault."""
    groups: defaultdict[str, list[Round]] = defaultdict(list)
    for each in rounds:
        name = each.plan if by == "plan" else each.faults[0] if len(each.faults) == 1 else "two"
        groups[name].append(each)
    lines = []
    for name, own in sorted(groups.items()):
        lost = [each.lost_seconds for each in own]
        ends = Counter(each.end for each in own)
        lines.append(
            {
                by: name,
                "rounds": len(own),
                **{end: ends[end] for end in ("equal", "late", "wrong", "hang", "error")},
                "median_lost_seconds": round(float(np.median(lost)), 1),
                "most_lost_seconds": round(max(lost), 1),
                "median_repeated": int(np.median([each.repeated for each in own])),
                "most_repeated": max(each.repeated for each in own),
            }
        )
    return lines


def tell(rounds: Sequence[Round]) -> None:
    """Print figures by plan and by fault."""
    for by in ("plan", "fault"):
        if lines := summary(rounds, by):
            head = [name.replace("_", " ") for name in lines[0]]
            cells = [[str(cell) for cell in line.values()] for line in lines]
            print_table(f"{len(rounds)} rounds by {by}", head, cells)
