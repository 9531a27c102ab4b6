"""View of a node that is to be rewritten for any number of rows, for its operator's fix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import helper

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.opening.constants import Constants, repeat_row
from dask_onnx.analysis.opening.draft import Draft, Layout, NotOpenedError, Rows


class Alternative(NamedTuple):
    """One way to write a node."""

    label: object
    """Identity of the choice: of nodes with equal alternatives, the one that worked is tried first.
    """
    write: Callable[[], None]
    """Function that appends the node to the draft; raises NotOpenedError if this way fails."""


class Site:
    """A node of the original graph, with the draft that it is to be written to.

    Parameters
    ----------
    draft : Draft
    constants : Constants
    index : int
        Index of the node in the original graph.
    """

    def __init__(self, draft: Draft, constants: Constants, index: int) -> None:
        self.draft, self.constants = draft, constants
        self.facts = draft.facts.nodes[index]
        self.original = draft.facts.proto.graph.node[index]
        self.proto = onnx.NodeProto()
        """Copy of the node, for changes."""
        self.reset()

    def reset(self) -> None:
        """Undo all changes of the copy."""
        self.proto.CopyFrom(self.original)

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.facts.name

    def has(self, index: int) -> bool:
        """Return whether the node has the input at `index`."""
        return index < len(self.original.input) and bool(self.original.input[index])

    def dep(self, index: int) -> Dependence:
        """Return the dependence of an input on the rows; FREE if it is omitted."""
        return self.draft.dep(self.original.input[index] if self.has(index) else "")

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape of an input at the exported number of rows; None if unknown."""
        return self.draft.exported_shape(self.original.input[index]) if self.has(index) else None

    def out_shape(self, index: int = 0) -> tuple[int, ...] | None:
        """Return the shape of an output at the exported number of rows; None if unknown."""
        return self.draft.exported_shape(self.original.output[index])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute of the original node, or `default`."""
        for attribute in self.original.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def set(self, name: str, value: Any) -> None:
        """Set an attribute of the copy; None removes it."""
        kept = [a for a in self.proto.attribute if a.name != name]
        del self.proto.attribute[:]
        self.proto.attribute.extend(kept)
        if value is not None:
            self.proto.attribute.append(helper.make_attribute(name, value))

    def constant(self, index: int) -> list[int] | None:
        """Return the integers of an input, flattened; None if unknown or a function of the rows."""
        known = self.draft.fixed(self.original.input[index]) if self.has(index) else None
        if known is None or known.is_tainted or known.array.dtype.kind not in "iu":
            return None
        return [int(n) for n in known.array.reshape(-1)]

    def carriers(self, operands: Sequence[int] | None = None) -> list[int]:
        """Return the inputs that carry the rows on an axis, those with uniform rows last."""
        among = range(len(self.original.input)) if operands is None else operands
        found = [i for i in among if self.dep(i).axis is not None]
        return sorted(found, key=lambda i: self.dep(i).is_uniform)

    def emit(self, note: str = "") -> None:
        """Append the changed copy to the draft, with a description of the change."""
        self.draft.emit(self.proto, note)

    def keep(self) -> list[Alternative]:
        """Return the only alternative: the node unchanged."""
        return [Alternative("kept", self.emit)]

    def refuse(self, kind: Kind, how: str) -> NotOpenedError:
        """Return the error for a node that cannot be rewritten."""
        return NotOpenedError(self.name, kind, how)

    def repeat(self, index: int, layout: Layout) -> None:
        """Replace an input by its single row repeated for each row of the batch."""
        name = self.original.input[index]
        self.proto.input[index] = repeat_row(self.draft, self.constants, name, layout, self.name)

    def repeat_all(self, layouts: Mapping[int, Layout]) -> None:
        """Repeat the single row of several inputs for each row, and append the node."""
        for index, layout in layouts.items():
            self.repeat(index, layout)
        self.emit(f"repeats {', '.join(self.original.input[i] for i in layouts)} for each row")

    @property
    def is_unmerged(self) -> bool:
        """True if the rows of the first input are not merged with an axis of dynamic size."""
        dep = self.dep(0)
        return self.draft.is_static or (dep.outer, dep.inner) == (1, 1)

    def replaced(self, index: int, rank: int, place: int, element: int | Rows) -> str:
        """Return the name of a shape equal to an input but for the element at `place`.

        Parameters
        ----------
        index : int
            Index of the input, an int64 vector.
        rank : int
            Number of its elements.
        place : int
            Element to replace.
        element : int or Rows
        """
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

    def has_exported_rows(self, index: int, layout: Layout) -> bool:
        """Return whether a FREE input has the exported number of rows at `layout`."""
        axis, outer, inner = layout
        shape = self.shape(index)
        if not self.has(index) or self.dep(index).kind != Kind.FREE or shape is None:
            return False
        return 0 <= axis < len(shape) and shape[axis] == self.draft.rows * outer * inner


Fix = Callable[[Site], list[Alternative]]
"""Function that returns the alternatives of a node, the most likely first."""


def single(write: Callable[[], None], label: object = "rewritten") -> list[Alternative]:
    """Return a list of one alternative."""
    return [Alternative(label, write)]
