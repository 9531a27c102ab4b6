"""Checks of a node's attributes and of the number of its inputs, as its operator defines them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto

from dask_onnx.core.errors import ModelError
from dask_onnx.modelio.operator_names import (
    ONNX_DOMAINS,
    OperatorName,
    operator_name,
    standard_op_type,
)
from dask_onnx.modelio.tensor_checks import check_tensor, check_text, check_type

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
"""Field that holds the value of an attribute of each type."""
_NEEDS_VALUE = ("t", "g", "sparse_tensor", "tp")
"""Fields without a default that means anything."""
_UNBOUNDED = 2**31 - 1
"""Number that schemas give for any number of inputs."""


_NEWEST = 2**31 - 1
"""Version of a domain that is not imported: as ONNX Runtime, the newest that there is."""


@dataclass(frozen=True, slots=True)
class _Schema:
    """The part of an operator's schema that is checked."""

    attributes: Mapping[str, int]
    """Type of each attribute by name."""
    required: tuple[str, ...]
    """Attributes that must be given."""
    inputs: tuple[int, int]
    """Least and largest number of inputs."""
    outputs: tuple[int, int]
    """The same of outputs."""


@functools.lru_cache(maxsize=2048)
def _schema(operator: OperatorName, version: int) -> _Schema | None:
    domain, op_type = operator
    if domain not in ONNX_DOMAINS or not onnx.defs.has(op_type, version, domain):
        return None
    schema = onnx.defs.get_schema(op_type, version, domain)
    return _Schema(
        {
            name: int(AttributeProto.AttributeType.Value(str(each.type).rpartition(".")[2]))
            for name, each in schema.attributes.items()
        },
        tuple(name for name, each in schema.attributes.items() if each.required),
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
    )


def check_node(
    node: onnx.NodeProto,
    name: str,
    opsets: Mapping[str, int],
    foreign: Collection[OperatorName],
    parameters: Collection[str] | None = None,
) -> None:
    """Check a node against its operator's schema, and its attributes against their types.

    Parameters
    ----------
    name : str
        Name of the node for errors.
    opsets : mapping of str to int
        Version of each imported domain, in canonical form.
    foreign : collection of (str, str)
        Operators that ONNX's schemas say nothing about: those of the caller, and functions.
    parameters : collection of str, optional
        Attribute parameters of the function that the node is in; None outside functions.

    Raises
    ------
    ModelError
        The node names no operator, an attribute is given twice, has no value or one of another
        type, refers to an attribute that does not exist, or is missing; or there are too few or too
        many inputs or outputs.
    """
    check_text(node.name, node.op_type, node.domain, node.overload)
    operator = operator_name(node)
    if not operator[1]:
        raise _fault(name, "has no operator")
    version = opsets.get(operator[0], _NEWEST)
    schema = None if operator in foreign else _schema(operator, version)
    if schema is not None:
        _check_count(name, operator[1], "inputs", len(node.input), schema.inputs)
        _check_count(name, operator[1], "outputs", len(node.output), schema.outputs)
    if not node.attribute and (schema is None or not schema.required):
        return
    given: set[str] = set()
    for attribute in node.attribute:
        key = attribute.name
        check_text(key, attribute.ref_attr_name)
        if not key:
            raise _fault(name, "has an attribute without a name")
        if key in given:
            raise _fault(name, f"gives the attribute {key!r} twice")
        given.add(key)
        if attribute.ref_attr_name:
            _check_reference(name, attribute, parameters)
        else:
            _check_value(name, attribute)
        expected = None if schema is None else schema.attributes.get(key)
        if expected is not None and attribute.type != expected:
            raise _fault(
                name,
                f"has the attribute {key!r} of type {_type_name(attribute.type)}; "
                f"{operator[1]} takes {_type_name(expected)}",
            )
    missing = [] if schema is None else [each for each in schema.required if each not in given]
    if missing:
        raise _fault(name, f"lacks the attribute {missing[0]!r} of {operator[1]}")


def check_bodies(node: onnx.NodeProto, name: str) -> None:
    """Check the number of inputs and outputs of the bodies of ONNX's ``If``, ``Loop`` and ``Scan``.

    Parameters
    ----------
    node : NodeProto
        A node that `check_node` has accepted.
    name : str
        Name of the node for errors.

    Raises
    ------
    ModelError
        A body does not take what the node gives, or gives less than the node returns.
    """
    op_type = standard_op_type(node)
    if op_type not in ("If", "Loop", "Scan"):
        return
    for body in (each.g for each in node.attribute if each.type == AttributeProto.GRAPH):
        taken, given = len(body.input), len(body.output)
        fits = given >= len(node.output)
        if op_type == "If":
            fits = fits and not taken
        elif op_type == "Loop":
            fits = given > len(node.output) and taken == len(node.input)
        if not fits:
            raise ModelError(
                f"node {name!r} ({op_type}) has {len(node.input)} inputs and {len(node.output)} "
                f"outputs, and its body {body.name!r} has {taken} and {given}",
                _ADVICE,
                node=name,
                numbers={"body_inputs": taken, "body_outputs": given},
            )


def _check_count(name: str, op_type: str, what: str, count: int, bounds: tuple[int, int]) -> None:
    low, high = bounds
    if low <= count <= high:
        return
    limits = f"{low} or more" if high >= _UNBOUNDED else f"{low} to {high}"
    raise ModelError(
        f"node {name!r} has {count} {what}; {op_type} takes {limits}",
        _ADVICE,
        node=name,
        numbers={what: count, "least": low, "most": high},
    )


def _check_reference(
    name: str, attribute: AttributeProto, parameters: Collection[str] | None
) -> None:
    target = attribute.ref_attr_name
    if parameters is None:
        raise _fault(
            name,
            f"takes the attribute {attribute.name!r} from a function's parameter {target!r}, and "
            "it is in no function",
        )
    if target not in parameters:
        raise _fault(
            name, f"refers to the attribute parameter {target!r}, which its function has not"
        )


def _check_value(name: str, attribute: AttributeProto) -> None:
    """Check that the value that an attribute's type names is there, and whole."""
    key = attribute.name
    field = _FIELDS.get(attribute.type)
    if field is None:
        raise _fault(name, f"has the attribute {key!r} of the unknown type {attribute.type}")
    if field in _NEEDS_VALUE and not attribute.HasField(field):
        raise _fault(name, f"has the attribute {key!r} without a value")
    if field in ("t", "tensors"):
        for tensor in [attribute.t] if field == "t" else attribute.tensors:
            check_tensor(tensor, f"the attribute {key!r} of node {name!r}")
    elif field in ("tp", "type_protos"):
        for each in [attribute.tp] if field == "tp" else attribute.type_protos:
            check_type(each, f"the attribute {key!r} of node {name!r}", "")


def _type_name(kind: int) -> str:
    known = AttributeProto.AttributeType.values()
    return str(AttributeProto.AttributeType.Name(kind)) if kind in known else str(kind)


_ADVICE = "export the model again: it is damaged, or its exporter has a fault"


def _fault(name: str, fault: str) -> ModelError:
    return ModelError(f"node {name!r} {fault}", _ADVICE, node=name)
