"""A case: one node that ONNX Runtime and ONNX's reference evaluator both run, with its inputs.

Values are drawn with a fixed seed. Sizes are small, and attributes are those of real exports: each
mode of an operator, each way to pad, each direction, opsets before and after a change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

ML = "ai.onnx.ml"
OPSETS = {"": 22, ML: 3}


@dataclass(frozen=True)
class Case:
    """One node with its inputs."""

    op: str
    inputs: tuple[np.ndarray | None, ...]
    """Values of the inputs; None for one that is left out."""
    attributes: Mapping[str, Any]
    outputs: int = 1
    domain: str = ""
    opset: int = 0
    """Version of the domain; 0 for the one in `OPSETS`."""
    constants: tuple[int, ...] = ()
    """Positions of inputs that are initializers."""

    def __str__(self) -> str:
        shapes = ", ".join("-" if x is None else f"{x.dtype}{list(x.shape)}" for x in self.inputs)
        given = ", ".join(f"{k}={_short(v)}" for k, v in self.attributes.items())
        version = f"-{self.opset}" if self.opset else ""
        return f"{self.op}{version}({shapes}; {given})"

    def model(self) -> onnx.ModelProto:
        """Return a model of the node; its inputs have types and ranks."""
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(self.inputs)]
        outs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(
            self.op, names, outs, name="node", domain=self.domain, **self.attributes
        )
        values, initializers = [], []
        for place, (name, x) in enumerate(zip(names, self.inputs, strict=True)):
            if x is None:
                continue
            if place in self.constants:
                initializers.append(onnx.numpy_helper.from_array(x, name))
                continue
            element = helper.np_dtype_to_tensor_dtype(x.dtype)
            dims = [f"{name}_{axis}" for axis in range(x.ndim)]
            values.append(helper.make_tensor_value_info(name, element, dims))
        graph = helper.make_graph(
            [node], "case", values, [onnx.ValueInfoProto(name=name) for name in outs], initializers
        )
        versions = {**OPSETS, **({self.domain: self.opset} if self.opset else {})}
        opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def feeds(self) -> dict[str, np.ndarray]:
        """Return the values of the inputs that are no initializers, by name."""
        return {
            f"x{i}": x
            for i, x in enumerate(self.inputs)
            if x is not None and i not in self.constants
        }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


_generators = [np.random.default_rng(0)]
"""The one generator that draws values, in a list so that it can be replaced."""


def generator() -> np.random.Generator:
    """Return the generator that values are drawn with."""
    return _generators[0]


def restart() -> None:
    """Draw the same values again from here on."""
    _generators[0] = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    """Return normal numbers of float32."""
    return generator().standard_normal(shape).astype(np.float32)


def texts(*values: str) -> np.ndarray:
    """Return texts as an array of objects."""
    return np.array(values, object)


def product(**choices: Any) -> Iterator[dict[str, Any]]:
    """Yield each combination of attributes; an attribute whose value is None is left out."""
    for values in itertools.product(*choices.values()):
        yield {k: v for k, v in zip(choices, values, strict=True) if v is not None}


AUTO_PADS = (None, "SAME_UPPER", "SAME_LOWER", "VALID")
"""Values of auto_pad."""
