"""One node with the shapes of its inputs and outputs, as the rules that count operations see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from dask_onnx.core.specs import TensorSpec

Specs = Mapping[str, TensorSpec]
"""Specs of values by name."""

Constants = Callable[[str], float | None]
"""Lookup of a scalar constant of the model by name; None for any other value."""


def elements(spec: TensorSpec | None) -> int:
    """Return the number of elements; an open dimension counts as 1, an unknown shape as 0."""
    if spec is None or spec.shape is None:
        return 0
    return math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape)


def known_size(specs: Specs, name: str, axis: int) -> int | None:
    """Return the size of one axis of a value; None if it is unknown, open or out of range."""
    spec = specs.get(name)
    if spec is None or spec.shape is None or not -len(spec.shape) <= axis < len(spec.shape):
        return None
    size = spec.shape[axis]
    return size if isinstance(size, int) else None


@dataclass(frozen=True, slots=True)
class Operands:
    """A node with its attributes, and shapes of its values. Inputs are named by their position."""

    proto: onnx.NodeProto
    """The node."""
    specs: Specs
    """Specs of the graph's values."""
    constants: Constants
    """Scalar constants of the graph."""

    def has(self, index: int) -> bool:
        """Return whether an input is given, of whatever shape."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def shape(self, index: int) -> list[int]:
        """Return the sizes of an input, open ones as 1; [] if it is missing or unknown."""
        return self._sizes(self.proto.input[index]) if self.has(index) else []

    def dim(self, index: int, axis: int) -> int:
        """Return one size of an input, 1 if it is open; 0 if it is missing or unknown."""
        return _at(self.shape(index), axis)

    def size(self, index: int) -> int:
        """Return the elements of an input, open sizes as 1; 0 if it is missing or unknown."""
        return elements(self.specs.get(self.proto.input[index])) if self.has(index) else 0

    @property
    def result(self) -> list[int]:
        """Sizes of the first output, open ones as 1; [] where inference found none."""
        return self._sizes(self._first_output)

    def result_dim(self, axis: int) -> int:
        """Return one size of the first output; 0 if unknown."""
        return _at(self.result, axis)

    @property
    def result_size(self) -> int:
        """Elements of the first output, open sizes as 1; 0 if unknown."""
        return elements(self.specs.get(self._first_output))

    def constant(self, index: int) -> int | None:
        """Return a constant scalar input as an integer; None for other inputs."""
        found = self.constants(self.proto.input[index]) if self.has(index) else None
        return None if found is None else int(found)

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return next((a.i for a in self.proto.attribute if a.name == name), default)

    def integers(self, name: str) -> list[int]:
        """Return an attribute of several integers; [] if it is missing."""
        return next((list(a.ints) for a in self.proto.attribute if a.name == name), [])

    def text(self, name: str, default: str = "") -> str:
        """Return a string attribute."""
        return next(
            (a.s.decode(errors="replace") for a in self.proto.attribute if a.name == name), default
        )

    @property
    def _first_output(self) -> str:
        return next(filter(None, self.proto.output), "")

    def _sizes(self, name: str) -> list[int]:
        spec = self.specs.get(name)
        if spec is None or spec.shape is None:
            return []
        return [dim if isinstance(dim, int) else 1 for dim in spec.shape]


def _at(shape: list[int], axis: int) -> int:
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


Rule = Callable[[Operands], int]
"""Count of a node's operations; a multiply-add counts as two."""
