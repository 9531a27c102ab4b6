"""Assembly of a rewritten model: declarations, value infos, initializers and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.draft import Draft
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.onnx_model import OnnxModel, blob_keys_of
from dask_onnx.modelio.value_types import spec_of, value_info

SYMBOL = "rows"
"""Symbol of the dynamic batch axis, unless the graph uses it for another dimension."""


def assembled(draft: Draft, renamed: Mapping[str, str]) -> OnnxModel:
    """Return the rewritten graph as a model.

    Parameters
    ----------
    draft : Draft
        Draft with all nodes written.
    renamed : mapping of output to value
        Outputs that do not depend on the rows, and the values that repeat them for each row.
    """
    facts = draft.facts
    proto = onnx.ModelProto()
    proto.CopyFrom(facts.proto)
    graph = proto.graph
    del graph.node[:]
    graph.node.extend(draft.nodes)
    symbol = _symbol(draft)
    inputs = tuple(_declared(draft, spec, renamed, symbol) for spec in facts.model.inputs)
    outputs = tuple(_declared(draft, spec, renamed, symbol) for spec in facts.model.outputs)
    for values, specs in ((graph.input, inputs), (graph.output, outputs)):
        for value, spec in zip(values, specs, strict=True):
            if spec.dtype is not None:
                value.type.CopyFrom(value_info(spec).type)
    _rename_outputs(draft, graph, renamed)
    _update_value_infos(draft, graph, renamed, symbol)
    _update_initializers(graph, draft.tensors)
    return _with_proto(facts.model, proto, inputs, outputs)


def _symbol(draft: Draft) -> str:
    """Return the graph's symbol of the batch axis, or else one that is not in use."""
    taken: set[Dim] = set()
    for spec in draft.facts.model.inputs:
        axis = draft.axes.get(spec.name)
        for place, dim in enumerate(spec.shape or ()):
            if place == axis and isinstance(dim, str):
                return dim
            taken.add(dim)
    return SYMBOL if SYMBOL not in taken else f"{SYMBOL}_of_batch"


def _declared(
    draft: Draft, spec: TensorSpec, renamed: Mapping[str, str], symbol: str
) -> TensorSpec:
    """Return the declaration of an input or output with the batch axis dynamic."""
    if spec.shape is None or spec.dtype is None:
        return spec
    axis = draft.axes.get(spec.name, draft.dep(spec.name).axis)
    if spec.name in renamed:
        axis = 0
    dims = tuple(symbol if i == axis else dim for i, dim in enumerate(spec.shape))
    return replace(spec, shape=dims)


def _rename_outputs(draft: Draft, graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Rename the single row of repeated outputs, and give the repeated value the output's name."""
    for name, repeated in renamed.items():
        single = draft.fresh(f"{name}/once")
        for node in graph.node:
            node.input[:] = [single if n == name else n for n in node.input]
            node.output[:] = [single if n == name else n for n in node.output]
        for tensor in graph.initializer:
            tensor.name = single if tensor.name == name else tensor.name
        last = draft.fresh(f"{name}/Identity")
        graph.node.append(helper.make_node("Identity", [repeated], [name], last))


def _update_value_infos(
    draft: Draft, graph: onnx.GraphProto, renamed: Mapping[str, str], symbol: str
) -> None:
    """Make the batch axis dynamic in the value infos; remove those that may no longer hold."""
    infos = [spec_of(value) for value in graph.value_info]
    produced = {name for node in graph.node for name in node.output}
    del graph.value_info[:]
    for spec in infos:
        dep = draft.dep(spec.name)
        is_typed = spec.dtype is not None and spec.shape is not None and spec.name in produced
        if is_typed and spec.name not in renamed and _is_shape_known(dep):
            shape = _dynamic_dims(spec.shape or (), dep, symbol)
            graph.value_info.append(value_info(replace(spec, shape=shape)))


def _is_shape_known(dep: Dependence) -> bool:
    """Return whether the shape of a value is known except for the number of rows."""
    return dep.kind == Kind.FREE or (dep.kind == Kind.INDEPENDENT and dep.axis is not None)


def _update_initializers(graph: onnx.GraphProto, tensors: Sequence[onnx.TensorProto]) -> None:
    """Add the draft's initializers, and remove those that no node reads any more."""
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
    """Return the model with another graph; external weights stay where they are stored."""
    written = proto.SerializeToString(deterministic=True)
    keys = set(blob_keys_of(proto))
    return replace(
        model,
        proto=written,
        token=hashlib.sha256(written).hexdigest()[:32],
        inputs=inputs,
        outputs=outputs,
        # No file holds this proto: it is sent to workers like a model given as bytes.
        source=None,
        blobs={key: blob for key, blob in model.blobs.items() if key in keys},
        places={key: place for key, place in model.places.items() if key in keys},
        rows=None if isinstance(model.rows, str) else model.rows,
    )


def _dynamic_dims(shape: Sequence[Dim], dep: Dependence, symbol: str) -> tuple[Dim, ...]:
    """Return a shape with the axis of the rows dynamic.

    The axis gets `symbol` if it holds rows only, None if they are merged with another axis.
    """
    if dep.axis is None or dep.axis >= len(shape):
        return tuple(shape)
    is_alone = (dep.outer, dep.inner) == (1, 1)
    return tuple(
        (symbol if is_alone else None) if i == dep.axis else dim for i, dim in enumerate(shape)
    )
