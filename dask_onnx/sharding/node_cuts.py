"""What one node does with a value that is cut into shards, and what else of it must be cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.shard_layout import Layout

How = Literal["through", "sum", "stop"]

EVERY = -1
"""All elements of an operand."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a node does with shards."""

    how: How
    """"through": each shard of the outputs is made of one shard; "sum": the output is the sum of
    what the shards make; "stop": it needs the whole value."""
    outputs: Sequence[Dependence] = ()
    cuts: Mapping[int, Layout] = field(default_factory=dict)
    """Inputs by position, whole until here, of which each shard needs its own part."""
    once: frozenset[int] = frozenset()
    """Inputs that only the first shard is given, since the shards' results are added."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes with another value in each shard."""
    divided: Mapping[int, int] = field(default_factory=dict)
    """Inputs that are sizes, by position, to the element (or `EVERY`) that is divided by the
    shards."""
    scaled: frozenset[int] = frozenset()
    """Elements (or `EVERY`) of the output, sizes of a shard, that are multiplied by the shards."""
    kind: Kind = Kind.FREE
    """Why it stops."""
    reason: str = ""
    """The same in words, with the numbers."""
    couples: bool = False
    """It stops for a quantisation statistic over the whole value."""


def stop(kind: Kind, reason: str) -> Step:
    """Return the step of a node that needs whole values."""
    return Step("stop", kind=kind, reason=reason)


def layout_of(dep: Dependence) -> Layout:
    """Return where the shards of a value lie."""
    assert dep.axis is not None
    return Layout(dep.axis, dep.outer, dep.inner)


def dependence_of(layout: Layout) -> Dependence:
    """Return the dependence of a value on the shards, which are the positions of the algebra."""
    return Dependence(Kind.INDEPENDENT, layout.axis, layout.outer, layout.inner)


class Weight(NamedTuple):
    """Where the weights of a product are among its inputs."""

    data: int
    weight: int
    columns: int
    """Axis of the weight that is an axis of the result."""
    rows: int
    """Axis of the weight that is summed over, with an axis of the data."""
    result: int
    """Axis of the result that the columns lie on."""
    contracted: int
    """Axis of the data that is summed over."""
    along: Mapping[int, int] = MappingProxyType({})
    """Further inputs with an axis of the columns, to that axis; negative ones from the end."""
    once: frozenset[int] = frozenset()
    """Inputs that are added to the sum."""
    is_sum: bool = True
    """The result is a plain sum, so that partial results can be added."""


def _product(
    v: NodeView,
    data: int,
    weight: int,
    along: Mapping[int, int] = MappingProxyType({}),
    once: frozenset[int] = frozenset(),
    is_sum: bool = True,
) -> list[Weight]:
    """Of a stack of matrix products, whose second operand is the weight."""
    a, b, rank = v.rank(data), v.rank(weight), len(v.out_shape() or ())
    if a is None or b is None or min(a, b, rank) < 2:
        return []
    return [Weight(data, weight, b - 1, b - 2, rank - 1, a - 1, along, once, is_sum)]


def _matmul(v: NodeView) -> list[Weight]:
    """The weight on either side."""
    turned = [
        Weight(1, 0, each.contracted - 1, each.contracted, each.result - 1, each.rows)
        for each in _product(v, 0, 1)
    ]
    return [*_product(v, 0, 1), *turned]


def _gemm(v: NodeView) -> list[Weight]:
    columns, rows = (0, 1) if v.attr("transB", 0) else (1, 0)
    contracted = 0 if v.attr("transA", 0) else 1
    is_sum = not v.attr("activation")
    once = frozenset((2,)) if v.has(2) else frozenset()
    along = {2: -1} if v.has(2) else {}
    return [Weight(0, 1, columns, rows, 1, contracted, along, once, is_sum)]


def _fused_matmul(v: NodeView) -> list[Weight]:
    a, b, rank = v.rank(0), v.rank(1), len(v.out_shape() or ())
    if a is None or b is None or min(a, b) < 2 or v.attr("transBatchA") or v.attr("transBatchB"):
        return []
    columns, rows = (b - 2, b - 1) if v.attr("transB", 0) else (b - 1, b - 2)
    return [Weight(0, 1, columns, rows, rank - 1, a - 2 if v.attr("transA", 0) else a - 1)]


def _conv(data: int, weight: int, along: Mapping[int, int], bias: int | None) -> _Family:
    def family(v: NodeView) -> list[Weight]:
        if v.attr("group", 1) != 1 or (v.op == "FusedConv" and v.has(3)):
            return []
        present = {i: axis for i, axis in along.items() if v.has(i)}
        once = frozenset((bias,)) if bias is not None and v.has(bias) else frozenset()
        is_sum = v.op in ("Conv", "ConvInteger", "ConvTranspose")
        columns, rows = (1, 0) if v.op == "ConvTranspose" else (0, 1)
        return [Weight(data, weight, columns, rows, 1, 1, present, once, is_sum)]

    return family


def _quantized(
    first: int, second: int, along: Sequence[int], bias: int | None, *, is_sum: bool
) -> _Family:
    def family(v: NodeView) -> list[Weight]:
        once = frozenset((bias,)) if bias is not None and v.has(bias) else frozenset()
        present = {i: -1 for i in along if v.has(i)}
        return _product(v, first, second, present, once, is_sum)

    return family


def _einsum(v: NodeView) -> list[Weight]:
    """Of two terms without an ellipsis, each letter of the result that the weight alone has."""
    equation = v.attr("equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2 or "." in equation:
        return []
    found = []
    for data, weight in ((0, 1), (1, 0)):
        own = [c for c in terms[weight] if c in right and c not in terms[data]]
        summed = [c for c in terms[weight] if c in terms[data] and c not in right]
        for column in reversed(own):
            found += [
                Weight(
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


_Family = Callable[[NodeView], list[Weight]]

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


def weights_of(v: NodeView) -> list[Weight]:
    """Return where a product may have weights; empty for a node that is none."""
    family = _WEIGHTS.get((v.proto.domain, v.op))
    return [] if family is None else family(v)


def start_step(v: NodeView, weight: Weight, outer: int) -> Step:
    """Return the step of a product whose weight's columns are cut, its data whole."""
    columns = v.size(weight.weight, weight.columns)
    if columns is None:
        return stop(Kind.OPAQUE, f"the size of {v.proto.input[weight.weight]!r} is unknown")
    if columns % (outer * v.positions):
        return stop(
            Kind.FACTORED,
            f"{columns} columns of {v.proto.input[weight.weight]!r} are not "
            f"{v.positions} equal shards" + (f" in {outer} blocks" if outer > 1 else ""),
        )
    cut = Layout(weight.columns, outer, columns // (outer * v.positions))
    cuts = {weight.weight: cut}
    for index, axis in weight.along.items():
        if index == weight.weight or not v.has(index):
            continue
        shape = v.shape(index)
        if shape is None:
            return stop(Kind.OPAQUE, f"the shape of {v.proto.input[index]!r} is unknown")
        if shape and shape[axis] != 1:
            cuts[index] = replace(cut, axis=axis % len(shape))
    result = Dependence(Kind.INDEPENDENT, weight.result, cut.outer, cut.inner)
    return Step("through", v.all(result), cuts)


def sum_step(v: NodeView, weight: Weight) -> Step:
    """Return the step of a product that sums over the cut axis of its data."""
    dep, size = v.dep(weight.data), v.size(weight.weight, weight.rows)
    name = v.proto.input[weight.weight]
    if not weight.is_sum:
        return stop(Kind.CONTRACTED, "results of shards cannot be added after it")
    if size != dep.outer * dep.inner * v.positions:
        return stop(Kind.CONTRACTED, f"{name!r} has {size} rows")
    cuts = {weight.weight: Layout(weight.rows, dep.outer, dep.inner)}
    return Step("sum", v.all(FREE), cuts, weight.once)
