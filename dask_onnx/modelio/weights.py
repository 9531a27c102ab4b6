"""Separation of a model's weights from its proto, and their locations in files.

A model splits into a proto of some tens of kilobytes and blobs of bytes. Tensors that shape
inference may need to read (small ones, and integers up to a limit) stay in the proto.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import numpy_helper

from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import FileSource, OpenFiles, read_ranges
from dask_onnx.modelio.external_files import ExternalFiles, advice_on_short
from dask_onnx.modelio.tensor_checks import tensor_bytes
from dask_onnx.modelio.wire import pop_offset

INLINE_BYTES = 1024
"""Size in bytes up to which tensors of any type stay in the proto."""
INLINE_INTEGER_BYTES = 64 * 1024
"""Size in bytes up to which integer tensors stay too: they are shapes, axes or indices."""
OWN_BLOB_BYTES = 2**20
"""Size in bytes from which a tensor is a blob of its own; smaller ones share one, a pack."""
PACK_BYTES = 16 * 2**20
"""Size in bytes at which a pack is closed, so that a stage need not fetch all of the model's."""
ALIGNMENT = 64
"""Alignment in bytes of tensors in a pack: a cache line, and the widest vector load of CPUs."""

_EXTERNAL = onnx.TensorProto.EXTERNAL
_MAX_DIGITS = 18
"""Digits of an offset or length in bytes: those of numbers that a file system can address."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_Packed = tuple[onnx.TensorProto, bytes, int | None]
"""A tensor, its bytes, and their offset in the model's file if known."""
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
    """Location of a blob's bytes in a file."""

    file: FileSource
    """The file, as it was when the model was loaded."""
    length: int
    """Bytes of the blob. Bytes outside all segments are zeros."""
    segments: tuple[tuple[int, int, int], ...]
    """Offset in the blob, offset in the file and length of each piece in bytes, ascending."""

    def read(self, open_files: OpenFiles | None = None) -> bytes:
        """Return the blob's bytes.

        Parameters
        ----------
        open_files : OpenFiles, optional
            Read from here if it has the file, even if the path is gone.

        Raises
        ------
        ModelError
            The file is gone, or has changed since the model was loaded.
        """
        ranges = [(start, size) for _, start, size in self.segments]
        parts = read_ranges(self.file, ranges, open_files)
        if len(parts) == 1 and len(parts[0]) == self.length:
            return parts[0]
        blob = bytearray(self.length)
        for (offset, _, size), part in zip(self.segments, parts, strict=True):
            if len(part) != size:
                raise ModelError(
                    f"{self.file.path} returned {len(part):,} of {size:,} bytes",
                    "load the model again",
                    numbers={"read_bytes": len(part), "expected_bytes": size},
                )
            blob[offset : offset + size] = part
        return bytes(blob)

    def to_json(self) -> list[Any]:
        """Return plain lists for `from_json`."""
        file = self.file
        return [file.path, file.size, file.version, self.length, [list(s) for s in self.segments]]

    @staticmethod
    def from_json(values: list[Any]) -> BlobPlace:
        """Return the location that `to_json` wrote."""
        path, size, version, length, segments = values
        return BlobPlace(
            FileSource(path, size, version),
            length,
            tuple((start, place, count) for start, place, count in segments),
        )


def range_key(file: FileSource, offset: int, length: int) -> str:
    """Return the key of a blob that is named by its location, since its content was not read."""
    identity = (file.path, offset, length, file.size, file.version)
    return "range-" + hashlib.sha256(repr(identity).encode()).hexdigest()


def content_digest(key: str) -> str | None:
    """Return the SHA-256 that a blob key is; None for a key made by `range_key`."""
    return key if _DIGEST.fullmatch(key) else None


@dataclass(slots=True)
class StrippedWeights:
    """Weights that `strip_weights` has taken out of a proto."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    """Bytes by blob key, of weights that were inside the proto."""
    places: dict[str, BlobPlace] = field(default_factory=dict)
    """Locations by blob key, of weights that are in files."""
    parameter_bytes: int = 0
    """Bytes of all initializers, including those that stay in the proto."""
    parameters: int = 0
    """Number of elements of all initializers."""


def strip_weights(
    model: onnx.ModelProto, folder: str | None, file: FileSource | None = None
) -> StrippedWeights:
    """Move large tensors of `model`, in place, to blobs that the proto refers to as external data.

    Parameters
    ----------
    model : ModelProto
        Its ``Constant`` nodes must have been converted to initializers.
    folder : str or None
        Path or URL of the folder of external data; None for a model that came without a path.
    file : FileSource or None
        The file of the model, if `wire.record_offsets` has recorded the tensors' offsets in it.

    Raises
    ------
    ModelError
        External data is missing, is too short, is outside the folder, or has no folder.
    """
    stripped = StrippedWeights()
    packed: list[_Packed] = []
    external = ExternalFiles(folder, file)
    for tensor in _tensors(model):
        stripped.parameters += math.prod(tensor.dims)
        if tensor.data_location == _EXTERNAL:
            _strip_external(tensor, external, stripped)
        if tensor.data_location != _EXTERNAL:
            _strip_inline(tensor, stripped, packed, file)
            if sum(len(raw) for _, raw, _ in packed) >= PACK_BYTES:
                _write_pack(packed, stripped, file)
                packed.clear()
    _write_pack(packed, stripped, file)
    return stripped


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the main graph and every subgraph body below it."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            pending += subgraphs_of(node)


def subgraphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the subgraph bodies among a node's attributes, without those inside them."""
    bodies = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            bodies.append(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            bodies.extend(attribute.graphs)
    return bodies


def with_bodies(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the node and all nodes of its subgraph bodies, nested ones included."""
    yield node
    for body in subgraphs_of(node):
        for inner in body.node:
            yield from with_bodies(inner)


def blob_of(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Return blob key, offset and length of a tensor whose bytes are in a blob."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    return fields["location"], int(fields["offset"]), int(fields["length"])


def is_external(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor's bytes are outside its proto."""
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
    offset = pop_offset(tensor)
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
    _refer_to_blob(tensor, key, 0, len(raw))


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    """Return the bytes of a tensor whose values are in a typed field, such as ``float_data``."""
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
            if place is not None  # for mypy: checked above
        )
        stripped.places[key] = BlobPlace(file, len(pack), segments)
    for (tensor, raw, _), offset in zip(packed, offsets, strict=True):
        _refer_to_blob(tensor, key, offset, len(raw))


def _strip_external(
    tensor: onnx.TensorProto, external: ExternalFiles, stripped: StrippedWeights
) -> None:
    file, offset, length = _external_range(tensor, external)
    if _stays_inline(tensor.data_type, length):
        (tensor.raw_data,) = read_ranges(file, [(offset, length)])
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        return
    stripped.parameter_bytes += length
    key = range_key(file, offset, length)
    stripped.places[key] = BlobPlace(file, length, ((0, offset, length),))
    _refer_to_blob(tensor, key, 0, length)


def _external_range(
    tensor: onnx.TensorProto, external: ExternalFiles
) -> tuple[FileSource, int, int]:
    """Return file, offset and length of a tensor's bytes.

    Raises
    ------
    ModelError
        As for `strip_weights`.
    """
    fields: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    file = external.of(tensor, fields.get("location", ""))
    needed = tensor_bytes(tensor)
    offset = _place(tensor, fields, "offset", 0)
    length = _place(tensor, fields, "length", 0) or needed
    if length != needed:
        raise ModelError(
            f"initializer {tensor.name!r} is stored in {length:,} bytes of {file.path}, and its "
            f"sizes need {needed:,}",
            "export the model again: it is damaged",
            input=tensor.name,
            numbers={"given_bytes": length, "needed_bytes": needed},
        )
    if offset + length > file.size:
        raise ModelError(
            f"initializer {tensor.name!r} is stored in bytes {offset:,} to {offset + length:,} of "
            f"{file.path}, which has {file.size:,}",
            advice_on_short(file),
            input=tensor.name,
            numbers={"needed_bytes": offset + length, "file_bytes": file.size},
        )
    return file, offset, length


def _place(tensor: onnx.TensorProto, fields: Mapping[str, str], key: str, default: int) -> int:
    """Return the offset or length of external data."""
    text = fields.get(key, "").strip() or str(default)
    # Protobuf's writers give ASCII digits; `int` would take other digits, signs and underscores.
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS:
        raise ModelError(
            f"initializer {tensor.name!r} has the {key} {text[:60]!r} in its file, "
            "which is not a number of bytes",
            "export the model again: it is damaged",
            input=tensor.name,
        )
    return int(text)


def _refer_to_blob(tensor: onnx.TensorProto, key: str, offset: int, length: int) -> None:
    """Replace the content of `tensor` by a reference to a blob, as external data."""
    name, data_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, data_type
    tensor.dims.extend(dims)
    tensor.data_location = _EXTERNAL
    for field_name, value in (("location", key), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = field_name, str(value)
