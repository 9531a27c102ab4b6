"""Delivery of a model with a graph, to hosts that can read neither its file nor this store.

It is decided where the graph is built, and consists of tasks, so that Dask can send weights again.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.task_spec import Task

from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.links import workers_of
from dask_onnx.cluster.worker_answers import ask_workers
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.modelio.onnx_model import OnnxModel, StageExtractor, blob_keys_of
from dask_onnx.planning.stages import StageGraph
from dask_onnx.store.supply import StoreView, view_store
from dask_onnx.store.weight_parts import (
    BlobRange,
    Manifest,
    WeightPart,
    pass_manifest,
    store_weight_part,
)
from dask_onnx.store.weight_store import Store

PART_BYTES = 32 * 2**20
"""Bytes of weights in a task: enough to make it cheap, few enough to send it again."""
SPLIT_BYTES = 256 * 2**20
"""Bytes above which a tensor is split over several tasks."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Tasks that bring a model to hosts that cannot get it by themselves."""

    tasks: Mapping[str, Task]
    """Tasks by their keys."""
    keys: tuple[tuple[str, ...], ...]
    """Keys of the tasks whose results each stage is given."""
    model: OnnxModel
    """The model; weights are read from it when the tasks are sent."""


@dataclass(frozen=True, slots=True)
class _View:
    """Parts of a model that all workers of a cluster can read."""

    share_store: bool
    """True if all workers use this process's store."""
    can_read: bool
    """True if each worker uses this process's store or sees the model's file."""


_shared_stores: BoundedCache[tuple[str, str, frozenset[str]], bool] = BoundedCache(
    "stores of clusters", 256
)
"""Answers of `_share_store`, by client, this process's store and the workers' addresses."""
_views: BoundedCache[tuple[str, str, frozenset[str]], _View] = BoundedCache(
    "views of workers on models", 256
)
"""Views by the client's id, the model's token and the workers' addresses."""


def plan_delivery(model: OnnxModel, stages: StageGraph) -> Delivery | None:
    """Return what must travel with the graph; None if every worker can get the model by itself.

    Workers are asked once whether they share this process's store, and only where they do not, once
    for each model whether they see its file. No weights are read.
    """
    client = current_client()
    if client is None or client.asynchronous:
        return None
    workers = frozenset(workers_of(client))
    if _share_store(client, workers):
        return None
    key = client.id, model.token, workers
    view = _views.get_or_make(key, lambda: _ask_workers(client, model))
    if view.share_store or (view.can_read and _is_whole(model, stages)):
        return None
    return deliver(model, stages, with_weights=not view.can_read)


def _share_store(client: Any, workers: frozenset[str]) -> bool:
    """Return whether all workers use this process's store; they are asked once."""
    store = Store()

    def ask() -> bool:
        own = store.identity
        answers = ask_workers(client, view_store, None).values()
        return all(isinstance(each, StoreView) and each.store == own for each in answers)

    return bool(workers) and _shared_stores.get_or_make((client.id, str(store.root), workers), ask)


def _ask_workers(client: Any, model: OnnxModel) -> _View:
    own = Store().identity
    answers = ask_workers(client, view_store, model.source).values()
    # A worker that fails to answer cannot run the tasks either; its own error will say why.
    views = [answer for answer in answers if isinstance(answer, StoreView)]
    if not views:  # there are no workers yet: assume that they will see the model's path
        return _View(share_store=False, can_read=model.source is not None)
    return _View(
        share_store=all(view.store == own for view in views),
        can_read=all(view.store == own or view.sees_file for view in views),
    )


def _is_whole(model: OnnxModel, stages: StageGraph) -> bool:
    """Return whether one stage runs every node, so that a host reads the whole file anyway."""
    return len(stages.stages) == 1 and len(stages.stages[0].nodes) == model.n_nodes


def deliver(model: OnnxModel, stages: StageGraph, *, with_weights: bool) -> Delivery:
    """Return tasks for a manifest, and for the weights if workers cannot read them from files.

    The weights of a task are read by the same stages, so that no host is sent what it does not run.

    Parameters
    ----------
    model : OnnxModel
        The model to deliver.
    stages : StageGraph
        Stages of the plan.
    with_weights : bool
        True if the weights travel too.
    """
    name = f"model-{model.token}"
    manifest = Manifest(model.token, model.proto, model.places)
    tasks = {name: Task(name, pass_manifest, manifest)}
    keys: list[list[str]] = [[name] for _ in stages.stages]
    if with_weights:
        for readers, blobs in _blobs_by_readers(model, stages).items():
            for ranges in _parts(blobs):
                key = f"weights-{model.token}-{len(tasks)}"
                tasks[key] = Task(key, store_weight_part, key, WeightPart(ranges, model))
                for stage in readers:
                    keys[stage].append(key)
    return Delivery(tasks, tuple(map(tuple, keys)), model)


_Readers = dict[tuple[int, ...], list[tuple[str, int]]]
"""Keys and bytes of blobs, by the positions of the stages that read them."""
_latest: weakref.WeakKeyDictionary[OnnxModel, tuple[StageGraph, _Readers]]
_latest = weakref.WeakKeyDictionary()
"""Last stages of each model and their blobs, since the next request usually has the same ones."""
_latest_lock = threading.Lock()


def _blobs_by_readers(model: OnnxModel, stages: StageGraph) -> _Readers:
    with _latest_lock:
        latest = _latest.get(model)
    if latest is None or latest[0] is not stages:
        latest = stages, _find_readers(model, stages)
        with _latest_lock:
            _latest[model] = latest
    return latest[1]


def _find_readers(model: OnnxModel, stages: StageGraph) -> _Readers:
    extractor = StageExtractor(model.parse())
    readers: dict[str, list[int]] = {}
    for number, stage in enumerate(stages.stages):
        part = extractor.extract(stage.nodes, stage.inputs, stage.outputs)
        for key in blob_keys_of(part):
            readers.setdefault(key, []).append(number)
    grouped: _Readers = {}
    for key, numbers in readers.items():
        size = model.places[key].length if key in model.places else len(model.blobs[key])
        grouped.setdefault(tuple(numbers), []).append((key, size))
    return grouped


def _parts(blobs: Sequence[tuple[str, int]]) -> list[tuple[BlobRange, ...]]:
    """Return blobs in groups of about `PART_BYTES`, those above `SPLIT_BYTES` in ranges."""
    parts: list[tuple[BlobRange, ...]] = []
    group: list[BlobRange] = []
    room = PART_BYTES
    for key, size in blobs:
        for offset in range(0, size, SPLIT_BYTES):
            length = min(SPLIT_BYTES, size - offset)
            if group and length > room:
                parts.append(tuple(group))
                group, room = [], PART_BYTES
            group.append(BlobRange(key, offset, length, size))
            room -= length
    return [*parts, tuple(group)] if group else parts


_held: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Futures of delivered keys, by client. A model's finalizer removes its keys."""
_held_lock = threading.RLock()  # a finalizer may run while the lock is held


def hold(client: Any, delivery: Delivery) -> dict[str, Any]:
    """Return the delivery's keys as futures, which exist as long as the model does.

    Weights are sent with the first request only.
    """
    with _held_lock:
        held = _held.setdefault(client, {})
        lacking = {
            key: task for key, task in delivery.tasks.items() if not _is_alive(held.get(key))
        }
        if lacking:
            with warnings.catch_warnings():
                # Weights are meant to be in this graph, once.
                warnings.filterwarnings("ignore", "Sending large graph")
                futures = client.get(dict(lacking), list(lacking), sync=False)
            held.update(zip(lacking, futures, strict=True))
            weakref.finalize(delivery.model, _release, weakref.ref(client), tuple(lacking))
        return {key: held[key] for key in delivery.tasks}


def _release(client: weakref.ref[Any], keys: tuple[str, ...]) -> None:
    alive = client()
    with _held_lock:
        held = {} if alive is None else _held.get(alive, {})
        for key in keys:
            held.pop(key, None)


def _is_alive(future: Any) -> bool:
    return future is not None and future.status in ("pending", "finished")
