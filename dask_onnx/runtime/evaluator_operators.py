"""The caller's kernels as operators of ONNX's reference evaluator, with their own attributes.

The evaluator looks up the attributes of an operator by its type alone, in the newest opset. An
operator in a domain of the caller's would get those of ONNX's operator of the same type, and one
that takes the place of ONNX's own those of another version than the model imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx.reference.op_run import OpRun

from dask_onnx.modelio.operator_names import canonical_domain, is_onnx_domain

_EVALUATOR = "onnx.reference.ops"
"""Package of the evaluator's own operators."""


def with_own_attributes(operator: type[OpRun]) -> type[OpRun]:
    """Return an operator that the evaluator finds by its domain, with its own attributes.

    Parameters
    ----------
    operator : subclass of OpRun
        Operator of the caller. Its attribute ``op_schema``, if it has one, stays. One that is
        derived from an operator of the evaluator takes the attributes of that.
    """
    members: dict[str, Any] = {}
    domain = canonical_domain(operator.op_domain)
    if domain != operator.op_domain:
        members["op_domain"] = domain
    is_derived = any(base.__module__.startswith(_EVALUATOR) for base in operator.__mro__)
    if not hasattr(operator, "op_schema") and not (is_derived and not is_onnx_domain(domain)):

        def initialise(
            self: OpRun, node: onnx.NodeProto, run_params: dict[str, Any], schema: Any = None
        ) -> None:
            found = schema_of(node, run_params) if schema is None else schema
            operator.__init__(self, node, run_params, found)

        # None stands for an operator without a schema; the evaluator would search for one else.
        members |= {"op_schema": None, "__init__": initialise}
    if not members:
        return operator
    return type(operator.__name__, (operator,), {**members, "__module__": operator.__module__})


def function_operator(domain: str, op_type: str, function: Callable[..., Any]) -> type[OpRun]:
    """Return an operator that calls a function with the inputs, and the attributes as keywords.

    Parameters
    ----------
    domain, op_type : str
        Name of the operator; "" is the domain ai.onnx, from whose schema attributes that the node
        leaves out are taken.
    function : function
        Called with an array, list or dict for each input, None for one that is left out; returns
        one output or a tuple of several.
    """

    def load_attributes(self: Any) -> None:
        # Kept apart from the object's own members, which may have the same names.
        self.has_linked_attribute = False
        self.attributes_names_ = set()
        given = {a.name: self._extract_attribute_value(a) for a in self.onnx_node.attribute}
        self.given_attributes = {**_defaults(self, given), **given}

    def run(self: Any, *inputs: Any, **_: Any) -> tuple[Any, ...]:
        result = function(*inputs, **self.given_attributes)
        return result if isinstance(result, tuple) else (result,)

    members = {"op_domain": domain, "_load_attributes": load_attributes, "_run": run}
    return with_own_attributes(type(op_type, (OpRun,), members))


def schema_of(node: onnx.NodeProto, run_params: Mapping[str, Any]) -> Any:
    """Return ONNX's schema of a node's operator in the model's opset; None for other operators."""
    domain = canonical_domain(node.domain)
    version = run_params["opsets"].get(domain)
    if version is None or not is_onnx_domain(domain):
        return None
    if not onnx.defs.has(node.op_type, version, domain):
        return None
    return onnx.defs.get_schema(node.op_type, version, domain)


def _defaults(operator: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the schema's attributes that a node leaves out; None without default."""
    schema = operator._schema
    if schema is None:
        return {}
    found = {}
    for name, attribute in schema.attributes.items():
        if name in given:
            continue
        if attribute.required:
            raise ValueError(f"the attribute {name!r} of {operator.op_type} is missing")
        default = attribute.default_value
        has_default = default.type != onnx.AttributeProto.UNDEFINED and (
            default.type != onnx.AttributeProto.TENSOR or default.t.data_type
        )
        found[name] = operator._extract_attribute_value(default) if has_default else None
    return found
