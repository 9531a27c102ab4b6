"""Taking the weights out of a model, and saying where each of them lies.

A model splits into a proto of some tens of kilobytes and blobs of bytes. A tensor that shape
inference may want to read (small ones, and integers up to a limit) stays in the proto.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from onnx import numpy_helper

from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import FileSource, KeptFiles, is_url, read_ranges, see_file
from dask_onnx.modelio.wire import take_offset

INLINE_BYTES = 1024
"""Tensors up to this size stay in the proto, whatever their type."""
INLINE_INTEGER_BYTES = 64 * 1024
"""Integers up to this size stay too: they are shapes, axes, indices."""
OWN_BLOB_BYTES = 2**20
"""Tensors from this size on are a blob each; smaller ones share one, a pack."""
PACK_BYTES = 16 * 2**20
"""A pack that has become so large is closed, so that a stage need not fetch the whole model's."""
ALIGNMENT = 64
"""Where a packed tensor may start: a cache line, the widest vector load of today's CPUs."""

_EXTERNAL = onnx.TensorProto.EXTERNAL
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Packed = tuple[onnx.TensorProto, bytes, int | None]
"""A tensor, its bytes, and where these lie in the model's file."""
_INTEGERS = {
    onnx.TensorProto.BOOL,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.UINT64,
}


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """Where in a file the bytes of a blob lie."""

    file: FileSource
    length: int
    """Bytes of the blob; between segments it has zeros."""
    segments: tuple[tuple[int, int, int], ...]
    """Offset in the blob, offset in the file, length of each piece; ascending."""

    def read(self, kept: KeptFiles | None = None) -> bytes:
        """The blob's bytes.

        Raises
        ------
        ModelError
            The file is gone, or no longer the one that was seen.
        """
        parts = read_ranges(self.file, [(start, size) for _, start, size in self.segments], kept)
        if len(parts) == 1 and len(parts[0]) == self.length:
            return parts[0]
        blob = bytearray(self.length)
        for (offset, _, size), part in zip(self.segments, parts, strict=True):
            if len(part) != size:
                raise ModelError(
                    f"{self.file.path} gave {len(part):,} of {size:,} bytes", "load the model again"
                )
            blob[offset : offset + size] = part
        return bytes(blob)

    def to_json(self) -> list[Any]:
        """As plain lists; `from_json` takes them."""
        file = self.file
        return [file.path, file.size, file.version, self.length, [list(s) for s in self.segments]]

    @staticmethod
    def from_json(values: list[Any]) -> BlobPlace:
        path, size, version, length, segments = values
        return BlobPlace(
            FileSource(path, size, version),
            length,
            tuple((start, place, count) for start, place, count in segments),
        )


def range_key(file: FileSource, offset: int, length: int) -> str:
    """The key of a blob that was not read, so that its content has no name yet."""
    identity = (file.path, offset, length, file.size, file.version)
    return "range-" + hashlib.sha256(repr(identity).encode()).hexdigest()


def content_digest(key: str) -> str | None:
    """The SHA-256 that a blob key promises; None for one that was named unread."""
    return key if _DIGEST.fullmatch(key) else None


@dataclass(slots=True)
class StrippedWeights:
    """What `strip_weights` took out of a proto."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    """Blob key to its bytes, for weights that were inside the proto."""
    places: dict[str, BlobPlace] = field(default_factory=dict)
    """Blob key to its place, as far as the weights lie in files."""
    parameter_bytes: int = 0
    """Bytes of all initializers, those that stay in the proto included."""
    parameters: int = 0
    """Elements of all initializers."""


def strip_weights(
    model: onnx.ModelProto, folder: str | None, file: FileSource | None = None
) -> StrippedWeights:
    """Move large tensors of `model`, in place, to blobs that the proto names as external data.

    Parameters
    ----------
    model : ModelProto
        Its ``Constant`` nodes must have become initializers before.
    folder : str or None
        Path or URL of where external data of the model lies; None if it came without a place.
    file : FileSource or None
        The file that the model came from, if tensors have noted where in it they lie.

    Raises
    ------
    ModelError
        External data is missing, too short, leaves the folder, or has no folder.
    """
    stripped = StrippedWeights()
    packed: list[_Packed] = []
    for tensor in _tensors(model):
        stripped.parameters += math.prod(tensor.dims)
        if tensor.data_location == _EXTERNAL:
            _strip_external(tensor, folder, stripped)
        if tensor.data_location != _EXTERNAL:
            _strip_inline(tensor, stripped, packed, file)
            if sum(len(raw) for _, raw, _ in packed) >= PACK_BYTES:
                _write_pack(packed, stripped, file)
                packed.clear()
    _write_pack(packed, stripped, file)
    return stripped


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph body below it."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            pending += subgraphs_of(node)


def subgraphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    bodies = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            bodies.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            bodies.extend(attribute.graphs)
    return bodies


def with_bodies(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node and all nodes of its subgraph bodies."""
    yield node
    for body in subgraphs_of(node):
        for inner in body.node:
            yield from with_bodies(inner)


def blob_of(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Blob key, offset and length of a tensor that was moved out of its proto."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    return fields["location"], int(fields["offset"]), int(fields["length"])


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == _EXTERNAL)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs_of(model):
        yield from graph.initializer


def _stays_inline(data_type: int, size: int) -> bool:
    if data_type == onnx.TensorProto.STRING:
        return True
    return size <= (INLINE_INTEGER_BYTES if data_type in _INTEGERS else INLINE_BYTES)


def _strip_inline(
    tensor: onnx.TensorProto,
    stripped: StrippedWeights,
    packed: list[_Packed],
    file: FileSource | None,
) -> None:
    offset = take_offset(tensor)
    size = tensor.ByteSize()
    if tensor.HasField("raw_data"):
        size = len(tensor.raw_data)
    stripped.parameter_bytes += size
    if _stays_inline(tensor.data_type, size):
        return
    raw = tensor.raw_data if tensor.HasField("raw_data") else _raw_bytes(tensor)
    if len(raw) < OWN_BLOB_BYTES:
        packed.append((tensor, raw, offset))
        return
    key = hashlib.sha256(raw).hexdigest()
    stripped.blobs[key] = raw
    if file is not None and offset is not None:
        stripped.places[key] = BlobPlace(file, len(raw), ((0, offset, len(raw)),))
    _point(tensor, key, 0, len(raw))


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    copy = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return bytes(copy.raw_data)


def _write_pack(packed: list[_Packed], stripped: StrippedWeights, file: FileSource | None) -> None:
    if not packed:
        return
    pack, offsets = bytearray(), []
    for _, raw, _ in packed:
        pack += bytes(-len(pack) % ALIGNMENT)
        offsets.append(len(pack))
        pack += raw
    key = hashlib.sha256(pack).hexdigest()
    stripped.blobs[key] = bytes(pack)
    if file is not None and all(place is not None for _, _, place in packed):
        segments = tuple(
            (offset, place, len(raw))
            for (_, raw, place), offset in zip(packed, offsets, strict=True)
            if place is not None
        )
        stripped.places[key] = BlobPlace(file, len(pack), segments)
    for (tensor, raw, _), offset in zip(packed, offsets, strict=True):
        _point(tensor, key, offset, len(raw))


def _strip_external(
    tensor: onnx.TensorProto, folder: str | None, stripped: StrippedWeights
) -> None:
    file, offset, length = _external_range(tensor, folder)
    if _stays_inline(tensor.data_type, length):
        (tensor.raw_data,) = read_ranges(file, [(offset, length)])
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return
    stripped.parameter_bytes += length
    key = range_key(file, offset, length)
    stripped.places[key] = BlobPlace(file, length, ((0, offset, length),))
    _point(tensor, key, 0, length)


def _external_range(tensor: onnx.TensorProto, folder: str | None) -> tuple[FileSource, int, int]:
    """File, offset and length of a tensor's bytes."""
    fields: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise ModelError(
            f"initializer {tensor.name!r} lies in the external file {location!r}, "
            "and a model given as bytes or as a proto has no folder to find it in",
            "load the model by its path instead",
        )
    path = _inside(folder, location)
    if path is None:
        raise ModelError(
            f"initializer {tensor.name!r} names {location!r}, which leaves the model's folder",
            "external data must lie in or below the folder of the model file",
        )
    try:
        file = see_file(path)
    except OSError:
        raise ModelError(
            f"initializer {tensor.name!r} lies in {path}, which does not exist",
            "put the external data beside the model file, under the name that the model gives",
        ) from None
    offset = int(fields.get("offset", 0))
    length = int(fields.get("length", 0)) or file.size - offset
    if offset + length > file.size:
        raise ModelError(
            f"initializer {tensor.name!r} needs bytes {offset} to {offset + length} of {path}, "
            f"which has {file.size}",
            "the external file is cut short or of another model: copy it again",
        )
    return file, offset, length


def _inside(folder: str, location: str) -> str | None:
    """The path of external data; None if it would lead out of the folder."""
    if is_url(folder):
        parts = PurePosixPath(location).parts
        leaves = not parts or ".." in parts or PurePosixPath(location).is_absolute()
        return None if leaves else f"{folder.rstrip('/')}/{location}"
    path = (Path(folder) / location).resolve()
    is_inside = path.is_relative_to(Path(folder).resolve()) and path != Path(folder).resolve()
    return str(path) if is_inside else None


def _point(tensor: onnx.TensorProto, key: str, offset: int, length: int) -> None:
    """Make `tensor` an empty shell that names its bytes as external data."""
    name, data_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, data_type
    tensor.dims.extend(dims)
    tensor.data_location = _EXTERNAL
    for field_name, value in (("location", key), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = field_name, str(value)
