"""Constant values exported for a number of rows: their elements, first row and repetition.

Such a value has equal rows. The rewritten graph keeps one of them and repeats it for each row of
the batch, or computes row numbers if that is what the value holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dask_onnx.analysis.axes import value_rules
from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import rule_of
from dask_onnx.analysis.opening.draft import Draft, Layout, NotOpenedError, Rows
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.value_types import numpy_dtype
from dask_onnx.modelio.weights import INLINE_BYTES, blob_of, is_external

RANDOM = frozenset(
    """RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli
    Dropout""".split()
)
"""Operators whose outputs may be random."""
_MAX_NODES = 64
"""Nodes of the largest constant subgraph that is evaluated."""
_MAX_ELEMENTS = 2**18
"""Elements of the largest tensor in it."""


class Constants:
    """Elements of constant values, computed on demand and kept.

    Parameters
    ----------
    draft : Draft
        Draft of the graph.
    read_weights : bool
        True to read external initializers from the model's files.
    """

    def __init__(self, draft: Draft, *, read_weights: bool) -> None:
        self._draft = draft
        self._reads = read_weights
        self._tensors = draft.facts.tensors
        self._found: dict[str, np.ndarray | None] = {}
        self._draws = any(standard_op_type(node) in RANDOM for node in draft.facts.nodes)

    def of(self, name: str) -> np.ndarray | None:
        """Return the elements of a value computed from initializers.

        None if it depends on inputs, is random, or is too large.
        """
        if name not in self._found:
            tensor = self._tensors.get(name)
            self._found[name] = self._evaluated(name) if tensor is None else self._read(tensor)
        if self._found[name] is None:
            # Computed from shapes, but not from the number of rows.
            known = self._draft.fixed(name)
            return None if known is None or known.is_tainted else known.array
        return self._found[name]

    def is_inline(self, name: str) -> bool:
        """Return whether a value is an initializer stored in the proto itself."""
        return name in self._tensors and not is_external(self._tensors[name])

    def _read(self, tensor: onnx.TensorProto) -> np.ndarray | None:
        """Return the elements of an initializer; None if it is external and not to be read."""
        if not is_external(tensor):
            return numpy_helper.to_array(tensor)
        key, offset, length = blob_of(tensor)
        if not self._reads and key not in self._draft.facts.model.blobs:
            return None
        data = self._draft.facts.model.blob_bytes(key)[offset : offset + length]
        dtype = numpy_dtype(tensor.data_type)
        if math.prod(tensor.dims) * dtype.itemsize != length:
            return None  # packed elements, such as int4, are not unpacked
        return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))

    def _evaluated(self, name: str) -> np.ndarray | None:
        """Return a value of a small constant subgraph, run by ONNX's reference evaluator."""
        facts = self._draft.facts
        nodes, read = facts.between((), [name])
        protos = [facts.proto.graph.node[index] for index in nodes]
        if len(nodes) > _MAX_NODES or not nodes or self.is_random(name):
            return None
        if any(proto.domain for proto in protos) or not read.isdisjoint(facts.inputs):
            return None
        given = [tensor for n in read if (tensor := self._tensors.get(n)) is not None]
        shapes = [self._draft.exported_shape(n) for proto in protos for n in proto.output if n]
        if any(s is None or math.prod(s) > _MAX_ELEMENTS for s in shapes):
            return None
        if any(is_external(t) or math.prod(t.dims) > _MAX_ELEMENTS for t in given):
            return None
        graph = helper.make_graph(
            protos, "constant", [], [helper.make_tensor_value_info(name, 0, None)], given
        )
        model = helper.make_model(graph, opset_imports=list(facts.proto.opset_import))
        try:
            return np.asarray(_run(model, name))
        except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, KeyError):
            return None  # the reference evaluator lacks an operator or rejects the operands

    def is_random(self, name: str) -> bool:
        """Return whether a value is random, or computed from one that is."""
        facts = self._draft.facts
        if not self._draws:
            return False
        return any(standard_op_type(facts.nodes[i]) in RANDOM for i in facts.ancestors([name]))

    def is_equal(self, name: str, layout: Layout) -> bool:
        """Return whether the rows of a value are known to be equal.

        Parameters
        ----------
        name : str
            Value exported for the draft's number of rows.
        layout : Layout
            Axis and blocks of the rows in it.
        """
        if self._draft.rows == 1:
            return True
        array = self.of(name)
        if array is not None:
            blocks = _blocks(array, layout, self._draft.rows)
            return bool(np.array_equal(blocks, np.broadcast_to(blocks[:, :1], blocks.shape)))
        return self._is_repeated(name, layout)

    def _is_repeated(self, name: str, layout: Layout) -> bool:
        """Return the same from the node that produces the value, if elements are not known."""
        draft, facts, (axis, outer, inner) = self._draft, self._draft.facts, layout
        index = facts.producer.get(name)
        shape = draft.exported_shape(name)
        if index is None or shape is None:
            return False
        node = facts.nodes[index]
        op_type = standard_op_type(node)
        if op_type == "ConstantOfShape":
            return True
        before = draft.exported_shape(node.inputs[0]) if node.inputs else None
        if op_type == "Expand" and before is not None:
            place = axis - len(shape) + len(before)
            if place < 0 or before[place] == 1:
                return True
            return self.is_equal(node.inputs[0], (place, outer, inner))
        if op_type == "Gather":
            picks = draft.exported_shape(node.inputs[1]) or ()
            first = _gather_axis(facts.proto.graph.node[index], before)
            is_picked = first is not None and first <= axis < first + len(picks)
            return is_picked and self.is_equal(node.inputs[1], (axis - (first or 0), outer, inner))
        if rule_of(node.domain, node.op_type, {}).rule is value_rules.elementwise:
            return all(self._is_aligned(name, len(shape), layout) for name in node.inputs if name)
        return False

    def _is_aligned(self, name: str, rank: int, layout: Layout) -> bool:
        """Return whether an operand that broadcasts to `rank` axes is equal for each row."""
        axis, outer, inner = layout
        shape = self._draft.exported_shape(name)
        if shape is None:
            return False
        place = axis - rank + len(shape)
        return place < 0 or shape[place] == 1 or self.is_equal(name, (place, outer, inner))


def _gather_axis(proto: onnx.NodeProto, shape: tuple[int, ...] | None) -> int | None:
    """Return the first axis of a Gather's output that stems from its indices; None if unknown."""
    axis = next((attribute.i for attribute in proto.attribute if attribute.name == "axis"), 0)
    return None if shape is None else int(axis) % len(shape)


def _run(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return one output of a model without inputs."""
    results: list[Any] = list(ReferenceEvaluator(model).run([name], {}))
    return np.asarray(results[0])


def _blocks(array: np.ndarray, layout: Layout, rows: int) -> np.ndarray:
    """Return an array reshaped to (elements before a row, rows, elements after)."""
    axis, outer, inner = layout
    before = math.prod(array.shape[:axis]) * outer
    return array.reshape(before, rows, math.prod(array.shape[axis + 1 :]) * inner)


def first_row(draft: Draft, constants: Constants, name: str, layout: Layout, node: str) -> str:
    """Return the name of a value that holds the first row of a constant value only.

    Parameters
    ----------
    draft : Draft
    constants : Constants
    name : str
        Value exported for the draft's number of rows.
    layout : Layout
        Axis and blocks of the rows in it.
    node : str
        Name of the node that reads it, for the error.

    Raises
    ------
    NotOpenedError
        The rows differ, are not known to be equal, or are random.
    """
    if constants.is_random(name):
        raise NotOpenedError(
            node, Kind.OPAQUE, f"{name!r} is random and drawn for a fixed number of rows"
        )
    if not constants.is_equal(name, layout):
        if constants.of(name) is None:
            raise NotOpenedError(node, Kind.OPAQUE, f"rows of {name!r} are not known to be equal")
        raise NotOpenedError(node, Kind.LENGTH, f"rows of {name!r} differ")
    if draft.rows == 1:
        return name
    axis, outer, inner = layout
    array = constants.of(name)
    shape = draft.exported_shape(name)
    assert shape is not None
    of_row = tuple(outer * inner if i == axis else size for i, size in enumerate(shape))
    is_small = array is not None and math.prod(of_row) * array.dtype.itemsize <= INLINE_BYTES
    if array is not None and (constants.is_inline(name) or is_small):
        row = _blocks(array, layout, draft.rows)[:, 0]
        return draft.constant(np.ascontiguousarray(row).reshape(of_row), name)
    if outer == 1:
        bounds = [draft.numbers([n], name) for n in (0, inner, axis)]
        return draft.helper("Slice", [name, *bounds], name)
    raise NotOpenedError(node, Kind.OPAQUE, f"rows of {name!r} are interleaved in blocks")


def repeat_row(draft: Draft, constants: Constants, name: str, layout: Layout, node: str) -> str:
    """Return the name of a value whose single row is repeated for each row of the batch.

    The parameters are those of `first_row`.

    Raises
    ------
    NotOpenedError
        As for `first_row`.
    """
    what = ("repeat", name, layout)
    if what in draft.helpers:
        return draft.helpers[what]
    axis, outer, inner = layout
    shape = draft.exported_shape(name)
    assert shape is not None
    row = first_row(draft, constants, name, layout, node)
    if not draft.is_fixed(name) and (outer != 1 or inner != 1):
        raise NotOpenedError(node, Kind.OPAQUE, f"{name!r} has a dynamic size besides the rows")
    if outer == inner == 1:
        repeated = draft.helper("Expand", [row, _row_shape(draft, len(shape), axis, name)], name)
    else:
        front, back = shape[:axis], shape[axis + 1 :]
        apart = draft.reshape(row, [*front, outer, 1, inner, *back], name)
        target = _row_shape(draft, len(shape) + 2, axis + 1, name)
        expanded = draft.helper("Expand", [apart, target], name)
        repeated = draft.reshape(expanded, [*front, -1, *back], name)
    draft.helpers[what] = repeated
    return repeated


def _row_shape(draft: Draft, rank: int, axis: int, base: str) -> str:
    """Return the name of a shape with the number of rows on `axis` and 1 on all other axes."""
    parts: list[int | Rows] = [Rows() if i == axis else 1 for i in range(rank)]
    return draft.shape_vector(parts, base)


def row_numbers(draft: Draft, rank: int, axis: int) -> str:
    """Return the name of the row numbers 0, 1, 2 ... along one axis of `rank`; int64."""
    scalars = [draft.constant(np.array(n, np.int64), "rows") for n in (0, 1)]
    count = draft.reshape(draft.count(), [], "rows")
    numbers = draft.helper("Range", [scalars[0], count, scalars[1]], "rows")
    return draft.reshape(numbers, [-1 if i == axis else 1 for i in range(rank)], "rows")


def counts_rows(array: np.ndarray, axis: int, rows: int) -> bool:
    """Return whether the integers along an axis are the row numbers 0 to rows - 1."""
    if array.shape[axis] != rows or array.dtype.kind not in "iu":
        return False
    expected = np.arange(rows).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return bool(np.array_equal(array, np.broadcast_to(expected, array.shape)))


def step_of(array: np.ndarray, axis: int) -> int:
    """Return the constant step of integers from row to row along an axis; 0 if it varies."""
    if array.dtype.kind not in "iu" or array.shape[axis] < 2:
        return 0
    steps = np.diff(array, axis=axis)
    first = int(steps.reshape(-1)[0]) if steps.size else 0
    return first if bool((steps == first).all()) else 0


def numbered_rows(draft: Draft, constants: Constants, name: str, layout: Layout, node: str) -> str:
    """Return the name of integers that grow by a constant step per row, for any number of rows.

    The parameters are those of `first_row`; the value's elements must be known.
    """
    array = constants.of(name)
    axis = layout[0]
    assert array is not None
    numbers = row_numbers(draft, array.ndim, axis)
    step = draft.constant(np.array(step_of(array, axis), array.dtype), node)
    first = draft.constant(np.take(array, [0], axis), node)
    return draft.helper("Add", [draft.helper("Mul", [numbers, step], node), first], node)
