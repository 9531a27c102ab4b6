"""Asking the processes where a plan has run what they have noted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.core.stage_runs import NOTES_TOPIC, StageRun, from_message, noted, peak_bytes
from dask_onnx.planning.measured_stages import Measured, measured


def collect(client: Any, tokens: Sequence[str], rows: int | None) -> Measured | None:
    """What was measured of the stages of some tokens, by this process and by a client's workers;
    those that went in good order among them.

    A worker that does not answer, or that has not dask_onnx, is left out.

    Parameters
    ----------
    client : distributed.Client or None
    rows : of a run, that the plan is for
    """
    found = {"": report(tokens)}
    if client is not None and not client.asynchronous:
        for _, message in client.get_events(NOTES_TOPIC):
            worker, noted_there = from_message(message, set(tokens))
            found[worker] = noted_there
        found |= client.run(report, tokens, on_error="ignore")
    runs = {worker: own for worker, (own, _) in found.items()}
    peaks = {worker: peak for worker, (_, peak) in found.items()}
    return measured(tokens, runs, peaks, rows)


def report(tokens: Sequence[str]) -> tuple[list[StageRun], int]:
    """What this process has noted of some stages, and its peak."""
    return noted(set(tokens)), peak_bytes()
