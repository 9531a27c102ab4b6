"""A node with the dependences, shapes and constants of what it reads, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind

Shape = tuple[int | None, ...]


DEPENDENT, PROPORTIONAL = 1, 2
"""How an element of a known array depends on the number of positions."""


class Known(NamedTuple):
    """A small array of numbers that follows from the graph and the shapes of its inputs."""

    array: np.ndarray
    tainted: np.ndarray | None = None
    """uint8, of the same shape: 0 for elements that do not depend on the number of positions,
    PROPORTIONAL for those that are a multiple of it, else DEPENDENT; None for all 0."""

    @property
    def marks(self) -> np.ndarray:
        """`tainted`, with zeros where it is None."""
        return np.zeros(self.array.shape, np.uint8) if self.tainted is None else self.tainted

    @property
    def is_tainted(self) -> bool:
        """Whether any element depends on the number of positions."""
        return self.tainted is not None and bool(self.tainted.any())


class NodeView:
    """One node at given shapes of the inputs."""

    __slots__ = (
        "_attributes",
        "_constant",
        "_shape_of",
        "inputs",
        "ins",
        "name",
        "opset",
        "positions",
        "proto",
    )

    def __init__(
        self,
        proto: onnx.NodeProto,
        name: str,
        inputs: Sequence[str],
        ins: Sequence[Dependence],
        shape_of: Callable[[str], Shape | None],
        constant: Callable[[str], Known | None],
        opset: int,
        positions: int,
    ) -> None:
        self.proto = proto
        self.name = name
        self.inputs = inputs
        """Names of what the node reads; "" for an input that is left out."""
        self.ins = ins
        """The dependence of each input; FREE for one that is left out."""
        self.opset = opset
        """Version of ai.onnx that the model imports."""
        self.positions = positions
        """Size of the source axis in these shapes."""
        self._shape_of = shape_of
        self._constant = constant
        self._attributes: dict[str, onnx.AttributeProto] | None = None

    @property
    def op(self) -> str:
        return self.proto.op_type

    def has(self, index: int) -> bool:
        """Whether the input is there."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def dep(self, index: int) -> Dependence:
        """The dependence of an input; FREE where it is left out."""
        return self.ins[index] if index < len(self.ins) else FREE

    @property
    def carriers(self) -> list[int]:
        """Inputs with the source positions along one of their axes."""
        return [i for i, dep in enumerate(self.ins) if dep.axis is not None]

    def shape(self, index: int) -> Shape | None:
        """Sizes of an input, None for one that is not known; None if not even the rank is."""
        return self._shape_of(self.inputs[index]) if self.has(index) else None

    def out_shape(self, index: int = 0) -> Shape | None:
        """Sizes of an output."""
        if index >= len(self.proto.output):
            return None
        return self._shape_of(self.proto.output[index])

    def rank(self, index: int) -> int | None:
        """Number of axes of an input."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def size(self, index: int, axis: int) -> int | None:
        """One size of an input."""
        shape = self.shape(index)
        return None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]

    def sizes_differ(self, carriers: Sequence[int]) -> bool:
        """Whether some inputs have more positions, or windows of them, than others."""
        sizes = {self.size(i, self.dep(i).axis or 0) for i in carriers}
        return len(sizes - {None}) > 1

    def attr(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        if self._attributes is None:
            self._attributes = {a.name: a for a in self.proto.attribute}
        found = self._attributes.get(name)
        return default if found is None else helper.get_attribute_value(found)

    def known(self, index: int) -> Known | None:
        """The value of an input, if it is small and follows from the graph and the shapes."""
        return self._constant(self.inputs[index]) if self.has(index) else None

    def constant(self, index: int) -> np.ndarray | None:
        """The value of an input, if it is known and no element depends on the positions."""
        found = self.known(index)
        return None if found is None or found.is_tainted else found.array

    def axes(self, index: int | None, attribute: str = "axes") -> list[int] | None:
        """Axes that an input (later opsets) or an attribute names, as written; None if unknown.

        An empty list stands for none named.
        """
        if index is not None and self.has(index):
            found = self.constant(index)
            return None if found is None else [int(a) for a in found.reshape(-1)]
        named = self.attr(attribute)
        return [] if named is None else [int(a) for a in np.atleast_1d(named)]

    # What rules return.

    def all(self, dep: Dependence) -> list[Dependence]:
        """The same dependence for every output."""
        return [dep] * max(len(self.proto.output), 1)

    def opaque(self, why: str = "") -> list[Dependence]:
        """Every output may depend on everything."""
        return self.all(self.broken(Kind.OPAQUE, why))

    def broken(self, kind: Kind, how: str = "", axis: int | None = None) -> Dependence:
        """A dependence that this node breaks."""
        is_resized = kind > Kind.CONTRACTED
        return Dependence(kind, axis, node=self.name, how=how, is_resized=is_resized)

    def lost(self, dep: Dependence, kind: Kind, how: str = "") -> Dependence:
        """The dependence of an output in which the positions lie on no axis any more."""
        gone = replace(dep, axis=None, outer=1, inner=1, is_uniform=False)
        if kind > Kind.CONTRACTED:
            return gone.resized(self.name, how, kind)
        return gone.broken(kind, self.name, how)


Rule = Callable[[NodeView], Sequence[Dependence]]
"""The dependence of each output. What the inputs lack on their way here is added by the caller."""


def join(first: Dependence, second: Dependence, node: str) -> Dependence:
    """Return the dependence of a value made of two, with the layout of the first.

    The worse kind prevails, and of two broken ones the first; windows are united.
    """
    if first is second or second.kind == Kind.FREE:
        return first
    merged = at_least(first, second)
    if first.is_uniform and second.axis is not None and not second.is_uniform:
        merged = replace(merged, outer=second.outer, inner=second.inner, is_uniform=False)
    if first.window != second.window:
        both = first.window.union(second.window)
        if both is None:
            return merged.broken(Kind.OPAQUE, node, "windows that advance differently")
        merged = replace(merged, window=both)
    return merged


def at_least(first: Dependence, second: Dependence) -> Dependence:
    """Return the first dependence with the kind of the second, if that is worse."""
    merged = first.with_coupled(second.coupled)
    if second.is_resized and not merged.is_resized:
        merged = replace(merged, is_resized=True)
    if second.is_broken and second.index is None:
        merged = merged.without_index()
    if second.kind > merged.kind and not merged.is_broken:
        return replace(merged, kind=second.kind, node=second.node, how=second.how)
    return merged
