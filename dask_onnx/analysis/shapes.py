"""Shapes and dtypes of every value, for given shapes of the inputs.

ONNX's own inference runs on a copy of the proto without weights. It stops where a shape is computed
by nodes that its data propagation does not know; `shape_folding` evaluates those nodes, and
inference goes on with their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from dask_onnx.analysis.contrib_shapes import write_stand_ins
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.ml_shapes import inferred_outputs, merged_spec
from dask_onnx.analysis.onnx_inference import inferred_model
from dask_onnx.analysis.pool_sizes import round_pools_down
from dask_onnx.analysis.shape_folding import fold_shape_arithmetic
from dask_onnx.analysis.spectrum_sizes import name_one_sided
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.operator_names import OperatorName, onnx_has
from dask_onnx.modelio.value_types import numpy_dtype, output_spec_of, spec_of, value_info

_MAX_FOLD_ROUNDS = 16
"""Rounds of inference and folding; each gets past one chain of shape arithmetic."""


@dataclass(frozen=True, slots=True)
class OperatorSchema:
    """The part of an operator's schema that type inference needs, outside ONNX's own domains."""

    output_type_from: tuple[int | None, ...]
    """For each output the index of the input whose dtype it has; None where it has another."""
    versions: Mapping[int, bool] = field(default_factory=lambda: {1: False})
    """Opset versions that define the operator anew, ascending, to whether they remove it."""

    def is_in(self, version: int) -> bool:
        """Return whether an opset version of its domain has the operator."""
        past = [since for since in self.versions if since <= version]
        return bool(past) and not self.versions[max(past)]


Schemas = Mapping[OperatorName, OperatorSchema]
"""Schemas by (domain, op type)."""


def infer_shapes(
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
    *,
    is_strict: bool = False,
    trusts_outputs: bool = True,
) -> dict[str, TensorSpec]:
    """Return the spec of every value of the main graph.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input to shape, optional
        Takes the place of the declared shapes of those inputs.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX itself does not know.
    is_strict : bool
        True to raise if ONNX finds sizes that do not fit together. By default the outputs of such
        nodes are unknown.
    trusts_outputs : bool
        False to leave out what the model declares of its outputs and what is not inferred.

    Returns
    -------
    dict of value to TensorSpec
        Dims are ints where they follow from `shapes` and the graph, else names or None. A value
        whose type cannot be found is missing.

    Raises
    ------
    onnx.shape_inference.InferenceError
        With `is_strict`: the graph does not accept these shapes.
    """
    model, noted = bound_model(facts, shapes or {})
    known: dict[str, np.ndarray] = {}
    for _ in range(_MAX_FOLD_ROUNDS):
        inferred = inferred_model(model, mode="raise" if is_strict else "lenient")
        specs = _specs_in(inferred.graph)
        if all(_is_complete(specs.get(name)) for node in facts.nodes for name in node.outputs):
            break
        is_folded = fold_shape_arithmetic(model, specs, known)
        if (
            not _add_types(model, specs, facts)
            and not is_folded
            and not _add_noted(model, specs, noted)
        ):
            break
    _propagate_types(facts, specs, schemas or {})
    return with_declared_outputs(facts, specs, shapes) if trusts_outputs else specs


def with_declared_outputs(
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
) -> dict[str, TensorSpec]:
    """Return inferred specs, completed by what the model declares of its outputs.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
        Result of `infer_shapes` with ``trusts_outputs=False``.
    shapes : mapping of input to shape, optional
        Shapes for which `specs` were inferred.
    """
    symbols = _symbols(facts, shapes or {})
    declared = map(output_spec_of, facts.proto.graph.output)
    return {
        **specs,
        **{
            spec.name: _merge(specs.get(spec.name), _substitute(spec, symbols)) for spec in declared
        },
    }


def bound_model(
    facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]
) -> tuple[onnx.ModelProto, dict[str, TensorSpec]]:
    """Return a copy of the proto for inference at these input shapes, and the model's notes."""
    model = onnx.ModelProto()
    model.CopyFrom(facts.proto)
    stand_ins = write_stand_ins(model, facts)
    round_pools_down(model)
    name_one_sided(model)
    return model, _bind_inputs(model, facts, shapes, stand_ins)


def _symbols(facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]) -> dict[str, int]:
    """Return the sizes that `shapes` give to symbols of the declared inputs, where they agree."""
    inputs = tuple(map(spec_of, facts.proto.graph.input))
    return {name: sizes[0] for name, sizes in symbol_sizes(inputs, shapes).items() if not sizes[1:]}


def _substitute(spec: TensorSpec, symbols: Mapping[str, int]) -> TensorSpec:
    """Return the spec with known symbols replaced by their sizes."""
    if spec.shape is None:
        return spec
    dims = tuple(symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
    return TensorSpec(spec.name, spec.dtype, dims)


def _merge(found: TensorSpec | None, declared: TensorSpec) -> TensorSpec:
    """Return the inferred spec, completed by what the model declares."""
    if found is None:
        return declared
    if found.kind is not None or declared.kind is not None:
        return found if found.kind is not None else declared
    dtype = found.dtype if found.dtype is not None else declared.dtype
    if found.shape is None:
        return TensorSpec(found.name, dtype, declared.shape)
    if declared.shape is None or len(declared.shape) != len(found.shape):
        return TensorSpec(found.name, dtype, found.shape)
    dims = tuple(
        new if isinstance(new, int) or old is None else old
        for new, old in zip(found.shape, declared.shape, strict=True)
    )
    return TensorSpec(found.name, dtype, dims)


def _bind_inputs(
    model: onnx.ModelProto,
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]],
    stand_ins: frozenset[str],
) -> dict[str, TensorSpec]:
    """Bind input shapes, and drop the noted shapes of other values: they hold for other inputs.

    Parameters
    ----------
    stand_ins : frozenset of str
        Values that come from a stand-in, whose inference goes before the model's notes.

    Returns
    -------
    dict of value to TensorSpec
        Noted specs of the values in `stand_ins`, with symbols bound.
    """
    symbols = _symbols(facts, shapes)
    graph = model.graph
    for value in graph.input:
        spec = spec_of(value)
        # ONNX's inference may end the process on an input without a type.
        if value.name in shapes and spec.dtype is not None:
            value.CopyFrom(value_info(TensorSpec(value.name, spec.dtype, shapes[value.name])))
    for value in graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    # Behind operators of other domains inference finds nothing: there the notes are all there is.
    opsets = facts.model.opsets
    foreign = {name for node in facts.nodes if not onnx_has(node, opsets) for name in node.outputs}
    noted = {
        value.name: _substitute(output_spec_of(value), symbols)
        for value in graph.value_info
        if (value.name in foreign or value.name in stand_ins) and spec_of(value).dtype is not None
    }
    del graph.value_info[:]
    graph.value_info.extend(
        value_info(spec) for name, spec in noted.items() if name not in stand_ins
    )
    return {name: spec for name, spec in noted.items() if name in stand_ins}


def _add_noted(
    model: onnx.ModelProto, specs: Mapping[str, TensorSpec], noted: dict[str, TensorSpec]
) -> bool:
    """Add the model's notes on values that inference left open; return whether there were any.

    `noted` is emptied: notes are added once.
    """
    added = []
    for name, spec in noted.items():
        found = specs.get(name)
        merged = _merge(found, spec)
        if merged != found:
            added.append(value_info(merged))
    noted.clear()
    if not added:
        return False
    _drop_types(model, {value.name for value in added})
    model.graph.value_info.extend(added)
    return True


def _drop_types(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove what is written of the types of some intermediate values, in place."""
    kept = [value for value in model.graph.value_info if value.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _specs_in(graph: onnx.GraphProto) -> dict[str, TensorSpec]:
    """Return the specs of a graph's values, as far as they are written in it."""
    # Chained, not listed: a list would keep a wrapper object of protobuf for each value.
    values = itertools.chain(graph.input, graph.value_info, graph.output)
    specs = {value.name: spec_of(value) for value in values}
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        # An output that was folded into an initializer has lost the node that its shape came from;
        # an input with a default may be fed in another shape.
        if tensor.name not in inputs:
            shape = tuple(tensor.dims)
            specs[tensor.name] = TensorSpec(tensor.name, numpy_dtype(tensor.data_type), shape)
    return specs


def _is_complete(spec: TensorSpec | None) -> bool:
    if spec is None or spec.shape is None:
        return False
    return all(isinstance(dim, int) for dim in spec.shape)


def _add_types(model: onnx.ModelProto, specs: Mapping[str, TensorSpec], facts: GraphFacts) -> bool:
    """Add types that ONNX's inference leaves open, and return whether any were added.

    Those behind operators of ai.onnx.ml follow from their rules, others from runs of their nodes.
    """
    added = [
        spec
        for node in model.graph.node
        if node.domain == "ai.onnx.ml"
        for spec in inferred_outputs(node, specs)
    ]
    for name, learned in facts.learned.items():
        inputs = facts.nodes[facts.producer[name]].inputs
        spec = learned.spec(name, [specs.get(each) for each in inputs])
        merged = merged_spec(name, spec, specs.get(name))
        if merged is not None:
            added.append(merged)
    if not added:
        return False
    outputs = {value.name: value for value in model.graph.output}
    _drop_types(model, {spec.name for spec in added})
    for spec in added:
        (outputs.get(spec.name) or model.graph.value_info.add()).CopyFrom(value_info(spec))
    return True


def _propagate_types(facts: GraphFacts, specs: dict[str, TensorSpec], schemas: Schemas) -> None:
    """Give values behind operators of other domains the dtype that their schema names."""
    for node in facts.nodes:
        schema = schemas.get((node.domain, node.op_type))
        if schema is None:
            continue
        for name, source in zip(node.outputs, schema.output_type_from, strict=False):
            spec = specs.get(name)
            if (spec is not None and spec.dtype is not None) or source is None:
                continue
            origin = specs.get(node.inputs[source]) if source < len(node.inputs) else None
            if origin is not None:
                shape = None if spec is None else spec.shape
                specs[name] = TensorSpec(name, origin.dtype, shape)


def symbol_sizes(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[Dim, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the sizes that `shapes` give to the symbolic dimensions of inputs, each once.

    Several for a symbol whose axes differ: ONNX Runtime takes the names of dimensions as a
    comment, and exporters repeat them on unequal axes.

    Parameters
    ----------
    inputs : sequence of TensorSpec
        Declared inputs.
    shapes : mapping of input to shape
        Shapes of some inputs; sizes that are no numbers are left out.
    """
    found: dict[str, dict[int, None]] = {}
    for spec in inputs:
        for dim, size in zip(spec.shape or (), shapes.get(spec.name, ()), strict=False):
            if isinstance(dim, str) and isinstance(size, int):
                found.setdefault(dim, {})[size] = None
    return {name: tuple(sizes) for name, sizes in found.items()}
