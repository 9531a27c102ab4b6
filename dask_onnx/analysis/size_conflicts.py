"""Nodes that cannot run at given sizes: constants inside a graph that name another size.

An exporter may declare an open batch and still write the number of rows that it saw into the target
of a Reshape, an initial state or a table. `first_conflict` finds such a node at definite sizes,
without running anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from onnx import NodeProto, helper

from dask_onnx.analysis.axes import value_rules
from dask_onnx.analysis.axes.table import rule_of
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.known_constants import constant_array
from dask_onnx.analysis.operands import Specs
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim
from dask_onnx.modelio.operator_names import standard_op_type

_BROADCASTING = 7
"""Version of ai.onnx from which on operands are aligned at their last axes."""
_FIRST_IS_DATA = frozenset(
    """Flatten ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Split Squeeze Transpose
    Unsqueeze""".split()
)
"""Operators in which the values of the first input do not determine the sizes of the outputs."""
_RECURRENT = ("RNN", "GRU", "LSTM")
_ROWS_OF_STATE = {4: 0, 5: 1, 6: 1}
"""Inputs of a recurrent operator (lengths and initial states) to their axis of rows in layout 0; in
layout 1 it is 0."""


@dataclass(frozen=True, slots=True)
class SizeConflict:
    """Two sizes that a node needs to be equal, and that are not."""

    node: str
    """Name of the node."""
    op_type: str
    """Operator of the node."""
    sizes: tuple[int, int]
    """The two sizes, in elements: numbers of elements for a Reshape, lengths of an axis else."""
    what: str
    """The sizes in words: "a constant shape of 12 elements for 18"."""

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.op_type}) has {self.what}"


@dataclass(frozen=True, slots=True)
class _Use:
    """One node, with the shapes and constants of its inputs."""

    facts: GraphFacts
    node: NodeFacts
    specs: Specs

    @property
    def proto(self) -> NodeProto:
        proto: NodeProto = self.facts.proto.graph.node[self.node.index]
        return proto

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape of an input; None if it is left out or not fully known."""
        if index >= len(self.node.inputs) or not self.node.inputs[index]:
            return None
        spec = self.specs.get(self.node.inputs[index])
        if spec is None or spec.shape is None:
            return None
        sizes = tuple(size for size in spec.shape if isinstance(size, int))
        return sizes if len(sizes) == len(spec.shape) else None

    def integers(self, index: int) -> list[int] | None:
        """Return a constant input, flattened; None for other values."""
        if index >= len(self.node.inputs) or not self.node.inputs[index]:
            return None
        array = constant_array(self.facts, self.node.inputs[index])
        if array is None or array.dtype.kind not in "iu":
            return None
        return [int(number) for number in array.reshape(-1)]

    def attribute(self, name: str, default: object = None) -> object:
        found = next((a for a in self.proto.attribute if a.name == name), None)
        return default if found is None else helper.get_attribute_value(found)


_Found = tuple[tuple[int, int], str] | None
"""Two sizes that differ, and both in words."""


def conflict_at(
    facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]], schemas: Schemas | None = None
) -> SizeConflict | None:
    """Return a node that cannot run with inputs of these shapes; None if none is found.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of str to tuple of int, str or None
        Shapes of inputs by name.
    schemas : Schemas, optional
        Operators of other domains.
    """
    return first_conflict(facts, infer_shapes(facts, shapes, schemas))


def first_conflict(facts: GraphFacts, specs: Specs) -> SizeConflict | None:
    """Return the first node that certainly cannot run at these sizes; None if none is found.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
        Specs at definite sizes of the inputs, as `infer_shapes` returns them. Nodes with inputs of
        unknown shape are passed over, and so are the bodies of If, Loop and Scan.
    """
    live = facts.live
    for node in facts.nodes:
        check = _check_of(node)
        if check is None or node.index not in live:
            continue
        found = check(_Use(facts, node, specs))
        if found is not None:
            return SizeConflict(node.name, node.op_type, *found)
    return None


def knows_sizes(facts: GraphFacts, specs: Specs) -> bool:
    """Return whether `first_conflict` knows the sizes that it compares, and passes over no node.

    Parameters
    ----------
    facts, specs
        As for `first_conflict`.
    """
    return all(
        _Use(facts, node, specs).shape(index) is not None
        for node in facts.nodes
        if node.index in facts.live and _check_of(node) is not None
        for index, name in enumerate(node.inputs)
        if name
    )


def may_name_sizes(facts: GraphFacts) -> bool:
    """Return whether a constant of the graph may name a number of rows, by a look at each node.

    True for a Reshape to a constant shape without open elements, for constant initial states, for
    constants with several entries on their first axis beside data, and for a Squeeze of axes, if
    the size of what they meet may follow from that of an input.
    """
    growing = _growing(facts)
    return any(
        node.index in facts.live
        and not growing.isdisjoint(node.inputs)
        and (check := _check_of(node)) is not None
        and _may_conflict(facts, node, check)
        for node in facts.nodes
    )


def _growing(facts: GraphFacts) -> set[str]:
    """Return the values whose sizes may follow from those of the inputs.

    Sizes themselves, as Shape returns them, are vectors of fixed length.
    """
    growing, counts = set(facts.inputs), set[str]()
    for node in facts.nodes:
        op_type = standard_op_type(node)
        if not growing.isdisjoint(node.reads):
            found = counts if op_type in ("Shape", "Size") else growing
        elif not counts.isdisjoint(node.reads):
            found = counts if _keeps_sizes(node, counts) else growing
        else:
            continue
        found.update(node.outputs)
    return growing


def _keeps_sizes(node: NodeFacts, counts: Set[str]) -> bool:
    """Return whether the sizes of a node's outputs are the same for any values of `counts`."""
    op_type = standard_op_type(node)
    if op_type in ("Concat", "Gather") or _is_elementwise(node):
        return True
    return op_type in _FIRST_IS_DATA and counts.isdisjoint((*node.inputs[1:], *node.captures))


def _may_conflict(facts: GraphFacts, node: NodeFacts, check: Callable[[_Use], _Found]) -> bool:
    use = _Use(facts, node, {})
    if check is _reshape:
        target = use.integers(1)
        return target is not None and len(target) > 1 and max(target) > 0 and min(target) != 0
    if check is _expand:
        return use.integers(1) is not None
    if check is _squeeze:
        return True
    if check is _conv:  # with one group for each row, whose weights another part computes
        return node.inputs[1] not in facts.initializers
    if check is _recurrent:
        return any(i < len(node.inputs) and _dims(facts, node.inputs[i]) for i in _ROWS_OF_STATE)
    sizes = [_dims(facts, name) for name in node.inputs]
    if None not in sizes:
        return False  # follows from constants alone
    return any(dims is not None and len(dims) > 1 and dims[0] > 1 for dims in sizes)


def _dims(facts: GraphFacts, name: str) -> tuple[int, ...] | None:
    """Return the shape of a constant, or of what a constant shape is filled with; else None."""
    if name in facts.initializers:
        found = facts.tensors.get(name)
        return None if found is None else tuple(found.dims)
    index = facts.producer.get(name)
    # Asked for each edge of a graph, most of which come from other operators.
    if index is not None and facts.nodes[index].op_type not in ("Constant", "ConstantOfShape"):
        return None
    if index is not None and standard_op_type(facts.nodes[index]) == "ConstantOfShape":
        target = _Use(facts, facts.nodes[index], {}).integers(0)
        return None if target is None else tuple(target)
    array = constant_array(facts, name)
    return None if array is None else array.shape


def _check_of(node: NodeFacts) -> Callable[[_Use], _Found] | None:
    op_type = standard_op_type(node)
    if op_type is None or op_type in _CHECKS:
        return _CHECKS.get(op_type)
    return _broadcast if _is_elementwise(node) and len(node.inputs) > 1 else None


def _is_elementwise(node: NodeFacts) -> bool:
    op_type = standard_op_type(node)
    return op_type is not None and rule_of("", op_type, {}).rule is value_rules.elementwise


def _reshape(use: _Use) -> _Found:
    shape, target = use.shape(0), use.integers(1)
    if shape is None or target is None:
        return None
    if not use.attribute("allowzero", 0):
        if any(size == 0 and axis >= len(shape) for axis, size in enumerate(target)):
            return None
        target = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    given, wanted = math.prod(shape), math.prod(size for size in target if size != -1)
    fits = given == wanted if -1 not in target else wanted and given % wanted == 0
    if fits:
        return None
    return (given, wanted), f"a constant shape of {wanted} elements for {given}"


def _broadcast(use: _Use) -> _Found:
    if use.facts.model.opsets.get("", 1) < _BROADCASTING:
        return None
    shapes = [shape for i in range(len(use.node.inputs)) if (shape := use.shape(i)) is not None]
    return _clash(shapes)


def _expand(use: _Use) -> _Found:
    shape, target = use.shape(0), use.integers(1)
    return None if shape is None or target is None else _clash([shape, target])


def _clash(shapes: Sequence[Sequence[int]]) -> _Found:
    """Return two sizes that do not broadcast, if any."""
    for back in range(1, max(map(len, shapes), default=0) + 1):
        sizes = {shape[-back] for shape in shapes if len(shape) >= back} - {1}
        if len(sizes) > 1:
            first, second = sorted(sizes)[:2]
            return (first, second), f"sizes {first} and {second} on one axis"
    return None


def _concat(use: _Use) -> _Found:
    shapes = [shape for i in range(len(use.node.inputs)) if (shape := use.shape(i)) is not None]
    axis = use.attribute("axis", 0)
    if not shapes or not isinstance(axis, int) or len({len(shape) for shape in shapes}) > 1:
        return None
    for place in range(len(shapes[0])):
        sizes = {shape[place] for shape in shapes}
        if place != axis % len(shapes[0]) and len(sizes) > 1:
            first, second = sorted(sizes)[:2]
            return (first, second), f"sizes {first} and {second} on axis {place}"
    return None


def _matmul(use: _Use) -> _Found:
    left, right = use.shape(0), use.shape(1)
    if left is None or right is None or not left or not right:
        return None
    first, second = left[-1], right[-2] if len(right) > 1 else right[0]
    if first != second:
        return (first, second), f"matrices of {first} columns and {second} rows"
    return _clash([left[:-2], right[:-2]])


def _conv(use: _Use) -> _Found:
    data, weights, groups = use.shape(0), use.shape(1), use.attribute("group", 1)
    if data is None or weights is None or not isinstance(groups, int) or len(data) < 3:
        return None
    given, wanted = data[1], weights[1] * groups
    if given != wanted:
        return (given, wanted), f"{given} channels for weights of {wanted}"
    return None


def _squeeze(use: _Use) -> _Found:
    shape = use.shape(0)
    named = use.attribute("axes")
    axes = list(named) if isinstance(named, list | tuple) else use.integers(1)
    for axis in axes or () if shape is not None else ():
        assert shape is not None
        if -len(shape) <= axis < len(shape) and shape[axis] != 1:
            return (shape[axis], 1), f"an axis of {shape[axis]} to remove, which must be 1"
    return None


def _recurrent(use: _Use) -> _Found:
    data, layout = use.shape(0), use.attribute("layout", 0)
    if data is None or len(data) != 3 or layout not in (0, 1):
        return None
    rows = data[1 - int(layout == 1)]
    for index, axis in _ROWS_OF_STATE.items():
        shape = use.shape(index)
        place = 0 if layout == 1 else axis
        if shape is not None and len(shape) > place and shape[place] != rows:
            return (rows, shape[place]), f"a state of {shape[place]} rows for {rows}"
    return None


_CHECKS: Mapping[str | None, Callable[[_Use], _Found]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Concat": _concat,
    "Conv": _conv,
    "MatMul": _matmul,
    "Squeeze": _squeeze,
    **dict.fromkeys(_RECURRENT, _recurrent),
}
"""Check of each operator of ai.onnx, beside those that broadcast."""


def named_rows(at_sizes: Mapping[int, SizeConflict]) -> int | None:
    """Return the number of rows that a node takes, from its conflicts at several numbers of rows.

    Of two sizes one grows with the rows. The number of rows at which both are equal must be the
    same in all conflicts.

    Parameters
    ----------
    at_sizes : mapping of int to SizeConflict
        Conflicts of one node by the number of rows.
    """
    fitting = set.intersection(*(fitting_rows(*each) for each in at_sizes.items()))
    return fitting.pop() if len(fitting) == 1 else None


def fitting_rows(rows: int, conflict: SizeConflict) -> set[int]:
    """Return the numbers of rows at which the sizes in a conflict at `rows` may be equal."""
    return {
        other * rows // size
        for size, other in (conflict.sizes, conflict.sizes[::-1])
        if size and size % rows == 0 and other * rows % size == 0
    }
