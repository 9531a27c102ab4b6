"""What a task runs: a reference to a stage, and arrays."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from dask_onnx import config
from dask_onnx.errors import InputError, StageError
from dask_onnx.onnx_model import ModelRef, StageExtractor
from dask_onnx.runtime.runs import Batching, Runs, cut_rows, join, join_runs, keep_apart
from dask_onnx.runtime.session import CACHE, Session, build_session, run_session
from dask_onnx.runtime.store import Store
from dask_onnx.specs import SessionSpec, TensorSpec, dtype_name
from dask_onnx.weights import blob_of, graphs_of, is_external

log = logging.getLogger(__name__)

_ORT_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")


@dataclass(frozen=True, slots=True)
class Versions:
    """What planned the work, so that a worker can tell whether it is the same."""

    dask_onnx: str
    onnxruntime: str | None
    """None if it is not installed where the plan was made."""


@functools.cache
def own_versions() -> Versions:
    """Read from the installed packages' metadata, which imports nothing."""
    installed = [version for name in _ORT_DISTRIBUTIONS if (version := _version(name))]
    return Versions(_version("dask-onnx") or "unknown", installed[0] if installed else None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class StageRef:
    """Everything that a worker needs to know of a stage; a kilobyte or so, without weights."""

    model: ModelRef
    label: str
    nodes: tuple[tuple[int, int], ...]
    """Node positions in the weightless proto, as half-open ranges."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    token: str
    """Content digest of all of the above but the label."""
    versions: Versions

    @property
    def indices(self) -> list[int]:
        return [index for start, stop in self.nodes for index in range(start, stop)]


def as_ranges(indices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indices as half-open ranges: (1, 2, 3, 7) is ((1, 4), (7, 8))."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)


@dataclass(frozen=True, slots=True)
class StageCall:
    """One stage as a task calls it: where its inputs are among the task's arguments."""

    stage: StageRef
    session: SessionSpec
    picks: tuple[tuple[int, int | None], ...]
    """For each stage input the argument that has it, and the position inside if that is a tuple."""
    row_axes: tuple[int | None, ...]
    """For each stage input the axis to cut rows on; None for one that is given whole or in Runs."""
    batching: Batching
    join_axes: tuple[int | Literal["apart"] | None, ...]
    """For each stage output the axis to join the runs on; None if it has no rows; "apart" leaves
    the runs as they are for the next stage."""
    retries: int = 0
    """How often Dask may repeat the task; no part of what it computes."""


def run_stage(call: StageCall, *arguments: Any) -> Any:
    """Run a stage on arrays: the function of every task that dask_onnx makes.

    Parameters
    ----------
    call : StageCall
    arguments : ndarray, Runs, or tuple of these
        Results of other stages' tasks, or the caller's arrays.

    Returns
    -------
    ndarray or Runs, or a tuple of them in the order of the stage's outputs if it has several

    Raises
    ------
    InputError
        An array does not fit the model.
    StageError
        The stage cannot be built or run here.
    StoreError
        The model cannot be found from here.
    """
    stage = call.stage
    values = [
        arguments[i] if position is None else arguments[i][position] for i, position in call.picks
    ]
    values = [_checked(v, spec) for v, spec in zip(values, stage.inputs, strict=True)]
    session = stage_session(stage, call.session)
    cut = cut_rows(values, call.row_axes, call.batching)
    results = [run_session(session, feeds, stage.label) for feeds in cut.feeds]
    outputs = tuple(
        keep_apart(pieces, cut) if axis == "apart" else join(pieces, axis, cut)
        for pieces, axis in zip(zip(*results, strict=True), call.join_axes, strict=True)
    )
    return outputs if len(outputs) > 1 else outputs[0]


def take_output(result: Any, position: int | None, axis: int | None) -> Any:
    """One output of a stage's task, its runs joined."""
    value = result if position is None else result[position]
    return join_runs(value, axis) if isinstance(value, Runs) else value


def _checked(value: Any, spec: TensorSpec) -> Any:
    """The array as ORT wants it; what the graph could not say before is checked here."""
    if isinstance(value, Runs) or spec.dtype is None:
        return value
    array = np.asarray(value)
    if array.dtype != spec.dtype:
        if spec.dtype == object and array.dtype.kind in "UOST":
            return array.astype(object)
        raise InputError(
            f"input {spec.name!r} has dtype {array.dtype}; "
            f"the model takes {dtype_name(spec.dtype)}",
            f"convert it: .astype({dtype_name(spec.dtype)!r})",
        )
    if spec.shape is not None and array.ndim != len(spec.shape):
        raise InputError(
            f"input {spec.name!r} has rank {array.ndim}, shape {array.shape}; "
            f"the model takes {spec}",
            "give every axis that the model names, the batch axis included",
        )
    return array


def stage_session(stage: StageRef, spec: SessionSpec) -> Session:
    """The session of a stage, from this process's cache or built now."""
    return CACHE.get((stage.token, spec), lambda: _build(stage, spec))


def _build(stage: StageRef, spec: SessionSpec) -> Session:
    check_versions(stage.versions)
    store = Store()
    proto = _extractor(stage.model, store.root).extract(stage.indices, stage.inputs, stage.outputs)
    places = [blob_of(t) for graph in graphs_of(proto) for t in graph.initializer if is_external(t)]
    keys = dict.fromkeys(key for key, _, _ in places)
    if store.missing(keys):
        store.forget(stage.model.token)
        store.get(stage.model)
    return build_session(
        proto.SerializeToString(),
        store.blobs,
        spec,
        weight_bytes=sum(length for _, _, length in places),
        label=stage.label,
    )


_EXTRACTORS_KEPT = 8
_extractor_lock = threading.Lock()


@functools.lru_cache(maxsize=_EXTRACTORS_KEPT)
def _cached_extractor(model: ModelRef, root: Path) -> StageExtractor:
    return StageExtractor(onnx.ModelProto.FromString(Store(root).get(model)))


def _extractor(model: ModelRef, root: Path) -> StageExtractor:
    with _extractor_lock:
        return _cached_extractor(model, root)


def check_versions(planned: Versions) -> None:
    """Compare this process's packages with those that made the plan.

    Raises
    ------
    StageError
        They differ, and ``dask_onnx.version-mismatch`` is "error"; a warning otherwise.
    """
    own = own_versions()
    differences = [
        f"{name} {here} here, {there} where the plan was made"
        for name, here, there in (
            ("dask_onnx", own.dask_onnx, planned.dask_onnx),
            ("onnxruntime", own.onnxruntime, planned.onnxruntime),
        )
        if there is not None and here != there
    ]
    if not differences:
        return
    cause = f"this worker has other versions: {'; '.join(differences)}"
    if config.get("version-mismatch") == "warn":
        warnings.warn(cause, stacklevel=2)
        log.warning(cause)
        return
    raise StageError(
        cause,
        "install the same versions everywhere, or set dask_onnx.version-mismatch to 'warn' "
        "on the workers",
    )
