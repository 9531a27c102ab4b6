"""Effect of one node on a value in shards, and the operands that have to be cut with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.shard_layout import Layout

How = Literal["through", "sum", "stop"]
"""Effect of a node: see `Step.how`."""

ALL_ELEMENTS = -1
"""Stands for all elements of an operand, in place of an index."""


@dataclass(frozen=True, slots=True)
class Step:
    """Effect of a node on shards, with the operands and attributes that each shard needs."""

    how: How
    """Kind of effect.

    "through": each shard of the outputs follows from one shard of the inputs; "sum": each shard
    computes a partial sum of the output; "stop": the node needs whole values.
    """
    outputs: Sequence[Dependence] = ()
    """Dependence of each output on the shards."""
    cuts: Mapping[int, Layout] = field(default_factory=dict)
    """Inputs, by position, that are whole before the node and of which each shard reads a slice."""
    first_shard_inputs: frozenset[int] = frozenset()
    """Inputs that only the first shard reads, such as a bias: the shards' results are added."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes whose value differs in a shard."""
    divided: Mapping[int, int] = field(default_factory=dict)
    """Inputs that hold sizes, by position, to the element (or `ALL_ELEMENTS`) to divide by the
    number of shards."""
    scaled: frozenset[int] = frozenset()
    """Elements (or `ALL_ELEMENTS`) of an output of sizes that are to be multiplied by the number of
    shards."""
    kind: Kind = Kind.FREE
    """Kind of dependence for which the node stops."""
    reason: str = ""
    """Explanation of `kind`, with the numbers."""
    needs_global_statistic: bool = False
    """True if the node stops because of a quantisation statistic over the whole value."""


def stop(kind: Kind, reason: str) -> Step:
    """Return the step of a node that needs whole values."""
    return Step("stop", kind=kind, reason=reason)


def layout_of(dep: Dependence) -> Layout:
    """Return the layout of a value in shards."""
    assert dep.axis is not None
    return Layout(dep.axis, dep.outer, dep.inner)


def dependence_of(layout: Layout) -> Dependence:
    """Return the dependence for a layout; the shards are the positions of the axis analysis."""
    return Dependence(Kind.INDEPENDENT, layout.axis, layout.outer, layout.inner)


class ProductWeight(NamedTuple):
    """Roles of the inputs and axes of a product with weights."""

    data: int
    """Position of the input with data."""
    weight: int
    """Position of the input with weights."""
    columns: int
    """Axis of the weight that is an axis of the result."""
    rows: int
    """Axis of the weight that is summed over, with an axis of the data."""
    result: int
    """Axis of the result that corresponds to the columns."""
    contracted: int
    """Axis of the data that is summed over."""
    column_inputs: Mapping[int, int] = MappingProxyType({})
    """Further inputs with an axis of the columns, to that axis; negative axes count from the
    end."""
    addends: frozenset[int] = frozenset()
    """Inputs that are added to the sum."""
    is_sum: bool = True
    """True if the result is a plain sum, so that partial sums can be added."""


def _product(
    view: NodeView,
    data: int,
    weight: int,
    column_inputs: Mapping[int, int] = MappingProxyType({}),
    addends: frozenset[int] = frozenset(),
    is_sum: bool = True,
) -> list[ProductWeight]:
    """Return the roles in a stack of matrix products whose second operand is the weight."""
    a, b, rank = view.rank(data), view.rank(weight), len(view.out_shape() or ())
    if a is None or b is None or min(a, b, rank) < 2:
        return []
    return [
        ProductWeight(data, weight, b - 1, b - 2, rank - 1, a - 1, column_inputs, addends, is_sum)
    ]


def _matmul(view: NodeView) -> list[ProductWeight]:
    """Return the roles with the weight on either side."""
    turned = [
        ProductWeight(1, 0, each.contracted - 1, each.contracted, each.result - 1, each.rows)
        for each in _product(view, 0, 1)
    ]
    return [*_product(view, 0, 1), *turned]


def _gemm(view: NodeView) -> list[ProductWeight]:
    columns, rows = (0, 1) if view.attr("transB", 0) else (1, 0)
    contracted = 0 if view.attr("transA", 0) else 1
    is_sum = not view.attr("activation")
    addends = frozenset((2,)) if view.has(2) else frozenset()
    column_inputs = {2: -1} if view.has(2) else {}
    return [ProductWeight(0, 1, columns, rows, 1, contracted, column_inputs, addends, is_sum)]


def _fused_matmul(view: NodeView) -> list[ProductWeight]:
    a, b, rank = view.rank(0), view.rank(1), len(view.out_shape() or ())
    if (
        a is None
        or b is None
        or min(a, b) < 2
        or view.attr("transBatchA")
        or view.attr("transBatchB")
    ):
        return []
    columns, rows = (b - 2, b - 1) if view.attr("transB", 0) else (b - 1, b - 2)
    return [
        ProductWeight(0, 1, columns, rows, rank - 1, a - 2 if view.attr("transA", 0) else a - 1)
    ]


def _conv(data: int, weight: int, column_inputs: Mapping[int, int], bias: int | None) -> _Family:
    def family(view: NodeView) -> list[ProductWeight]:
        if view.attr("group", 1) != 1 or (view.op == "FusedConv" and view.has(3)):
            return []
        present = {i: axis for i, axis in column_inputs.items() if view.has(i)}
        addends = frozenset((bias,)) if bias is not None and view.has(bias) else frozenset()
        is_sum = view.op in ("Conv", "ConvInteger", "ConvTranspose")
        columns, rows = (1, 0) if view.op == "ConvTranspose" else (0, 1)
        return [ProductWeight(data, weight, columns, rows, 1, 1, present, addends, is_sum)]

    return family


def _quantized(
    first: int, second: int, column_inputs: Sequence[int], bias: int | None, *, is_sum: bool
) -> _Family:
    def family(view: NodeView) -> list[ProductWeight]:
        addends = frozenset((bias,)) if bias is not None and view.has(bias) else frozenset()
        present = {i: -1 for i in column_inputs if view.has(i)}
        return _product(view, first, second, present, addends, is_sum)

    return family


def _einsum(view: NodeView) -> list[ProductWeight]:
    """Return the roles in an Einsum of two terms without an ellipsis.

    There is one entry for each letter of the result that only the weight has.
    """
    equation = view.attr("equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or "." in equation:
        return []
    found = []
    for data, weight in ((0, 1), (1, 0)):
        result_letters = [c for c in terms[weight] if c in right and c not in terms[data]]
        summed = [c for c in terms[weight] if c in terms[data] and c not in right]
        for column in reversed(result_letters):
            found += [
                ProductWeight(
                    data,
                    weight,
                    terms[weight].index(column),
                    terms[weight].index(row),
                    right.index(column),
                    terms[data].index(row),
                )
                for row in summed
            ]
    return found


_Family = Callable[[NodeView], list[ProductWeight]]
"""Function from a node to the possible roles of its inputs."""

_WEIGHTS: Mapping[tuple[str, str], _Family] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Einsum"): _einsum,
    ("", "Conv"): _conv(0, 1, {2: 0}, 2),
    ("", "ConvTranspose"): _conv(0, 1, {2: 0}, 2),
    ("", "ConvInteger"): _conv(0, 1, {3: 0}, None),
    ("", "QLinearConv"): _conv(0, 3, {4: 0, 5: 0, 8: 0}, 8),
    ("", "MatMulInteger"): _quantized(0, 1, (3,), None, is_sum=True),
    ("", "QLinearMatMul"): _quantized(0, 3, (4, 5), None, is_sum=False),
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "FusedGemm"): _gemm,
    ("com.microsoft", "FusedConv"): _conv(0, 1, {2: 0}, 2),
    ("com.microsoft", "MatMulInteger16"): _quantized(0, 1, (3,), None, is_sum=True),
    ("com.microsoft", "MatMulIntegerToFloat"): _quantized(0, 1, (3, 5, 6), 6, is_sum=True),
    ("com.microsoft", "DynamicQuantizeMatMul"): _quantized(0, 1, (2, 3, 4), 4, is_sum=False),
}
"""Roles of inputs, by operator."""


def weights_of(view: NodeView) -> list[ProductWeight]:
    """Return the possible roles of a product's inputs; empty for any other node."""
    family = _WEIGHTS.get((view.proto.domain, view.op))
    return [] if family is None else family(view)


def column_step(view: NodeView, weight: ProductWeight, outer: int) -> Step:
    """Return the step of a product whose data are whole and whose weight is cut by columns.

    Parameters
    ----------
    outer : int
        Number of blocks that are cut separately: 3 for queries, keys and values side by side.
    """
    columns = view.size(weight.weight, weight.columns)
    if columns is None:
        return stop(Kind.OPAQUE, f"the size of {view.proto.input[weight.weight]!r} is unknown")
    if columns % (outer * view.positions):
        return stop(
            Kind.FACTORED,
            f"{columns} columns of {view.proto.input[weight.weight]!r} cannot be divided into "
            f"{view.positions} equal shards" + (f" in {outer} blocks" if outer > 1 else ""),
        )
    cut = Layout(weight.columns, outer, columns // (outer * view.positions))
    cuts = {weight.weight: cut}
    # Inputs with one element for all columns (a scalar scale, say) stay whole.
    for index, axis in weight.column_inputs.items():
        if index == weight.weight or not view.has(index):
            continue
        shape = view.shape(index)
        if shape is None:
            return stop(Kind.OPAQUE, f"the shape of {view.proto.input[index]!r} is unknown")
        if shape and shape[axis] != 1:
            cuts[index] = replace(cut, axis=axis % len(shape))
    result = Dependence(Kind.INDEPENDENT, weight.result, cut.outer, cut.inner)
    return Step("through", view.all(result), cuts)


def partial_sum_step(view: NodeView, weight: ProductWeight) -> Step:
    """Return the step of a product that sums over the cut axis of its data."""
    dep, size = view.dep(weight.data), view.size(weight.weight, weight.rows)
    name = view.proto.input[weight.weight]
    if not weight.is_sum:
        return stop(
            Kind.CONTRACTED, "its result is not a plain sum, so that partial sums cannot be added"
        )
    if size != dep.outer * dep.inner * view.positions:
        return stop(Kind.CONTRACTED, f"{name!r} has {size} rows, which do not match the shards")
    cuts = {weight.weight: Layout(weight.rows, dep.outer, dep.inner)}
    return Step("sum", view.all(FREE), cuts, weight.addends)
