"""The one door for ONNX: paths, bytes and protos come in, an `OnnxModel` goes on.

Nothing outside this module and `weights` takes protobuf apart, but for `analysis.graph`, which
reads the nodes once, and `analysis.shapes`, which calls ONNX's own inference.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from dask_onnx.errors import ModelError
from dask_onnx.files import FileSource, KeptFiles, is_url, read_file
from dask_onnx.normalise import captured_names, normalise
from dask_onnx.specs import Dim, TensorSpec
from dask_onnx.weights import (
    INLINE_BYTES,
    BlobPlace,
    blob_of,
    graphs_of,
    is_external,
    strip_weights,
)
from dask_onnx.wire import note_offsets


@dataclass(frozen=True, slots=True)
class ModelRef:
    """All that a task carries of a model: how to know it, and where to find it."""

    token: str
    source: FileSource | None
    """None for a model that came as bytes or proto: then the host's store must have it."""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model as data: a proto without weights, and where the weights are."""

    proto: bytes = field(repr=False)
    """Serialised ModelProto; large tensors are external data named by blob key."""
    token: str
    """Content digest of `proto`, and through the blob keys in it of the weights."""
    name: str
    """The graph's name, or the file's."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opsets: Mapping[str, int]
    """Domain ("" is ai.onnx) to version."""
    parameters: int
    """Elements of all initializers."""
    parameter_bytes: int
    source: FileSource | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Weights held in memory, by blob key; empty where `source` can give them again."""
    places: Mapping[str, BlobPlace] = field(default_factory=dict, repr=False)
    """Where weights lie in files, by blob key."""
    kept: KeptFiles = field(default_factory=KeptFiles, repr=False)
    """Those files, held open in the process that loaded the model."""

    @property
    def blob_keys(self) -> tuple[str, ...]:
        """Every blob that the proto names."""
        return blob_keys_of(self.parse())

    def blob_bytes(self, key: str) -> bytes:
        """A blob's bytes: from memory, or from the file, even one that has lost its name since.

        Raises
        ------
        ModelError
            Its file is gone or has changed; the model was pickled without its weights.
        """
        if key in self.blobs:
            return self.blobs[key]
        if key in self.places:
            return self.places[key].read(self.kept)
        raise ModelError(
            f"the weights {key[:16]}... are not with model {self.name!r}: it was pickled, and "
            "unpickled on another host",
            "load the model from a path that this host sees",
        )

    @property
    def ref(self) -> ModelRef:
        return ModelRef(self.token, self.source)

    def parse(self) -> onnx.ModelProto:
        """A fresh copy of the weightless proto."""
        model: onnx.ModelProto = onnx.ModelProto.FromString(self.proto)
        return model


def blob_keys_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every blob that a weightless proto names, in order."""
    tensors = (t for graph in graphs_of(model) for t in graph.initializer)
    return tuple(dict.fromkeys(blob_of(t)[0] for t in tensors if is_external(t)))


def load_onnx(source: Any, *, keep_weights: bool = False) -> OnnxModel:
    """Read a model, take its weights out, and say where they are.

    Parameters
    ----------
    source : path, URL for fsspec, bytes, ModelProto or onnx_ir.Model
        External data is found beside a path (and, for an ``onnx_ir.Model``, where its tensors say).
    keep_weights : bool
        Hold the weights of a model that came from a file; by default they are dropped, and the
        file read again where they are needed.

    Raises
    ------
    ModelError
        No such file, not ONNX, cut short, or without the external data that it names.
    """
    if isinstance(source, str | os.PathLike):
        return _load_path(os.fspath(source), keep_weights)
    if isinstance(source, bytes | bytearray | memoryview):
        return _build(_decode(bytes(source), "the bytes given"), None, None)
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return _build(copy, None, None)
    if type(source).__module__.partition(".")[0] == "onnx_ir":
        # The caller has imported onnx_ir, or there would be no such object; importing it here
        # would cost everybody else a second for its sympy.
        return _build(_ir_to_proto(source), None, None)
    raise ModelError(
        f"a model cannot be made from {type(source).__name__}",
        "pass a path, bytes, an onnx.ModelProto or an onnx_ir.Model",
    )


def _load_path(path: str, keep_weights: bool) -> OnnxModel:
    if not is_url(path):
        path = str(Path(path).expanduser().absolute())
        _check_path(Path(path))
    try:
        data, source = read_file(path)
    except ImportError as error:
        raise ModelError(f"{path} cannot be opened: {error}", "install what it names") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ModelError(f"{path} cannot be read: {reason}", "check the file") from error
    model = _decode(data, path)
    note_offsets(model, data, INLINE_BYTES)
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    return _build(model, source, folder, keep_weights=keep_weights)


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder", "name the .onnx file inside it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f"in {path.parent} there is: {', '.join(near[:5])}" if near else "check the path"
        raise ModelError(f"{path} does not exist", hint)


def _decode(data: bytes, where: str) -> onnx.ModelProto:
    # Field 1 of a ModelProto, `ir_version`, is a varint: every writer puts it first.
    looks_like_onnx = data[:1] == b"\x08"
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        if looks_like_onnx:
            raise ModelError(
                f"{where} begins like an ONNX model but is cut short or damaged "
                f"({len(data):,} bytes)",
                "copy or export it again, and compare the sizes",
            ) from None
        model = None
    if model is None or not model.opset_import or not model.HasField("graph"):
        if looks_like_onnx and model is not None:
            reason = "is an ONNX model without a graph or without opsets: it may be cut short"
        else:
            reason = "is not an ONNX model"
        raise ModelError(f"{where} {reason} ({len(data):,} bytes)", "pass an .onnx file")
    decoded: onnx.ModelProto = model
    return decoded


def _ir_to_proto(model: Any) -> onnx.ModelProto:
    from onnx_ir import external_data, to_proto  # see load_onnx

    proto: onnx.ModelProto = to_proto(external_data.load_to_model(model.clone()))
    return proto


def _build(
    model: onnx.ModelProto,
    source: FileSource | None,
    folder: str | None,
    *,
    keep_weights: bool = False,
) -> OnnxModel:
    parameters = normalise(model)
    weights = strip_weights(model, folder, source)
    kept = KeptFiles()
    for place in weights.places.values():
        kept.keep(place.file)
    proto = model.SerializeToString(deterministic=True)
    drop = source is not None and not keep_weights
    fallback = Path(source.path).stem if source is not None else "model"
    return OnnxModel(
        proto=proto,
        token=hashlib.sha256(proto).hexdigest()[:32],
        name=model.graph.name or fallback,
        inputs=tuple(spec_of(value) for value in model.graph.input),
        outputs=tuple(spec_of(value) for value in model.graph.output),
        opsets={_domain(opset.domain): opset.version for opset in model.opset_import},
        parameters=parameters + weights.parameters,
        parameter_bytes=weights.parameter_bytes,
        source=source,
        # What has a place can be read again; the rest was written in a way that must be decoded.
        blobs={k: v for k, v in weights.blobs.items() if not drop or k not in weights.places},
        places=weights.places,
        kept=kept,
    )


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a ValueInfoProto."""
    if value.type.WhichOneof("value") != "tensor_type":
        return TensorSpec(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = (
        np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    )
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    return TensorSpec(value.name, dtype, tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # Paddle writes -1 for "any"
    # "?" is what some exporters write where they know no name.
    return None if dim.dim_param in ("", "?") else dim.dim_param


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """The inverse of `spec_of`, for tensors."""
    assert spec.dtype is not None
    elem_type = helper.np_dtype_to_tensor_dtype(spec.dtype)
    return helper.make_tensor_value_info(spec.name, elem_type, spec.shape)


class StageExtractor:
    """Makes models of some nodes of one model; the indices are built once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._nodes = list(model.graph.node)
        self._reads = [[*node.input, *captured_names(node)] for node in self._nodes]
        self._dense = {tensor.name: tensor for tensor in model.graph.initializer}
        self._sparse = {sparse.values.name: sparse for sparse in model.graph.sparse_initializer}
        self._hints = {value.name: value for value in model.graph.value_info}
        declared = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self._types = {value.name: value for value in declared}

    def _value_info(self, spec: TensorSpec) -> onnx.ValueInfoProto:
        """What the model itself says of sequences, maps and optionals; a tensor from its spec."""
        return value_info(spec) if spec.dtype is not None else self._types[spec.name]

    def extract(
        self, nodes: Sequence[int], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> onnx.ModelProto:
        """A model of `nodes` (indices, ascending) with the initializers that they read."""
        stage = onnx.ModelProto()
        stage.ir_version = self.model.ir_version
        stage.opset_import.extend(self.model.opset_import)
        stage.functions.extend(self.model.functions)
        graph = stage.graph
        graph.name = self.model.graph.name or "stage"
        graph.node.extend(self._nodes[i] for i in nodes)
        graph.input.extend(map(self._value_info, inputs))
        graph.output.extend(map(self._value_info, outputs))
        read = dict.fromkeys(name for i in nodes for name in self._reads[i])
        read.update(dict.fromkeys(spec.name for spec in outputs))
        graph.initializer.extend(self._dense[name] for name in read if name in self._dense)
        graph.sparse_initializer.extend(self._sparse[name] for name in read if name in self._sparse)
        # ORT decides by these which patterns it may fuse where its own inference gives up.
        given = {spec.name for spec in outputs}
        inside = (name for i in nodes for name in self._nodes[i].output if name not in given)
        graph.value_info.extend(self._hints[name] for name in inside if name in self._hints)
        return stage


def extract_onnx(
    model: OnnxModel,
    nodes: Sequence[int],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> OnnxModel:
    """A model of some nodes (indices, ascending) of another; its weights are where they were."""
    part = StageExtractor(model.parse()).extract(nodes, inputs, outputs)
    proto = part.SerializeToString(deterministic=True)
    keys = set(blob_keys_of(part))
    tensors = [t for graph in graphs_of(part) for t in graph.initializer]
    return OnnxModel(
        proto=proto,
        token=hashlib.sha256(proto).hexdigest()[:32],
        name=model.name,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        opsets=model.opsets,
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        parameter_bytes=sum(blob_of(t)[2] if is_external(t) else t.ByteSize() for t in tensors),
        # Its proto is in no file, so it travels as one that was given as bytes.
        source=None,
        blobs={key: blob for key, blob in model.blobs.items() if key in keys},
        places={key: place for key, place in model.places.items() if key in keys},
        kept=model.kept,
    )
