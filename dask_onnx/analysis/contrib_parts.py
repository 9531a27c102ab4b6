"""Building blocks of the stand-ins of ONNX Runtime's operators.

A stand-in is a function of standard operators in ONNX's text form. Here are a node's attributes and
constants as the rules read them, and statements of function bodies. Statements name their
intermediate values with the name of their result as a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from dask_onnx.modelio.weights import is_external

SAME = "(x) => (y) { y = Identity (x) }"
"""Stand-in of an operator whose result has the type and shape of its first input."""
SLICE_END = 2**31 - 1
"""End of a slice that includes the last element."""


@dataclass(frozen=True, slots=True)
class Call:
    """One node with the constants around it. Inputs are named by their position."""

    node: onnx.NodeProto
    """The node to replace."""
    constants: Mapping[str, onnx.TensorProto]
    """Initializers and values of Constant nodes, by name."""
    convolutions: Mapping[str, onnx.NodeProto]
    """Values in blocks of channels to the convolution that reads them."""

    def has(self, index: int) -> bool:
        """Return whether an input is given."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return next((int(a.i) for a in self.node.attribute if a.name == name), default)

    def integers(self, name: str) -> list[int]:
        """Return an attribute of several integers; [] if it is missing."""
        return next((list(a.ints) for a in self.node.attribute if a.name == name), [])

    def text(self, name: str) -> str:
        """Return a string attribute; empty if it is missing."""
        return next(
            (a.s.decode(errors="replace") for a in self.node.attribute if a.name == name), ""
        )

    def tensor(self, index: int) -> onnx.TensorProto | None:
        """Return a constant input; None if it is computed, fed or missing."""
        return self.constants.get(self.node.input[index]) if self.has(index) else None

    def constant(self, index: int) -> list[float] | None:
        """Return the elements of a constant input; None if it is computed, fed or external."""
        tensor = self.tensor(index)
        if tensor is None or is_external(tensor):
            return None
        return [number.item() for number in numpy_helper.to_array(tensor).reshape(-1)]


Rule = Callable[[Call], str | None]
"""Writer of a stand-in, ``(inputs) => (outputs) { body }``; it returns None where it cannot."""

Table = Mapping[str, str | Rule]
"""Stand-ins by operator: the text, or the rule that writes it."""


def resized(result: str, x: str, axis: int, size: int) -> str:
    """Return statements: `result` is `x` with another size on one axis."""
    return (
        f"{result}_n = Constant <value_ints = [{size}]> () {result}_i = ConstantOfShape "
        f"({result}_n) {result} = Gather <axis = {axis}> ({x}, {result}_i)"
    )


def unknown(result: str, x: str, axis: int) -> str:
    """Return statements: `result` is `x` with an unknown size on one axis."""
    return f"{result}_c = Cast <to = 9> ({x}) {result} = Compress <axis = {axis}> ({x}, {result}_c)"


def reshaped(result: str, x: str, *sizes: int) -> str:
    """Return statements: `result` is `x` reshaped; 0 keeps a size, -1 takes the rest."""
    return (
        f"{result}_s = Constant <value_ints = {list(sizes)}> () "
        f"{result} = Reshape ({x}, {result}_s)"
    )


def sliced(result: str, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
    """Return statements: `result` is a slice of `x` along one axis."""
    operands = {"b": start, "e": end, "a": axis, "d": step}
    constants = [f"{result}_{k} = Constant <value_ints = [{n}]> ()" for k, n in operands.items()]
    names = ", ".join(f"{result}_{key}" for key in operands)
    return f"{' '.join(constants)} {result} = Slice ({x}, {names})"


def permuted(result: str, x: str, *ranges: tuple[int, int | None]) -> str:
    """Return statements: `result` has the axes of `x`, of any rank, in the order of `ranges`.

    Each range is the first axis and the one behind the last; None is the end. Transpose and Einsum
    need the rank (onnx 1.18 ends the process on an Einsum of another rank than its equation says).
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
    """Return statements: `result` is `x` with the last size of `source`.

    Parameters
    ----------
    result, x, source : str
        Names of values.
    axes : str
        All axes of `source` but the last.
    """
    return (
        f"{result}_i = ReduceMax <axes = [{axes}], keepdims = 0> ({source}) "
        f"{result} = Gather <axis = -1> ({x}, {result}_i)"
    )


def split_heads(result: str, x: str, count: int) -> str:
    """Return statements: `x` (batch, tokens, heads * size) as (batch, heads, tokens, size)."""
    split = reshaped(f"{result}_h", x, 0, 0, count, -1)
    return f"{split} {result} = Transpose <perm = [0, 2, 1, 3]> ({result}_h)"
