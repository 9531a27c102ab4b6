"""Two profiles side by side: what became slower, and whether that exceeds the noise."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.core.formatting import printable
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.time_shares import CATEGORIES, time_shares

_SIGMAS = 3.0
"""Standard errors that a change must exceed to count."""
_LEAST_CHANGE = 0.05
"""Relative change below which none counts, since no two runs are more alike."""
_LEAST_NODE_SHARE = 0.01
"""Share of the time of all nodes below which a node is not compared."""
_LEAST_BYTES = 64 * 1024
"""Bytes of a transfer below which its rate is that of the latency."""
_MAD_SIGMA = 1.4826
"""Standard deviation of a normal distribution, divided by its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity in two profiles."""

    kind: str
    """"stage", "link", "node", "time" or "whole"."""
    name: str
    unit: str
    """Unit of `before` and `after`."""
    before: float
    after: float
    noise: float
    """Relative change that the scatter of single tasks, transfers or calls explains; infinite where
    there was only one."""
    samples: int
    """Smaller number of tasks, or transfers, of the two profiles."""

    @property
    def change(self) -> float:
        """Relative change: 0.5 is half as much again."""
        return self.after / self.before - 1 if self.before else math.inf if self.after else 0.0

    @property
    def is_significant(self) -> bool:
        """True if the change exceeds the noise."""
        return abs(self.change) > max(self.noise, _LEAST_CHANGE)

    @property
    def is_slower(self) -> bool:
        """True if the second profile is worse beyond the noise."""
        return self.is_significant and (self.change < 0) == (self.unit == "B/s")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Changes from one profile to another."""

    rows: tuple[Change, ...]
    """All quantities that both have, the largest significant changes first."""
    missing: tuple[str, ...]
    """Stages and links that only one of them has."""

    @property
    def slower(self) -> tuple[Change, ...]:
        """Lines that became slower beyond the noise, the worst first."""
        return tuple(change for change in self.rows if change.is_slower)

    def __str__(self) -> str:
        lines = [_line("", "before", "after", "change", "noise")]
        shown = [c for c in self.rows if c.is_significant or c.kind in ("whole", "time")]
        for each in shown:
            mark = " *" if each.is_slower else ""
            lines.append(
                _line(
                    f"{each.kind} {printable(each.name)}{mark}",
                    _amount(each.before, each.unit),
                    _amount(each.after, each.unit),
                    f"{each.change:+.0%}",
                    "one sample" if math.isinf(each.noise) else f"{each.noise:.0%}",
                )
            )
        quiet = len(self.rows) - len(shown)
        slower = ", ".join(f"{c.kind} {printable(c.name)}" for c in self.slower)
        lines.append(f"slower: {slower or 'nothing beyond the noise'}")
        if quiet:
            lines.append(f"{quiet} more within the noise")
        lines += [f"only in one of them: {printable(name)}" for name in self.missing]
        return "\n".join(lines)


def compare_profiles(before: RunProfile, after: RunProfile) -> Comparison:
    """Compare two profiles.

    Stages are compared by the median seconds of a row (of a run, where there are no rows), nodes
    that take 1 % of the time or more by their seconds for a row, links by the median rate of
    transfers, and all time by category. Workers have other addresses in each run; links are
    compared by their hosts, where these differ, and else by the stages whose values they carry.

    Parameters
    ----------
    before, after : RunProfile
    """
    found: list[Change] = []
    missing: list[str] = []
    for kind, unit, first, second in (
        ("stage", "s/row", _stage_seconds(before), _stage_seconds(after)),
        ("link", "B/s", _link_rates(before), _link_rates(after)),
    ):
        names = [*first, *(name for name in second if name not in first)]
        for name in names:
            if name in first and name in second:
                found.append(_change(kind, name, unit, first[name], second[name]))
            else:
                missing.append(f"{kind} {name}")
    found += _node_changes(before, after)
    found += _time_changes(before, after)
    found.sort(key=lambda each: (not each.is_significant, -_weight(each)))
    return Comparison(tuple(found), tuple(missing))


def _weight(change: Change) -> float:
    ratio = max(change.after, 1e-12) / max(change.before, 1e-12)
    return abs(math.log(ratio))


def _change(
    kind: str, name: str, unit: str, before: Sequence[float], after: Sequence[float]
) -> Change:
    one, other = statistics.median(before), statistics.median(after)
    noise = _noise((one, _relative_error(before)), (other, _relative_error(after)))
    return Change(kind, name, unit, one, other, noise, min(len(before), len(after)))


def _noise(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the change, relative to the first value, that the errors of both values explain.

    Parameters
    ----------
    before, after : (float, float)
        Value and its relative standard error.
    """
    if not before[0] or math.isinf(before[1]) or math.isinf(after[1]):
        return math.inf
    return _SIGMAS * math.hypot(before[0] * before[1], after[0] * after[1]) / before[0]


def _relative_error(values: Sequence[float]) -> float:
    """Return the standard error of the median of some values, relative to it."""
    if len(values) < 2:
        return math.inf
    middle = statistics.median(values)
    deviation = statistics.median(abs(value - middle) for value in values) * _MAD_SIGMA
    # The median of n normal values scatters sqrt(pi / 2) times as much as their mean.
    error = math.sqrt(math.pi / 2) * deviation / math.sqrt(len(values))
    return error / middle if middle else 0.0


def _stage_seconds(profile: RunProfile) -> dict[str, list[float]]:
    """Return the seconds of a row, or of a run, in each task of each stage."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for task in profile.tasks:
        seconds = task.seconds_of("run") if task.stage else task.seconds
        count = task.rows or task.runs or 1
        if seconds > 0 and not task.error:
            found[task.label].append(seconds / count)
    return dict(found)


def _link_rates(profile: RunProfile) -> dict[str, list[float]]:
    """Return the rate of each transfer that is not all latency, by link."""
    hosts = {worker.name: worker.host for worker in profile.workers}
    names = _link_names(profile, hosts)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in profile.transfers:
        if (each.wire_bytes or each.plain_bytes) >= _LEAST_BYTES and each.seconds > 0:
            found[names[each.sender, each.receiver]].append(each.bytes_per_second)
    return dict(found)


def _link_names(profile: RunProfile, hosts: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return names of links that are the same in another run with other ports.

    That is the addresses without ports, where these tell workers apart; else the stages that sent
    and received most.
    """
    places = {name: _place(name) for name in {*hosts, *_ends(profile)}}
    is_unique = len(set(places.values())) == len(places)
    if is_unique:
        return {
            (t.sender, t.receiver): f"{places[t.sender]} -> {places[t.receiver]}"
            for t in profile.transfers
        }
    shown = _places_by_work(profile)
    return {
        (t.sender, t.receiver): f"{shown.get(t.sender, t.sender)} -> "
        f"{shown.get(t.receiver, t.receiver)}"
        for t in profile.transfers
    }


def _ends(profile: RunProfile) -> set[str]:
    return {end for each in profile.transfers for end in (each.sender, each.receiver)}


def _place(address: str) -> str:
    """Return an address without its port."""
    host, colon, port = address.rpartition(":")
    return host if colon and port.isdigit() else address


def _places_by_work(profile: RunProfile) -> dict[str, str]:
    """Return for each worker its host with the stage that took most of its time."""
    seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for task in profile.tasks:
        seconds[task.worker][task.label] += task.seconds
    return {
        worker: f"{_place(worker)} with {max(own, key=lambda label: own[label])}"
        for worker, own in seconds.items()
    }


def _node_changes(before: RunProfile, after: RunProfile) -> Iterable[Change]:
    first, second = _node_seconds(before), _node_seconds(after)
    wholes = [sum(seconds for seconds, _ in each.values()) for each in (first, second)]
    for name, (seconds, error) in first.items():
        if name not in second:
            continue
        later, later_error = second[name]
        if max(seconds / wholes[0], later / wholes[1]) >= _LEAST_NODE_SHARE:
            noise = _noise((seconds, error), (later, later_error))
            yield Change("node", name, "s/row", seconds, later, noise, 1)


def _node_seconds(profile: RunProfile) -> dict[str, tuple[float, float]]:
    """Return the seconds of each node for a row of its stage, and their relative error."""
    rows: defaultdict[str, int] = defaultdict(int)
    for task in profile.tasks:
        rows[task.stage] += task.rows or task.runs or 0
    # The stage's own scatter is that of the runs to which the sample is scaled.
    scatter = {label: _relative_error(values) for label, values in _stage_seconds(profile).items()}
    found: dict[str, tuple[float, float]] = {}
    for node in profile.nodes:
        if rows[node.stage] and node.seconds > 0:
            own = math.inf if node.error is None else node.error
            error = math.hypot(own, scatter.get(node.stage_label, math.inf))
            name = f"{node.name} ({node.op_type}) in {node.stage_label}"
            seconds, known = found.get(name, (0.0, 0.0))
            found[name] = seconds + node.seconds / rows[node.stage], max(error, known)
    return found


def _time_changes(before: RunProfile, after: RunProfile) -> Iterable[Change]:
    one, other = time_shares(before).seconds, time_shares(after).seconds
    for category in CATEGORIES:
        if one[category] or other[category]:
            # Only one number each: no noise can be told.
            yield Change("time", category, "s", one[category], other[category], math.inf, 1)
    yield Change("whole", "wall", "s", before.wall, after.wall, math.inf, 1)


def _amount(value: float, unit: str) -> str:
    if unit == "B/s":
        return f"{value / 1e6:,.1f} MB/s"
    if unit == "s":
        return f"{value:,.2f} s"
    return f"{value * 1e3:,.3f} ms"


def _line(*cells: str) -> str:
    first, *rest = cells
    return f"{first:<56}" + "".join(f"{cell:>14}" for cell in rest)
