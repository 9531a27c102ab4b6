"""Operators by domain and name together: an operator type alone names no operator.

A caller may call an operator in a domain of their own like one of ONNX's. Every test of an
operator type in this package goes through the functions of this module, or looks up a pair of
domain and type, so that such a node is never taken for ONNX's operator.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

import onnx

OperatorName = tuple[str, str]
"""Domain and operator type; "" is the domain ai.onnx."""

ONNX_DOMAINS = (
    "",
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
)
"""Domains whose operators the ONNX specification defines, in canonical form."""
_RUNTIME_PREFIXES = ("com.microsoft", "com.ms.internal")
"""Domains of ONNX Runtime's own operators begin so: com.microsoft, com.microsoft.nchwc, ..."""


class NamedOperator(Protocol):
    """A NodeProto, or the facts of a node."""

    @property
    def domain(self) -> str:
        """Domain of the operator; "" and "ai.onnx" are the same."""

    @property
    def op_type(self) -> str:
        """Type of the operator, such as "Conv"."""


def canonical_domain(domain: str) -> str:
    """Return the canonical form of an opset domain: "" for "ai.onnx"."""
    return "" if domain == "ai.onnx" else domain


def operator_name(node: NamedOperator) -> OperatorName:
    """Return domain and type of a node's operator."""
    return canonical_domain(node.domain), node.op_type


def operator_text(node: NamedOperator) -> str:
    """Return an operator's name in messages: ``Conv``, or ``com.microsoft::FusedConv``."""
    domain, op_type = operator_name(node)
    return f"{domain}::{op_type}" if domain else op_type


def standard_op_type(node: NamedOperator) -> str | None:
    """Return the type of an operator of the domain ai.onnx; None for operators of other domains."""
    domain, op_type = operator_name(node)
    return None if domain else op_type


def public_op_type(node: NamedOperator) -> str:
    """Return the type of an operator of ONNX or ONNX Runtime; "" for domains of other owners.

    No two operators of ONNX and ONNX Runtime have one type and different costs, so that tables of
    costs are keyed by the type alone.
    """
    domain, op_type = operator_name(node)
    return op_type if has_known_owner(domain) else ""


def has_known_owner(domain: str) -> bool:
    """Return whether ONNX or ONNX Runtime defines the operators of a domain."""
    return is_onnx_domain(domain) or is_runtime_domain(domain)


def is_onnx_domain(domain: str) -> bool:
    """Return whether the ONNX specification defines the operators of a domain."""
    return canonical_domain(domain) in ONNX_DOMAINS


def onnx_has(node: NamedOperator, opsets: Mapping[str, int]) -> bool:
    """Return whether ONNX defines a node's operator in the opset that a model imports.

    Parameters
    ----------
    opsets : mapping of str to int
        Version of each imported domain, in canonical form.
    """
    domain, op_type = operator_name(node)
    version = opsets.get(domain)
    if version is None or domain not in ONNX_DOMAINS:
        return False
    return _is_defined(op_type, version, domain)


@functools.lru_cache(maxsize=4096)  # a graph of 10,000 nodes has few operators
def _is_defined(op_type: str, version: int, domain: str) -> bool:
    return bool(onnx.defs.has(op_type, version, domain))


def is_runtime_domain(domain: str) -> bool:
    """Return whether ONNX Runtime owns a domain."""
    return domain.startswith(_RUNTIME_PREFIXES)
