"""Collection of the runs of stages that the processes of a cluster have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask_onnx.core.stage_runs import (
    RUNS_TOPIC,
    StageRun,
    peak_bytes,
    recorded_runs,
    runs_from_message,
)


def collect(client: Any, tokens: Sequence[str]) -> tuple[dict[str, list[StageRun]], dict[str, int]]:
    """Return the recorded runs of stages, from this process and from a client's workers.

    Workers that have closed in good order are included; those that do not answer, or have no
    dask_onnx, are left out.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster; None for this process alone.
    tokens : sequence of str
        Tokens of the plan's stages, in their order.

    Returns
    -------
    runs : dict of str to list of StageRun
        Recorded runs of each process by the worker's address; an empty string stands for this
        process.
    peaks : dict of str to int
        Peak resident bytes of each of these processes.
    """
    found = {"": report(tokens)}
    if client is not None and not client.asynchronous and client.status == "running":
        for _, message in client.get_events(RUNS_TOPIC):
            worker, recorded = runs_from_message(message, set(tokens))
            found[worker] = recorded
        found |= client.run(report, tokens, on_error="ignore")
    runs = {worker: own for worker, (own, _) in found.items()}
    peaks = {worker: peak for worker, (_, peak) in found.items()}
    return runs, peaks


def report(tokens: Sequence[str]) -> tuple[list[StageRun], int]:
    """Return this process's recorded runs of some stages, and its peak resident bytes."""
    return recorded_runs(set(tokens)), peak_bytes()
