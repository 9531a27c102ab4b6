"""Shapes of every value, for given shapes of the inputs.

ONNX's own inference runs on the weightless proto. It stops where a shape is computed by nodes that
its data propagation does not know; those nodes are small integer arithmetic, so they are worked out
here with ONNX's reference operators, written into the proto as constants, and inference goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from dask_onnx.analysis.contrib_shapes import write_stand_ins
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.known_branches import write_branch
from dask_onnx.analysis.ml_shapes import told_by
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.value_types import numpy_dtype, spec_of, value_info

log = logging.getLogger(__name__)

Shapes = Mapping[str, TensorSpec]

_MAX_FOLD_ROUNDS = 16
_MAX_FOLD_ELEMENTS = 1024
"""A shape has few elements; a tensor larger than this is data."""
_SHAPE_ARITHMETIC = frozenset(
    (
        "Abs Add And Cast Ceil Clip Concat ConstantOfShape Div Equal Expand Flatten Floor "
        "Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual "
        "Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum "
        "Reshape ScatterElements ScatterND Size Slice Split Sqrt Squeeze Sub Tile "
        "Transpose Unsqueeze Where Xor"
    ).split()
)


@dataclass(frozen=True, slots=True)
class OperatorSchema:
    """What inference needs to know of an operator outside ONNX's own domains."""

    output_type_from: tuple[int | None, ...]
    """For each output the index of the input whose dtype it has; None where it is its own."""


Schemas = Mapping[tuple[str, str], OperatorSchema]


def infer_shapes(
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
) -> dict[str, TensorSpec]:
    """The spec of every value of the main graph.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input name to shape, optional
        Takes the place of the declared shapes of those inputs.
    schemas : mapping of (domain, op type), optional
        Operators that ONNX itself does not know.

    Returns
    -------
    dict of value name to TensorSpec
        Dims are ints where they follow from `shapes` and the graph, else names or None. A value
        whose type cannot be found is missing.
    """
    model = onnx.ModelProto()
    model.CopyFrom(facts.proto)
    declared = {value.name: spec_of(value) for value in model.graph.output}
    stand_ins = write_stand_ins(model, facts)
    written = _rebind(model, facts, shapes or {}, stand_ins)
    known: dict[str, np.ndarray] = {}
    for _ in range(_MAX_FOLD_ROUNDS):
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        specs = _collect(inferred, facts)
        if all(_is_complete(specs.get(name)) for node in facts.nodes for name in node.outputs):
            break
        is_folded = _fold(model, specs, known)
        if not _tell_of_ml(model, specs) and not is_folded and not _fill(model, specs, written):
            break
    _propagate_types(facts, specs, schemas or {})
    symbols = _symbols(facts, shapes or {})
    for name, spec in declared.items():
        specs[name] = _merge(specs.get(name), _substitute(spec, symbols))
    return specs


def _symbols(facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]) -> dict[str, int]:
    """Sizes that `shapes` give to names of declared input dimensions."""
    return {
        dim: size
        for value in facts.proto.graph.input
        for dim, size in zip(spec_of(value).shape or (), shapes.get(value.name, ()), strict=False)
        if isinstance(dim, str) and isinstance(size, int)
    }


def _substitute(spec: TensorSpec, symbols: Mapping[str, int]) -> TensorSpec:
    if spec.shape is None:
        return spec
    dims = tuple(symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
    return TensorSpec(spec.name, spec.dtype, dims)


def _merge(found: TensorSpec | None, declared: TensorSpec) -> TensorSpec:
    """What was inferred, and where nothing was, what the model declares."""
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


def _rebind(
    model: onnx.ModelProto,
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]],
    stand_ins: frozenset[str],
) -> dict[str, TensorSpec]:
    """Bind input shapes; forget what was written down for the shapes that the exporter had.

    What was written down of values in `stand_ins` is returned: inference goes first there.
    """
    symbols = _symbols(facts, shapes)
    graph = model.graph
    for value in graph.input:
        spec = spec_of(value)
        # Of a value without a type ONNX's inference may be the end of the process.
        if value.name in shapes and spec.dtype is not None:
            value.CopyFrom(value_info(TensorSpec(value.name, spec.dtype, shapes[value.name])))
    for value in graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    # Inference cannot find the types behind operators of other domains: there the model's word
    # stands, with the symbols bound.
    foreign = {
        name for node in facts.nodes if not is_standard(node.domain) for name in node.outputs
    }
    written = {
        value.name: _substitute(spec_of(value), symbols)
        for value in graph.value_info
        if (value.name in foreign or value.name in stand_ins) and spec_of(value).dtype is not None
    }
    del graph.value_info[:]
    graph.value_info.extend(
        value_info(spec) for name, spec in written.items() if name not in stand_ins
    )
    return {name: spec for name, spec in written.items() if name in stand_ins}


def _fill(
    model: onnx.ModelProto, specs: Mapping[str, TensorSpec], written: dict[str, TensorSpec]
) -> bool:
    """Write down what the model says of values that inference left open; whether it says more."""
    told = []
    for name, spec in written.items():
        found = specs.get(name)
        merged = _merge(found, spec)
        if merged != found:
            told.append(value_info(merged))
    written.clear()
    kept = [v for v in model.graph.value_info if v.name not in {value.name for value in told}]
    del model.graph.value_info[:]
    model.graph.value_info.extend([*kept, *told])
    return bool(told)


def is_standard(domain: str) -> bool:
    """Whether ONNX itself defines the operators of the domain."""
    return not domain or domain.startswith(("ai.onnx.ml", "ai.onnx.preview"))


def _collect(model: onnx.ModelProto, facts: GraphFacts) -> dict[str, TensorSpec]:
    graph = model.graph
    specs = {v.name: spec_of(v) for v in [*graph.input, *graph.value_info, *graph.output]}
    for tensor in graph.initializer:
        if tensor.name not in specs:
            shape = tuple(tensor.dims)
            specs[tensor.name] = TensorSpec(tensor.name, numpy_dtype(tensor.data_type), shape)
    return specs


def _is_complete(spec: TensorSpec | None) -> bool:
    if spec is None or spec.shape is None:
        return False
    return all(isinstance(dim, int) for dim in spec.shape)


def _fold(
    model: onnx.ModelProto, specs: Mapping[str, TensorSpec], known: dict[str, np.ndarray]
) -> bool:
    """Replace shape arithmetic whose inputs are known by its values; whether any was found."""
    graph = model.graph
    initializers = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    opsets = list(model.opset_import)
    kept, found = [], False
    for number, node in enumerate(graph.node):
        condition = _condition(node, known, initializers)
        if condition is not None:
            nodes, tensors = write_branch(node, condition, len(known) + number)
            kept += nodes
            graph.initializer.extend(tensors)
            found = True
            continue
        values = _evaluate(node, specs, known, initializers, opsets)
        if values is None:
            kept.append(node)
            continue
        found = True
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    if found:
        del graph.node[:]
        graph.node.extend(kept)
    return found


def _tell_of_ml(model: onnx.ModelProto, specs: Mapping[str, TensorSpec]) -> bool:
    """Write down what operators of ai.onnx.ml give where ONNX's inference leaves it open; return
    whether anything was written."""
    told = [
        spec
        for node in model.graph.node
        if node.domain == "ai.onnx.ml" and specs.get(node.input[0]) is not None
        for spec in told_by(node, specs)
        if not _is_told(specs, spec.name)
    ]
    outputs = {value.name: value for value in model.graph.output}
    kept = [v for v in model.graph.value_info if v.name not in {spec.name for spec in told}]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for spec in told:
        (outputs.get(spec.name) or model.graph.value_info.add()).CopyFrom(value_info(spec))
    return bool(told)


def _is_told(specs: Mapping[str, TensorSpec], name: str) -> bool:
    spec = specs.get(name)
    return spec is not None and spec.dtype is not None and spec.shape is not None


def _condition(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray],
    initializers: Mapping[str, onnx.TensorProto],
) -> bool | None:
    """Return the condition of an If, if it is known."""
    if node.op_type != "If" or node.domain:
        return None
    name = node.input[0]
    if name in known:
        return bool(known[name].any())
    if name in initializers:
        return bool(numpy_helper.to_array(initializers[name]).any())
    return None


def _evaluate(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    known: dict[str, np.ndarray],
    initializers: Mapping[str, onnx.TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
) -> list[np.ndarray] | None:
    if node.domain:
        return None
    if node.op_type == "Shape":
        return _shape_of(node, specs)
    if node.op_type not in _SHAPE_ARITHMETIC:
        return None
    feeds = {}
    for name in node.input:
        if name and name not in known:
            tensor = initializers.get(name)
            if tensor is None or np.prod(tensor.dims) > _MAX_FOLD_ELEMENTS:
                return None
            known[name] = numpy_helper.to_array(tensor)
        if name:
            feeds[name] = known[name]
    if not feeds:
        return None
    run = ReferenceEvaluator(_single_node_model(node, feeds, opsets))
    try:
        results = run.run(None, feeds)
    except Exception as error:
        # Inference is an aid: a value that cannot be worked out stays unknown, and shows as such.
        log.debug("shape arithmetic of %s (%s) not folded: %s", node.name, node.op_type, error)
        return None
    arrays = [np.asarray(result) for result in results]
    return arrays if all(array.size <= _MAX_FOLD_ELEMENTS for array in arrays) else None


def _single_node_model(
    node: onnx.NodeProto,
    feeds: Mapping[str, np.ndarray],
    opsets: list[onnx.OperatorSetIdProto],
) -> onnx.ModelProto:
    def value(name: str, dtype: np.dtype | None) -> onnx.ValueInfoProto:
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype) if dtype is not None else 0
        return onnx.helper.make_tensor_value_info(name, elem_type, None)

    graph = onnx.helper.make_graph(
        [node],
        "fold",
        [value(name, array.dtype) for name, array in feeds.items()],
        [value(name, None) for name in node.output],
    )
    return onnx.helper.make_model(graph, opset_imports=opsets)


def _shape_of(node: onnx.NodeProto, specs: Mapping[str, TensorSpec]) -> list[np.ndarray] | None:
    spec = specs.get(node.input[0])
    if spec is None or spec.shape is None:
        return None
    attributes = {a.name: a.i for a in node.attribute}
    dims = spec.shape[attributes.get("start", 0) : attributes.get("end")]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    return [np.array(dims, dtype=np.int64)]


def _propagate_types(facts: GraphFacts, specs: dict[str, TensorSpec], schemas: Schemas) -> None:
    """Give values behind operators of other domains the dtype that their schema promises."""
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
    """Sizes of the symbolic dimensions that `shapes` give.

    Raises
    ------
    InputError
        Rank or a static dimension differs, or one symbol gets two sizes.
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
            )
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                raise InputError(
                    f"input {spec.name!r} has size {size} on axis {axis}; the model takes {spec}",
                    f"make axis {axis} of {spec.name!r} {dim} long",
                )
            if isinstance(dim, str):
                before = symbols.setdefault(dim, (size, spec.name))
                if before[0] != size:
                    raise InputError(
                        f"dimension {dim!r} is {before[0]} in input {before[1]!r} "
                        f"and {size} in {spec.name!r}",
                        "inputs that share a symbolic dimension must agree on its size",
                    )
    return {name: size for name, (size, _) in symbols.items()}
