"""How long each node of a model takes here, run by the kernel that a plan has for it; kept in the
host's store."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.core.errors import StageError, StoreError
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.cores import host_digest
from dask_onnx.runtime.reference import build_reference
from dask_onnx.runtime.session import Runnable, build_session, profiling_session
from dask_onnx.store.weight_store import Store

_RUNS = 5
_MORE_RUNS, _SHORT_SECONDS = 50, 0.05
"""A few short runs are easily disturbed: there are more of them, for so long."""
ENOUGH_SECONDS = 2.0
"""A model that takes longer runs once after the run that warms it up; where the first two or three
take their time over fresh memory, it is still seen at its full speed."""
_EVENT = re.compile(r"node_(\d+)_kernel_time$")


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Seconds of one run on one thread of this host's CPU."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    seconds: Mapping[int, float]
    """Position in the weightless proto to the node's share of `whole`; nodes that no output of the
    model needs are not among them."""
    whole: float
    """All nodes: stage by stage where several kernels run them."""
    session: str
    """How ORT was to run them, in words."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage as one request had it."""

    whole: float
    """Seconds of a run."""
    seconds: Mapping[int, float]
    """Position of the node in the whole model to its share of them."""
    results: Sequence[Any]
    """In the order of the stage's outputs."""


def number_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same, each node called by its position, by which `profile_stage` knows it."""
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
    enough: float = ENOUGH_SECONDS,
) -> list[StageTimes]:
    """Run a stage on ORT a few times with each of some requests.

    ORT names no nodes that it has fused, so that the shares come from the graph as it is written,
    and are scaled to the time of the optimised one.

    Parameters
    ----------
    stage : of `number_nodes`, or a part of that
    blobs : folder of the weights
    requests : arrays by input name
    enough : seconds after which there are no more runs

    Raises
    ------
    StageError
        ORT cannot build the stage, or not run it on these arrays.
    """
    positions = [int(node.name.removeprefix("node_")) for node in stage.graph.node]
    data = stage.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        session = build_session(data, blobs, spec, weight_bytes=0, label=label)
        ran = [_run_often(session, feeds, label, enough) for feeds in requests]
        profiled = profiling_session(data, blobs, spec, Path(folder) / "profile")
        runs = [len(_run_often(profiled, feeds, label, enough)[1]) for feeds in requests]
        shares = _shares(Path(profiled.inference.end_profiling()), runs, positions)
    return [
        # Of two the lower: it is the first that still takes its time over fresh memory.
        _shared(statistics.median_low(seconds), share, results)
        for (results, seconds), share in zip(ran, shares, strict=True)
    ]


def time_stage(
    stage: onnx.ModelProto,
    blobs: Path,
    operators: Sequence[type[OpRun]],
    requests: Sequence[Mapping[str, Any]],
    shares: Sequence[Mapping[int, float]],
    *,
    label: str,
    enough: float = ENOUGH_SECONDS,
) -> list[StageTimes]:
    """Run a stage on kernels in Python a few times with each of some requests.

    Parameters
    ----------
    stage : is changed
    operators : the caller's kernels
    shares : for each request the stage's nodes, by position in the whole model, and in proportion
        to what the time is told among them

    Raises
    ------
    StageError
        The stage cannot be built, or not be run on these arrays.
    """
    session = build_reference(stage, blobs, operators, label)
    found = []
    for feeds, share in zip(requests, shares, strict=True):
        results, seconds = _run_often(session, feeds, label, enough, counts_first=True)
        found.append(_shared(statistics.median(seconds), share, results))
    return found


def _shared(whole: float, shares: Mapping[int, float], results: Sequence[Any]) -> StageTimes:
    total = sum(shares.values())
    if not total:  # ORT's profile counts whole microseconds
        shares, total = dict.fromkeys(shares, 1.0), len(shares)
    return StageTimes(whole, {i: whole * share / total for i, share in shares.items()}, results)


def _run_often(
    session: Runnable,
    feeds: Mapping[str, Any],
    label: str,
    enough: float,
    *,
    counts_first: bool = False,
) -> tuple[list[Any], list[float]]:
    """Results, and seconds of each run but the first, which warms up.

    `counts_first` lets that one do where it alone takes very long: code in Python has no arena to
    fill.
    """
    arrays = [feeds[name] for name in session.inputs]
    seconds: list[float] = []
    for _ in range(_MORE_RUNS + 1):
        results: list[Any] = []  # lets go of those before
        began = time.perf_counter()
        try:
            results = session.run(arrays)
        except Exception as error:  # ORT's own types, or what a kernel in Python raises
            raise StageError(
                f"the feeds of measure= cannot be run by stage {label}: {str(error)[:300]}",
                "pass a few rows that are like those to come",
            ) from None
        seconds.append(time.perf_counter() - began)
        if counts_first and len(seconds) == 1 and seconds[0] > ENOUGH_SECONDS:
            return results, seconds
        taken = sum(seconds[1:])
        if taken > enough or (len(seconds) > _RUNS and taken > _SHORT_SECONDS):
            break
    return results, seconds[1:]


def _shares(path: Path, runs: Sequence[int], nodes: Sequence[int]) -> list[dict[int, float]]:
    """For each request the median seconds of each node, the first of its runs left out."""
    taken: dict[int, list[float]] = defaultdict(list)
    for event in json.loads(path.read_text()):
        found = _EVENT.search(event.get("name", ""))
        if found and event.get("cat") == "Node":
            taken[int(found[1])].append(event["dur"] * 1e-6)
    shares, end = [], 0
    for count in runs:
        start, end = end + 1, end + 1 + count
        # A node that ORT has folded away has no events.
        medians = {index: taken[index][start:end] for index in nodes}
        shares.append({i: statistics.median(each) if each else 0.0 for i, each in medians.items()})
    return shares


def note_times(token: str, times: NodeTimes) -> None:
    """Keep what was measured of a model.

    Parameters
    ----------
    token : of the model and of all that decides which kernels run its nodes
    """
    shapes = hashlib.sha256(repr(sorted(times.shapes.items())).encode()).hexdigest()[:12]
    note = {
        "shapes": {name: list(shape) for name, shape in times.shapes.items()},
        "seconds": dict(times.seconds),
        "whole": times.whole,
        "session": times.session,
    }
    Store().note_measured(f"times-{token}-{host_digest()}-{shapes}", note)


def note_speed(token: str, factor: float, *, is_calibrated: bool = False) -> None:
    """Keep how much faster than predicted, by default or by the calibration, ORT ran a model on
    this CPU."""
    store, name = Store(), _speed_name(is_calibrated)
    store.note_measured(name, {**(store.measured(name) or {}), token: factor})


def noted_speed(*, is_calibrated: bool = False) -> float | None:
    """The median of what is noted, over models; None if nothing was measured on this CPU."""
    try:
        noted = Store().measured(_speed_name(is_calibrated))
    except StoreError:
        return None
    return statistics.median(noted.values()) if noted else None


def _speed_name(is_calibrated: bool) -> str:
    return f"{'calibrated-' if is_calibrated else ''}speed-{host_digest()}"


def noted_times(token: str) -> Iterator[NodeTimes]:
    """What was measured of a model on this host, at whatever shapes; `token` as for
    `note_times`."""
    try:
        store = Store()
        for path in sorted((store.root / "measured").glob(f"times-{token}-{host_digest()}-*.json")):
            note = store.measured(path.stem)
            if note is not None:
                yield NodeTimes(
                    {name: tuple(shape) for name, shape in note["shapes"].items()},
                    {int(index): seconds for index, seconds in note["seconds"].items()},
                    note["whole"],
                    note["session"],
                )
    except StoreError:
        return
