"""View of one node for the rules: its inputs' dependences, shapes and constants; and joining.

`NodeView` offers what a rule reads and the results that it commonly returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.modelio.operator_names import public_op_type

Shape = tuple[int | None, ...]
"""Sizes of a value's axes; None for a size that is not known."""

DEPENDENT, PROPORTIONAL = 1, 2
"""Marks of elements of a `Known` array: a function, or a multiple, of the number of positions."""


class Known(NamedTuple):
    """A small array computed from constants and shapes, with a taint mark for each element."""

    array: np.ndarray
    """The elements at the sizes under analysis."""
    tainted: np.ndarray | None = None
    """Marks: uint8, same shape as `array`; 0 for elements that do not depend on the number of
    positions, PROPORTIONAL for multiples of it, DEPENDENT for other functions of it. None: all 0.
    """

    @property
    def marks(self) -> np.ndarray:
        """Marks as an array, with zeros where `tainted` is None."""
        return np.zeros(self.array.shape, np.uint8) if self.tainted is None else self.tainted

    @property
    def is_tainted(self) -> bool:
        """True if any element depends on the number of positions."""
        return self.tainted is not None and bool(self.tainted.any())


class NodeView:
    """One node of a graph at definite shapes of the graph's inputs.

    Parameters
    ----------
    proto : onnx.NodeProto
    name : str
        Name of the node in reports; unique in the graph.
    inputs : sequence of str
        Names of the inputs; "" for one that is omitted.
    ins : sequence of Dependence
        Dependence of each input.
    shape_of : function of a name
        Returns the sizes of a value, or None if its rank is not known.
    constant : function of a name
        Returns the value of a small known tensor, or None.
    opset : int
        Version of the ai.onnx operator set that the model imports.
    positions : int
        Size of the source axis.
    """

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
        """Names of the inputs; "" for one that is omitted."""
        self.ins = ins
        """Dependence of each input; FREE for one that is omitted."""
        self.opset = opset
        """Version of the ai.onnx operator set that the model imports."""
        self.positions = positions
        """Size of the source axis."""
        self._shape_of = shape_of
        self._constant = constant
        self._attributes: dict[str, onnx.AttributeProto] | None = None

    @property
    def op(self) -> str:
        """Operator type of the node; "" in domains of other owners than ONNX and its runtime."""
        return public_op_type(self.proto)

    def has(self, index: int) -> bool:
        """Return whether the node has the input at `index`."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def dep(self, index: int) -> Dependence:
        """Return the dependence of an input; FREE if it is omitted."""
        return self.ins[index] if index < len(self.ins) else FREE

    @property
    def carriers(self) -> list[int]:
        """Indices of the inputs that carry the source positions along one of their axes."""
        return [i for i, dep in enumerate(self.ins) if dep.axis is not None]

    def shape(self, index: int) -> Shape | None:
        """Return the sizes of an input; None if its rank is not known or it is omitted."""
        return self._shape_of(self.inputs[index]) if self.has(index) else None

    def out_shape(self, index: int = 0) -> Shape | None:
        """Return the sizes of an output; None if its rank is not known or it does not exist."""
        if index >= len(self.proto.output):
            return None
        return self._shape_of(self.proto.output[index])

    def rank(self, index: int) -> int | None:
        """Return the number of axes of an input; None if it is not known."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def size(self, index: int, axis: int) -> int | None:
        """Return the size of one axis of an input; None if it is not known or out of range."""
        shape = self.shape(index)
        return None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]

    def sizes_differ(self, carriers: Sequence[int]) -> bool:
        """Return whether the inputs `carriers` differ in size along the axis of the positions."""
        sizes = {self.size(i, self.dep(i).axis or 0) for i in carriers}
        return len(sizes - {None}) > 1

    def attr(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or `default`."""
        if self._attributes is None:
            self._attributes = {a.name: a for a in self.proto.attribute}
        found = self._attributes.get(name)
        return default if found is None else helper.get_attribute_value(found)

    def known(self, index: int) -> Known | None:
        """Return the value of an input if it is small and follows from constants and shapes."""
        return self._constant(self.inputs[index]) if self.has(index) else None

    def constant(self, index: int) -> np.ndarray | None:
        """Return the value of an input if it is known and free of the number of positions."""
        found = self.known(index)
        return None if found is None or found.is_tainted else found.array

    def axes(self, index: int | None, attribute: str = "axes") -> list[int] | None:
        """Return the axes that an input (later opsets) or an attribute names, as written.

        None if the input's value is unknown; an empty list if no axes are named.
        """
        if index is not None and self.has(index):
            found = self.constant(index)
            return None if found is None else [int(a) for a in found.reshape(-1)]
        named = self.attr(attribute)
        return [] if named is None else [int(a) for a in np.atleast_1d(named)]

    # Results of rules.

    def all(self, dep: Dependence) -> list[Dependence]:
        """Return `dep` for every output."""
        return [dep] * max(len(self.proto.output), 1)

    def opaque(self, why: str = "") -> list[Dependence]:
        """Return a dependence of kind OPAQUE for every output; `why` is the reason in brief."""
        return self.all(self.broken(Kind.OPAQUE, why))

    def broken(self, kind: Kind, how: str = "", axis: int | None = None) -> Dependence:
        """Return a new dependence that this node breaks, with the positions on `axis` or none."""
        is_resized = kind > Kind.CONTRACTED
        return Dependence(kind, axis, node=self.name, how=how, is_resized=is_resized)

    def lost(self, dep: Dependence, kind: Kind, how: str = "") -> Dependence:
        """Return `dep` broken by this node, for an output without an axis of positions."""
        gone = replace(dep, axis=None, outer=1, inner=1, is_uniform=False)
        if kind > Kind.CONTRACTED:
            return gone.resized(self.name, how, kind)
        return gone.broken(kind, self.name, how)


Rule = Callable[[NodeView], Sequence[Dependence]]
"""Function from a node's view to the dependence of each output (a transfer function).

A rule describes its own operator only: `propagate` joins the result with what the nodes before have
broken already.
"""


def join(first: Dependence, second: Dependence, node: str) -> Dependence:
    """Return the dependence of a value computed from two, with the layout of the first.

    The larger kind prevails; of two broken ones the first is kept. Windows are united; if their
    strides differ, the result is OPAQUE, decided by `node`.
    """
    if first is second or second.kind == Kind.FREE:
        return first
    merged = with_kind_of(first, second)
    if first.is_uniform and second.axis is not None and not second.is_uniform:
        merged = replace(merged, outer=second.outer, inner=second.inner, is_uniform=False)
    if first.window != second.window:
        both = first.window.union(second.window)
        if both is None:
            return merged.broken(Kind.OPAQUE, node, "windows of different strides")
        merged = replace(merged, window=both)
    return merged


def with_kind_of(first: Dependence, second: Dependence) -> Dependence:
    """Return the first dependence, raised to the kind of the second if that is larger.

    The layout of the second is ignored.
    """
    merged = first.with_coupled(second.coupled)
    if second.is_resized and not merged.is_resized:
        merged = replace(merged, is_resized=True)
    if second.is_broken and second.index is None:
        merged = merged.without_index()
    if second.kind > merged.kind and not merged.is_broken:
        return replace(merged, kind=second.kind, node=second.node, how=second.how)
    return merged
