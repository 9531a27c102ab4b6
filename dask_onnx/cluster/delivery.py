"""What of a model must travel with the graph: decided, and made into tasks, where it is made."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.task_spec import Task
from distributed import Client

from dask_onnx.core.peers import is_inside_task
from dask_onnx.modelio.onnx_model import OnnxModel, StageExtractor, blob_keys_of
from dask_onnx.planning.stages import StageGraph
from dask_onnx.store.supply import Manifest, Piece, Segment, Sight, look, pass_on, store_piece
from dask_onnx.store.weight_store import Store

PIECE_BYTES = 32 * 2**20
"""A task of weights has about so many bytes: enough to be cheap, few enough to send again."""
SPLIT_BYTES = 256 * 2**20
"""A tensor that is larger comes in parts."""
_LOOK_SECONDS = 30
"""How long an answer about what the workers see stays good."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Tasks that bring a model to hosts that cannot get it themselves."""

    tasks: Mapping[str, Task]
    keys: tuple[tuple[str, ...], ...]
    """For each stage, the tasks whose results it is given."""
    model: OnnxModel


def current_client() -> Any:
    """The client that Dask would use from here; None if there is none, or inside a task."""
    if is_inside_task():
        return None
    try:
        client = Client.current(allow_global=True)
    except ValueError:
        return None
    return client if client.status == "running" else None


_seen: weakref.WeakKeyDictionary[Any, dict[str, tuple[float, bool, bool]]]
_seen = weakref.WeakKeyDictionary()


def _sight(client: Any, model: OnnxModel) -> tuple[bool, bool]:
    """Whether all workers share this process's store; whether all have that or the model's file."""
    known = _seen.setdefault(client, {})
    found = known.get(model.token)
    if found is not None and time.monotonic() < found[0]:
        return found[1:]
    own = Store().identity
    found_there = client.run(look, model.source, on_error="return").values()
    # A worker that cannot answer cannot run the tasks either; its own error will say why.
    answers = [answer for answer in found_there if isinstance(answer, Sight)]
    if not answers:  # nobody is there yet: a path is believed to be seen
        return False, model.source is not None
    share = all(answer.store == own for answer in answers)
    reach = all(answer.store == own or answer.sees_file for answer in answers)
    known[model.token] = (time.monotonic() + _LOOK_SECONDS, share, reach)
    return share, reach


def plan_delivery(model: OnnxModel, stages: StageGraph) -> Delivery | None:
    """What must travel with the graph; None if every worker can get the model by itself.

    Asks the workers of the current client what they see; reads no weights.
    """
    client = current_client()
    if client is None or client.asynchronous:
        return None
    share, reach = _sight(client, model)
    if share or (reach and _is_whole(model, stages)):
        return None
    return deliver(model, stages, with_weights=not reach)


def _is_whole(model: OnnxModel, stages: StageGraph) -> bool:
    """Whether one stage runs every node: then a host reads the model's file from end to end."""
    return len(stages.stages) == 1 and len(stages.stages[0].nodes) == model.n_nodes


def deliver(model: OnnxModel, stages: StageGraph, *, with_weights: bool) -> Delivery:
    """The tasks: a manifest, and the weights too if the workers cannot read them from files.

    A piece has weights that the same stages want, so that no host is sent what it does not run.
    """
    name = f"model-{model.token}"
    manifest = Manifest(model.token, model.proto, model.places)
    tasks = {name: Task(name, pass_on, manifest)}
    keys: list[list[str]] = [[name] for _ in stages.stages]
    if with_weights:
        for users, blobs in _by_users(model, stages).items():
            for segments in _pieces(blobs):
                key = f"weights-{model.token}-{len(tasks)}"
                tasks[key] = Task(key, store_piece, key, Piece(segments, model))
                for stage in users:
                    keys[stage].append(key)
    return Delivery(tasks, tuple(map(tuple, keys)), model)


_Users = dict[tuple[int, ...], list[tuple[str, int]]]
_latest: weakref.WeakKeyDictionary[OnnxModel, tuple[StageGraph, _Users]]
_latest = weakref.WeakKeyDictionary()
"""By model: the stages that were asked for last, as they are again with the next request."""


def _by_users(model: OnnxModel, stages: StageGraph) -> _Users:
    """Blobs, with their bytes, by the stages that want them."""
    latest = _latest.get(model)
    if latest is None or latest[0] is not stages:
        latest = _latest[model] = (stages, _find_users(model, stages))
    return latest[1]


def _find_users(model: OnnxModel, stages: StageGraph) -> _Users:
    extractor = StageExtractor(model.parse())
    users: dict[str, list[int]] = {}
    for number, stage in enumerate(stages.stages):
        part = extractor.extract(stage.nodes, stage.inputs, stage.outputs)
        for key in blob_keys_of(part):
            users.setdefault(key, []).append(number)
    grouped: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for key, numbers in users.items():
        size = model.places[key].length if key in model.places else len(model.blobs[key])
        grouped.setdefault(tuple(numbers), []).append((key, size))
    return grouped


def _pieces(blobs: Sequence[tuple[str, int]]) -> list[tuple[Segment, ...]]:
    """Blobs in groups of about PIECE_BYTES; one that is larger in parts."""
    pieces: list[tuple[Segment, ...]] = []
    group: list[Segment] = []
    room = PIECE_BYTES
    for key, size in blobs:
        for offset in range(0, size, SPLIT_BYTES):
            length = min(SPLIT_BYTES, size - offset)
            if group and length > room:
                pieces.append(tuple(group))
                group, room = [], PIECE_BYTES
            group.append(Segment(key, offset, length, size))
            room -= length
    return [*pieces, tuple(group)] if group else pieces


_held: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def hold(client: Any, delivery: Delivery) -> dict[str, Any]:
    """The delivery's keys as futures, so that the next request sends no weights again; they stay
    for as long as the model does."""
    held = _held.setdefault(client, {})
    lacking = {key: task for key, task in delivery.tasks.items() if not _is_alive(held.get(key))}
    if lacking:
        with warnings.catch_warnings():
            # Weights are meant to be sent here, once.
            warnings.filterwarnings("ignore", "Sending large graph")
            futures = client.get(dict(lacking), list(lacking), sync=False)
        held.update(zip(lacking, futures, strict=True))
        weakref.finalize(delivery.model, _let_go, weakref.ref(client), tuple(lacking))
    return {key: held[key] for key in delivery.tasks}


def _let_go(client: weakref.ref[Any], keys: tuple[str, ...]) -> None:
    alive = client()
    held = {} if alive is None else _held.get(alive, {})
    for key in keys:
        held.pop(key, None)


def _is_alive(future: Any) -> bool:
    return future is not None and future.status in ("pending", "finished")
