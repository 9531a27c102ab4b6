"""Rules of operators that compute elementwise, with broadcasting, or along axes."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView, Rule, join


def broadcast(v: NodeView, inputs: Sequence[int], rank: int | None = None) -> Dependence:
    """Return the dependence of an elementwise result under ONNX's multidirectional broadcasting.

    All inputs that carry the positions must do so on the same axis, counted from the last; the
    others must have size 1 there, or no such axis.

    Parameters
    ----------
    v : NodeView
    inputs : sequence of int
        Indices of the operands.
    rank : int, optional
        Rank of the result; by default the largest rank of the operands.
    """
    carriers = [i for i in inputs if v.dep(i).axis is not None]
    if not carriers:
        return FREE
    ranks = [v.rank(i) for i in inputs if v.has(i)]
    first = v.dep(carriers[0])
    is_alike = len(carriers) == len(inputs) and len(set(ranks)) == 1 and None not in ranks
    if is_alike and rank in (None, ranks[0]) and all(v.dep(i) is first for i in carriers):
        return first  # fast path of the most frequent case
    if None in ranks or any((v.dep(i).axis or 0) >= (v.rank(i) or 0) for i in carriers):
        return v.opaque("unknown rank")[0]  # or declared as another than was followed here
    rank = max(r or 0 for r in ranks) if rank is None else rank
    result: Dependence | None = None
    for index in sorted(carriers, key=lambda i: v.dep(i).is_uniform):
        dep = v.dep(index)
        moved = dep.at((dep.axis or 0) - (v.rank(index) or 0) + rank)
        if result is None:
            result = moved
        elif moved.axis != result.axis:
            return v.lost(result, Kind.PAIRED, "different axes")
        elif not result.has_blocks_of(moved):
            return v.lost(result, Kind.FACTORED, "different blocks")
        else:
            result = join(result, moved, v.name)
    assert result is not None and result.axis is not None
    if v.sizes_differ(carriers):
        return v.lost(result, Kind.LENGTH, "different sizes")
    for index in inputs:
        if v.dep(index).axis is not None or not v.has(index):
            continue
        shape = v.shape(index)
        assert shape is not None
        place = result.axis - rank + len(shape)
        if place >= 0 and shape[place] != 1:
            how = "position" if shape[place] is not None else "unknown size"
            return result.broken(Kind.LENGTH if how == "position" else Kind.OPAQUE, v.name, how)
    return result


def elementwise(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through an elementwise operator."""
    if len(v.ins) == 1:
        return v.all(v.dep(0))
    return v.all(broadcast(v, range(len(v.ins))))


def first_input(v: NodeView) -> Sequence[Dependence]:
    """Follow positions of the first input; the others are parameters and must carry none."""
    return v.all(with_parameters(v, v.dep(0)))


def with_parameters(v: NodeView, dep: Dependence, first: int = 1) -> Dependence:
    """Return `dep`, broken if an input from index `first` on carries the positions."""
    if any(v.dep(i).axis is not None for i in range(first, len(v.ins))):
        return v.lost(dep, Kind.OPAQUE, "positions in a parameter")
    return dep


def as_one_axis(axis: int) -> Rule:
    """Return the rule of QuantizeLinear and DequantizeLinear.

    Scale and zero point are scalars, or vectors along the attribute ``axis`` (by default `axis`) of
    the first input, or blocks with as many axes as it has.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep, rank = v.dep(0), v.rank(0)
        own = v.attr("axis", axis)
        for index in range(1, len(v.ins)):
            other = v.dep(index)
            if dep.axis is None or rank is None:
                if other.axis is not None or dep.axis is not None:
                    return v.opaque("positions in a parameter")
                continue
            # A vector lies along the attribute's axis, blocks on the axes of the input.
            place = own % rank if v.rank(index) == 1 else other.axis
            if other.axis is None:
                if _has_own(v, index, dep.axis, own % rank):
                    dep = dep.broken(Kind.LENGTH, v.name, "position")
            elif place != dep.axis or not dep.has_blocks_of(other):
                return v.all(v.lost(dep, Kind.PAIRED, "different axes"))
            else:
                dep = join(dep, other, v.name)
        return v.all(dep)

    return rule


def _has_own(v: NodeView, index: int, axis: int, own: int) -> bool:
    """Return whether a parameter without positions has one element per index on an axis."""
    if not v.has(index):
        return False
    shape = v.shape(index)
    if shape is None:
        return True
    if len(shape) < 2:
        return axis == own and shape not in ((), (1,))
    return axis == own or axis >= len(shape) or shape[axis] != 1


def quantized_elementwise(*data: int) -> Rule:
    """Return the rule of a quantised elementwise operator.

    `data` are the indices of the tensors; scales and zero points stand between them.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        result = broadcast(v, data)
        if any(i not in data for i in v.carriers):
            return v.all(v.lost(result, Kind.OPAQUE, "positions in a parameter"))
        return v.all(result)

    return rule


def by_channel(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through an elementwise operator with one parameter per channel (axis 1)."""
    dep = v.dep(0)
    if dep.axis == 1:
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a channel"))
    return v.all(dep)


def by_feature(v: NodeView) -> Sequence[Dependence]:
    """Follow rows through an elementwise operator with one parameter per feature."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and (rank is None or rank < 2 or dep.axis > 0):
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a feature"))
    return v.all(dep)


def _axes_of(
    v: NodeView, operand: int | None, attribute: str, default: Sequence[int] | None
) -> set[int] | None:
    """Return the non-negative axes that a node works along; None if unknown."""
    rank, named = v.rank(0), v.axes(operand, attribute)
    if rank is None or named is None:
        return None
    if not named:
        named = list(range(rank)) if default is None else list(default)
    return {a % rank for a in named if -rank <= a < rank}


def reduction(how: str, kind: Kind = Kind.REDUCED) -> Rule:
    """Return the rule of a reduction along axes given by an input or an attribute.

    `how` names the statistic in reports.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep, rank = v.dep(0), v.rank(0)
        if dep.axis is None:
            return v.all(dep)
        operand = 1 if v.has(1) else None
        if v.attr("noop_with_empty_axes", 0) and v.axes(operand) == []:
            return v.all(dep)
        axes = _axes_of(v, operand, "axes", None)
        if axes is None or rank is None:
            return v.opaque("unknown axes")
        keeps = bool(v.attr("keepdims", 1))
        if dep.axis in axes:
            return v.all(v.lost(dep, kind, how))
        return v.all(dep if keeps else dep.at(dep.axis - sum(a < dep.axis for a in axes)))

    return rule


def arg_reduction(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ArgMax and ArgMin."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    axis = v.attr("axis", 0) % rank
    if axis == dep.axis:
        return v.all(v.lost(dep, Kind.REDUCED, "argmax" if "Max" in v.op else "argmin"))
    return v.all(dep if v.attr("keepdims", 1) else dep.at(dep.axis - (axis < dep.axis)))


def along(
    default: int, kind: Kind, how: str, *, attribute: str = "axis", to_end_before: int = 0
) -> Rule:
    """Return the rule of an operator that combines elements along one axis and keeps the shape.

    Softmax and norms are such operators.

    Parameters
    ----------
    default : int
        Axis if the attribute is missing.
    kind, how : Kind, str
        Kind, and its reason, of positions along that axis.
    attribute : str
        Name of the attribute that has the axis.
    to_end_before : int
        Opset before which the operator combines the axis and all behind it; 0 for never, -1 for
        always.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep, rank = v.dep(0), v.rank(0)
        if dep.axis is None:
            return v.all(with_parameters(v, dep))
        if rank is None:
            return v.opaque("unknown rank")
        is_to_end = to_end_before < 0 or v.opset < to_end_before
        axis = v.attr(attribute, 1 if is_to_end and to_end_before > 0 else default) % rank
        seen = range(axis, rank) if is_to_end else (axis,)
        if dep.axis in seen:
            return v.all(dep.broken(kind, v.name, how))
        return v.all(with_parameters(v, dep))

    return rule


def softmax_like(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Softmax, LogSoftmax and Hardmax.

    Before opset 13 they flatten the axis and all behind it.
    """
    return along(-1, Kind.REDUCED, "softmax", to_end_before=13)(v)


def quantized_softmax(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft QLinearSoftmax.

    Its attribute ``opset`` names the version of Softmax that it computes.
    """
    before = -1 if v.attr("opset", 1) < 13 else 0
    return along(-1, Kind.REDUCED, "softmax", to_end_before=before)(v)


def prefix_sum(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through CumSum and CumProd."""
    dep, rank, axis = v.dep(0), v.rank(0), v.constant(1)
    if dep.axis is None:
        return v.all(dep)
    if rank is None or axis is None:
        return v.opaque("unknown axis")
    if int(axis.reshape(-1)[0]) % rank == dep.axis:
        return v.all(dep.broken(Kind.SCANNED, v.name, "cumulative sum"))
    return v.all(dep)


def top_k(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through TopK along another axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep if v.dep(1).kind == Kind.FREE else v.broken(Kind.LENGTH, "k"))
    if rank is None:
        return v.opaque("unknown rank")
    if v.dep(1).kind != Kind.FREE:
        return v.all(v.lost(dep, Kind.LENGTH, "k"))
    if v.attr("axis", -1) % rank == dep.axis:
        return v.all(v.lost(dep, Kind.GATHERED, "sorting"))
    return v.all(dep)


def reverse_sequence(v: NodeView) -> Sequence[Dependence]:
    """Follow the batch through ReverseSequence, whose lengths must carry it too."""
    dep, lengths = v.dep(0), v.dep(1)
    time, batch = v.attr("time_axis", 0), v.attr("batch_axis", 1)
    if dep.axis == time:
        return v.all(dep.broken(Kind.GATHERED, v.name, "flipping"))
    if dep.axis is None or dep.axis != batch:
        return v.opaque("lengths")
    if lengths.axis != 0:
        return v.all(dep.broken(Kind.LENGTH, v.name, "lengths without a batch"))
    if not dep.has_blocks_of(lengths):
        return v.all(v.lost(dep, Kind.FACTORED, "different blocks"))
    return v.all(dep)


def selection(v: NodeView) -> Sequence[Dependence]:
    """Return kind GATHERED for operators that select by value, such as NonZero and Unique."""
    if all(dep.kind == Kind.FREE for dep in v.ins):
        return v.all(FREE)
    if v.op == "Compress" and v.attr("axis") is not None and v.dep(1).kind == Kind.FREE:
        dep, rank = v.dep(0), v.rank(0)
        if rank is not None and dep.axis is not None and v.attr("axis") % rank != dep.axis:
            return v.all(dep)
    return v.all(v.broken(Kind.GATHERED, "selection by value"))


def leading(*carried: int) -> Rule:
    """Return the rule of an operator that keeps the first axis and combines all others.

    `carried` are the inputs whose first axis becomes the first axis of every output; by default all
    inputs.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        named = carried or tuple(range(len(v.ins)))
        result: Dependence | None = None
        for index in v.carriers:
            dep = v.dep(index)
            if index not in named or dep.axis != 0:
                kind = Kind.REDUCED if index in named else Kind.OPAQUE
                return v.all(v.lost(dep, kind, "features"))
            if v.rank(index) in (None, 1):
                return v.opaque("rank-1 input is one row or one value per row")
            if result is not None and not result.has_blocks_of(dep):
                return v.all(v.lost(result, Kind.FACTORED, "different blocks"))
            result = dep if result is None else join(result, dep, v.name)
        if result is None:
            return v.all(FREE)
        for index in named:
            if v.has(index) and v.dep(index).axis is None and v.size(index, 0) != 1:
                return v.all(result.broken(Kind.LENGTH, v.name, "position"))
        return v.all(result)

    return rule
