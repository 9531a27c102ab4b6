"""What stand-ins of ONNX Runtime's operators are made of: a node's attributes and constants, and
pieces of function bodies in ONNX's text form.

Each piece writes its intermediate values under names that begin with that of its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from dask_onnx.modelio.weights import is_external

SAME = "(x) => (y) { y = Identity (x) }"
"""The stand-in of an operator whose result is like its first input."""
ENDLESS = 2**31 - 1
"""The end of a slice that goes on to the last element."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node, and what its model says around it. Inputs are named by their position."""

    node: onnx.NodeProto
    constants: Mapping[str, onnx.TensorProto]
    convolutions: Mapping[str, onnx.NodeProto]
    """Of values in blocks of channels the convolution that reads them."""

    def has(self, index: int) -> bool:
        """Return whether the input is there."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def integer(self, name: str, default: int = 0) -> int:
        """Return an attribute."""
        return next((int(a.i) for a in self.node.attribute if a.name == name), default)

    def integers(self, name: str) -> list[int]:
        """Return an attribute; [] if it is missing."""
        return next((list(a.ints) for a in self.node.attribute if a.name == name), [])

    def tensor(self, index: int) -> onnx.TensorProto | None:
        """Return the constant that an input is; None if it is computed, fed or missing."""
        return self.constants.get(self.node.input[index]) if self.has(index) else None

    def constant(self, index: int) -> list[float] | None:
        """Return the numbers of a constant input; None if it is computed, fed or external."""
        tensor = self.tensor(index)
        if tensor is None or is_external(tensor):
            return None
        return [number.item() for number in numpy_helper.to_array(tensor).reshape(-1)]


Rule = Callable[[Call], str | None]
"""Writer of a node's stand-in, ``(inputs) => (outputs) { body }``; None if nothing is known."""

Table = Mapping[str, str | Rule]
"""Stand-ins by operator: their text, or what writes it."""


def resized(result: str, x: str, axis: int, size: int) -> str:
    """Return statements: `result` is `x` with another size on one axis."""
    return (
        f"{result}_n = Constant <value_ints = [{size}]> () {result}_i = ConstantOfShape "
        f"({result}_n) {result} = Gather <axis = {axis}> ({x}, {result}_i)"
    )


def unknown(result: str, x: str, axis: int) -> str:
    """Return statements: `result` is `x` with a size on one axis that is not known."""
    return f"{result}_c = Cast <to = 9> ({x}) {result} = Compress <axis = {axis}> ({x}, {result}_c)"


def reshaped(result: str, x: str, *sizes: int) -> str:
    """Return statements: `result` is `x` in another shape; 0 keeps a size, -1 takes the rest."""
    return (
        f"{result}_s = Constant <value_ints = {list(sizes)}> () "
        f"{result} = Reshape ({x}, {result}_s)"
    )


def sliced(result: str, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
    """Return statements: `result` is `x` cut along one axis."""
    operands = {"b": start, "e": end, "a": axis, "d": step}
    constants = [f"{result}_{k} = Constant <value_ints = [{n}]> ()" for k, n in operands.items()]
    names = ", ".join(f"{result}_{key}" for key in operands)
    return f"{' '.join(constants)} {result} = Slice ({x}, {names})"


def permuted(result: str, x: str, *ranges: tuple[int, int | None]) -> str:
    """Return statements: `result` has the axes of `x`, of any rank, in the order of `ranges`.

    Each range is the first axis and the one behind the last; None is the end. (An Einsum of
    another rank than its equation says ends the process in onnx 1.18.)
    """
    parts = []
    for index, (start, end) in enumerate(ranges):
        limit = "" if end is None else f", end = {end}"
        parts.append(f"{result}_{index} = Shape <start = {start}{limit}> ({x})")
    names = ", ".join(f"{result}_{index}" for index in range(len(ranges)))
    parts.append(f"{result}_s = Concat <axis = 0> ({names})")
    parts.append(f"{result}_z = ConstantOfShape ({result}_s)")
    parts.append(f"{result} = CastLike ({result}_z, {x})")
    return " ".join(parts)


def wide_as(result: str, x: str, source: str, axes: str = "0, 1") -> str:
    """Return statements: `result` is `x` with the last size of `source`, whose other axes are
    `axes`."""
    return (
        f"{result}_i = ReduceMax <axes = [{axes}], keepdims = 0> ({source}) "
        f"{result} = Gather <axis = -1> ({x}, {result}_i)"
    )


def split_heads(result: str, x: str, count: int) -> str:
    """Return statements: `x` (batch, tokens, heads * size) as (batch, heads, tokens, size)."""
    split = reshaped(f"{result}_h", x, 0, 0, count, -1)
    return f"{split} {result} = Transpose <perm = [0, 2, 1, 3]> ({result}_h)"
