"""What a task runs: a reference to a stage, and arrays."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import logging
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from distributed.worker import warn

from dask_onnx.core import config
from dask_onnx.core.errors import InputError, StageError
from dask_onnx.core.specs import Dim, Kernel, SessionSpec, TensorSpec, dtype_name
from dask_onnx.core.stage_runs import StageRun, note
from dask_onnx.core.stage_tasks import Hints
from dask_onnx.modelio.onnx_model import ModelRef, StageExtractor
from dask_onnx.modelio.value_types import kind_of_value
from dask_onnx.modelio.weights import blob_of, graphs_of, is_external
from dask_onnx.runtime.batching import (
    Batching,
    Cut,
    Runs,
    cut_rows,
    join,
    join_runs,
    keep_apart,
    row_count,
    take_rows,
)
from dask_onnx.runtime.canonical import canonical
from dask_onnx.runtime.codec import Lossy, degraded
from dask_onnx.runtime.cores import task_threads
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.memory_check import check_memory
from dask_onnx.runtime.prepack import MODEL, prepacked
from dask_onnx.runtime.reference import build_reference
from dask_onnx.runtime.session import CACHE, Build, Runnable, SessionKey, build_session, run_session
from dask_onnx.runtime.transfer import Travelling, unwrap
from dask_onnx.runtime.tuning import row_shapes, sizes_for
from dask_onnx.store.maintenance import keep_below_limit
from dask_onnx.store.supply import Supply, fetch_blobs, fetch_proto
from dask_onnx.store.weight_store import Store

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
    kernel: Kernel = "onnxruntime"
    custom: CustomKernels | None = None
    """The caller's kernels, where the stage runs on them."""

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
    lossy: Lossy | None = None
    """What may be lost of the outputs that go to other stages, where a slow link makes it pay."""
    always_lossy: bool = False
    """It is lost in any case: to see what that does to the results."""
    hints: Hints = field(default_factory=Hints)
    """For Dask's scheduler; no part of what is computed."""
    supplies: int = 0
    """So many of the last arguments say where to get the model from; no part of it either."""


def run_stage(call: StageCall, *arguments: Any, after: None = None) -> Any:
    """Run a stage on arrays: the function of every task that dask_onnx makes.

    Parameters
    ----------
    call : StageCall
    arguments : ndarray, Runs, or tuple of these
        Results of other stages' tasks, or the caller's arrays; last, `call.supplies` of them, what
        brings the model here.
    after : None
        What had to be done before; a dependency alone.

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
    values = [
        unwrap(arguments[i] if position is None else arguments[i][position])
        for i, position in call.picks
    ]
    stage = _typed(call.stage, values)
    values = [_checked(v, spec) for v, spec in zip(values, stage.inputs, strict=True)]
    supplies = arguments[len(arguments) - call.supplies :]
    spec = _with_threads(call.session)
    session = stage_session(stage, spec, supplies)
    rows = row_count(values, call.row_axes) if call.batching.is_auto else None
    started, began = time.time(), time.perf_counter()
    if rows is not None and rows > 1:
        cut = Cut([], rows, is_filled=False)
        results = _run_tuned(session, values, call, spec.intra_op_num_threads or 1, rows)
    else:
        cut = cut_rows(values, call.row_axes, call.batching)
        names = [spec.name for spec in stage.inputs]
        results = [run_session(session, feeds, stage.label, names) for feeds in cut.feeds]
    taken = time.perf_counter() - began
    note(StageRun(call.stage.token, started, taken, len(results), cut.rows))
    _compare(stage, results[0])
    outputs = tuple(
        _travelling(keep_apart(pieces, cut), call) if axis == "apart" else join(pieces, axis, cut)
        for pieces, axis in zip(zip(*results, strict=True), call.join_axes, strict=True)
    )
    return outputs if len(outputs) > 1 else outputs[0]


_compared: set[tuple[str, str]] = set()
"""Stage and output of those that were warned about."""


def _compare(stage: StageRef, results: Sequence[Any]) -> None:
    """Say once where a result has not the shape that the model declares: the result is right."""
    for spec, value in zip(stage.outputs, results, strict=True):
        if spec.shape is None or not isinstance(value, np.ndarray) or _fits(value, spec.shape):
            continue
        if (stage.token, spec.name) not in _compared:
            _compared.add((stage.token, spec.name))
            warn(
                f"the model declares {spec}, and stage {stage.label} gives {value.shape}; "
                "the result is kept as it came"
            )


def _fits(value: np.ndarray, shape: Sequence[Dim]) -> bool:
    return value.ndim == len(shape) and all(
        not isinstance(dim, int) or dim == size
        for dim, size in zip(shape, value.shape, strict=True)
    )


def _travelling(value: Any, call: StageCall) -> Travelling:
    if call.lossy is not None and call.always_lossy:
        if isinstance(value, Runs):
            value = replace(value, pieces=tuple(degraded(p, call.lossy) for p in value.pieces))
        elif isinstance(value, np.ndarray):
            value = degraded(value, call.lossy)
    return Travelling(value, call.lossy)


def _run_tuned(
    session: Runnable, values: Sequence[Any], call: StageCall, threads: int, rows: int
) -> list[list[Any]]:
    """Run in batches of the best size, or of several while that is not known yet."""
    shapes = row_shapes(values, call.row_axes)
    names = [spec.name for spec in call.stage.inputs]
    results: list[list[Any]] = []
    start = 0
    for size in sizes_for(call.stage.token, threads, shapes, rows):
        feeds = take_rows(values, call.row_axes, start, size)
        results.append(run_session(session, feeds, call.stage.label, names))
        start += size
    return results


def take_output(result: Any, position: int | None, axis: int | None) -> Any:
    """One output of a stage's task, its runs joined."""
    value = unwrap(result if position is None else result[position])
    return join_runs(value, axis) if isinstance(value, Runs) else value


def _typed(stage: StageRef, values: Sequence[Any]) -> StageRef:
    """The stage with the types of inputs that only the run can tell: behind operators whose
    schema nobody has."""
    if all(spec.dtype is not None or spec.kind is not None for spec in stage.inputs):
        return stage
    inputs = tuple(map(spec_as_given, stage.inputs, values))
    types = ", ".join(map(str, inputs))
    token = hashlib.sha256(f"{stage.token} on {types}".encode()).hexdigest()[:32]
    return replace(stage, inputs=inputs, token=token)


def spec_as_given(spec: TensorSpec, value: Any) -> TensorSpec:
    """An input's spec, its type as it came where the model does not tell it."""
    if spec.dtype is not None or spec.kind is not None:
        return spec
    first = value.pieces[0] if isinstance(value, Runs) else value
    if isinstance(first, np.ndarray):
        return TensorSpec(spec.name, first.dtype, (None,) * first.ndim)
    return TensorSpec(spec.name, None, None, kind_of_value(first))


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


def stage_session(stage: StageRef, spec: SessionSpec, supplies: Sequence[Supply] = ()) -> Runnable:
    """The session of a stage, from this process's cache or built now."""
    spec = _with_threads(spec)
    return CACHE.get((stage.token, spec), lambda: _prepare(stage, spec, supplies))


def _with_threads(spec: SessionSpec) -> SessionSpec:
    """The same with a number of threads, which is part of a session's key."""
    if spec.intra_op_num_threads:
        return spec
    return replace(spec, intra_op_num_threads=task_threads(spec.intra_op_num_threads))


def _prepare(
    stage: StageRef, spec: SessionSpec, supplies: Sequence[Supply]
) -> tuple[SessionKey, Build]:
    """What names the session of a stage and of all that are like it, and how to build it."""
    check_versions(stage.versions)
    store = Store()
    with store.using():
        is_new = not store.has(stage.model.token)
        whole = fetch_proto(store, stage.model, supplies)
    proto = _extractor(stage.model, whole).extract(stage.indices, stage.inputs, stage.outputs)
    alike = canonical(proto) if stage.kernel == "onnxruntime" else None
    name = stage.token
    if alike is not None:
        proto = alike
        data = proto.SerializeToString(deterministic=True)
        name = hashlib.sha256(data).hexdigest()[:32]
    return (name, spec), lambda: _build(stage, spec, supplies, proto, is_new=is_new)


def _build(
    stage: StageRef,
    spec: SessionSpec,
    supplies: Sequence[Supply],
    proto: onnx.ModelProto,
    *,
    is_new: bool,
) -> Runnable:
    store = Store()
    with store.using():
        # From here on nothing of the model is evicted, and until the session is gone.
        lease = store.lease(stage.model.token)
        tensors = [t for graph in graphs_of(proto) for t in graph.initializer if is_external(t)]
        places = [blob_of(tensor) for tensor in tensors]
        keys = [key for key, _, _ in places]
        is_new |= fetch_blobs(store, stage.model, keys, supplies)
        size = sum(length for _, _, length in places)
        check_memory(stage.label, size)
        session = _make(store, stage, spec, proto, size)
        session.lease = lease
    if is_new:
        keep_below_limit(store)
    return session


def _make(
    store: Store, stage: StageRef, spec: SessionSpec, proto: onnx.ModelProto, size: int
) -> Runnable:
    """The session that the plan says: nothing else is tried where that one cannot be built."""
    if stage.kernel != "onnxruntime":
        operators = () if stage.custom is None else stage.custom.operators()
        return build_reference(proto, store.blobs, operators, stage.label)
    data = proto.SerializeToString()
    folder = prepacked(store, stage.model.token, stage.token, data, spec, size)
    saved = None if folder is None else folder / MODEL
    return build_session(data, store.blobs, spec, weight_bytes=size, label=stage.label, saved=saved)


_EXTRACTORS_KEPT = 8
_extractors: OrderedDict[str, StageExtractor] = OrderedDict()
_extractor_lock = threading.Lock()


def _extractor(model: ModelRef, proto: bytes) -> StageExtractor:
    """The extractor of a model; those of the last few models are kept."""
    with _extractor_lock:
        if model.token not in _extractors:
            _extractors[model.token] = StageExtractor(onnx.ModelProto.FromString(proto))
            if len(_extractors) > _EXTRACTORS_KEPT:
                _extractors.popitem(last=False)
        return _extractors[model.token]


def check_versions(planned: Versions) -> None:
    """Compare this process's packages with those that made the plan.

    Raises
    ------
    StageError
        They differ, and ``onnx.version-mismatch`` is "error"; a warning otherwise.
    """
    own = own_versions()
    differences = [
        f"{name} {inline} here, {there} where the plan was made"
        for name, inline, there in (
            ("dask_onnx", own.dask_onnx, planned.dask_onnx),
            ("onnxruntime", own.onnxruntime, planned.onnxruntime),
        )
        if there is not None and inline != there
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
        "install the same versions everywhere, or set onnx.version-mismatch to 'warn' "
        "on the workers",
    )
