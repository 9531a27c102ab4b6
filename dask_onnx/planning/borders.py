"""Where contiguous stages begin and end: the slowest as fast as can be, the others as even.

A stage may end at any border up to its reach, which time and memory set: where it may end at a
border, it may end at each one before. Two things follow, on which all here rests.

The borders from which the last one can be reached at all, the open ones, form a way themselves:
each reaches the next open one. So the most stages from one on are the open borders from there.

And so many stages as lie between the fewest and the most are possible too. Let P be a way in k
stages and Q one in l > k. Go along P for i stages, on to a border of Q that P's next stage passes
by or ends at, and along Q to the end: that stage reaches it, so that this is a way, of length
i + 1 + l - j where the border is Q's j-th. From one i to the next these lengths either fall, with
all numbers in between, or there is no such border and what follows is longer by one. They begin
with l and end with k, so that each number between is met.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MOST_PROBES = 100
"""More than any search takes: a float64 has 53 digits to halve, and each probe gains as much."""
_ABOUT = 0.05
"""Of a stage's time: stages that differ by less are about equal, and what they send decides."""

Borders = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What contiguous pieces of the chain of chains would take; n pieces have n + 1 borders."""

    done: npt.NDArray[np.float64]
    """Seconds of all pieces before each border: (n + 1,)."""
    arriving: npt.NDArray[np.float64]
    """Seconds that a stage which begins at a border spends on what crosses it: (n + 1,)."""

    @property
    def pieces(self) -> int:
        return len(self.done) - 1

    def seconds(self, starts: Borders, ends: Borders) -> npt.NDArray[np.float64]:
        """Of stages between borders."""
        times: npt.NDArray[np.float64] = self.done[ends] - self.done[starts] + self.arriving[starts]
        return times


def best_borders(
    load: Load,
    n_stages: int,
    crossing: Sequence[int],
    within: Borders | None = None,
) -> list[int]:
    """Borders of exactly `n_stages` stages, from 0 to the number of pieces; see `pipeline`.

    Parameters
    ----------
    n_stages : at most the number of pieces, and enough for `within`
    crossing : bytes that cross the border behind each piece but the last
    within : for each border the furthest one that a stage from it may end at, by its memory
    """
    if not load.pieces:
        return [0] * (n_stages + 1)
    if within is None:
        within = np.full(load.pieces + 1, load.pieces, np.int64)
    reach = _fastest_reach(load, n_stages, within)
    return _even_borders(load, n_stages, crossing, reach)


def _fastest_reach(load: Load, n_stages: int, within: Borders) -> Borders:
    """How far stages reach if the slowest of them is as fast as can be.

    Bisection whose bounds move to times that stages have, so that it ends with the very time of the
    slowest one (Pinar and Aykanat, "Fast optimal load balancing algorithms for 1D partitioning",
    2004, whose probes have no costs of borders).
    """
    best, high = within, _longest(load, within)
    low = _lower_bound(load, n_stages)
    for _ in range(_MOST_PROBES):
        if low >= high:
            break
        middle = (low + high) / 2
        by_time = _time_reach(load, middle)
        reach = np.minimum(by_time, within)
        if _is_possible(reach, n_stages):
            best, high = reach, min(middle, _longest(load, reach))
        else:
            low = max(middle, _next_longer(load, by_time, within))
    return best


def _lower_bound(load: Load, n_stages: int) -> float:
    """No cut can make the slowest stage faster: than a piece, or than the mean with the least that
    can arrive."""
    least = np.sort(load.arriving[1:-1])[: n_stages - 1].sum()
    mean = (load.done[-1] + load.arriving[0] + least) / n_stages
    return max(float(np.diff(load.done).max()), float(mean))


def _time_reach(load: Load, seconds: float) -> Borders:
    """For each border the furthest one that a stage from it can end at within `seconds`."""
    ends = load.done + seconds - load.arriving
    return np.searchsorted(load.done, ends, side="right").astype(np.int64) - 1


def _longest(load: Load, reach: Borders) -> float:
    """Seconds of the slowest stage that reach allows."""
    starts = np.flatnonzero(reach > np.arange(len(reach)))
    return float(load.seconds(starts, reach[starts]).max(initial=0.0))


def _next_longer(load: Load, by_time: Borders, within: Borders) -> float:
    """Seconds of the fastest stage that time did not allow and memory does."""
    starts = np.arange(load.pieces)
    ends = np.maximum(by_time[:-1], starts) + 1
    starts = starts[ends <= within[:-1]]
    return float(load.seconds(starts, ends[starts]).min(initial=math.inf))


def _is_possible(reach: Borders, n_stages: int) -> bool:
    """Whether so many stages lead from the first border to the last."""
    furthest = np.maximum.accumulate(reach).tolist()
    last = len(reach) - 1
    border = fewest = 0
    while border < last:  # any border up to the furthest can be had in so many stages or fewer
        if fewest == n_stages or furthest[border] <= border:
            return False
        border, fewest = furthest[border], fewest + 1
    is_each_open = bool((reach[:-1] > np.arange(last)).all())
    return n_stages <= (last if is_each_open else int(_open(reach)[:-1].sum()))


def _open(reach: Borders) -> npt.NDArray[np.bool_]:
    """Borders from which the last one can be reached."""
    found = np.zeros(len(reach), bool)
    found[-1] = True
    nearest = len(reach) - 1
    for border, furthest in zip(range(nearest - 1, -1, -1), reach[-2::-1].tolist(), strict=True):
        if furthest >= nearest:
            found[border], nearest = True, border
    return found


def _fewest_after(reach: Borders, is_open: npt.NDArray[np.bool_]) -> Borders:
    """For each border the fewest stages from it to the last one; one too many at those not open."""
    found = np.full(len(reach), len(reach), np.int64)
    found[-1] = 0
    # Borders that none nearer is as good as, the nearest last: their places negated, to bisect.
    places, counts = [1 - len(reach)], [0]
    reaches = reach.tolist()
    for border in np.flatnonzero(is_open[:-1])[::-1].tolist():
        count = counts[bisect.bisect_left(places, -reaches[border])] + 1
        found[border] = count
        while counts and counts[-1] >= count:
            places.pop()
            counts.pop()
        places.append(-border)
        counts.append(count)
    return found


def _even_borders(load: Load, n_stages: int, crossing: Sequence[int], reach: Borders) -> list[int]:
    """One border after the other, as near to an even share of what is ahead as reach allows; of
    those that are about as near the one that the fewest bytes cross."""
    is_open = _open(reach)
    fewest = _fewest_after(reach, is_open)
    most = np.cumsum(is_open[::-1])[::-1] - 1
    shares = _Shares(load, n_stages)
    sent = np.asarray([0, *crossing, 0], np.float64)
    borders = [0]
    for left in range(n_stages - 1, 0, -1):
        start = borders[-1]
        ends = slice(start + 1, int(reach[start]) + 1)
        can_follow = is_open[ends] & (fewest[ends] <= left) & (left <= most[ends])
        found = np.flatnonzero(can_follow) + start + 1
        seconds = load.done[found] - load.done[start]
        off = np.abs(seconds - shares.of_stage(start, left + 1))
        # Of the stage that can be had: before a dear piece a share may be out of reach.
        about = off <= off.min() + _ABOUT * seconds[off.argmin()]
        found, off = found[about], off[about]
        borders.append(int(found[np.lexsort((off, sent[found]))[0]]))
    return [*borders, load.pieces]


class _Shares:
    """What stages would take if they were even. Pieces that take more than that count as stages of
    their own, which the others do not wait to become as slow as."""

    def __init__(self, load: Load, n_stages: int) -> None:
        self._load = load
        pieces = np.diff(load.done)
        is_dear = pieces > _level(pieces, n_stages)
        light = np.where(is_dear, 0.0, pieces)
        self._light_ahead = np.cumsum(light[::-1])[::-1]
        self._dear_ahead = np.cumsum(is_dear[::-1])[::-1]
        self._usual = float(np.median(load.arriving[:-1]))

    def of_stage(self, start: int, left: int) -> float:
        """Seconds of computing of the first of `left` stages from a border on: the less, the more
        arrives there."""
        share = self._light_ahead[start] / max(left - int(self._dear_ahead[start]), 1)
        return max(float(share + self._usual - self._load.arriving[start]), 0.0)


def _level(pieces: npt.NDArray[np.float64], n_stages: int) -> float:
    """An even share of what is left once each piece dearer than that has a stage of its own."""
    dearest = np.sort(pieces)[::-1][:n_stages]
    rest = pieces.sum() - np.concatenate([[0.0], np.cumsum(dearest)[:-1]])
    levels = rest / np.arange(n_stages, n_stages - len(dearest), -1)
    return float(levels[np.argmax(dearest <= levels * (1 + 1e-9))])
