"""Faults of kernels as data: predicates on a node, with the reason why a kernel must not run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import OperatorName, operator_name
from dask_onnx.modelio.weights import is_external


@dataclass(frozen=True, slots=True)
class Use:
    """Facts of one node that are known when a plan is made."""

    attributes: Mapping[str, Any]
    """Attributes by name."""
    inputs: tuple[TensorSpec | None, ...]
    """Specs of the inputs: None for one that is left out, without a type where it is not known."""
    constants: Mapping[int, np.ndarray]
    """Values of inputs, by position, that are small initializers."""
    outputs: tuple[str, ...]
    """Names of the outputs; empty for one that is left out."""
    opset: int = 0
    """Version of the operator's domain that the model imports; 0 if it is not known."""

    def has_input(self, position: int) -> bool:
        """Return whether the node has this input."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def has_output(self, position: int) -> bool:
        """Return whether the node has this output."""
        return position < len(self.outputs) and bool(self.outputs[position])

    def shape(self, position: int) -> tuple[Any, ...] | None:
        """Return the shape of an input; None if it is not known."""
        spec = self.inputs[position] if position < len(self.inputs) else None
        return None if spec is None else spec.shape

    def dtype(self, position: int) -> np.dtype[Any] | None:
        """Return the dtype of an input; None if it is not known."""
        spec = self.inputs[position] if position < len(self.inputs) else None
        return None if spec is None else spec.dtype

    def text(self, name: str, default: str = "") -> str:
        """Return an attribute that is a text; `default` without it."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class KernelFault:
    """Fault of a kernel that plans avoid."""

    operator: str
    """Op type."""
    reason: str
    """Fault of the kernel, as a clause after its name, with the test case that shows it."""
    applies: Callable[[Use], bool] = lambda use: True
    """Predicate on a node: true if the fault concerns it."""
    domain: str = ""
    """Domain of the operator; "" is ai.onnx."""


Faults = Mapping[OperatorName, Sequence[KernelFault]]
"""Faults by domain and op type; the first that applies to a node is reported."""


def by_operator(faults: Sequence[KernelFault]) -> Faults:
    """Return faults by domain and op type, in their order."""
    found: dict[OperatorName, list[KernelFault]] = {}
    for fault in faults:
        found.setdefault((fault.domain, fault.operator), []).append(fault)
    return found


def find_fault(
    runtime: str,
    faults: Faults,
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    initializers: Mapping[str, onnx.TensorProto],
    opsets: Mapping[str, int],
) -> str | None:
    """Return the reason why a runtime must not run a node; None if it may.

    Parameters
    ----------
    runtime : str
        Name of the runtime in the reason.
    faults : Faults
        Faults of its kernels.
    node : onnx.NodeProto
        Node of the graph, or of a subgraph.
    specs : mapping of str to TensorSpec
        Values by name, as far as their types are known.
    initializers : mapping of str to onnx.TensorProto
        Initializers by name.
    opsets : mapping of str to int
        Version of each imported domain.
    """
    name = operator_name(node)
    candidates = faults.get(name)
    if not candidates:
        return None
    small = {
        position: numpy_helper.to_array(initializers[value])
        for position, value in enumerate(node.input)
        if value in initializers and not is_external(initializers[value])
    }
    use = Use(
        {a.name: helper.get_attribute_value(a) for a in node.attribute},
        tuple(specs.get(n, TensorSpec(n, None, None)) if n else None for n in node.input),
        small,
        tuple(node.output),
        opsets.get(name[0], 0),
    )
    found = next((fault for fault in candidates if fault.applies(use)), None)
    return None if found is None else f"{runtime}'s {node.op_type} {found.reason}"
