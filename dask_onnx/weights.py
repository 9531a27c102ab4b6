"""Taking the weights out of a model, and saying where each of them lies.

A model splits into a proto of some tens of kilobytes and blobs of bytes. A tensor that shape
inference may want to read (small ones, and integers up to a limit) stays in the proto.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import numpy_helper

from dask_onnx.errors import ModelError

INLINE_BYTES = 1024
"""Tensors up to this size stay in the proto, whatever their type."""
INLINE_INTEGER_BYTES = 64 * 1024
"""Integers up to this size stay too: they are shapes, axes, indices."""
OWN_BLOB_BYTES = 2**20
"""Tensors from this size on are a blob each; smaller ones share one, the pack."""
ALIGNMENT = 64
"""Where a packed tensor may start: a cache line, the widest vector load of today's CPUs."""

_EXTERNAL = onnx.TensorProto.EXTERNAL
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
class FileRange:
    """Bytes of a file, with what tells that the file is still the one that was seen."""

    path: str
    offset: int
    length: int
    file_size: int
    """Bytes of the whole file when it was seen."""
    modified_ns: int
    """Its modification time then, in nanoseconds."""

    @property
    def key(self) -> str:
        identity = (self.path, self.offset, self.length, self.file_size, self.modified_ns)
        return "range-" + hashlib.sha256(repr(identity).encode()).hexdigest()


@dataclass(slots=True)
class StrippedWeights:
    """What `strip_weights` took out of a proto."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    """Blob key to its bytes, for weights that were inside the proto."""
    ranges: dict[str, FileRange] = field(default_factory=dict)
    """Blob key to its place, for weights in external files, which are not read."""
    parameter_bytes: int = 0
    """Bytes of all initializers, those that stay in the proto included."""
    parameters: int = 0
    """Elements of all initializers."""


def strip_weights(model: onnx.ModelProto, folder: Path | None) -> StrippedWeights:
    """Move large tensors of `model`, in place, to blobs that the proto names as external data.

    Parameters
    ----------
    model : ModelProto
        Its ``Constant`` nodes must have become initializers before.
    folder : Path or None
        Where external data of the model lies; None if it came without a place.

    Raises
    ------
    ModelError
        External data is missing, too short, leaves the folder, or has no folder.
    """
    stripped = StrippedWeights()
    packed: list[tuple[onnx.TensorProto, bytes]] = []
    for tensor in _tensors(model):
        stripped.parameters += math.prod(tensor.dims)
        if tensor.data_location == _EXTERNAL:
            _strip_external(tensor, folder, stripped)
        if tensor.data_location != _EXTERNAL:
            _strip_inline(tensor, stripped, packed)
    _write_pack(packed, stripped)
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
    packed: list[tuple[onnx.TensorProto, bytes]],
) -> None:
    size = tensor.ByteSize()
    if tensor.HasField("raw_data"):
        size = len(tensor.raw_data)
    stripped.parameter_bytes += size
    if _stays_inline(tensor.data_type, size):
        return
    raw = tensor.raw_data if tensor.HasField("raw_data") else _raw_bytes(tensor)
    if len(raw) < OWN_BLOB_BYTES:
        packed.append((tensor, raw))
        return
    key = hashlib.sha256(raw).hexdigest()
    stripped.blobs[key] = raw
    _point(tensor, key, 0, len(raw))


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    copy = numpy_helper.from_array(numpy_helper.to_array(tensor))
    return bytes(copy.raw_data)


def _write_pack(packed: list[tuple[onnx.TensorProto, bytes]], stripped: StrippedWeights) -> None:
    if not packed:
        return
    pack, offsets = bytearray(), []
    for _, raw in packed:
        pack += bytes(-len(pack) % ALIGNMENT)
        offsets.append(len(pack))
        pack += raw
    key = hashlib.sha256(pack).hexdigest()
    stripped.blobs[key] = bytes(pack)
    for (tensor, raw), offset in zip(packed, offsets, strict=True):
        _point(tensor, key, offset, len(raw))


def _strip_external(
    tensor: onnx.TensorProto, folder: Path | None, stripped: StrippedWeights
) -> None:
    place = _external_range(tensor, folder)
    if _stays_inline(tensor.data_type, place.length):
        tensor.raw_data = read_range(place)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return
    stripped.parameter_bytes += place.length
    stripped.ranges[place.key] = place
    _point(tensor, place.key, 0, place.length)


def _external_range(tensor: onnx.TensorProto, folder: Path | None) -> FileRange:
    fields: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise ModelError(
            f"initializer {tensor.name!r} lies in the external file {location!r}, "
            "and a model given as bytes or as a proto has no folder to find it in",
            "load the model by its path instead",
        )
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(
            f"initializer {tensor.name!r} names {location!r}, which leaves the model's folder",
            "external data must lie in or below the folder of the model file",
        )
    if not path.is_file():
        raise ModelError(
            f"initializer {tensor.name!r} lies in {path}, which does not exist",
            "put the external data beside the model file, under the name that the model gives",
        )
    status = path.stat()
    offset = int(fields.get("offset", 0))
    length = int(fields.get("length", 0)) or status.st_size - offset
    if offset + length > status.st_size:
        raise ModelError(
            f"initializer {tensor.name!r} needs bytes {offset} to {offset + length} of {path}, "
            f"which has {status.st_size}",
            "the external file is cut short or of another model: copy it again",
        )
    return FileRange(str(path), offset, length, status.st_size, status.st_mtime_ns)


def read_range(place: FileRange) -> bytes:
    """The bytes of `place`.

    Raises
    ------
    ModelError
        The file is gone, or no longer the one that was seen.
    """
    path = Path(place.path)
    if not path.is_file():
        raise ModelError(f"{path} no longer exists", "load the model again, from where it is now")
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (place.file_size, place.modified_ns):
        raise ModelError(f"{path} has changed since the model was loaded", "load the model again")
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)


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
