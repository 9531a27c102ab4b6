"""Parts of a model's weights, as tasks of a graph bring them to hosts that cannot read its file.

The arguments of such a task are the bytes, so that Dask keeps them on the scheduler and can run
the task again. A task that has run has written its bytes to its host's store; its result, which
Dask may send to other workers, only says so.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask_onnx.core.dask_internals import offload
from dask_onnx.core.errors import StoreError
from dask_onnx.core.peers import current_worker
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import BlobPlace
from dask_onnx.store.weight_store import Store


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model without its weights, and their locations in files, for hosts that run parts of it."""

    token: str
    """Token of the model."""
    proto: bytes = field(repr=False)
    """The weightless proto."""
    places: Mapping[str, BlobPlace] = field(repr=False)
    """Blob key to the location of its bytes."""


@dataclass(frozen=True, slots=True)
class BlobRange:
    """A range of bytes of a blob."""

    key: str
    """Key of the blob."""
    offset: int
    """Offset in the blob, in bytes."""
    length: int
    """Bytes of the range."""
    blob_bytes: int
    """Bytes of the whole blob."""


class WeightPart:
    """Some of a model's weights, read only when they are pickled to be sent.

    Parameters
    ----------
    ranges : tuple of BlobRange
        Ranges of the weights.
    model : OnnxModel or None
        Model to read from; None where `data` has the bytes.
    data : sequence of bytes-like
        Bytes of each range.
    digests : sequence of str
        SHA-256 of each range, taken where it was read.
    """

    __slots__ = ("_data", "_digests", "_model", "ranges")

    def __init__(
        self,
        ranges: tuple[BlobRange, ...],
        model: OnnxModel | None,
        data: Sequence[Any] = (),
        digests: Sequence[str] = (),
    ) -> None:
        self.ranges, self._model, self._data, self._digests = ranges, model, data, digests

    def data(self) -> Sequence[Any]:
        """Return the bytes of each range.

        Raises
        ------
        ModelError
            The model's file is gone or has changed, and no copy of it is left.
        """
        if self._model is None:
            return self._data
        return [_range_bytes(self._model, each) for each in self.ranges]

    def checked(self) -> Sequence[Any]:
        """Return the bytes of each range, compared with the digests from where they were read.

        Raises
        ------
        StoreError
            Bytes were damaged in transfer.
        """
        data = self.data()
        for each, part, promised in zip(self.ranges, data, self._digests, strict=False):
            if hashlib.sha256(part).hexdigest() != promised:
                raise StoreError(
                    f"bytes {each.offset} to {each.offset + each.length} of "
                    f"{each.key} were damaged in transfer",
                    "Dask sends them again when the task is repeated",
                    numbers={"offset_bytes": each.offset, "length_bytes": each.length},
                )
        return data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        data = self.data()
        digests = self._digests or [hashlib.sha256(part).hexdigest() for part in data]
        buffers = [pickle.PickleBuffer(part) for part in data]
        return WeightPart, (self.ranges, None, buffers if int(protocol) >= 5 else data, digests)

    def __dask_tokenize__(self) -> Any:
        return "dask_onnx.WeightPart", self.ranges


def _range_bytes(model: OnnxModel, wanted: BlobRange) -> Any:
    store = Store()
    if wanted.key not in model.blobs and not store.missing([wanted.key]):
        return store.read_part(wanted.key, wanted.offset, wanted.length)
    blob = memoryview(model.blob_bytes(wanted.key))
    return blob[wanted.offset : wanted.offset + wanted.length]


@dataclass(frozen=True, slots=True)
class StoredWeightPart:
    """Result of a task: a part of the weights is in the store of a worker's host."""

    key: str
    """Key of the task."""
    ranges: tuple[BlobRange, ...]
    """Ranges of the weights."""
    holder: str | None
    """Address of the worker; None outside a cluster."""


Supply = Manifest | StoredWeightPart
"""Result of a task that brings a model to a host."""


def store_weight_part(key: str, part: WeightPart) -> StoredWeightPart:
    """Write a part of the weights to this host's store: the function of its task.

    Parameters
    ----------
    key : str
        Key of the task.
    part : WeightPart
        Weights to write.
    """
    store = Store()
    missing = set(store.missing(dict.fromkeys(each.key for each in part.ranges)))
    with store.shared_access():
        if missing:
            for each, data in zip(part.ranges, part.checked(), strict=True):
                if each.key in missing:
                    store.write_part(each.key, each.offset, data, each.blob_bytes)
    worker = current_worker()
    return StoredWeightPart(key, part.ranges, None if worker is None else worker.address)


def pass_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest: the function of its task."""
    return manifest


async def read_blob_ranges(ranges: tuple[BlobRange, ...]) -> list[bytes] | None:
    """Return bytes from this host's store, for a worker of another host; None if one is missing."""
    found: list[bytes] | None = await offload(_read_blob_ranges, ranges)
    return found


def _read_blob_ranges(ranges: tuple[BlobRange, ...]) -> list[bytes] | None:
    store = Store()
    if store.missing({each.key for each in ranges}):
        return None
    return [store.read_part(s.key, s.offset, s.length) for s in ranges]


def read_task_ranges(
    key: str, ranges: tuple[BlobRange, ...], dask_scheduler: Any = None
) -> list[Any] | None:
    """Return bytes from the arguments of a task; runs on the scheduler, which keeps them.

    Parameters
    ----------
    key : str
        Key of the task.
    ranges : tuple of BlobRange
        Ranges to return.
    dask_scheduler : distributed.Scheduler
        Given by Dask.

    Returns
    -------
    list of bytes-like or None
        None if the scheduler does not have the task, or the task not all of the ranges.
    """
    state = dask_scheduler.tasks.get(key)
    if state is None or state.run_spec is None:
        return None
    parts = [argument for argument in state.run_spec.args if isinstance(argument, WeightPart)]
    by_range = {
        each: bytes(data)
        for part in parts
        for each, data in zip(part.ranges, part.data(), strict=True)
    }
    if any(each not in by_range for each in ranges):
        return None
    return [by_range[each] for each in ranges]
