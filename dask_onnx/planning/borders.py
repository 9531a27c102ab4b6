"""Borders of contiguous stages: the slowest stage as fast as possible, the others as even.

A stage that starts at a border may end at any border up to its *reach*, which time and memory set:
where it may end at one border, it may end at every earlier one. Two facts follow, and the search
below rests on them.

Call a border *open* if the last border can be reached from it at all. The open borders form a path
themselves, since each reaches the next open one. So the largest number of stages from a border on
is the number of open borders after it.

Every number of stages between the smallest and the largest is possible too. Let P be a path of k
stages and Q one of l > k stages. Follow P for i stages, go on to a border of Q that P's next stage
passes or ends at, and follow Q to the end. P's next stage reaches that border, so this is a path;
if the border is the j-th of Q, it has i + 1 + l - j stages. From one i to the next, these lengths
either decrease, with every number in between, or there is no such border and the next length is
larger by one. They start with l and end with k, so each number in between occurs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MOST_PROBES = 100
"""Bound on the bisection: a float64 has 53 binary digits, and each probe gains at least one."""
_ABOUT_EQUAL = 0.05
"""Share of a stage's time: of borders that differ by less, the one that sends least is taken."""

Borders = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PieceTimes:
    """Times of n contiguous pieces, which have n + 1 borders."""

    done: npt.NDArray[np.float64]
    """Seconds of all pieces before each border, shape (n + 1,)."""
    arriving: npt.NDArray[np.float64]
    """Seconds that a stage which starts at a border needs to receive its inputs, shape (n + 1,)."""

    @property
    def pieces(self) -> int:
        """Number of pieces, n."""
        return len(self.done) - 1

    def seconds(self, starts: Borders, ends: Borders) -> npt.NDArray[np.float64]:
        """Return the seconds of stages between pairs of borders, transfers included."""
        times: npt.NDArray[np.float64] = self.done[ends] - self.done[starts] + self.arriving[starts]
        return times


def best_borders(
    times: PieceTimes,
    n_stages: int,
    crossing: Sequence[int],
    within: Borders | None = None,
) -> list[int]:
    """Return the borders of exactly `n_stages` contiguous stages; see `pipeline`.

    Parameters
    ----------
    times : PieceTimes
        Times of the pieces.
    n_stages : int
        Number of stages: at most the number of pieces, and enough for `within`.
    crossing : sequence of int
        Bytes that cross the border behind each piece but the last.
    within : ndarray of int64, shape (pieces + 1,), optional
        Furthest border where a stage from each border may end, by its memory; any by default.

    Returns
    -------
    list of int
        `n_stages` + 1 borders, from 0 to the number of pieces.
    """
    if not times.pieces:
        return [0] * (n_stages + 1)
    if within is None:
        within = np.full(times.pieces + 1, times.pieces, np.int64)
    reach = _fastest_reach(times, n_stages, within)
    return _even_borders(times, n_stages, crossing, reach)


def _fastest_reach(times: PieceTimes, n_stages: int, within: Borders) -> Borders:
    """Return the reach of stages if the slowest of them is as fast as possible.

    Bisection whose bounds move to times that stages have, so that it ends with the exact time of
    the slowest one (Pinar and Aykanat, "Fast optimal load balancing algorithms for 1D
    partitioning", 2004, whose probes have no costs of borders).
    """
    best, high = within, _longest(times, within)
    low = _lower_bound(times, n_stages)
    for _ in range(_MOST_PROBES):
        if low >= high:
            break
        middle = (low + high) / 2
        by_time = _time_reach(times, middle)
        reach = np.minimum(by_time, within)
        if _is_possible(reach, n_stages):
            best, high = reach, min(middle, _longest(times, reach))
        else:
            low = max(middle, _next_longer(times, by_time, within))
    return best


def _lower_bound(times: PieceTimes, n_stages: int) -> float:
    """Return a time below which the slowest stage cannot get.

    It is the larger of the longest piece and the mean of the stages with the cheapest transfers.
    """
    least = np.sort(times.arriving[1:-1])[: n_stages - 1].sum()
    mean = (times.done[-1] + times.arriving[0] + least) / n_stages
    return max(float(np.diff(times.done).max()), float(mean))


def _time_reach(times: PieceTimes, seconds: float) -> Borders:
    """Return the furthest border that a stage from each border reaches within `seconds`."""
    ends = times.done + seconds - times.arriving
    return np.searchsorted(times.done, ends, side="right").astype(np.int64) - 1


def _longest(times: PieceTimes, reach: Borders) -> float:
    """Return the seconds of the slowest stage that `reach` allows."""
    starts = np.flatnonzero(reach > np.arange(len(reach)))
    return float(times.seconds(starts, reach[starts]).max(initial=0.0))


def _next_longer(times: PieceTimes, by_time: Borders, within: Borders) -> float:
    """Return the seconds of the fastest stage that time did not allow and memory does."""
    starts = np.arange(times.pieces)
    ends = np.maximum(by_time[:-1], starts) + 1
    starts = starts[ends <= within[:-1]]
    return float(times.seconds(starts, ends[starts]).min(initial=math.inf))


def _is_possible(reach: Borders, n_stages: int) -> bool:
    """Return whether `n_stages` stages lead from the first border to the last."""
    furthest = np.maximum.accumulate(reach).tolist()
    last = len(reach) - 1
    border = fewest = 0
    while border < last:  # every border up to `furthest` is within that many stages or fewer
        if fewest == n_stages or furthest[border] <= border:
            return False
        border, fewest = furthest[border], fewest + 1
    is_each_open = bool((reach[:-1] > np.arange(last)).all())
    return n_stages <= (last if is_each_open else int(_open(reach)[:-1].sum()))


def _open(reach: Borders) -> npt.NDArray[np.bool_]:
    """Return which borders the last one can be reached from."""
    found = np.zeros(len(reach), bool)
    found[-1] = True
    nearest = len(reach) - 1
    for border, furthest in zip(range(nearest - 1, -1, -1), reach[-2::-1].tolist(), strict=True):
        if furthest >= nearest:
            found[border], nearest = True, border
    return found


def _fewest_after(reach: Borders, is_open: npt.NDArray[np.bool_]) -> Borders:
    """Return the fewest stages from each border to the last; too many for borders not open."""
    found = np.full(len(reach), len(reach), np.int64)
    found[-1] = 0
    # Borders for which no nearer one needs as few stages, the nearest last. Their positions are
    # negated, since bisect wants ascending numbers.
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


def _even_borders(
    times: PieceTimes, n_stages: int, crossing: Sequence[int], reach: Borders
) -> list[int]:
    """Return borders that are, one after the other, nearest to an even share of what is ahead.

    Of borders that are about as near, the one that the fewest bytes cross is taken.
    """
    is_open = _open(reach)
    fewest = _fewest_after(reach, is_open)
    most = np.cumsum(is_open[::-1])[::-1] - 1
    shares = _Shares(times, n_stages)
    sent = np.asarray([0, *crossing, 0], np.float64)
    borders = [0]
    for left in range(n_stages - 1, 0, -1):
        start = borders[-1]
        ends = slice(start + 1, int(reach[start]) + 1)
        can_follow = is_open[ends] & (fewest[ends] <= left) & (left <= most[ends])
        found = np.flatnonzero(can_follow) + start + 1
        seconds = times.done[found] - times.done[start]
        off = np.abs(seconds - shares.of_stage(start, left + 1))
        # The tolerance is a share of the nearest possible stage, not of the even share, which may
        # be out of reach before an expensive piece.
        about = off <= off.min() + _ABOUT_EQUAL * seconds[off.argmin()]
        found, off = found[about], off[about]
        borders.append(int(found[np.lexsort((off, sent[found]))[0]]))
    return [*borders, times.pieces]


class _Shares:
    """Seconds of even stages.

    Pieces longer than an even share are stages of their own, and the other stages are not made as
    slow as these.
    """

    def __init__(self, times: PieceTimes, n_stages: int) -> None:
        self._times = times
        pieces = np.diff(times.done)
        is_long = pieces > _level(pieces, n_stages)
        short = np.where(is_long, 0.0, pieces)
        self._short_seconds_ahead = np.cumsum(short[::-1])[::-1]
        self._long_pieces_ahead = np.cumsum(is_long[::-1])[::-1]
        self._usual_arriving = float(np.median(times.arriving[:-1]))

    def of_stage(self, start: int, left: int) -> float:
        """Return the seconds of computation of the first of `left` stages from border `start`.

        They are fewer the longer the stage's inputs take to arrive.
        """
        count = max(left - int(self._long_pieces_ahead[start]), 1)
        share = self._short_seconds_ahead[start] / count
        return max(float(share + self._usual_arriving - self._times.arriving[start]), 0.0)


def _level(pieces: npt.NDArray[np.float64], n_stages: int) -> float:
    """Return an even share of the rest once each piece longer than it is a stage of its own."""
    longest = np.sort(pieces)[::-1][:n_stages]
    rest = pieces.sum() - np.concatenate([[0.0], np.cumsum(longest)[:-1]])
    levels = rest / np.arange(n_stages, n_stages - len(longest), -1)
    return float(levels[np.argmax(longest <= levels * (1 + 1e-9))])
