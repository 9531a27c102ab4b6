"""Node times: seconds of each node on the kernel that a plan has for it, kept in the store."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.core.errors import StageError, StoreError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.cores import host_digest
from dask_onnx.runtime.onnxruntime_internals import read_kernel_seconds
from dask_onnx.runtime.reference import build_reference
from dask_onnx.runtime.session import build_session, profiling_session
from dask_onnx.runtime.session_cache import Runnable
from dask_onnx.store.weight_store import Store

_RUNS = 5
"""Runs after which timing ends, unless they were short."""
_MAX_RUNS = 50
"""Runs after which timing ends in any case."""
_SHORT_SECONDS = 0.05
"""Seconds of all runs up to which they count as short: a few short runs are easily disturbed."""
PROFILE_SECONDS = 2.0
"""Seconds of runs after which timing ends. A slower model runs once after the run that warms it
up; where the first two or three runs are slow on fresh memory, it is still timed at full speed."""
_MAX_REASON = 300
"""Characters of a kernel's message that an error keeps."""


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Times of one run of a model, on one thread of this host's CPU."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the inputs."""
    seconds: Mapping[int, float]
    """Position of a node in the weightless proto to its share of `whole`; nodes that no output of
    the model needs are missing."""
    whole: float
    """Seconds of all nodes, stage by stage where several kernels run them."""
    session: str
    """Options of the session, as text."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Times of one run of a stage, for one request."""

    whole: float
    """Seconds of the run."""
    seconds: Mapping[int, float]
    """Position of a node in the whole model to its share of `whole`."""
    results: Sequence[Any]
    """Outputs of the stage, in its order."""


def number_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name every node by its position, by which `profile_stage` finds it, and return the model."""
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    return model


def profile_stage(
    stage: onnx.ModelProto,
    blobs: Path,
    spec: SessionSpec,
    requests: Sequence[Mapping[str, Any]],
    *,
    label: str,
    max_seconds: float = PROFILE_SECONDS,
) -> list[StageTimes]:
    """Time a stage and its nodes on ORT, for each of some requests.

    ORT does not name nodes that it has fused. So the shares of the nodes come from the graph as it
    is written, and are scaled to the time of the optimized graph.

    Parameters
    ----------
    stage : onnx.ModelProto
        Result of `number_nodes`, or a part of it.
    blobs : Path
        Folder of the external weights.
    spec : SessionSpec
        Options of the session.
    requests : sequence of mapping of str to array
        Inputs by name, for each request.
    label : str
        Name of the stage in errors.
    max_seconds : float
        Seconds of runs after which timing a request ends.

    Raises
    ------
    StageError
        ORT cannot build the stage, or cannot run it on these arrays.
    """
    positions = [int(node.name.removeprefix("node_")) for node in stage.graph.node]
    data = stage.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        session = build_session(data, blobs, spec, weight_bytes=0, label=label)
        timed = [_time_runs(session, feeds, label, max_seconds) for feeds in requests]
        profiled = profiling_session(data, blobs, spec, Path(folder) / "profile")
        runs = [len(_time_runs(profiled, feeds, label, max_seconds)[1]) for feeds in requests]
        shares = _node_shares(Path(profiled.end_profiling()), runs, positions)
    return [
        # Of two runs the faster: the first one is still slow on fresh memory.
        _distributed(statistics.median_low(seconds), share, results)
        for (results, seconds), share in zip(timed, shares, strict=True)
    ]


def time_stage(
    stage: onnx.ModelProto,
    blobs: Path,
    operators: Sequence[type[OpRun]],
    requests: Sequence[Mapping[str, Any]],
    shares: Sequence[Mapping[int, float]],
    *,
    label: str,
    max_seconds: float = PROFILE_SECONDS,
) -> list[StageTimes]:
    """Time a stage on kernels in Python, for each of some requests.

    Parameters
    ----------
    stage : onnx.ModelProto
        Stage, which is changed.
    blobs : Path
        Folder of the external weights.
    operators : sequence of OpRun subclasses
        The caller's kernels.
    requests : sequence of mapping of str to array
        Inputs by name, for each request.
    shares : sequence of mapping of int to float
        For each request, position of a node in the whole model to a weight; the time of the stage
        is distributed in proportion to these.
    label : str
        Name of the stage in errors.
    max_seconds : float
        Seconds of runs after which timing a request ends.

    Raises
    ------
    StageError
        The stage cannot be built, or cannot be run on these arrays.
    """
    session = build_reference(stage, blobs, operators, label)
    times = []
    for feeds, share in zip(requests, shares, strict=True):
        results, seconds = _time_runs(session, feeds, label, max_seconds, counts_first=True)
        times.append(_distributed(statistics.median(seconds), share, results))
    return times


def _distributed(whole: float, shares: Mapping[int, float], results: Sequence[Any]) -> StageTimes:
    """Distribute the time of a stage over its nodes in proportion to `shares`."""
    total = sum(shares.values())
    if not total:  # ORT's profile counts whole microseconds
        shares, total = dict.fromkeys(shares, 1.0), len(shares)
    return StageTimes(whole, {i: whole * share / total for i, share in shares.items()}, results)


def _time_runs(
    session: Runnable,
    feeds: Mapping[str, Any],
    label: str,
    max_seconds: float,
    *,
    counts_first: bool = False,
) -> tuple[list[Any], list[float]]:
    """Return results, and seconds of each run but the first, which warms up.

    With `counts_first` the first run is the only one if it takes very long: code in Python has no
    arena to fill.
    """
    arrays = [feeds[name] for name in session.inputs]
    seconds: list[float] = []
    for _ in range(_MAX_RUNS + 1):
        results: list[Any] = []  # frees the results of the run before
        began = time.perf_counter()
        try:
            results = session.run(arrays)
        except Exception as error:  # ORT's own types, or whatever a kernel in Python raises
            reason = str(error)[:_MAX_REASON]
            raise StageError(
                f"the feeds of measure= cannot be run by stage {label}: {reason}",
                "pass a few rows that are like those to come",
                stage=label,
                option="measure",
                reason=reason,
            ) from None
        seconds.append(time.perf_counter() - began)
        if counts_first and len(seconds) == 1 and seconds[0] > PROFILE_SECONDS:
            return results, seconds
        taken = sum(seconds[1:])
        if taken > max_seconds or (len(seconds) > _RUNS and taken > _SHORT_SECONDS):
            break
    return results, seconds[1:]


def _node_shares(
    profile: Path, runs: Sequence[int], nodes: Sequence[int]
) -> list[dict[int, float]]:
    """Return for each request the median seconds of each node, without the request's first run."""
    calls = read_kernel_seconds(profile)
    shares, end = [], 0
    for count in runs:
        start, end = end + 1, end + 1 + count
        # A node that ORT has folded into a constant has no calls.
        medians = {index: calls.get(index, ())[start:end] for index in nodes}
        shares.append({i: statistics.median(each) if each else 0.0 for i, each in medians.items()})
    return shares


def save_node_times(token: str, times: NodeTimes) -> None:
    """Save node times in the store.

    Parameters
    ----------
    token : str
        Digest of the model, and of all that decides which kernels run its nodes.
    times : NodeTimes
        Times of one run.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    shapes = hashlib.sha256(repr(sorted(times.shapes.items())).encode()).hexdigest()[:12]
    values = {
        "shapes": {name: list(shape) for name, shape in times.shapes.items()},
        "seconds": dict(times.seconds),
        "whole": times.whole,
        "session": times.session,
    }
    Store().save_measurement(f"times-{token}-{host_digest()}-{shapes}", values)


def saved_node_times(token: str) -> Iterator[NodeTimes]:
    """Yield the saved node times of a model on this host, at all shapes.

    Parameters
    ----------
    token : str
        As for `save_node_times`.
    """
    try:
        store = Store()
        for path in sorted((store.root / "measured").glob(f"times-{token}-{host_digest()}-*.json")):
            saved = store.measurement(path.stem)
            if saved is not None:
                yield NodeTimes(
                    {name: tuple(shape) for name, shape in saved["shapes"].items()},
                    {int(index): seconds for index, seconds in saved["seconds"].items()},
                    saved["whole"],
                    saved["session"],
                )
    except StoreError:
        return


def save_speed(token: str, factor: float, *, is_calibrated: bool = False) -> None:
    """Save the ratio of predicted to measured time of a model on this CPU.

    Parameters
    ----------
    token : str
        As for `save_node_times`.
    factor : float
        Predicted seconds over measured seconds: above 1 where ORT was faster than predicted.
    is_calibrated : bool
        True if the prediction was by the calibration; False if by the default costs.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    store, name = Store(), _speed_name(is_calibrated)
    # All models share a file: without the lock, processes would lose each other's entries.
    with store.lock(f"measured-{name}"):
        store.save_measurement(name, {**(store.measurement(name) or {}), token: factor})


def saved_speed(*, is_calibrated: bool = False) -> float | None:
    """Return the median of the saved ratios over models; None without any on this CPU.

    Parameters
    ----------
    is_calibrated : bool
        As for `save_speed`.
    """
    try:
        saved = Store().measurement(_speed_name(is_calibrated))
    except StoreError:
        return None
    return statistics.median(saved.values()) if saved else None


def _speed_name(is_calibrated: bool) -> str:
    return f"{'calibrated-' if is_calibrated else ''}speed-{host_digest()}"
