"""Conversion of every form of model, except paths and URLs, to a ModelProto."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
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
from dask_onnx.modelio.file_kinds import kind_of_file
from dask_onnx.modelio.normalise import captured_names
from dask_onnx.modelio.operator_names import canonical_domain
from dask_onnx.modelio.value_types import numpy_dtype, parse_type, value_info

Opsets = int | Mapping[str, int]
"""Version of ai.onnx, or versions by domain."""
InputTypes = Mapping[str, Any] | Sequence[Any]
"""Types of inputs, by name or in order."""

_IR_VERSION = 10
"""IR version of models made here of a graph, function or node: has function overloads."""


@dataclass(frozen=True, slots=True)
class Context:
    """Facts that a GraphProto, FunctionProto or NodeProto lacks and a model needs."""

    opsets: Opsets | None = None
    """Versions by domain; a number is the version of ai.onnx."""
    input_types: InputTypes | None = None
    """Types of the inputs of a function or node."""
    attributes: Mapping[str, Any] | None = None
    """Values of a function's attribute parameters, by name."""
    functions: Sequence[onnx.FunctionProto] = ()
    """Model-local functions that the graph, function or node calls."""

    @property
    def first_option(self) -> str | None:
        """Name of the first option that is given; None if none is."""
        return next((f.name for f in fields(self) if getattr(self, f.name) not in (None, ())), None)

    @property
    def is_empty(self) -> bool:
        """True if no option is given."""
        return self.first_option is None


CONTEXT_ADVICE = (
    "pass opsets, input_types, attributes and functions with a GraphProto, FunctionProto or "
    "NodeProto only"
)
"""Next step where a `Context` is given for a whole model."""


def to_model(source: Any, context: Context) -> onnx.ModelProto:
    """Return a new ModelProto made from a model in any form except a path.

    Parameters
    ----------
    source
        bytes, an open file, ONNX's text, an ``onnx_ir.Model``, or a ModelProto, GraphProto,
        FunctionProto or NodeProto.
    context : Context
        Facts that a graph, function or node lacks; empty for other forms.

    Raises
    ------
    ModelError
        `source` is none of these, cannot be decoded, or lacks facts that `context` does not give;
        or `context` is given for a form that has these facts.
    """
    if isinstance(source, onnx.GraphProto):
        return _with_functions(_graph_to_model(source, context.opsets), context)
    if isinstance(source, onnx.FunctionProto):
        return _function_to_model(source, context)
    if isinstance(source, onnx.NodeProto):
        return _with_functions(_node_to_model(source, context), context)
    if not context.is_empty:
        raise ModelError(
            f"a {type(source).__name__} already defines its opsets, types and functions",
            CONTEXT_ADVICE,
            option=context.first_option,
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
        # The caller has already imported onnx_ir. An import at the top of this module would cost
        # every other caller a second, for its sympy.
        return _ir_to_proto(source)
    raise ModelError(
        f"a model cannot be made from {type(source).__name__}",
        "pass a path, a URL, bytes, a file object, ONNX's text, an onnx.ModelProto, GraphProto, "
        "FunctionProto or NodeProto, or an onnx_ir.Model",
    )


def is_text(source: str) -> bool:
    """Return whether a string is a model in ONNX's textual syntax rather than a path."""
    return source.lstrip().startswith("<") and "=>" in source


def parse_text(text: str, where: str) -> onnx.ModelProto:
    """Return the model that ONNX's textual syntax describes.

    Parameters
    ----------
    where : str
        Origin of the text, for errors.

    Raises
    ------
    ModelError
        The text has a syntax error.
    """
    try:
        return onnx.parser.parse_model(text)
    except onnx.parser.ParseError as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{where} is not a model in ONNX's textual syntax: {reason}",
            "compare it with onnx.printer.to_text of a model",
            reason=reason,
        ) from None


def decode(data: bytes, where: str, *, file_format: str | None = None) -> onnx.ModelProto:
    """Return the model in serialised bytes.

    Parameters
    ----------
    where : str
        Origin of the bytes, for errors.
    file_format : str, optional
        A format's name in ``onnx.serialization``; protobuf by default.

    Raises
    ------
    ModelError
        Not an ONNX model, truncated, or without a graph or opsets.
    """
    if file_format == "onnxtxt":
        return _parse_encoded(data, where)
    if file_format not in (None, "protobuf"):
        return _decode_text_format(data, where, file_format)
    # Field 1 of a ModelProto, `ir_version`, is a varint: every writer puts it first.
    looks_like_onnx = data[:1] == b"\x08"
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        if looks_like_onnx:
            raise ModelError(
                f"{where} begins like an ONNX model but is truncated or damaged "
                f"({len(data):,} bytes)",
                "copy or export it again, and compare the sizes",
                numbers={"model_bytes": len(data)},
            ) from None
        model = None
    if model is None or not model.opset_import or not model.HasField("graph"):
        if looks_like_onnx and model is not None:
            fault = "is an ONNX model without a graph or without opsets, possibly truncated"
        else:
            fault = "is not an ONNX model"
        kind = kind_of_file(data)
        raise ModelError(
            f"{where} {fault if kind is None else f'{fault}, but {kind.name}'} "
            f"({len(data):,} bytes)",
            "pass an .onnx file" if kind is None else kind.next_step,
            numbers={"model_bytes": len(data)},
        )
    decoded: onnx.ModelProto = model
    return decoded


def _parse_encoded(data: bytes, where: str) -> onnx.ModelProto:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{where} is not a model in ONNX's textual syntax: it is not text (UTF-8)",
            "save the model as .onnx, or the text as UTF-8",
            reason=str(error),
        ) from None
    return parse_text(text, where)


def _decode_text_format(data: bytes, where: str, file_format: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data, format=file_format)
    except (ProtobufError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{where} is not a model in the format {file_format}: {reason}",
            "export it again, or save it as .onnx",
            reason=reason,
        ) from None


def _ir_to_proto(model: Any) -> onnx.ModelProto:
    from onnx_ir import external_data, to_proto  # not at the top: see `to_model`

    proto: onnx.ModelProto = to_proto(external_data.load_to_model(model.clone()))
    return proto


def _opset_imports(opsets: Opsets | None, what: str) -> list[onnx.OperatorSetIdProto]:
    if opsets is None:
        raise ModelError(
            f"{what} does not name the opset of its operators",
            "pass opsets=17, or a mapping such as {'': 17, 'com.microsoft': 1}",
            option="opsets",
        )
    versions = {"": opsets} if isinstance(opsets, int) else dict(opsets)
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]


def _graph_to_model(graph: onnx.GraphProto, opsets: Opsets | None) -> onnx.ModelProto:
    imports = _opset_imports(opsets, f"the graph {graph.name!r}")
    return helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)


def _with_functions(model: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    model.functions.extend(context.functions)
    if context.attributes is not None:
        raise ModelError(
            "attributes are given, and only a function has attribute parameters",
            "omit attributes",
            option="attributes",
        )
    return model


def _function_to_model(function: onnx.FunctionProto, context: Context) -> onnx.ModelProto:
    """Return a model of one node that calls the function."""
    given = dict(context.attributes or {})
    missing = [name for name in function.attribute if name not in given]
    known = {*function.attribute, *(a.name for a in function.attribute_proto)}
    if missing or not known.issuperset(given):
        raise ModelError(
            f"the function {function.name!r} takes the attributes {_names(sorted(known))}; got "
            f"{_names(given)}",
            f"pass attributes={{{_names(missing)}: ...}}" if missing else "omit the others",
            option="attributes",
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
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model  # the types of the outputs stay open


def _typed_inputs(names: list[str], context: Context, what: str) -> list[onnx.ValueInfoProto]:
    types = context.input_types
    if types is None:
        types = ()
    if not isinstance(types, Mapping):
        types = dict(zip(names, types, strict=False))
    missing = [name for name in names if name not in types]
    if missing or len(types) > len(names):
        raise ModelError(
            f"{what} takes the inputs {_names(names)}; types are given for {_names(types)}",
            "pass input_types={name: 'tensor(float)'} or {name: (numpy.float32, ('N', 3))}",
            option="input_types",
            input=missing[0] if missing else None,
        )
    return [_typed(name, types[name]) for name in names]


def _typed(name: str, given: Any) -> onnx.ValueInfoProto:
    """Return the ValueInfoProto of an input.

    Parameters
    ----------
    given
        Type in ONNX's notation, TypeProto, ValueInfoProto, TensorSpec, element type of TensorProto,
        dtype, or tuple of dtype and shape.
    """
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
                f"{given!r} is not a type for input {name!r}: {error}",
                "pass 'tensor(float)', a numpy dtype, or (dtype, shape)",
                option="input_types",
                input=name,
                reason=str(error),
            ) from None
    return value


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def inline_functions(model: onnx.ModelProto, kept: Sequence[tuple[str, str]]) -> onnx.ModelProto:
    """Return a model in which calls of model-local functions are replaced by their bodies.

    Includes nested calls and calls in subgraph bodies, so that the nodes of functions are cut,
    costed and assigned to kernels like all other nodes.

    Parameters
    ----------
    kept : sequence of (str, str)
        Domain and name of functions that stay calls, as the caller has a kernel for them.
    """
    if not model.functions:
        return model
    imported = {canonical_domain(opset.domain) for opset in model.opset_import}
    for function in model.functions:
        for opset in function.opset_import:
            if canonical_domain(opset.domain) not in imported:
                imported.add(canonical_domain(opset.domain))
                model.opset_import.add().CopyFrom(opset)
    annotate_bodies(model, kept)
    if kept:
        return onnx.inliner.inline_selected_functions(model, list(kept), exclude=True)
    return onnx.inliner.inline_local_functions(model)
