"""`OnnxModel`, the form in which models travel through this package, and how it is loaded.

Protobuf is taken apart by this folder, and elsewhere only by `analysis.graph`, which reads the
nodes once, by `analysis.shapes` with its `contrib_*` modules, which call ONNX's own inference, and
by `analysis.axes`, which reads attributes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from dask_onnx.core.errors import ModelError
from dask_onnx.core.files import FileSource, OpenFiles, is_url
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.devices import copy_annotations
from dask_onnx.modelio.forms import CONTEXT_ADVICE, Context, inline_functions, to_model
from dask_onnx.modelio.loop_checks import check_loops
from dask_onnx.modelio.model_faults import model_faults
from dask_onnx.modelio.model_files import file_format_of, is_path, read_model_file
from dask_onnx.modelio.model_names import model_name
from dask_onnx.modelio.normalise import captured_names, normalise, upgrade_opset
from dask_onnx.modelio.operator_names import canonical_domain, operator_name
from dask_onnx.modelio.plain_outputs import restore_plain_outputs, write_plain_outputs
from dask_onnx.modelio.repeated_loads import load_once
from dask_onnx.modelio.rows_declaration import RowsDeclaration, rows_of_inputs
from dask_onnx.modelio.structure import check_structure
from dask_onnx.modelio.value_types import output_spec_of, spec_of, value_info
from dask_onnx.modelio.weights import (
    INLINE_BYTES,
    BlobPlace,
    blob_of,
    graphs_of,
    is_external,
    strip_weights,
    with_bodies,
)
from dask_onnx.modelio.wire import MAX_PROTO_BYTES, record_offsets


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Reference to a model: the part of it that travels in tasks."""

    token: str
    """Content digest, as `OnnxModel.token`."""
    source: FileSource | None
    """The model's file; None for a model given as bytes or as a proto, which has to be in the
    host's store."""


_LOCATION_KEY = b"location"
"""Bytes that the file of a model with external data has: the key of a tensor's file name."""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model as data: a proto without weights, and the locations of the weights."""

    proto: bytes = field(repr=False)
    """Serialised ModelProto in normal form; large tensors are external data named by blob key."""
    token: str
    """Content digest of `proto` and, through the blob keys in it, of the weights."""
    name: str
    """Name of the file, its folder or the graph; see `model_names`."""
    inputs: tuple[TensorSpec, ...]
    """Graph inputs without an initializer, in order."""
    outputs: tuple[TensorSpec, ...]
    """Graph outputs, in order."""
    defaults: tuple[TensorSpec, ...]
    """Graph inputs with an initializer: constants, unless a caller feeds them."""
    opsets: Mapping[str, int]
    """Versions by domain; "" is ai.onnx."""
    ir_version: int
    """Version of ONNX's format."""
    parameters: int
    """Number of elements of all initializers."""
    parameter_bytes: int
    """Bytes of all initializers."""
    source: FileSource | None = None
    """File of the whole model; None if it was given as bytes or as a proto, or made of another."""
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Weights held in memory, by blob key; empty if they can be read from `source` again."""
    places: Mapping[str, BlobPlace] = field(default_factory=dict, repr=False)
    """Locations of weights in files, by blob key."""
    open_files: OpenFiles = field(default_factory=OpenFiles, repr=False)
    """The files of `places`, held open in the process that loaded the model."""
    rows: RowsDeclaration = None
    """The caller's statement about rows: "independent", "none", or the axis of rows by input; None
    leaves the decision to the analysis of axes."""
    is_untrusted: bool = False
    """True if the model may be hostile: runs that may never end get a limit in time."""

    @cached_property
    def blob_keys(self) -> tuple[str, ...]:
        """Keys of the blobs that the proto refers to."""
        # Cached, as every request needs them and the proto of a tree ensemble is slow to parse.
        return blob_keys_of(self.parse())

    @cached_property
    def n_nodes(self) -> int:
        """Number of nodes of the main graph."""
        return len(self.parse().graph.node)

    def blob_bytes(self, key: str) -> bytes:
        """Return a blob's bytes, from memory or from its file.

        A file that this process holds open is read even after its deletion.

        Raises
        ------
        ModelError
            The file is gone or has changed, or the model was pickled without its weights.
        """
        if key in self.blobs:
            return self.blobs[key]
        if key in self.places:
            return self.places[key].read(self.open_files)
        raise ModelError(
            f"model {self.name!r} lacks the weights {key[:16]}...: it was pickled, and unpickled "
            "on another host",
            "load the model from a path that exists on this host",
        )

    @property
    def ref(self) -> ModelRef:
        """Reference to this model, for tasks."""
        return ModelRef(self.token, self.source)

    def parse(self) -> onnx.ModelProto:
        """Return a new copy of the weightless proto."""
        model: onnx.ModelProto = onnx.ModelProto.FromString(self.proto)
        return model


def blob_keys_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the keys of the blobs that a weightless proto refers to, in order."""
    tensors = (t for graph in graphs_of(model) for t in graph.initializer)
    return tuple(dict.fromkeys(blob_of(t)[0] for t in tensors if is_external(t)))


def load_onnx(
    source: Any,
    *,
    context: Context | None = None,
    kept_functions: Sequence[tuple[str, str]] = (),
    keep_weights: bool = False,
) -> OnnxModel:
    """Load a model, in normal form and with its weights separated from its proto.

    Parameters
    ----------
    source : path, URL for fsspec, or a form that `forms.to_model` takes
        External data are expected in the folder of the path (or, for an ``onnx_ir.Model``, where
        its tensors refer to).
    context : Context, optional
        Facts that a GraphProto, FunctionProto or NodeProto lacks.
    kept_functions : sequence of (str, str)
        Domain and name of model-local functions that are not inlined.
    keep_weights : bool
        True to hold the weights of a model file in memory. By default they are dropped, and read
        from the file again when they are needed.

    Raises
    ------
    ModelError
        No such file, not an ONNX model, damaged, or without its external data. An
        `UnexpectedModelError` if other code failed on it.
    """
    with model_faults("loaded", str(source) if is_path(source) else ""):
        return _load(source, context, kept_functions, keep_weights=keep_weights)


def _load(
    source: Any,
    context: Context | None,
    kept_functions: Sequence[tuple[str, str]],
    *,
    keep_weights: bool,
) -> OnnxModel:
    if not is_path(source):
        return _build(to_model(source, context or Context()), None, None, kept_functions)
    if context is not None and not context.is_empty:
        raise ModelError(
            f"{source} is the file of a whole model, which defines its opsets, types and functions",
            CONTEXT_ADVICE,
            option=context.first_option,
        )
    return _load_path(os.fspath(source), kept_functions, keep_weights)


def with_weights(model: OnnxModel) -> onnx.ModelProto:
    """Return a model's proto, in normal form, with its weights, maps and optionals in it again.

    Raises
    ------
    ModelError
        The weights exceed the size limit of a proto, or their file is gone or has changed.
    """
    if len(model.proto) + model.parameter_bytes > MAX_PROTO_BYTES:
        raise ModelError(
            f"model {model.name!r} has {model.parameter_bytes:,} bytes of weights; "
            f"a proto can hold {MAX_PROTO_BYTES:,}",
            "pass the path of the model's file, whose external data stay in their files",
            numbers={"weight_bytes": model.parameter_bytes, "limit_bytes": MAX_PROTO_BYTES},
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
    restore_plain_outputs(proto)
    return proto


def _load_path(
    given: str, kept_functions: Sequence[tuple[str, str]], keep_weights: bool
) -> OnnxModel:
    def load() -> tuple[OnnxModel, bool]:
        model, data, source = read_model_file(given)
        path = source.path
        if file_format_of(path) in (None, "protobuf"):
            record_offsets(model, data, INLINE_BYTES)
        folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
        built = _build(model, source, folder, kept_functions, keep_weights=keep_weights)
        return built, _LOCATION_KEY not in data

    return load_once(given, (tuple(kept_functions), keep_weights), load)


def _build(
    model: onnx.ModelProto,
    source: FileSource | None,
    folder: str | None,
    kept_functions: Sequence[tuple[str, str]],
    *,
    keep_weights: bool = False,
) -> OnnxModel:
    check_structure(model, kept_functions)
    model = inline_functions(model, kept_functions)
    declared = {value.name: spec_of(value) for value in model.graph.input}
    parameters = normalise(model)
    check_loops(model.graph)
    upgraded = upgrade_opset(model)
    if upgraded is not model:
        copy_annotations(model, upgraded)
        model = upgraded
    write_plain_outputs(model)
    weights = strip_weights(model, folder, source)
    open_files = OpenFiles()
    for place in weights.places.values():
        open_files.open(place.file)
    proto = model.SerializeToString(deterministic=True)
    drop = source is not None and not keep_weights
    inputs = {value.name for value in model.graph.input}
    token = hashlib.sha256(proto).hexdigest()[:32]
    return OnnxModel(
        proto=proto,
        token=token,
        name=model_name(model.graph.name, None if source is None else source.path, token),
        inputs=tuple(spec_of(value) for value in model.graph.input),
        outputs=tuple(output_spec_of(value) for value in model.graph.output),
        defaults=tuple(spec for name, spec in declared.items() if name not in inputs),
        opsets={opset.domain: opset.version for opset in model.opset_import},
        ir_version=model.ir_version,
        parameters=parameters + weights.parameters,
        parameter_bytes=weights.parameter_bytes,
        # None with kept functions: another process that loads the file would inline them.
        source=None if kept_functions else source,
        # Weights without a place cannot be read again: their bytes in the file are encoded, as in
        # typed fields, or were not located.
        blobs={k: v for k, v in weights.blobs.items() if not drop or k not in weights.places},
        places=weights.places,
        open_files=open_files,
    )


def called_functions(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]
) -> list[onnx.FunctionProto]:
    """Return the functions of a model that some nodes call, directly or through other functions.

    Those are functions that were not inlined. The others may have nodes that only their owner's
    kernels run.
    """
    if not model.functions:
        return []
    bodies = defaultdict[tuple[str, str], list[onnx.NodeProto]](list)  # of all overloads
    for function in model.functions:
        bodies[canonical_domain(function.domain), function.name] += function.node
    called, waiting = set[tuple[str, str]](), list(nodes)
    while waiting:
        names = {operator_name(inner) for inner in with_bodies(waiting.pop())}
        for name in (names & bodies.keys()) - called:
            called.add(name)
            waiting += bodies[name]
    return [f for f in model.functions if (canonical_domain(f.domain), f.name) in called]


class StageExtractor:
    """Extraction of submodels from one model, whose indices are built once."""

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
        """Return the type of a value: a tensor's from its spec, other types from the model."""
        is_known = spec.dtype is not None or spec.kind is not None
        return value_info(spec) if is_known else self._types.get(spec.name, value_info(spec))

    def extract(
        self, nodes: Sequence[int], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> onnx.ModelProto:
        """Return a model of some nodes with the initializers that they read.

        Parameters
        ----------
        nodes : sequence of int
            Indices of nodes of the main graph, ascending.
        inputs, outputs : sequence of TensorSpec
            Values of the graph that become graph inputs and outputs. An input may replace an
            initializer.
        """
        stage = onnx.ModelProto()
        stage.ir_version = self.model.ir_version
        stage.opset_import.extend(self.model.opset_import)
        stage.configuration.extend(self.model.configuration)
        stage.functions.extend(called_functions(self.model, [self._nodes[i] for i in nodes]))
        graph = stage.graph
        graph.name = self.model.graph.name or "stage"
        graph.node.extend(self._nodes[i] for i in nodes)
        graph.input.extend(map(self._value_info, inputs))
        graph.output.extend(map(self._value_info, outputs))
        read = dict.fromkeys(name for i in nodes for name in self._reads[i])
        read.update(dict.fromkeys(spec.name for spec in outputs))
        for spec in inputs:
            read.pop(spec.name, None)
        graph.initializer.extend(self._dense[name] for name in read if name in self._dense)
        graph.sparse_initializer.extend(self._sparse[name] for name in read if name in self._sparse)
        # ORT needs these types to fuse patterns where its own shape inference fails.
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
    """Return a model of some nodes of another, which shares its weights.

    Parameters
    ----------
    nodes, inputs, outputs
        As for `StageExtractor.extract`.
    """
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
        ir_version=model.ir_version,
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        parameter_bytes=sum(blob_of(t)[2] if is_external(t) else t.ByteSize() for t in tensors),
        # No file holds this proto, so it travels like a model given as bytes.
        source=None,
        blobs={key: blob for key, blob in model.blobs.items() if key in keys},
        places={key: place for key, place in model.places.items() if key in keys},
        open_files=model.open_files,
        rows=rows_of_inputs(model.rows, inputs),
        is_untrusted=model.is_untrusted,
    )
