"""Shapes and dtypes of every value, for given shapes of the inputs.

ONNX's own inference runs on a copy of the proto without weights. It stops where a shape is computed
by nodes that its data propagation does not know; `shape_folding` evaluates those nodes, and
inference goes on with their values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import shape_inference

from dask_onnx.analysis.contrib_shapes import write_stand_ins
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.ml_shapes import inferred_outputs
from dask_onnx.analysis.pool_sizes import round_pools_down
from dask_onnx.analysis.shape_folding import fold_shape_arithmetic
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.value_types import numpy_dtype, spec_of, value_info

_MAX_FOLD_ROUNDS = 16
"""Rounds of inference and folding; each gets past one chain of shape arithmetic."""


@dataclass(frozen=True, slots=True)
class OperatorSchema:
    """The part of an operator's schema that type inference needs, outside ONNX's own domains."""

    output_type_from: tuple[int | None, ...]
    """For each output the index of the input whose dtype it has; None where it has another."""


Schemas = Mapping[tuple[str, str], OperatorSchema]
"""Schemas by (domain, op type)."""


def infer_shapes(
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
) -> dict[str, TensorSpec]:
    """Return the spec of every value of the main graph.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input to shape, optional
        Takes the place of the declared shapes of those inputs.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX itself does not know.

    Returns
    -------
    dict of value to TensorSpec
        Dims are ints where they follow from `shapes` and the graph, else names or None. A value
        whose type cannot be found is missing.
    """
    model = onnx.ModelProto()
    model.CopyFrom(facts.proto)
    declared = {value.name: spec_of(value) for value in model.graph.output}
    stand_ins = write_stand_ins(model, facts)
    round_pools_down(model)
    noted = _bind_inputs(model, facts, shapes or {}, stand_ins)
    known: dict[str, np.ndarray] = {}
    for _ in range(_MAX_FOLD_ROUNDS):
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        specs = _specs_in(inferred.graph)
        if all(_is_complete(specs.get(name)) for node in facts.nodes for name in node.outputs):
            break
        is_folded = fold_shape_arithmetic(model, specs, known)
        if (
            not _add_ml_types(model, specs)
            and not is_folded
            and not _add_noted(model, specs, noted)
        ):
            break
    _propagate_types(facts, specs, schemas or {})
    symbols = _symbols(facts, shapes or {})
    for name, spec in declared.items():
        specs[name] = _merge(specs.get(name), _substitute(spec, symbols))
    return specs


def _symbols(facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]) -> dict[str, int]:
    """Return the sizes that `shapes` give to symbols of the declared inputs."""
    return {
        dim: size
        for value in facts.proto.graph.input
        for dim, size in zip(spec_of(value).shape or (), shapes.get(value.name, ()), strict=False)
        if isinstance(dim, str) and isinstance(size, int)
    }


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
    foreign = {
        name for node in facts.nodes if not is_standard(node.domain) for name in node.outputs
    }
    noted = {
        value.name: _substitute(spec_of(value), symbols)
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
    kept = [v for v in model.graph.value_info if v.name not in {value.name for value in added}]
    del model.graph.value_info[:]
    model.graph.value_info.extend([*kept, *added])
    return bool(added)


def is_standard(domain: str) -> bool:
    """Return whether ONNX itself defines the operators of the domain."""
    return not domain or domain.startswith(("ai.onnx.ml", "ai.onnx.preview"))


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


def _add_ml_types(model: onnx.ModelProto, specs: Mapping[str, TensorSpec]) -> bool:
    """Add types behind operators of ai.onnx.ml that ONNX's inference leaves open.

    Return whether any were added.
    """
    added = [
        spec
        for node in model.graph.node
        if node.domain == "ai.onnx.ml" and specs.get(node.input[0]) is not None
        for spec in inferred_outputs(node, specs)
        if not _has_type(specs.get(spec.name))
    ]
    outputs = {value.name: value for value in model.graph.output}
    kept = [v for v in model.graph.value_info if v.name not in {spec.name for spec in added}]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for spec in added:
        (outputs.get(spec.name) or model.graph.value_info.add()).CopyFrom(value_info(spec))
    return bool(added)


def _has_type(spec: TensorSpec | None) -> bool:
    """Return whether both dtype and rank are known."""
    return spec is not None and spec.dtype is not None and spec.shape is not None


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


def bind_symbols(
    inputs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Return the sizes that `shapes` give to the symbolic dimensions of inputs.

    Parameters
    ----------
    inputs : tuple of TensorSpec
        Declared inputs; those without a shape in `shapes` are skipped.
    shapes : mapping of input to shape

    Raises
    ------
    InputError
        If a rank or a static dimension differs from the declared one, or one symbol gets two sizes.
    """
    symbols: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is None or spec.shape is None:
            continue
        if len(shape) != len(spec.shape):
            raise InputError(
                f"input {spec.name!r} has rank {len(shape)}, shape {shape}; the model takes {spec}",
                "give every axis that the model names, the batch axis included",
                input=spec.name,
                numbers={"rank": len(shape), "expected_rank": len(spec.shape)},
            )
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                raise InputError(
                    f"input {spec.name!r} has size {size} on axis {axis}; the model takes {spec}",
                    f"make axis {axis} of {spec.name!r} {dim} long",
                    input=spec.name,
                    axis=axis,
                    numbers={"size": size, "expected_size": dim},
                )
            if isinstance(dim, str):
                first_size, first_input = symbols.setdefault(dim, (size, spec.name))
                if first_size != size:
                    raise InputError(
                        f"dimension {dim!r} is {first_size} in input {first_input!r} "
                        f"and {size} in {spec.name!r}",
                        "inputs that share a symbolic dimension must agree on its size",
                        input=spec.name,
                        axis=axis,
                        numbers={"size": size, "expected_size": first_size},
                    )
    return {name: size for name, (size, _) in symbols.items()}
