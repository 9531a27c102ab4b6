"""Sessions of stages: taken from the cache, or built from the weights in the host's store."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from dask_onnx.core.errors import StageError
from dask_onnx.core.meters import metered
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.structured_logs import log_event
from dask_onnx.core.tracing import span
from dask_onnx.modelio.onnx_model import StageExtractor
from dask_onnx.modelio.weights import blob_of, graphs_of, is_external
from dask_onnx.runtime.canonical import canonical_form, with_original_names
from dask_onnx.runtime.cores import task_threads
from dask_onnx.runtime.freed_memory import keep_freed_memory
from dask_onnx.runtime.memory_check import check_memory
from dask_onnx.runtime.onnxruntime_internals import numbered_name
from dask_onnx.runtime.package_versions import check_versions
from dask_onnx.runtime.prepack import MODEL, prepacked_folder
from dask_onnx.runtime.reference import build_reference
from dask_onnx.runtime.session import build_session, profiling_session
from dask_onnx.runtime.session_cache import SESSION_CACHE, Build, Runnable, SessionKey
from dask_onnx.runtime.stage_refs import StageRef
from dask_onnx.store.maintenance import evict_above_limit
from dask_onnx.store.supply import fetch_blobs, fetch_proto
from dask_onnx.store.weight_parts import Supply
from dask_onnx.store.weight_store import Store

log = logging.getLogger(__name__)

_extractors: BoundedCache[str, StageExtractor] = BoundedCache("stage extractors", 8)
"""Model token to the parsed proto that stages are extracted from."""


def stage_session(stage: StageRef, spec: SessionSpec, supplies: Sequence[Supply] = ()) -> Runnable:
    """Return the session of a stage, from this process's cache or built now.

    Parameters
    ----------
    stage : StageRef
        Stage to run.
    spec : SessionSpec
        Options of the session.
    supplies : sequence of Supply
        Results of tasks that bring the model here.

    Raises
    ------
    StageError
        The stage cannot be built or run here.
    StoreError
        The model cannot be found from here.
    """
    spec = with_threads(spec)
    with metered("session"):
        return SESSION_CACHE.get((stage.token, spec), lambda: _prepare(stage, spec, supplies))


def bring_stage(stage: StageRef, supplies: Sequence[Supply] = ()) -> None:
    """Bring all that a stage's session is built from into the host's store, for other processes.

    Parameters
    ----------
    stage, supplies
        As for `stage_session`.

    Raises
    ------
    StoreError
        The model cannot be found from here.
    """
    store = Store()
    with store.shared_access():
        proto = _extracted(stage, fetch_proto(store, stage.model, supplies))
        keys = [key for key, _, _ in _blobs_of(proto)]
        fetch_blobs(store, stage.model, keys, supplies)


def in_model_names(stage: StageRef, text: str) -> str:
    """Return a message about the session of a stage with the names of the model's values and nodes.

    Equal stages share a session, whose names are those of none of them.
    """
    proto = stage_proto(stage)
    return text if proto is None else with_original_names(text, proto)


def stage_proto(stage: StageRef) -> onnx.ModelProto | None:
    """Return a stage without weights; None if its model is not in memory here."""
    extractor = _extractors.get(stage.model.token)
    if extractor is None:
        return None
    return extractor.extract(stage.indices, stage.inputs, stage.outputs)


def profiling_stage(stage: StageRef, spec: SessionSpec, prefix: Path) -> Runnable:
    """Build a session of a stage that times every kernel as it runs, optimized as in any task.

    Its nodes are named by their positions in the weightless proto (`numbered_name`).

    Parameters
    ----------
    stage : StageRef
        Stage, whose model has run in this process.
    spec : SessionSpec
        Options of the session.
    prefix : Path
        Path of ORT's profile without its ending.

    Raises
    ------
    StageError
        The model is not in memory here any more, or the session cannot be built.
    """
    proto = stage_proto(stage)
    if proto is None:
        raise StageError(f"the model of stage {stage.label} is not in memory here any more")
    for index, node in zip(stage.indices, proto.graph.node, strict=True):
        node.name = numbered_name(index)
    store = Store()
    with store.shared_access():
        lease = store.lease(stage.model.token)
        if stage.kernel == "onnxruntime":
            session: Runnable = profiling_session(
                proto.SerializeToString(), store.blobs, with_threads(spec), prefix, optimized=True
            )
        else:
            operators = () if stage.custom is None else stage.custom.operators()
            session = build_reference(proto, store.blobs, operators, stage.label)
        session.lease = lease
    return session


def with_threads(spec: SessionSpec) -> SessionSpec:
    """Return the options with the number of threads in this process, a part of a session's key."""
    if spec.intra_op_num_threads:
        return spec
    return replace(spec, intra_op_num_threads=task_threads(spec.intra_op_num_threads))


def _prepare(
    stage: StageRef, spec: SessionSpec, supplies: Sequence[Supply]
) -> tuple[SessionKey, Build]:
    """Return the key that all stages equal to this one share, and a function that builds it."""
    check_versions(stage.versions)
    keep_freed_memory()
    store = Store()
    with store.shared_access():
        is_new = not store.has(stage.model.token)
        whole = fetch_proto(store, stage.model, supplies)
    proto = _extracted(stage, whole)
    shared = canonical_form(proto) if stage.kernel == "onnxruntime" else None
    name = stage.token
    if shared is not None:
        proto = shared
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
    with store.shared_access():
        # The lease keeps the model from eviction for as long as the session lives.
        lease = store.lease(stage.model.token)
        places = _blobs_of(proto)
        keys = [key for key, _, _ in places]
        with metered("weights"):
            is_new |= fetch_blobs(store, stage.model, keys, supplies)
        size = sum(length for _, _, length in places)
        check_memory(stage.label, size)
        began = time.perf_counter()
        try:
            with span("session", stage=stage.label):
                session = _build_on_kernel(store, stage, spec, proto, size)
        except StageError as error:
            raise _named(error, stage) from None
        session.lease = lease
    log_event(
        log,
        logging.INFO,
        "session built",
        stage=stage.label,
        kernel=stage.kernel,
        seconds=time.perf_counter() - began,
        weight_bytes=size,
    )
    if is_new:
        evict_above_limit(store)
    return session


def _named(error: StageError, stage: StageRef) -> StageError:
    """Return an error about building a session with the names of the model."""
    fields = {**error.fields, "reason": in_model_names(stage, error.reason or "") or None}
    return type(error)(in_model_names(stage, error.cause), error.next_step, **fields)


def _build_on_kernel(
    store: Store, stage: StageRef, spec: SessionSpec, proto: onnx.ModelProto, size: int
) -> Runnable:
    """Build the session for the kernel in the plan; no other kernel is tried if that fails."""
    if stage.kernel != "onnxruntime":
        operators = () if stage.custom is None else stage.custom.operators()
        return build_reference(proto, store.blobs, operators, stage.label, spec.max_run_seconds)
    data = proto.SerializeToString()
    folder = prepacked_folder(store, stage.model.token, stage.token, data, spec, size)
    saved = None if folder is None else folder / MODEL
    return build_session(data, store.blobs, spec, weight_bytes=size, label=stage.label, saved=saved)


def _extracted(stage: StageRef, whole: bytes) -> onnx.ModelProto:
    """Return a stage of a weightless proto."""
    extractor = _extractors.get_or_make(
        stage.model.token, lambda: StageExtractor(onnx.ModelProto.FromString(whole))
    )
    return extractor.extract(stage.indices, stage.inputs, stage.outputs)


def _blobs_of(proto: onnx.ModelProto) -> list[tuple[str, int, int]]:
    """Return the blob, the offset in it and the bytes of each external weight of a stage."""
    tensors = (tensor for graph in graphs_of(proto) for tensor in graph.initializer)
    return [blob_of(tensor) for tensor in tensors if is_external(tensor)]
