"""How a model gets to a host: from the host's store, from the model's file, through the graph.

Where workers cannot see the model's file, the client puts the weights into the graph as *pieces*:
tasks whose arguments are the bytes, so that Dask keeps them on the scheduler and can run them
again. A piece that has run has put its bytes into its host's store; what its task returns, and what
Dask sends to other workers, is only a note of that. A process that lacks weights asks for them,
under its host's lock: each host is sent them once, however many processes it has, whoever dies.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.utils import offload

from dask_onnx.core.errors import DaskOnnxError, ModelError, StoreError
from dask_onnx.core.files import FileSource, check_unchanged
from dask_onnx.core.peers import ask_scheduler, ask_worker, own_worker
from dask_onnx.core.subprocesses import run_in_subprocess
from dask_onnx.modelio.onnx_model import ModelRef, OnnxModel, load_onnx
from dask_onnx.modelio.weights import BlobPlace
from dask_onnx.store.weight_store import Store, StoreWriteError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model without its weights, and where in files they lie: for hosts that run parts of it."""

    token: str
    proto: bytes = field(repr=False)
    places: Mapping[str, BlobPlace] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Segment:
    """Some bytes of a blob."""

    key: str
    offset: int
    length: int
    blob_bytes: int
    """Length of the whole blob."""


class Piece:
    """Some of a model's weights, read when they are first needed: when the graph is sent."""

    __slots__ = ("_data", "_digests", "_model", "segments")

    def __init__(
        self,
        segments: tuple[Segment, ...],
        model: OnnxModel | None,
        data: Sequence[Any] = (),
        digests: Sequence[str] = (),
    ) -> None:
        self.segments, self._model, self._data, self._digests = segments, model, data, digests

    def data(self) -> Sequence[Any]:
        """The bytes of each segment.

        Raises
        ------
        ModelError
            The model's file is gone or has changed, and no copy of it is left.
        """
        if self._model is None:
            return self._data
        return [_segment_bytes(self._model, segment) for segment in self.segments]

    def checked(self) -> Sequence[Any]:
        """The same, compared with the digests that were taken where they were read."""
        data = self.data()
        for segment, part, promised in zip(self.segments, data, self._digests, strict=False):
            if hashlib.sha256(part).hexdigest() != promised:
                raise StoreError(
                    f"bytes {segment.offset} to {segment.offset + segment.length} of "
                    f"{segment.key} were damaged on their way",
                    "Dask sends them again when the task is repeated",
                )
        return data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        data = self.data()
        digests = self._digests or [hashlib.sha256(part).hexdigest() for part in data]
        buffers = [pickle.PickleBuffer(part) for part in data]
        return Piece, (self.segments, None, buffers if int(protocol) >= 5 else data, digests)

    def __dask_tokenize__(self) -> Any:
        return "dask_onnx.Piece", self.segments


def _segment_bytes(model: OnnxModel, segment: Segment) -> Any:
    own = Store()
    if segment.key not in model.blobs and not own.lacking([segment.key]):
        return own.read_part(segment.key, segment.offset, segment.length)
    blob = memoryview(model.blob_bytes(segment.key))
    return blob[segment.offset : segment.offset + segment.length]


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A note that a piece is in the store of the host of the worker `holder`."""

    key: str
    """Of the task that the piece came with."""
    segments: tuple[Segment, ...]
    holder: str | None
    """Address of a worker; None outside a cluster."""


Supply = Manifest | StoredPiece


def store_piece(key: str, piece: Piece) -> StoredPiece:
    """Put a piece into this host's store: the function of its task."""
    store = Store()
    lacking = set(store.lacking(dict.fromkeys(segment.key for segment in piece.segments)))
    with store.using():
        if lacking:
            for segment, part in zip(piece.segments, piece.checked(), strict=True):
                if segment.key in lacking:
                    store.write_part(segment.key, segment.offset, part, segment.blob_bytes)
    worker = own_worker()
    return StoredPiece(key, piece.segments, None if worker is None else worker.address)


def pass_on(manifest: Manifest) -> Manifest:
    """The function of a manifest's task."""
    return manifest


def fetch_proto(store: Store, model: ModelRef, supplies: Sequence[Supply]) -> bytes:
    """The weightless proto, from the store or brought into it.

    Raises
    ------
    StoreError
        Nobody has it.
    """
    proto = store.proto(model.token)
    if proto is not None:
        return proto
    with store.lock(model.token):
        for supply in supplies:
            if isinstance(supply, Manifest):
                store.write_proto(model.token, supply.proto)
        if not store.has(model.token):
            _load_into(store, model, None)
    proto = store.proto(model.token)
    assert proto is not None
    return proto


def fetch_blobs(
    store: Store, model: ModelRef, keys: Iterable[str], supplies: Sequence[Supply]
) -> bool:
    """Bring in what the store lacks of `keys`; whether anything had to be.

    Raises
    ------
    StoreError
        Some of them cannot be had from anywhere.
    """
    wanted = list(dict.fromkeys(keys))
    if not store.lacking(wanted):
        return False
    tried: list[str] = []
    with store.lock(model.token):
        for way in (_from_places, _from_pieces, _from_file):
            lacking = store.lacking(wanted)
            if lacking:
                tried += way(store, model, lacking, supplies)
    lacking = store.lacking(wanted)
    if lacking:
        raise StoreError(
            f"{len(lacking)} of {len(wanted)} weight blobs of model {model.token} are not in "
            f"{store.root} and cannot be had: {'; '.join(tried)}",
            "put the model at a path that the workers see; or make the Client before you call "
            "predict, so that the weights travel with the graph",
        )
    return True


def _from_places(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    """By byte range from the model's files: only what is lacking is read."""
    places = store.places(model.token)
    for supply in supplies:
        if isinstance(supply, Manifest):
            places.update(supply.places)
    for key in keys:
        if key in places:
            try:
                store.write_blob(key, places[key].read())
            except ModelError as error:
                return [error.cause]
    return []


def _from_file(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    try:
        _load_into(store, model, keys)
    except StoreWriteError:
        raise
    except StoreError as error:
        return [error.cause]
    return []


_ELSEWHERE_BYTES = 64 * 2**20
"""A model's file above this size is not read by a worker's own process."""


def _load_into(store: Store, model: ModelRef, keys: Sequence[str] | None) -> None:
    """Load the model's file here, and put into the store what is asked for, or all of it."""
    if model.source is None:
        raise StoreError(
            f"model {model.token} was given as bytes or as a proto on another host, "
            f"and the store {store.root} on this host does not have it",
            "make the Client before you call predict, so that the weights travel with the graph; "
            "or save the model to a path that the workers see, and load it from there",
        )
    if model.source.size > _ELSEWHERE_BYTES and own_worker() is not None:
        try:
            run_in_subprocess(load_into, store.root, model, keys)
            return
        except RuntimeError as error:
            log.warning("the model is loaded by this process, since another failed: %s", error)
    load_into(store.root, model, keys)


def load_into(root: Path, model: ModelRef, keys: Sequence[str] | None) -> None:
    """The work of it, in whichever process."""
    store, source = Store(root), model.source
    assert source is not None
    try:
        loaded = load_onnx(source.path, keep_weights=True)
        if loaded.token != model.token:
            raise StoreError(
                f"{source.path} is not the model that was planned: it has changed since, "
                "or this host has another file under that path",
                "load and plan the model again",
            )
        for key in store.lacking(loaded.blob_keys if keys is None else keys):
            store.write_blob(key, loaded.blob_bytes(key))
        store.write_proto(model.token, loaded.proto)
    except ModelError as error:
        raise StoreError(
            f"this host cannot load the model: {error.cause}",
            "put the model at the same path on every worker's host; or make the Client before you "
            "call predict, so that the weights travel with the graph",
        ) from error


def _from_pieces(
    store: Store, model: ModelRef, keys: Sequence[str], supplies: Sequence[Supply]
) -> list[str]:
    """From the host of a worker that has them, or from the scheduler, which keeps the tasks."""
    worker = own_worker()
    wanted = set(keys)
    tried = []
    for supply in supplies:
        if not isinstance(supply, StoredPiece) or worker is None:
            continue
        segments = tuple(s for s in supply.segments if s.key in wanted)
        if not segments:
            continue
        parts = _ask(worker, supply, segments)
        if parts is None:
            tried.append(f"neither {supply.holder} nor the scheduler has {supply.key}")
            continue
        for segment, part in zip(segments, parts, strict=True):
            store.write_part(segment.key, segment.offset, part, segment.blob_bytes)
    return tried


def _ask(worker: Any, supply: StoredPiece, segments: tuple[Segment, ...]) -> Sequence[Any] | None:
    parts: Sequence[Any] | None = None
    if supply.holder is not None and supply.holder != worker.address:
        parts = ask_worker(worker, supply.holder, read_segments, segments)
    if parts is None:
        parts = ask_scheduler(worker, read_task_segments, supply.key, segments)
    return parts


async def read_segments(segments: tuple[Segment, ...]) -> list[bytes] | None:
    """Bytes out of this host's store, for a worker of another host."""
    found: list[bytes] | None = await offload(_read_segments, segments)
    return found


def _read_segments(segments: tuple[Segment, ...]) -> list[bytes] | None:
    store = Store()
    if store.lacking({segment.key for segment in segments}):
        return None
    return [store.read_part(s.key, s.offset, s.length) for s in segments]


def read_task_segments(
    key: str, segments: tuple[Segment, ...], dask_scheduler: Any = None
) -> list[Any] | None:
    """Bytes out of a piece's task, on the scheduler that keeps it."""
    state = dask_scheduler.tasks.get(key)
    if state is None or state.run_spec is None:
        return None
    pieces = [argument for argument in state.run_spec.args if isinstance(argument, Piece)]
    by_segment = {
        segment: bytes(part)
        for piece in pieces
        for segment, part in zip(piece.segments, piece.data(), strict=True)
    }
    if any(segment not in by_segment for segment in segments):
        return None
    return [by_segment[segment] for segment in segments]


@dataclass(frozen=True, slots=True)
class Sight:
    """What one worker process sees of a model."""

    store: str
    """`Store.identity`."""
    sees_file: bool


def look(source: FileSource | None) -> Sight:
    """Runs on a worker, for a client that must know whether to send the weights along."""
    try:
        identity = Store().identity
    except DaskOnnxError:
        identity = ""  # it cannot write: its own tasks will say so
    if source is None:
        return Sight(identity, sees_file=False)
    try:
        check_unchanged(source)
    except ModelError:
        return Sight(identity, sees_file=False)
    return Sight(identity, sees_file=True)
