"""Records of profiles without a cluster."""

from __future__ import annotations

from dataclasses import replace

from dask_onnx.diagnostics.profiling.run_profile import (
    CLIENT,
    Digest,
    ErrorRecord,
    Gauge,
    NodeRecord,
    Phase,
    RunProfile,
    StageRecord,
    StreamFrames,
    TaskRecord,
    TransferRecord,
    WorkerRecord,
)

A, B = "tcp://10.0.0.1:1000", "tcp://10.0.0.2:1000"
FIRST, SECOND = "token-of-first", "token-of-second"


def task(label: str, worker: str, start: float, stop: float, block: int = 0, **changes):
    """Return a task of a stage that ran for all its time but 0.1 s for its session."""
    token = {"first": FIRST, "second": SECOND}.get(label, "")
    run = stop - start - 0.1
    phases = (
        Phase("stage", start, stop - start, 0.0, token),
        Phase("session", start, 0.1, 0.1, token),
        Phase("run", start + 0.1, run, run, token),
    )
    record = TaskRecord(
        key=f"('{label}-0123', {block})",
        name=label,
        stage=token,
        label=label,
        block=block,
        worker=worker,
        lane=0,
        submitted=0.0,
        ready=start,
        assigned=start,
        start=start,
        stop=stop,
        phases=phases if token else (),
        rows=4 if token else None,
        runs=1 if token else 0,
        input_bytes=400,
        output_bytes=1000,
        category="model" if token else "other",
    )
    return replace(record, **changes)


def small_profile(**changes) -> RunProfile:
    """Return ten seconds of two workers with one thread each.

    Two blocks pass stage "first" on A and "second" on B. The second task of block 0 waits from 3 to
    4 s for its input, of which half a second is Dask's.
    """
    profile = RunProfile(
        id="abc",
        started=1000.0,
        wall=10.0,
        mode="sample",
        scheduler="tcp://10.0.0.1:8786",
        workers=(
            WorkerRecord(A, "a", 1, 2**30, 0.0, 10.0, peak_bytes=2**20, flops_per_second=1e9),
            WorkerRecord(B, "b", 1, None, 0.0, 10.0, clock_offset=60.0),
        ),
        stages=(
            StageRecord(FIRST, "first", "model", "onnxruntime", 3, 1, 3.0, 0.5),
            StageRecord(SECOND, "second", "model", "onnxruntime", 2, 1, None, 0.0),
        ),
        tasks=(
            task("first", A, 1.0, 3.0, submitted=0.5, ready=0.5, assigned=0.75),
            task("first", A, 3.0, 5.0, 1, submitted=0.5, ready=0.5, assigned=0.75),
            task("second", B, 4.0, 6.0, submitted=0.5, ready=3.0, assigned=3.0),
            task("second", B, 6.0, 8.0, 1, submitted=0.5, ready=5.0, assigned=5.0),
        ),
        transfers=(
            TransferRecord(
                *(A, B, 3.0, 3.5, 8_000_000, 4_000_000, ("('first-0123', 0)",), "first"),
                *(0.01, 0.02, True),
            ),
            TransferRecord(A, B, 5.0, 5.5, 8_000_000, 4_000_000, ("('first-0123', 1)",), "first"),
            TransferRecord(B, CLIENT, 8.0, 8.1, 1000, 1100, ("('second-0123', 1)",), "second"),
        ),
        nodes=(
            NodeRecord(FIRST, "first", A, "conv<1>", "Conv", 2, 3.0, 1.5, 3 * 10**8, 10**6, 0.2),
            NodeRecord(FIRST, "first", A, "relu", "Relu", 2, 0.6, 0.3, 10**6, 10**6, 0.1),
        ),
        gauges=(Gauge(A, 0.5, 90.0, 1e6, 0.0, 8e6), Gauge(B, 0.5, 40.0, 2e6, 8e6, 0.0)),
        digests=(Digest(A, "execute", "first", "onnx-run", "seconds", 3.8),),
        errors=(ErrorRecord("RunError", "second", B, 2, "out of memory"),),
        streams=(
            StreamFrames(
                *("camera", 0.5, 8.0, 12, 9, 1, 1, 1, 1, 1.2, 0.2, 0.3, 0.4, 0.5, 0),
                letters=((7, "RunError", "out of memory"),),
            ),
        ),
        notes=("a note",),
        versions={"python": "3.11"},
    )
    return replace(profile, **changes)


def with_slow_link(profile: RunProfile, factor: float) -> RunProfile:
    """Return a profile whose transfers from A to B take `factor` times as long."""
    slow = tuple(
        replace(each, stop=each.start + each.seconds * factor) if each.receiver == B else each
        for each in profile.transfers
    )
    return replace(profile, transfers=slow)
