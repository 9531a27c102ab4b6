"""A profile on one screen: where the time went, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape

from dask_onnx.core.formatting import format_bytes, format_count, format_seconds, printable
from dask_onnx.diagnostics.profiling.profile_advice import Advice, advice_on
from dask_onnx.diagnostics.profiling.profile_rows import Row, rows_of
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.diagnostics.profiling.time_shares import time_shares

_SHOWN = 5
"""Stages, links and nodes that are shown."""
_BAR = 30
"""Characters of the longest bar."""
_NAME = 42
"""Characters of a name."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Shares of the time of a run. ``str()`` of it is one screen."""

    wall: float
    """Seconds of the run."""
    slots: int
    """Tasks that ran at a time."""
    slot_seconds: float
    """Seconds of all slots together: wall x slots where no worker came or went."""
    shares: Mapping[str, float]
    """Category to seconds of slots; their sum is `slot_seconds`."""
    rows: int
    """Rows that left the model."""
    advice: tuple[Advice, ...]
    """Changes that are predicted to save most, the best first."""
    lines: tuple[str, ...]
    """The screen, by lines."""

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def html(self) -> str:
        """The screen as an element of an HTML page, in the colours of the page."""
        return f'<pre style="line-height:1.25;overflow-x:auto">{escape(str(self))}</pre>'

    def _repr_html_(self) -> str:
        """Return the screen as notebooks show it."""
        return self.html


def summary_of(profile: RunProfile) -> RunSummary:
    """Return the summary of a profile."""
    shares = time_shares(profile)
    advice = advice_on(profile, shares)
    rows = _rows(profile)
    lines = [
        _headline(profile, rows),
        *_share_lines(shares.seconds, shares.total),
        *_table_lines(profile),
        *(f"{number}. {each}" for number, each in enumerate(advice, 1)),
        *([] if advice else ["nothing stands out"]),
        *(f"note: {printable(note)}" for note in profile.notes),
    ]
    return RunSummary(
        profile.wall,
        profile.slots,
        profile.slot_seconds,
        shares.seconds,
        rows,
        advice,
        tuple(lines),
    )


def _rows(profile: RunProfile) -> int:
    """Return the rows of the stage that has most."""
    counts: dict[str, int] = {}
    for task in profile.tasks:
        if task.stage:
            counts[task.stage] = counts.get(task.stage, 0) + (task.rows or 0)
    return max(counts.values(), default=0)


def _headline(profile: RunProfile, rows: int) -> str:
    parts = [
        format_seconds(profile.wall),
        format_count(len(profile.workers), "worker"),
        format_count(profile.slots, "slot"),
        format_count(len(profile.tasks), "task"),
    ]
    if rows:
        parts.append(f"{format_count(rows, 'row')}, {rows / profile.wall:,.1f} rows/s")
    errors = sum(each.count for each in profile.errors)
    if errors:
        parts.append(format_count(errors, "error"))
    return f"{' | '.join(parts)} | {profile.scheduler}"


def _share_lines(seconds: Mapping[str, float], total: float) -> Iterator[str]:
    largest = max(seconds.values(), default=0.0)
    for category, own in seconds.items():
        if own > 0:
            bar = "#" * max(round(_BAR * own / largest), 1)
            yield f"  {category:<18}{own / total:>7.1%} {format_seconds(own):>10}  {bar}"
    yield f"  {'all':<18}{1:>7.1%} {format_seconds(total):>10}"


def _table_lines(profile: RunProfile) -> Iterator[str]:
    yield from _lines(
        "stage",
        rows_of(profile, "stage"),
        lambda row: (
            row["stage"],
            f"{format_seconds(row['seconds']):>10} {row['tasks']:>7,} tasks, "
            f"run {format_seconds(row['run'])}{_predicted(row)}, "
            f"waited {format_seconds(row['waited'])}",
        ),
    )
    yield from _lines(
        "link",
        rows_of(profile, "link"),
        lambda row: (
            row["link"].replace("tcp://", ""),
            f"{format_bytes(row['wire_bytes']):>10} in {format_seconds(row['busy_seconds'])}, "
            f"{row['bytes_per_second'] / 1e6:,.1f} MB/s, {row['ratio']:.2f} : 1"
            + (", packed" if row["packed"] else ""),
        ),
    )
    yield from _lines(
        "stream",
        rows_of(profile, "stream"),
        lambda row: (
            row["stream"],
            f"{row['done']:>10,} of {row['read']:,} frames, {row['rate']:,.1f}/s, "
            f"{_latency(row)}{row['late']:,} late, {row['dropped']:,} dropped, "
            f"{row['failed']:,} failed",
        ),
    )
    yield from _lines(
        f"node{_sampled(profile)}",
        rows_of(profile, "node"),
        lambda row: (
            f"{row['node']} ({row['op_type']})",
            f"{format_seconds(row['seconds']):>10} {row['share']:>6.1%}"
            f" {row['flops_per_second'] / 1e9:>8.1f} GFLOP/s {row['bytes_per_second'] / 1e9:>7.1f}"
            f" GB/s, {row['roofline']:.0%} of the host's limit",
        ),
    )


def _latency(row: Row) -> str:
    if row["p50"] is None:
        return ""
    return f"p50 {format_seconds(row['p50'])}, p99 {format_seconds(row['p99'])}; "


def _predicted(row: Row) -> str:
    predicted = row["predicted_run"]
    return "" if predicted is None else f" (predicted {format_seconds(predicted)})"


def _sampled(profile: RunProfile) -> str:
    shares = [stage.sampled_share for stage in profile.stages if stage.sampled_share]
    if not shares:
        return ""
    least = min(shares)
    return f" (timed in {least:.1%} of the rows, scaled)" if least < 1 else " (all timed)"


def _lines(title: str, rows: list[Row], show: Callable[[Row], tuple[str, str]]) -> Iterator[str]:
    if not rows:
        return
    yield title
    for row in rows[:_SHOWN]:
        name, text = show(row)
        yield f"  {_short(printable(name)):<{_NAME}}{text}"
    if len(rows) > _SHOWN:
        yield f"  and {len(rows) - _SHOWN:,} more"


def _short(name: str) -> str:
    """Return a name with its middle left out if it is long: ends tell names apart."""
    if len(name) < _NAME:
        return name
    half = (_NAME - 4) // 2
    return f"{name[:half]}...{name[-half:]}"
