"""A node with the shapes of what it reads and writes, as the rules that count operations see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from dask_onnx.core.specs import TensorSpec

Specs = Mapping[str, TensorSpec]

Constants = Callable[[str], float | None]
"""The value of a scalar that the model has written in it; None for any other name."""


def elements(spec: TensorSpec | None) -> int:
    """Of a value; an open dimension counts as 1, an unknown value as 0."""
    if spec is None or spec.shape is None:
        return 0
    return math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape)


@dataclass(frozen=True, slots=True)
class Operands:
    """One node and what is known of its values. Inputs are named by their position."""

    proto: onnx.NodeProto
    specs: Specs
    constants: Constants

    def has(self, index: int) -> bool:
        """Whether the input is there, of whatever shape."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def shape(self, index: int) -> list[int]:
        """Sizes of an input, open ones as 1; [] if it is missing or unknown."""
        return self._sizes(self.proto.input[index]) if self.has(index) else []

    def dim(self, index: int, axis: int) -> int:
        """One size of an input; 0 if it is not there."""
        return _at(self.shape(index), axis)

    def size(self, index: int) -> int:
        """Elements of an input, open sizes as 1; 0 if it is missing or unknown."""
        return elements(self.specs.get(self.proto.input[index])) if self.has(index) else 0

    @property
    def result(self) -> list[int]:
        """Sizes of the first output; [] if unknown, as behind operators that ONNX does not know."""
        return self._sizes(self._first_output)

    def result_dim(self, axis: int) -> int:
        """One size of the first output; 0 if unknown."""
        return _at(self.result, axis)

    @property
    def result_size(self) -> int:
        """Elements of the first output; 0 if unknown."""
        return elements(self.specs.get(self._first_output))

    def constant(self, index: int) -> int | None:
        """The whole number that an input is, if the model has it written in it."""
        found = self.constants(self.proto.input[index]) if self.has(index) else None
        return None if found is None else int(found)

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute."""
        return next((a.i for a in self.proto.attribute if a.name == name), default)

    def integers(self, name: str) -> list[int]:
        return next((list(a.ints) for a in self.proto.attribute if a.name == name), [])

    def text(self, name: str, default: str = "") -> str:
        return next((a.s.decode() for a in self.proto.attribute if a.name == name), default)

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
"""Operations of a node; a multiplication with addition counts as two."""
