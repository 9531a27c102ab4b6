"""Streams of frames that ran in the process of a profile, as records of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from dask_onnx.core.stream_records import stream_records
from dask_onnx.diagnostics.profiling.run_profile import StreamFrames

_COUNTS = ("read", "done", "late", "dropped_late", "dropped_for_newer", "failed", "swaps")
"""Fields of a stream that grow; others are of the last frames."""

Baseline = Mapping[tuple[str, float], Mapping[str, Any]]
"""Counts of the streams when a profile began, by name and time of their start."""


def stream_baseline() -> Baseline:
    """Return what the streams of this process that run now have counted."""
    running = (each for each in stream_records() if each.ended is None)
    return {(each.name, each.started): each.snapshot() for each in running}


def profiled_streams(before: Baseline, started: float, stopped: float) -> tuple[StreamFrames, ...]:
    """Return what the streams of this process have counted during a profile.

    Parameters
    ----------
    before : mapping
        Result of `stream_baseline` at its begin.
    started, stopped : float
        Begin and end of the profile in seconds since the epoch, by this host's clock.
    """
    found = []
    for record in stream_records():
        end = stopped if record.ended is None else record.ended
        if record.started >= stopped or end <= started:
            continue
        told = dict(record.snapshot())
        earlier = before.get((record.name, record.started), {})
        seconds = max(min(end, stopped) - max(record.started, started), 1e-9)
        for name in _COUNTS:
            told[name] -= earlier.get(name, 0)
        told |= {
            "name": record.name,
            "start": max(record.started - started, 0.0),
            "stop": min(end, stopped) - started,
            "rate": told["done"] / seconds,
            "letters": _last(told["letters"], told["failed"]),
        }
        found.append(StreamFrames(**{each.name: told[each.name] for each in fields(StreamFrames)}))
    return tuple(found)


def _last(letters: Sequence[Mapping[str, Any]], count: int) -> tuple[tuple[int, str, str], ...]:
    """Return the last of some frames that failed: those since the profile began."""
    own = letters[len(letters) - min(count, len(letters)) :]
    return tuple((each["frame"], each["error"], each["cause"]) for each in own)
