"""The forms that a model comes in, each made into a ModelProto."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.parser
from google.protobuf.message import DecodeError
from google.protobuf.message import Error as ProtobufError
from onnx import helper

from dask_onnx.core.errors import ModelError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.devices import annotate_bodies
from dask_onnx.modelio.normalise import captured_names, plain_domain
from dask_onnx.modelio.value_types import numpy_dtype, parse_type, value_info

Opsets = int | Mapping[str, int]
InputTypes = Mapping[str, Any] | Sequence[Any]

_IR_VERSION = 10
"""Of models that are made here of a graph, a function or a node: has functions with overloads."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a graph, a function or a node does not say of itself."""

    opsets: Opsets | None = None
    """Domain to version; a number is the version of ai.onnx."""
    input_types: InputTypes | None = None
    attributes: Mapping[str, Any] | None = None
    """Values of a function's attribute parameters."""
    functions: Sequence[onnx.FunctionProto] = ()
    """Model-local functions that are called."""

    @property
    def is_empty(self) -> bool:
        return self.opsets is self.input_types is self.attributes is None and not self.functions


def to_model(source: Any, context: Context) -> onnx.ModelProto:
    """A ModelProto of whatever form but a path, never the caller's own object.

    Raises
    ------
    ModelError
        Not a form of model; something is missing that the form does not say of itself.
    """
    if isinstance(source, onnx.GraphProto):
        return _with_functions(_graph_to_model(source, context.opsets), context)
    if isinstance(source, onnx.FunctionProto):
        return _function_to_model(source, context)
    if isinstance(source, onnx.NodeProto):
        return _with_functions(_node_to_model(source, context), context)
    if not context.is_empty:
        raise ModelError(
            f"a {type(source).__name__} says itself what its opsets, types and functions are",
            "give opsets, input_types, attributes and functions with a GraphProto, FunctionProto "
            "or NodeProto only",
        )
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(bytes(source), "the bytes given")
    if isinstance(source, str):
        return parse_text(source, "the text given")
    if isinstance(source, io.IOBase) or hasattr(source, "read"):
        data = source.read()
        where = f"the file object {getattr(source, 'name', '') or type(source).__name__}"
        return parse_text(data, where) if isinstance(data, str) else decode(bytes(data), where)
    if type(source).__module__.partition(".")[0] == "onnx_ir":
        # The caller has imported onnx_ir, or there would be no such object; importing it here
        # would cost everybody else a second for its sympy.
        return _ir_to_proto(source)
    raise ModelError(
        f"a model cannot be made from {type(source).__name__}",
        "pass a path, a URL, bytes, a file object, ONNX's text, an onnx.ModelProto, GraphProto, "
        "FunctionProto or NodeProto, or an onnx_ir.Model",
    )


def is_text(source: str) -> bool:
    """Whether a string is a model in ONNX's textual syntax rather than a path."""
    return source.lstrip().startswith("<") and "=>" in source


def parse_text(text: str, where: str) -> onnx.ModelProto:
    """A model in ONNX's textual syntax."""
    try:
        return onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        raise ModelError(
            f"{where} is not a model in ONNX's textual syntax: {' '.join(str(error).split())}",
            "compare it with onnx.printer.to_text of a model",
        ) from None


def decode(data: bytes, where: str, *, file_format: str | None = None) -> onnx.ModelProto:
    """A serialised ModelProto; `file_format` is a name of ``onnx.serialization``."""
    if file_format == "onnxtxt":
        return parse_text(data.decode(), where)
    if file_format not in (None, "protobuf"):
        return _decode_text_format(data, where, file_format)
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


def _decode_text_format(data: bytes, where: str, file_format: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data, format=file_format)
    except (ProtobufError, ValueError) as error:
        raise ModelError(
            f"{where} is not a model in the format {file_format}: {' '.join(str(error).split())}",
            "export it again, or save it as .onnx",
        ) from None


def _ir_to_proto(model: Any) -> onnx.ModelProto:
    from onnx_ir import external_data, to_proto  # see to_model

    proto: onnx.ModelProto = to_proto(external_data.load_to_model(model.clone()))
    return proto


def _opset_imports(opsets: Opsets | None, what: str) -> list[onnx.OperatorSetIdProto]:
    if opsets is None:
        raise ModelError(
            f"{what} does not say of which opset its operators are",
            "pass opsets=17, or a mapping such as {'': 17, 'com.microsoft': 1}",
        )
    versions = {"": opsets} if isinstance(opsets, int) else dict(opsets)
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _graph_to_model(graph: onnx.GraphProto, opsets: Opsets | None) -> onnx.ModelProto:
    imports = _opset_imports(opsets, f"the graph {graph.name!r}")
    return helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)


def _with_functions(model: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    model.functions.extend(context.functions)
    if context.attributes is not None:
        raise ModelError("only a function has attribute parameters", "leave attributes out")
    return model


def _function_to_model(function: onnx.FunctionProto, context: Context) -> onnx.ModelProto:
    """A model of one node that calls the function."""
    given = dict(context.attributes or {})
    missing = [name for name in function.attribute if name not in given]
    known = {*function.attribute, *(a.name for a in function.attribute_proto)}
    if missing or not known.issuperset(given):
        raise ModelError(
            f"the function {function.name!r} takes the attributes {_names(sorted(known))}; got "
            f"{_names(given)}",
            f"pass attributes={{{_names(missing)}: ...}}" if missing else "leave the others out",
        )
    node = helper.make_node(
        function.name,
        list(function.input),
        list(function.output),
        domain=function.domain,
        overload=function.overload,
        **given,
    )
    imports = {opset.domain: opset.version for opset in function.opset_import}
    if isinstance(context.opsets, Mapping):
        imports.update(context.opsets)
    elif context.opsets is not None:
        imports[""] = context.opsets
    imports.setdefault(function.domain, 1)
    inputs = _typed_inputs(list(function.input), context, f"the function {function.name!r}")
    return _model_of(node, inputs, imports, [function, *context.functions])


def _node_to_model(node: onnx.NodeProto, context: Context) -> onnx.ModelProto:
    what = f"the node {node.name or node.op_type!r}"
    imports = {o.domain: o.version for o in _opset_imports(context.opsets, what)}
    names = list(dict.fromkeys(n for n in [*node.input, *captured_names(node)] if n))
    return _model_of(node, _typed_inputs(names, context, what), imports, [])


def _model_of(
    node: onnx.NodeProto,
    inputs: list[onnx.ValueInfoProto],
    imports: Mapping[str, int],
    functions: Sequence[onnx.FunctionProto],
) -> onnx.ModelProto:
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    model = helper.make_model(
        helper.make_graph([node], node.name or node.op_type, inputs, outputs),
        opset_imports=[helper.make_opsetid(d, v) for d, v in imports.items()],
        ir_version=_IR_VERSION,
        functions=list(functions),
    )
    return onnx.shape_inference.infer_shapes(model)


def _typed_inputs(names: list[str], context: Context, what: str) -> list[onnx.ValueInfoProto]:
    types = context.input_types
    if types is None:
        types = ()
    if not isinstance(types, Mapping):
        types = dict(zip(names, types, strict=False))
    missing = [name for name in names if name not in types]
    if missing or len(types) > len(names):
        raise ModelError(
            f"{what} takes the inputs {_names(names)}; the types given are of {_names(types)}",
            "pass input_types={name: 'tensor(float)'} or {name: (numpy.float32, ('N', 3))}",
        )
    return [_typed(name, types[name]) for name in names]


def _typed(name: str, given: Any) -> onnx.ValueInfoProto:
    """A type as text in ONNX's notation, a TypeProto, a TensorSpec, a dtype, or dtype and shape."""
    value = onnx.ValueInfoProto(name=name)
    if isinstance(given, str) and "(" in given:
        value.type.CopyFrom(parse_type(given))
    elif isinstance(given, onnx.TypeProto):
        value.type.CopyFrom(given)
    elif isinstance(given, onnx.ValueInfoProto):
        value.type.CopyFrom(given.type)
    elif isinstance(given, TensorSpec):
        value.type.CopyFrom(value_info(given).type)
    else:
        dtype, shape = given if isinstance(given, tuple) else (given, None)
        if isinstance(dtype, int):  # an element type of TensorProto
            dtype = numpy_dtype(dtype)
        try:
            spec = TensorSpec(name, np.dtype(dtype), None if shape is None else tuple(shape))
            value.type.CopyFrom(value_info(spec).type)
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"{given!r} is no type for input {name!r}: {error}",
                "write it as 'tensor(float)', a numpy dtype, or (dtype, shape)",
            ) from None
    return value


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def inline_functions(model: onnx.ModelProto, kept: Sequence[tuple[str, str]]) -> onnx.ModelProto:
    """Every call of a model-local function replaced by its body, nested ones and those in subgraph
    bodies included, so that the parts can be cut, costed and given a kernel like all other nodes.

    Parameters
    ----------
    kept : (domain, name) of functions that the caller has a kernel for
    """
    if not model.functions:
        return model
    imported = {plain_domain(opset.domain) for opset in model.opset_import}
    for function in model.functions:
        for opset in function.opset_import:
            if plain_domain(opset.domain) not in imported:
                imported.add(plain_domain(opset.domain))
                model.opset_import.add().CopyFrom(opset)
    annotate_bodies(model, kept)
    if kept:
        return onnx.inliner.inline_selected_functions(model, list(kept), exclude=True)
    return onnx.inliner.inline_local_functions(model)
