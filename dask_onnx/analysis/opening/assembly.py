"""Putting a rewritten graph together: declarations, hints of types, initializers, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.draft import Draft, content_token, opened_dims
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.onnx_model import OnnxModel, blob_keys_of
from dask_onnx.modelio.value_types import spec_of, value_info

SYMBOL = "rows"
"""Name of the open dimension, unless the graph has another one of that name."""


def assembled(draft: Draft, renamed: Mapping[str, str]) -> OnnxModel:
    """Return the graph that has been written, as a model.

    Parameters
    ----------
    renamed : mapping of output to value
        Outputs that do not depend on the rows, to that one row repeated.
    """
    facts = draft.facts
    proto = onnx.ModelProto()
    proto.CopyFrom(facts.proto)
    graph = proto.graph
    del graph.node[:]
    graph.node.extend(draft.nodes)
    symbol = _symbol(draft)
    inputs = tuple(_opened(draft, spec, renamed, symbol) for spec in facts.model.inputs)
    outputs = tuple(_opened(draft, spec, renamed, symbol) for spec in facts.model.outputs)
    for values, specs in ((graph.input, inputs), (graph.output, outputs)):
        for value, spec in zip(values, specs, strict=True):
            if spec.dtype is not None:
                value.type.CopyFrom(value_info(spec).type)
    _put_outputs(draft, graph, renamed)
    _put_hints(draft, graph, renamed, symbol)
    _put_tensors(graph, draft.tensors)
    return _with_proto(facts.model, proto, inputs, outputs)


def _symbol(draft: Draft) -> str:
    """The name that the graph has for the open dimension, or else one that is free."""
    taken: set[Dim] = set()
    for spec in draft.facts.model.inputs:
        axis = draft.axes.get(spec.name)
        for place, dim in enumerate(spec.shape or ()):
            if place == axis and isinstance(dim, str):
                return dim
            taken.add(dim)
    return SYMBOL if SYMBOL not in taken else f"{SYMBOL}_of_batch"


def _opened(draft: Draft, spec: TensorSpec, renamed: Mapping[str, str], symbol: str) -> TensorSpec:
    """What an input or an output is declared as."""
    if spec.shape is None or spec.dtype is None:
        return spec
    axis = draft.axes.get(spec.name, draft.dep(spec.name).axis)
    if spec.name in renamed:
        axis = 0
    dims = tuple(symbol if i == axis else dim for i, dim in enumerate(spec.shape))
    return replace(spec, shape=dims)


def _put_outputs(draft: Draft, graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Give outputs that were repeated the names that callers know."""
    for name, made in renamed.items():
        once = draft.fresh(f"{name}/once")
        for node in graph.node:
            node.input[:] = [once if n == name else n for n in node.input]
            node.output[:] = [once if n == name else n for n in node.output]
        for tensor in graph.initializer:
            tensor.name = once if tensor.name == name else tensor.name
        last = draft.fresh(f"{name}/Identity")
        graph.node.append(helper.make_node("Identity", [made], [name], last))


def _put_hints(
    draft: Draft, graph: onnx.GraphProto, renamed: Mapping[str, str], symbol: str
) -> None:
    """Open what is written down of intermediate values, and drop what no longer holds."""
    hints = [spec_of(value) for value in graph.value_info]
    made = {name for node in graph.node for name in node.output}
    del graph.value_info[:]
    for spec in hints:
        dep = draft.dep(spec.name)
        is_told = spec.dtype is not None and spec.shape is not None and spec.name in made
        if is_told and spec.name not in renamed and _is_followed(dep):
            shape = opened_dims(spec.shape or (), dep, symbol)
            graph.value_info.append(value_info(replace(spec, shape=shape)))


def _is_followed(dep: Dependence) -> bool:
    """Whether the shape of a value is known but for its number of rows."""
    return dep.kind == Kind.FREE or (dep.kind == Kind.INDEPENDENT and dep.axis is not None)


def _put_tensors(graph: onnx.GraphProto, tensors: Sequence[onnx.TensorProto]) -> None:
    """Add initializers, and drop those that are no longer read."""
    graph.initializer.extend(tensors)
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input, captured_names(node))
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _with_proto(
    model: OnnxModel,
    proto: onnx.ModelProto,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> OnnxModel:
    """The model with another graph, whose weights are where they were."""
    written = proto.SerializeToString(deterministic=True)
    keys = set(blob_keys_of(proto))
    return replace(
        model,
        proto=written,
        token=content_token(written),
        inputs=inputs,
        outputs=outputs,
        # Its proto is in no file, so it travels as one that was given as bytes.
        source=None,
        blobs={key: blob for key, blob in model.blobs.items() if key in keys},
        places={key: place for key, place in model.places.items() if key in keys},
        rows=None if isinstance(model.rows, str) else model.rows,
    )
