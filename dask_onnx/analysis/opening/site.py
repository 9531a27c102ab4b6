"""A node that is to be written for any number of rows, as the rule of its operator sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.constants import Constants, spread
from dask_onnx.analysis.opening.draft import Draft, Layout, NotOpenedError, Rows


class Alternative(NamedTuple):
    """One way to write a node."""

    label: object
    """What it decides; equal nodes elsewhere are likely to want the same."""
    write: Callable[[], None]


class Site:
    """A node of the original graph, as its fix sees it."""

    def __init__(self, draft: Draft, constants: Constants, index: int) -> None:
        self.draft, self.constants = draft, constants
        self.facts = draft.facts.nodes[index]
        self.original = draft.facts.proto.graph.node[index]
        self.proto = onnx.NodeProto()
        """A copy, to be changed."""
        self.reset()

    def reset(self) -> None:
        """Undo what was changed in the node."""
        self.proto.CopyFrom(self.original)

    @property
    def name(self) -> str:
        """The node's name."""
        return self.facts.name

    def has(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.original.input) and bool(self.original.input[index])

    def dep(self, index: int) -> Dependence:
        """How an input depends on the rows."""
        return self.draft.dep(self.original.input[index] if self.has(index) else "")

    def shape(self, index: int) -> tuple[int, ...] | None:
        """The shape of an input at the exported number of rows."""
        return self.draft.exported_shape(self.original.input[index]) if self.has(index) else None

    def out_shape(self, index: int = 0) -> tuple[int, ...] | None:
        """The shape of an output at the exported number of rows."""
        return self.draft.exported_shape(self.original.output[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        for attribute in self.original.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def set(self, name: str, value: Any) -> None:
        """Change an attribute."""
        kept = [a for a in self.proto.attribute if a.name != name]
        del self.proto.attribute[:]
        self.proto.attribute.extend(kept)
        if value is not None:
            self.proto.attribute.append(helper.make_attribute(name, value))

    def constant(self, index: int) -> list[int] | None:
        """The whole numbers of an input that do not depend on the number of rows."""
        known = self.draft.fixed(self.original.input[index]) if self.has(index) else None
        if known is None or known.is_tainted or known.array.dtype.kind not in "iu":
            return None
        return [int(n) for n in known.array.reshape(-1)]

    def carriers(self, operands: Sequence[int] | None = None) -> list[int]:
        """Inputs with the rows on an axis, those first whose layout is definite."""
        among = range(len(self.original.input)) if operands is None else operands
        found = [i for i in among if self.dep(i).axis is not None]
        return sorted(found, key=lambda i: self.dep(i).is_uniform)

    def emit(self, note: str = "") -> None:
        """Write the node as it has become."""
        self.draft.emit(self.proto, note)

    def keep(self) -> list[Alternative]:
        """The node as it is."""
        return [Alternative("kept", self.emit)]

    def refuse(self, kind: Kind, how: str) -> NotOpenedError:
        """The error of a node that cannot be opened."""
        return NotOpenedError(self.name, kind, how)

    def spread(self, index: int, layout: Layout) -> None:
        """Repeat the one row of an input for every row."""
        name = self.original.input[index]
        self.proto.input[index] = spread(self.draft, self.constants, name, layout, self.name)

    def spread_all(self, layouts: Mapping[int, Layout]) -> None:
        """Repeat the one row of several inputs, and write the node."""
        for index, layout in layouts.items():
            self.spread(index, layout)
        self.emit(f"repeats {', '.join(self.original.input[i] for i in layouts)} for each row")

    @property
    def is_apart(self) -> bool:
        """Whether the rows of the first input are joined with nothing whose size is open."""
        dep = self.dep(0)
        return self.draft.is_definite or (dep.outer, dep.inner) == (1, 1)

    def replaced(self, index: int, rank: int, place: int, element: int | Rows) -> str:
        """Name of a shape of `rank` elements that is an input, with another element at a place."""
        numbers = self.constant(index)
        if numbers is not None:
            parts = [*numbers[:place], element, *numbers[place + 1 :]]
            return self.draft.shape_vector(parts, self.name)
        name, pieces = self.original.input[index], []
        for start, end in ((0, place), (place + 1, rank)):
            if start < end:
                bounds = [self.draft.numbers([n], self.name) for n in (start, end, 0)]
                pieces.append(self.draft.helper("Slice", [name, *bounds], self.name))
        pieces.insert(1 if place else 0, self.draft.shape_vector([element], self.name))
        return self.draft.helper("Concat", pieces, self.name, axis=0)

    def is_made_for_rows(self, index: int, layout: Layout) -> bool:
        """Whether an input that does not depend on the rows has as many as were exported."""
        axis, outer, inner = layout
        shape = self.shape(index)
        if not self.has(index) or self.dep(index).kind != Kind.FREE or shape is None:
            return False
        return 0 <= axis < len(shape) and shape[axis] == self.draft.rows * outer * inner


Fix = Callable[[Site], list[Alternative]]
"""How an operator is written: the ways, the likeliest first."""


def written(write: Callable[[], None], label: object = "rewritten") -> list[Alternative]:
    return [Alternative(label, write)]
