"""The one door for ONNX: paths, bytes and protos come in, an `OnnxModel` goes on.

Nothing outside this module and `weights` takes protobuf apart, but for `analysis.graph`, which
reads the nodes once, `analysis.shapes` with its `contrib_*` modules, which calls ONNX's own
inference, `analysis.axes`, which reads attributes, and `devices`, which reads and writes ONNX's
multi-device annotations.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

import onnx
from onnx import serialization

from dask_onnx.core.errors import InputError, ModelError
from dask_onnx.core.files import FileSource, KeptFiles, is_url, read_file
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.devices import carry_over
from dask_onnx.modelio.forms import Context, decode, inline_functions, is_text, to_model
from dask_onnx.modelio.normalise import captured_names, normalise, raise_opset
from dask_onnx.modelio.value_types import spec_of, value_info
from dask_onnx.modelio.weights import (
    INLINE_BYTES,
    BlobPlace,
    blob_of,
    graphs_of,
    is_external,
    strip_weights,
)
from dask_onnx.modelio.wire import note_offsets


@dataclass(frozen=True, slots=True)
class ModelRef:
    """All that a task carries of a model: how to know it, and where to find it."""

    token: str
    source: FileSource | None
    """None for a model that came as bytes or proto: then the host's store must have it."""


RowsDeclaration = Literal["independent", "none"] | Mapping[str, int] | None


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
    defaults: tuple[TensorSpec, ...]
    """Inputs that have an initializer: constants, unless a caller feeds them."""
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
    rows: RowsDeclaration = None
    """What the caller has said of rows: "independent", "none", or input to the axis that carries
    them; None leaves it to the algebra of axes."""

    @cached_property
    def blob_keys(self) -> tuple[str, ...]:
        """Every blob that the proto names."""
        # Wanted at every request, and a forest's proto takes long to parse.
        return blob_keys_of(self.parse())

    @cached_property
    def n_nodes(self) -> int:
        """Nodes of the main graph."""
        return len(self.parse().graph.node)

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


def load_onnx(
    source: Any,
    *,
    context: Context | None = None,
    kept_functions: Sequence[tuple[str, str]] = (),
    keep_weights: bool = False,
) -> OnnxModel:
    """Read a model, take its weights out, and say where they are.

    Parameters
    ----------
    source : path, URL for fsspec, or what `forms.to_model` takes
        External data is found beside a path (and, for an ``onnx_ir.Model``, where its tensors say).
    context : Context, optional
        What a graph, a function or a node does not say of itself.
    kept_functions : (domain, name) of model-local functions that stay nodes
    keep_weights : bool
        Hold the weights of a model that came from a file; by default they are dropped, and the
        file read again where they are needed.

    Raises
    ------
    ModelError
        No such file, not ONNX, cut short, or without the external data that it names.
    """
    if not _is_path(source):
        return _build(to_model(source, context or Context()), None, None, kept_functions)
    if context is not None and not context.is_empty:
        raise ModelError(
            f"{source} is a file of a whole model, which has its opsets, types and functions",
            "give opsets, input_types, attributes and functions with a GraphProto, FunctionProto "
            "or NodeProto only",
        )
    return _load_path(os.fspath(source), kept_functions, keep_weights)


def _is_path(source: Any) -> bool:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not is_text(source))


def read_written(source: Any) -> onnx.ModelProto:
    """A model as it is written: functions, names and Constant nodes as they are, and external data
    where they are. Never the caller's own object.

    Parameters
    ----------
    source : as for `load_onnx`

    Raises
    ------
    ModelError
        As for `load_onnx`, but for external data, which are not looked at.
    """
    return _decode_path(os.fspath(source))[0] if _is_path(source) else to_model(source, Context())


def with_weights(model: OnnxModel) -> onnx.ModelProto:
    """A model as it was loaded, its weights in the proto again.

    Raises
    ------
    ModelError
        Together they are more than a proto holds; a file that weights lie in is gone or changed.
    """
    if len(model.proto) + model.parameter_bytes > _MOST_BYTES:
        raise ModelError(
            f"model {model.name!r} has {model.parameter_bytes:,} bytes of weights; "
            f"a proto holds {_MOST_BYTES:,}",
            "pass the path of the model's file, whose external data stay where they are",
        )
    proto = model.parse()
    blobs: dict[str, bytes] = {}
    for tensor in (t for graph in graphs_of(proto) for t in graph.initializer if is_external(t)):
        key, offset, length = blob_of(tensor)
        if key not in blobs:
            blobs[key] = model.blob_bytes(key)
        tensor.raw_data = blobs[key][offset : offset + length]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return proto


_MOST_BYTES = 2**31 - 1
"""Of a serialised message, by protobuf's own limit."""


def _load_path(
    path: str, kept_functions: Sequence[tuple[str, str]], keep_weights: bool
) -> OnnxModel:
    model, data, source = _decode_path(path)
    extension = PurePath(source.path).suffix
    if serialization.registry.get_format_from_file_extension(extension) in (None, "protobuf"):
        note_offsets(model, data, INLINE_BYTES)
    path = source.path
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    return _build(model, source, folder, kept_functions, keep_weights=keep_weights)


def _decode_path(path: str) -> tuple[onnx.ModelProto, bytes, FileSource]:
    """The model in a file or at a URL, its bytes, and what the file was."""
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
    file_format = serialization.registry.get_format_from_file_extension(PurePath(path).suffix)
    return decode(data, path, file_format=file_format), data, source


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder", "name the .onnx file inside it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f"in {path.parent} there is: {', '.join(near[:5])}" if near else "check the path"
        raise ModelError(f"{path} does not exist", hint)


def _build(
    model: onnx.ModelProto,
    source: FileSource | None,
    folder: str | None,
    kept_functions: Sequence[tuple[str, str]],
    *,
    keep_weights: bool = False,
) -> OnnxModel:
    model = inline_functions(model, kept_functions)
    declared = {value.name: spec_of(value) for value in model.graph.input}
    parameters = normalise(model)
    raised = raise_opset(model)
    if raised is not model:
        carry_over(model, raised)
        model = raised
    weights = strip_weights(model, folder, source)
    kept = KeptFiles()
    for place in weights.places.values():
        kept.keep(place.file)
    proto = model.SerializeToString(deterministic=True)
    drop = source is not None and not keep_weights
    inputs = {value.name for value in model.graph.input}
    fallback = Path(source.path).stem if source is not None else "model"
    return OnnxModel(
        proto=proto,
        token=hashlib.sha256(proto).hexdigest()[:32],
        name=model.graph.name or fallback,
        inputs=tuple(spec_of(value) for value in model.graph.input),
        outputs=tuple(spec_of(value) for value in model.graph.output),
        defaults=tuple(spec for name, spec in declared.items() if name not in inputs),
        opsets={opset.domain: opset.version for opset in model.opset_import},
        parameters=parameters + weights.parameters,
        parameter_bytes=weights.parameter_bytes,
        # A process that reads the file itself would not know which functions were kept.
        source=None if kept_functions else source,
        # What has a place can be read again; the rest was written in a way that must be decoded.
        blobs={k: v for k, v in weights.blobs.items() if not drop or k not in weights.places},
        places=weights.places,
        kept=kept,
    )


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
        is_known = spec.dtype is not None or spec.kind is not None
        return value_info(spec) if is_known else self._types.get(spec.name, value_info(spec))

    def extract(
        self, nodes: Sequence[int], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> onnx.ModelProto:
        """A model of `nodes` (indices, ascending) with the initializers that they read."""
        stage = onnx.ModelProto()
        stage.ir_version = self.model.ir_version
        stage.opset_import.extend(self.model.opset_import)
        stage.configuration.extend(self.model.configuration)
        stage.functions.extend(self.model.functions)
        graph = stage.graph
        graph.name = self.model.graph.name or "stage"
        graph.node.extend(self._nodes[i] for i in nodes)
        graph.input.extend(map(self._value_info, inputs))
        graph.output.extend(map(self._value_info, outputs))
        read = dict.fromkeys(name for i in nodes for name in self._reads[i])
        read.update(dict.fromkeys(spec.name for spec in outputs))
        for spec in inputs:  # may take the place of an initializer
            read.pop(spec.name, None)
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
        defaults=(),
        opsets=model.opsets,
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        parameter_bytes=sum(blob_of(t)[2] if is_external(t) else t.ByteSize() for t in tensors),
        # Its proto is in no file, so it travels as one that was given as bytes.
        source=None,
        blobs={key: blob for key, blob in model.blobs.items() if key in keys},
        places={key: place for key, place in model.places.items() if key in keys},
        kept=model.kept,
        rows=model.rows if isinstance(model.rows, str | None) else _rows_left(model.rows, inputs),
    )


def _rows_left(rows: Mapping[str, int], inputs: Sequence[TensorSpec]) -> Mapping[str, int]:
    """The declared axes of the inputs that are still there."""
    names = {spec.name for spec in inputs}
    return {name: axis for name, axis in rows.items() if name in names}


def check_rows(rows: RowsDeclaration, model: OnnxModel) -> None:
    """Compare a declaration of rows with the model's inputs.

    Raises
    ------
    InputError
        Neither of the two words, or an input or axis that the model does not have.
    """
    if rows is None or rows in ("independent", "none"):
        return
    if not isinstance(rows, Mapping) or not rows:
        raise InputError(
            f"rows is {rows!r}", 'give "independent", "none", or a mapping such as {"x": 0}'
        )
    specs = {spec.name: spec for spec in model.inputs}
    for name, axis in rows.items():
        if name not in specs:
            raise InputError(
                f"rows names input {name!r}, which the model does not have",
                f"its inputs are {', '.join(map(repr, specs))}",
            )
        rank = specs[name].rank
        if isinstance(axis, bool) or not isinstance(axis, int) or axis < 0:
            raise InputError(f"rows[{name!r}] is {axis!r}", "give an axis, counted from 0")
        if rank is not None and axis >= rank:
            raise InputError(
                f"rows[{name!r}] is {axis}; input {name!r} has {rank} axes, {specs[name]}",
                f"give an axis from 0 to {rank - 1}",
            )
