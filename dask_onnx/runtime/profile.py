"""How long each node of a model takes here: ONNX Runtime's profile, kept in the host's store."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dask_onnx.errors import StageError, StoreError
from dask_onnx.onnx_model import OnnxModel
from dask_onnx.runtime.cores import cpu_identity, ort_version
from dask_onnx.runtime.session import Session, build_session, profiling_session
from dask_onnx.runtime.store import Store
from dask_onnx.runtime.supply import fetch_blobs
from dask_onnx.specs import SessionSpec

_RUNS = 5
_MORE_RUNS, _SHORT_SECONDS = 50, 0.05
"""A few short runs are easily disturbed: there are more of them, for so long."""
_ENOUGH_SECONDS = 2.0
"""A model that takes longer runs once after the run that warms it up; where the first two or three
take their time over fresh memory, it is still seen at its full speed."""
_EVENT = re.compile(r"node_(\d+)_kernel_time$")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Seconds of one run on one thread of this host's CPU."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    seconds: Mapping[int, float]
    """Position in the weightless proto to the node's share of `whole`."""
    whole: float
    """All nodes, as ORT runs them when it has optimised the graph."""


def measure_nodes(
    model: OnnxModel, requests: Sequence[Mapping[str, Any]], spec: SessionSpec
) -> list[NodeTimes]:
    """Run a model a few times with each of some requests, and note what each node took on one
    thread.

    ORT names no nodes that it has fused, so that the shares come from the graph as it is written,
    and are scaled to the time of the optimised one.

    Parameters
    ----------
    requests : arrays by input name

    Raises
    ------
    StageError
        ORT cannot run the whole model: some node needs another kernel.
    """
    store = Store()
    spec = replace(spec, intra_op_num_threads=1)
    proto = model.parse()
    for index, node in enumerate(proto.graph.node):
        node.name = f"node_{index}"
    with store.using(), tempfile.TemporaryDirectory() as folder:
        store.put(model)
        lease = store.lease(model.token)
        fetch_blobs(store, model.ref, model.blob_keys, ())
        data = proto.SerializeToString()
        session = _build(build_session, data, store, spec)
        wholes = [min(_run_often(session, feeds)) for feeds in requests]
        profiled = profiling_session(data, store.blobs, spec, Path(folder) / "profile")
        runs = [len(_run_often(profiled, feeds)) for feeds in requests]
        profile = Path(profiled.inference.end_profiling())
        shares = _shares(profile, runs, len(proto.graph.node))
        lease.release()
    found = []
    for feeds, whole, seconds in zip(requests, wholes, shares, strict=True):
        total = sum(seconds)
        scale = whole / total if total else 0.0
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        found.append(NodeTimes(shapes, dict(enumerate(value * scale for value in seconds)), whole))
        _note(store, model.token, found[-1])
    return found


def _build(build: Callable[..., Session], data: bytes, store: Store, spec: SessionSpec) -> Session:
    return build(data, store.blobs, spec, weight_bytes=0, label="the whole model")


def _run_often(session: Session, feeds: Mapping[str, Any]) -> list[float]:
    """Seconds of each run but the first, which warms up."""
    arrays = [feeds[name] for name in session.inputs]
    seconds: list[float] = []
    for _ in range(_MORE_RUNS + 1):
        began = time.perf_counter()
        try:
            session.run(arrays)
        except Exception as error:  # ORT's own types
            raise StageError(
                f"the feeds of measure= cannot be run: {str(error)[:300]}",
                "pass a few rows that are like those to come",
            ) from None
        seconds.append(time.perf_counter() - began)
        taken = sum(seconds[1:])
        if taken > _ENOUGH_SECONDS or (len(seconds) > _RUNS and taken > _SHORT_SECONDS):
            break
    return seconds[1:]


def _shares(path: Path, runs: Sequence[int], n_nodes: int) -> list[list[float]]:
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
        medians = (taken[index][start:end] for index in range(n_nodes))
        shares.append([statistics.median(each) if each else 0.0 for each in medians])
    return shares


def _prefix(token: str) -> str:
    host = hashlib.sha256(f"{cpu_identity()} {ort_version()}".encode()).hexdigest()[:12]
    return f"nodes-{token}-{host}"


def _note(store: Store, token: str, times: NodeTimes) -> None:
    shapes = hashlib.sha256(repr(sorted(times.shapes.items())).encode()).hexdigest()[:12]
    note = {
        "shapes": {name: list(shape) for name, shape in times.shapes.items()},
        "seconds": [times.seconds[index] for index in range(len(times.seconds))],
        "whole": times.whole,
    }
    store.note_measured(f"{_prefix(token)}-{shapes}", note)


def note_speed(token: str, factor: float, *, is_calibrated: bool = False) -> None:
    """Keep how much faster than predicted, by default or by the calibration, this CPU ran a
    model."""
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
    return _prefix("speed").replace("nodes-", "calibrated-" if is_calibrated else "")


def noted_times(token: str) -> Iterator[NodeTimes]:
    """What was measured of a model on this host, at whatever shapes."""
    try:
        store = Store()
        for path in sorted((store.root / "measured").glob(f"{_prefix(token)}-*.json")):
            note = store.measured(path.stem)
            if note is not None:
                yield NodeTimes(
                    {name: tuple(shape) for name, shape in note["shapes"].items()},
                    dict(enumerate(note["seconds"])),
                    note["whole"],
                )
    except StoreError:
        return
