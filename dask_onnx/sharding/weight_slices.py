"""Slices of a model's weights, packed for each shard into blobs that are read without the rest."""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from dask_onnx.core.errors import PlanError
from dask_onnx.core.files import FileSource
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import ALIGNMENT, BlobPlace, blob_of, is_external
from dask_onnx.sharding.shard_layout import Array, Layout, take_shard


@dataclass(frozen=True, slots=True)
class ShardSlice:
    """One shard of a value along one axis."""

    layout: Layout
    """Layout of the shards."""
    shard: int
    """Index of the shard."""
    shards: int
    """Number of shards."""

    def of(self, array: Array) -> Array:
        """Return the shard of a whole array; `Layout.inner` follows from its size."""
        inner = array.shape[self.layout.axis] // (self.layout.outer * self.shards)
        layout = replace(self.layout, inner=inner)
        return take_shard(array, layout, self.shards, self.shard, self.shard + 1)


@dataclass(frozen=True, slots=True, eq=False)
class ByteRanges:
    """Byte ranges of a blob, all of one length."""

    blob: str
    """Key of the blob."""
    starts: npt.NDArray[np.int64]
    """int64: offset of each range in the blob, in bytes."""
    length: int
    """Bytes of one range."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in self.starts.tolist():
            yield start, self.length

    @property
    def total(self) -> int:
        """Bytes of all ranges."""
        return self.length * len(self.starts)

    @property
    def identity(self) -> str:
        """Text that is equal for equal ranges of one blob."""
        digest = hashlib.sha256(self.starts.tobytes()).hexdigest()
        return f"{self.blob} {digest} {self.length}"


Pack = tuple[tuple[int, ByteRanges], ...]
"""Slices of a blob: the offset of each, in bytes, and the ranges that it consists of."""


class SlicedBlobs(Mapping[str, bytes]):
    """Blobs cut from a model's weights in memory, each copied when it is read."""

    def __init__(self, whole: Mapping[str, bytes], packs: Mapping[str, Pack]) -> None:
        self._whole, self._packs = whole, dict(packs)

    def __getitem__(self, key: str) -> bytes:
        if key not in self._packs:
            return self._whole[key]
        blob = bytearray()
        for offset, ranges in self._packs[key]:
            blob += bytes(offset - len(blob))
            # A view, so that slicing does not copy the whole blob.
            parent = memoryview(self._whole[ranges.blob])
            for start, length in ranges:
                blob += parent[start : start + length]
        return bytes(blob)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._whole, **self._packs})

    def __len__(self) -> int:
        return len({**self._whole, **self._packs})


@dataclass(slots=True)
class WeightSlicer:
    """Makes the initializers of one shard, and records where their bytes are."""

    model: OnnxModel
    """Unsharded model."""
    places: dict[str, BlobPlace] = field(default_factory=dict)
    """Locations of blobs that lie in files, by key."""
    packs: dict[str, Pack] = field(default_factory=dict)
    """Slices of blobs that are cut from weights in memory, by key."""
    _open: list[tuple[onnx.TensorProto, ByteRanges]] = field(default_factory=list)

    def whole(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return an initializer as it is."""
        if is_external(tensor):
            key = blob_of(tensor)[0]
            if key in self.model.places:
                self.places[key] = self.model.places[key]
        return tensor

    @property
    def parents(self) -> set[str]:
        """Keys of the blobs in memory that slices are cut from."""
        return {ranges.blob for pack in self.packs.values() for _, ranges in pack}

    def cut(
        self, tensor: onnx.TensorProto, pieces: Sequence[ShardSlice], name: str
    ) -> onnx.TensorProto:
        """Return a slice of an initializer under a new name; reads no file.

        `close_pack` writes the location of its bytes into it.

        Raises
        ------
        PlanError
            Its elements are smaller than a byte.
        """
        if not is_external(tensor):
            array = numpy_helper.to_array(tensor)
            for piece in pieces:
                array = piece.of(array)
            return numpy_helper.from_array(array, name)
        dims = list(tensor.dims)
        for piece in pieces:
            dims[piece.layout.axis] //= piece.shards
        shell = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=dims)
        shell.data_location = onnx.TensorProto.EXTERNAL
        self._open.append((shell, byte_ranges(tensor, pieces)))
        return shell

    def close_pack(self) -> None:
        """Put the slices since the last call into blobs: one for each file, one for memory."""
        by_file: dict[FileSource | None, list[tuple[onnx.TensorProto, ByteRanges]]] = {}
        for shell, ranges in self._open:
            place = self.model.places.get(ranges.blob)
            by_file.setdefault(None if place is None else place.file, []).append((shell, ranges))
        for file, slices in by_file.items():
            identity = "\n".join(ranges.identity for _, ranges in slices)
            key = "range-" + hashlib.sha256(identity.encode()).hexdigest()
            pack, length = [], 0
            for shell, ranges in slices:
                length += -length % ALIGNMENT
                pack.append((length, ranges))
                _point(shell, key, length, ranges.total)
                length += ranges.total
            if file is None:
                self.packs[key] = tuple(pack)
            else:
                segments = tuple(_segments(self.model.places, pack))
                self.places[key] = BlobPlace(file, length, segments)
        self._open.clear()


def byte_ranges(tensor: onnx.TensorProto, pieces: Sequence[ShardSlice]) -> ByteRanges:
    """Return the byte ranges in a blob that hold the elements of a slice of a tensor.

    Elements that are contiguous on the last cut axis form one range.

    Raises
    ------
    PlanError
        Elements are smaller than a byte.
    """
    key, offset, length = blob_of(tensor)
    dims = list(tensor.dims)
    count = math.prod(dims)
    if not count or length % count:
        raise PlanError(
            f"initializer {tensor.name!r} packs {count} elements into {length} bytes and cannot be "
            "sliced",
            "use a plan that keeps weights whole, such as 'pipeline'",
            input=tensor.name,
            numbers={"elements": count, "bytes": length},
        )
    last = max(piece.layout.axis for piece in pieces)
    run = dims[last]
    starts = np.array([offset], np.int64)
    bytes_behind = [math.prod(dims[i + 1 :]) * (length // count) for i in range(len(dims))]
    for axis in range(last + 1):
        indices = np.arange(dims[axis], dtype=np.int64)
        for piece in pieces:
            if piece.layout.axis == axis:
                indices = piece.of(indices.reshape((1,) * axis + (-1,))).reshape(-1)
        if axis == last:
            run = next(p.layout.inner for p in pieces if p.layout.axis == last)
            indices = indices[::run]
        starts = (starts[:, None] + indices * bytes_behind[axis]).reshape(-1)
    return ByteRanges(key, starts, run * bytes_behind[last])


def _segments(
    places: Mapping[str, BlobPlace], pack: Sequence[tuple[int, ByteRanges]]
) -> Iterator[tuple[int, int, int]]:
    """Yield offset in the pack, offset in the file and length of each range, in bytes."""
    for offset, ranges in pack:
        pieces = places[ranges.blob].segments
        firsts = [at for at, _, _ in pieces]
        for start, length in ranges:
            at, in_file, size = pieces[max(bisect.bisect_right(firsts, start) - 1, 0)]
            if not at <= start <= start + length <= at + size:
                raise PlanError(
                    f"bytes {start} to {start + length} of a weight are in several segments of "
                    f"{places[ranges.blob].file.path}",
                    "save the model again, with its weights in one file of external data",
                    numbers={"start_byte": start, "stop_byte": start + length},
                )
            yield offset, in_file + start - at, length
            offset += length


def _point(shell: onnx.TensorProto, key: str, offset: int, length: int) -> None:
    """Write the location of its bytes into a tensor."""
    for name, value in (("location", key), ("offset", offset), ("length", length)):
        entry = shell.external_data.add()
        entry.key, entry.value = name, str(value)
