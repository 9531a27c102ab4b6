"""Models whose values are renamed, so that those of several models are told apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx
from onnx.compose import add_prefix_graph

from dask_onnx.core.files import OpenFiles
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import OnnxModel, blob_keys_of
from dask_onnx.modelio.value_types import output_spec_of, spec_of
from dask_onnx.modelio.weights import blob_of, graphs_of, is_external

SEPARATOR = "/"
"""Text between the name of a model and the names that it has itself."""


def prefixed(facts: ModelFacts, name: str, inputs: Mapping[str, str]) -> ModelFacts:
    """Return a model with a prefix before all of its names but those of its inputs.

    Weights are not copied. Nodes keep their order, and results their bits. An input that has an
    initializer becomes a constant.

    Parameters
    ----------
    facts : ModelFacts
    name : str
        Name of the new model; its prefix is the name and ``/``.
    inputs : mapping of str to str
        New name of each input.
    """
    model = facts.onnx
    proto = model.parse()
    _rename(proto, name + SEPARATOR, inputs)
    proto.graph.name = name
    # They name values of the old graph.
    del proto.configuration[:]
    del proto.graph.quantization_annotation[:]
    rows = model.rows
    if isinstance(rows, Mapping):
        rows = {inputs[own]: axis for own, axis in rows.items() if own in inputs}
    found = model_of(proto, name, [model])
    return ModelFacts(replace(found, rows=rows), facts.custom, facts.libraries)


def model_of(proto: onnx.ModelProto, name: str, parts: Iterable[OnnxModel]) -> OnnxModel:
    """Return a model made of the nodes of others, with which it shares their weights.

    Parameters
    ----------
    proto : ModelProto
        In normal form and without weights.
    name : str
    parts : iterable of OnnxModel
        Models whose weights it refers to.
    """
    data = proto.SerializeToString(deterministic=True)
    parts, keys = list(parts), set(blob_keys_of(proto))
    tensors = [t for graph in graphs_of(proto) for t in graph.initializer]
    blobs = {key: blob for part in parts for key, blob in part.blobs.items() if key in keys}
    places = {key: place for part in parts for key, place in part.places.items() if key in keys}
    open_files = OpenFiles()
    for place in places.values():
        open_files.open(place.file)
    return OnnxModel(
        proto=data,
        token=hashlib.sha256(data).hexdigest()[:32],
        name=name,
        inputs=tuple(spec_of(value) for value in proto.graph.input),
        outputs=tuple(output_spec_of(value) for value in proto.graph.output),
        defaults=(),
        opsets={opset.domain: opset.version for opset in proto.opset_import},
        ir_version=proto.ir_version,
        parameters=sum(math.prod(tensor.dims) for tensor in tensors),
        parameter_bytes=sum(blob_of(t)[2] if is_external(t) else t.ByteSize() for t in tensors),
        blobs=blobs,
        places=places,
        open_files=open_files,
        is_untrusted=any(part.is_untrusted for part in parts),
    )


def _rename(model: onnx.ModelProto, prefix: str, inputs: Mapping[str, str]) -> None:
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        _prefix_sizes(value.type, prefix)
    # ONNX renames the bodies of a graph before it looks at the graph's own initializers and inputs,
    # which bodies may read.
    names: dict[str, str] = {}
    for each in graphs_of(model):
        names |= {tensor.name: prefix + tensor.name for tensor in each.initializer}
        names |= {s.values.name: prefix + s.values.name for s in each.sparse_initializer}
    names |= inputs
    for node in graph.node:
        del node.device_configurations[:]
    add_prefix_graph(graph, prefix, rename_inputs=False, inplace=True, name_map=names)


def _prefix_sizes(kind: onnx.TypeProto, prefix: str) -> None:
    """Tell symbolic sizes apart: an ``N`` of one model is not that of another."""
    for dim in kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ():
        if dim.dim_param:
            dim.dim_param = prefix + dim.dim_param
