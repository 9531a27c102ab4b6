"""Rules of operators that compute on values: element by element, along axes, or by products."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.layout_rules import same_axis
from dask_onnx.analysis.axes.view import NodeView, Rule, Shape, join


def broadcast(v: NodeView, inputs: Sequence[int], rank: int | None = None) -> Dependence:
    """Return the dependence of a value made element by element of several, by ONNX's broadcasting.

    Axes are counted from the last. All inputs that carry the positions must do so on the same
    axis; the others must have one element there, or none.
    """
    carriers = [i for i in inputs if v.dep(i).axis is not None]
    if not carriers:
        return FREE
    ranks = [v.rank(i) for i in inputs if v.has(i)]
    first = v.dep(carriers[0])
    is_alike = len(carriers) == len(inputs) and len(set(ranks)) == 1 and None not in ranks
    if is_alike and rank in (None, ranks[0]) and all(v.dep(i) is first for i in carriers):
        return first  # the most frequent case
    if any(r is None for r in ranks):
        return v.opaque("unknown rank")[0]
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
    if _differ(v, carriers):
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


def _differ(v: NodeView, carriers: Sequence[int]) -> bool:
    """Whether positions, or windows of them, are as many in one input as in another."""
    sizes = {v.size(i, v.dep(i).axis or 0) for i in carriers}
    return len(sizes - {None}) > 1


def elementwise(v: NodeView) -> Sequence[Dependence]:
    """Every output element from the input elements at its own place."""
    if len(v.ins) == 1:
        return v.all(v.dep(0))
    return v.all(broadcast(v, range(len(v.ins))))


def first_input(v: NodeView) -> Sequence[Dependence]:
    """Element by element of the first input; the others are parameters given once."""
    return v.all(_with_parameters(v, v.dep(0)))


def _with_parameters(v: NodeView, dep: Dependence, first: int = 1) -> Dependence:
    """Break `dep` if a parameter carries the positions."""
    if any(v.dep(i).axis is not None for i in range(first, len(v.ins))):
        return v.lost(dep, Kind.OPAQUE, "positions in a parameter")
    return dep


def as_one_axis(axis: int) -> Callable[[NodeView], Sequence[Dependence]]:
    """Scale and zero point lie along one axis of the first input (QuantizeLinear and the like)."""

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep, rank = v.dep(0), v.rank(0)
        own = v.attr("axis", axis)
        for index in range(1, len(v.ins)):
            other = v.dep(index)
            if dep.axis is None or rank is None:
                if other.axis is not None or dep.axis is not None:
                    return v.opaque("positions in a parameter")
                continue
            # A vector lies along one axis; with blocks there are as many axes as the input has.
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
    """Whether a parameter that is given once has an element for each place on an axis."""
    if not v.has(index):
        return False
    shape = v.shape(index)
    if shape is None:
        return True
    if len(shape) < 2:
        return axis == own and shape not in ((), (1,))
    return axis == own or axis >= len(shape) or shape[axis] != 1


def by_feature(v: NodeView) -> Sequence[Dependence]:
    """Element by element, with a parameter of its own for each place behind the first axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is not None and (rank is None or rank < 2 or dep.axis > 0):
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a feature"))
    return v.all(dep)


def _axes_of(
    v: NodeView, operand: int | None, attribute: str, default: Sequence[int] | None
) -> set[int] | None:
    """Non-negative axes that a node works along; None if unknown."""
    rank, named = v.rank(0), v.axes(operand, attribute)
    if rank is None or named is None:
        return None
    if not named:
        named = list(range(rank)) if default is None else list(default)
    return {a % rank for a in named if -rank <= a < rank}


def reduction(how: str, kind: Kind = Kind.REDUCED, since: int = 18) -> Rule:
    """One number for all elements along some axes; axes are an input from opset `since` on."""

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
    """ArgMax and ArgMin."""
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
    """Elements along one axis see each other; the shape stays (Softmax, normalisations).

    Before opset `to_end_before` the axis and all behind it are one; 0 for never, -1 for always.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        dep, rank = v.dep(0), v.rank(0)
        if dep.axis is None:
            return v.all(_with_parameters(v, dep))
        if rank is None:
            return v.opaque("unknown rank")
        is_to_end = to_end_before < 0 or v.opset < to_end_before
        axis = v.attr(attribute, 1 if is_to_end and to_end_before > 0 else default) % rank
        seen = range(axis, rank) if is_to_end else (axis,)
        if dep.axis in seen:
            return v.all(dep.broken(kind, v.name, how))
        return v.all(_with_parameters(v, dep))

    return rule


def softmax_like(v: NodeView) -> Sequence[Dependence]:
    return along(-1, Kind.REDUCED, "softmax", to_end_before=13)(v)


def layer_norm(v: NodeView) -> Sequence[Dependence]:
    """Normalised along an axis and all behind it, after adding a second input (Skip...)."""
    skips = "Skip" in v.op
    dep = broadcast(v, (0, 1)) if skips else v.dep(0)
    if dep.axis is None:
        return v.all(_with_parameters(v, dep, 2 if skips else 1))
    rank = v.rank(0)
    if rank is None:
        return v.opaque("unknown rank")
    dep = _with_parameters(v, dep, 2 if skips else 1)
    if dep.axis is not None and dep.axis >= v.attr("axis", -1) % rank:
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    return v.all(dep)


def spatial_norm(v: NodeView) -> Sequence[Dependence]:
    """InstanceNormalization and GroupNormalization: a statistic over pixels, and over channels."""
    dep = v.dep(0)
    if dep.axis is None:
        return v.all(_with_parameters(v, dep))
    is_grouped = "Group" in v.op
    if dep.axis >= (1 if is_grouped else 2):
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    if dep.axis == 1:
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a channel"))
    return v.all(_with_parameters(v, dep))


def batch_norm(v: NodeView) -> Sequence[Dependence]:
    """BatchNormalization: parameters by channel; in training a statistic over all else."""
    dep = _with_parameters(v, v.dep(0))
    is_training = bool(v.attr("training_mode", 0))
    if v.opset < 14 and not is_training:
        is_training = len([o for o in v.proto.output if o]) > 1
    if is_training and dep.axis is not None and dep.axis != 1:
        own = dep.broken(Kind.REDUCED, v.name, "mean")
        rest = v.lost(dep, Kind.REDUCED, "mean")
        return [own, *[rest] * (len(v.proto.output) - 1)]
    if dep.axis == 1:
        return v.all(dep.broken(Kind.LENGTH, v.name, "parameter of a channel"))
    return v.all(dep)


def mean_variance_norm(v: NodeView) -> Sequence[Dependence]:
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None:
        return v.opaque("unknown rank")
    if dep.axis in {a % rank for a in v.attr("axes", [0, 2, 3]) if a < rank}:
        return v.all(dep.broken(Kind.REDUCED, v.name, "mean"))
    return v.all(dep)


def prefix_sum(v: NodeView) -> Sequence[Dependence]:
    """CumSum and CumProd."""
    dep, rank, axis = v.dep(0), v.rank(0), v.constant(1)
    if dep.axis is None:
        return v.all(dep)
    if rank is None or axis is None:
        return v.opaque("unknown axis")
    if int(axis.reshape(-1)[0]) % rank == dep.axis:
        return v.all(dep.broken(Kind.SCANNED, v.name, "cumulative sum"))
    return v.all(dep)


def top_k(v: NodeView) -> Sequence[Dependence]:
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
    dep, lengths = v.dep(0), v.dep(1)
    time, batch = v.attr("time_axis", 0), v.attr("batch_axis", 1)
    if dep.axis == time:
        return v.all(dep.broken(Kind.GATHERED, v.name, "flipping"))
    if dep.axis is None or dep.axis != batch:
        return v.opaque("lengths")
    if lengths.axis != 0:
        return v.all(dep.broken(Kind.LENGTH, v.name, "lengths given once"))
    return v.all(dep)


def selection(v: NodeView) -> Sequence[Dependence]:
    """How many elements there are, and which, depends on values (NonZero, Unique, Compress)."""
    if all(dep.kind == Kind.FREE for dep in v.ins):
        return v.all(FREE)
    if v.op == "Compress" and v.attr("axis") is not None and v.dep(1).kind == Kind.FREE:
        dep, rank = v.dep(0), v.rank(0)
        if rank is not None and dep.axis is not None and v.attr("axis") % rank != dep.axis:
            return v.all(dep)
    return v.all(v.broken(Kind.GATHERED, "selection by value"))


# Products.


def matmul(v: NodeView, first: int = 0, second: int = 1) -> Sequence[Dependence]:
    return v.all(product(v, v.dep(first), v.shape(first), v.dep(second), v.shape(second)))


def product(
    v: NodeView,
    a: Dependence,
    a_shape: Shape | None,
    b: Dependence,
    b_shape: Shape | None,
) -> Dependence:
    """Return the dependence of a stack of matrix products (numpy.matmul)."""
    if a.axis is None and b.axis is None:
        return FREE
    if a_shape is None or b_shape is None:
        return v.opaque("unknown rank")[0]
    a_rank, b_rank = len(a_shape), len(b_shape)
    rank = max(a_rank, b_rank, 2)
    # Axes from the last, as numpy lays vectors: a row before, a column behind.
    a_place = None if a.axis is None else a.axis - a_rank
    b_place = None if b.axis is None else b.axis - b_rank
    if a_rank == 1 and a_place is not None:
        return v.lost(a, Kind.CONTRACTED, "matrix product")
    if b_rank == 1 and b_place is not None:
        return v.lost(b, Kind.CONTRACTED, "matrix product")
    if a_place == -1:
        return v.lost(a, Kind.CONTRACTED, "matrix product")
    if b_place == -2:
        return v.lost(b, Kind.CONTRACTED, "matrix product")
    if a_place is not None and b_place is not None:
        if a_place != b_place or a_place >= -2:
            return v.lost(a, Kind.PAIRED, "matrix product")
        if not a.has_blocks_of(b) or a_shape[a_place] != b_shape[b_place]:
            return v.lost(a, Kind.FACTORED, "different blocks")
        lead = b if a.is_uniform else a
        return _product_axis(join(lead, a if lead is b else b, v.name), a_place, rank, a_rank)
    dep, place = (a, a_place) if a_place is not None else (b, b_place)
    assert place is not None
    other = b_shape if a_place is not None else a_shape
    if place < -2 and len(other) >= -place and other[place] != 1:
        return dep.at(rank + place).broken(Kind.LENGTH, v.name, "position")
    return _product_axis(dep, place, rank, a_rank)


def _product_axis(dep: Dependence, place: int, rank: int, a_rank: int) -> Dependence:
    # A vector in front gives a result without rows.
    return dep.at(rank - 2 if a_rank == 1 and place == -1 else rank + place)


def gemm(v: NodeView) -> Sequence[Dependence]:
    a, b, c = v.dep(0), v.dep(1), v.dep(2)
    rows, columns = (
        (1, 0) if v.attr("transA", 0) else (0, 1),
        (1, 0) if v.attr("transB", 0) else (0, 1),
    )
    if a.axis is not None and b.axis is not None:
        return v.all(v.lost(a, Kind.PAIRED, "matrix product"))
    result = FREE
    if a.axis is not None:
        if a.axis == rows[1]:
            return v.all(v.lost(a, Kind.CONTRACTED, "matrix product"))
        result = a.at(0)
    elif b.axis is not None:
        if b.axis == columns[0]:
            return v.all(v.lost(b, Kind.CONTRACTED, "matrix product"))
        result = b.at(1)
    if c.axis is not None:
        return v.all(_with_bias(v, result, c))
    if result.axis is not None and v.has(2):
        shape = v.shape(2)
        if shape is None:
            return v.opaque("unknown rank")
        place = result.axis - 2 + len(shape)
        if place >= 0 and shape[place] != 1:
            return v.all(result.broken(Kind.LENGTH, v.name, "position"))
    return v.all(result)


def _with_bias(v: NodeView, product: Dependence, bias: Dependence) -> Dependence:
    """Gemm's third input carries positions: those of the product have to be the same."""
    place = (bias.axis or 0) + 2 - (v.rank(2) or 2)
    if product.axis is None:
        return bias.at(place).broken(Kind.LENGTH, v.name, "position")
    if place != product.axis:
        return v.lost(product, Kind.PAIRED, "different axes")
    if not product.has_blocks_of(bias):
        return v.lost(product, Kind.FACTORED, "different blocks")
    return join(product, bias, v.name)


def fused_matmul(v: NodeView) -> Sequence[Dependence]:
    """com.microsoft.FusedMatMul: a matrix product of transposed operands."""
    if v.attr("transBatchA", 0) or v.attr("transBatchB", 0):
        if v.carriers:
            return v.opaque("transposed batch")
        return v.all(FREE)
    a, a_shape = _transposed(v, 0, bool(v.attr("transA", 0)))
    b, b_shape = _transposed(v, 1, bool(v.attr("transB", 0)))
    return v.all(product(v, a, a_shape, b, b_shape))


def _transposed(v: NodeView, index: int, swap: bool) -> tuple[Dependence, Shape | None]:
    dep, shape = v.dep(index), v.shape(index)
    if not swap or shape is None or len(shape) < 2:
        return dep, shape
    turned = (*shape[:-2], shape[-1], shape[-2])
    if dep.axis is not None and dep.axis >= len(shape) - 2:
        dep = dep.at(2 * len(shape) - 3 - dep.axis)
    return dep, turned


def quantized_matmul(
    first: int, second: int, of_rows: Collection[int], of_columns: Collection[int]
) -> Rule:
    """Products of quantised operands with scales and zero points: one, or a vector of them for the
    rows of the first operand and the columns of the second, or as many axes as the result has."""

    def rule(v: NodeView) -> Sequence[Dependence]:
        result = product(v, v.dep(first), v.shape(first), v.dep(second), v.shape(second))
        rank = max(v.rank(first) or 0, v.rank(second) or 0)
        for index in (*of_rows, *of_columns):
            dep, shape = v.dep(index), v.shape(index)
            vector = rank - 2 if index in of_rows else rank - 1
            if dep.axis is not None:
                place = dep.axis if v.rank(index) == rank > 1 else vector
                if place != result.axis or not result.has_blocks_of(dep):
                    return v.all(v.lost(result, Kind.OPAQUE, "positions in a parameter"))
                result = join(result, dep, v.name)
            elif result.axis is None or not v.has(index):
                continue
            elif _sizes_of(shape, rank, vector)[result.axis] != 1:
                return v.all(v.lost(result, Kind.LENGTH, "position"))
        return v.all(result)

    return rule


def _sizes_of(shape: Shape | None, rank: int, vector: int) -> Shape:
    """The sizes of a parameter on the axes of the result, where a vector lies along one of them."""
    if shape is not None and len(shape) == rank > 1:
        return shape
    sizes: list[int | None] = [1] * rank
    if shape in ((), (1,)):
        return tuple(sizes)
    if shape is not None and len(shape) == 1 and vector >= 0:
        sizes[vector] = shape[0]
        return tuple(sizes)
    return (None,) * rank


def einsum(v: NodeView) -> Sequence[Dependence]:
    if not v.carriers:
        return v.all(FREE)
    spelled = _equation(v)
    if spelled is None:
        return v.opaque("equation")
    terms, right = spelled
    letters = {terms[i][v.dep(i).axis or 0] for i in v.carriers}
    result = v.dep(v.carriers[0])
    if len(letters) > 1 or _differ(v, v.carriers):
        return v.all(v.lost(result, Kind.PAIRED, "einsum"))
    (letter,) = letters
    for index, term in enumerate(terms):
        dep = v.dep(index)
        if term.count(letter) > 1:
            return v.all(v.lost(result, Kind.PAIRED, "einsum"))
        if letter in term and dep.axis is None:
            return v.all(v.lost(result, Kind.LENGTH, "position"))
        if dep.axis is not None:
            if not result.has_blocks_of(dep):
                return v.all(v.lost(result, Kind.FACTORED, "different blocks"))
            result = join(result, dep, v.name)
    if letter not in right:
        return v.all(v.lost(result, Kind.CONTRACTED, "einsum"))
    return v.all(result.at(right.index(letter)))


def _equation(v: NodeView) -> tuple[list[str], str] | None:
    """Return the terms and the result of an equation, a letter for each axis."""
    equation = v.attr("equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(v.ins):
        return None
    if "..." in equation:
        return _spelled_out(terms, [v.rank(i) for i in range(len(terms))], right if arrow else None)
    if not arrow:
        right = "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
    return terms, right


def _spelled_out(
    terms: Sequence[str], ranks: Sequence[int | None], right: str | None
) -> tuple[list[str], str] | None:
    """Return an equation's terms with digits in place of its ellipses, the last axis "0"."""
    counts = [
        (rank or 0) - len(term.replace("...", ""))
        for term, rank in zip(terms, ranks, strict=True)
        if "..." in term
    ]
    if None in ranks or right is None or max(counts, default=0) > 9 or min(counts, default=0) < 0:
        return None
    names = "9876543210"
    spelled = []
    for term, rank in zip(terms, ranks, strict=True):
        count = (rank or 0) - len(term.replace("...", ""))
        spelled.append(term.replace("...", names[10 - count :] if count else ""))
    most = max(counts, default=0)
    return spelled, right.replace("...", names[10 - most :] if most else "")


def det(v: NodeView) -> Sequence[Dependence]:
    """Det and Inverse: matrices on the last two axes."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None or dep.axis >= rank - 2:
        return v.all(v.lost(dep, Kind.CONTRACTED, "determinant"))
    return v.all(dep)


def leading(*carried: int, rank_after: int | None = None) -> Rule:
    """The first axis of the inputs `carried` (of all, if none is named) goes through to the first
    axis of every output; all other axes are seen as a whole."""

    def rule(v: NodeView) -> Sequence[Dependence]:
        named = carried or tuple(range(len(v.ins)))
        result: Dependence | None = None
        for index in v.carriers:
            dep = v.dep(index)
            if index not in named or dep.axis != 0:
                kind = Kind.REDUCED if index in named else Kind.OPAQUE
                return v.all(v.lost(dep, kind, "features"))
            if v.rank(index) in (None, 1):
                return v.opaque("one row, or one number of each")
            result = dep if result is None else join(result, dep, v.name)
        if result is None:
            return v.all(FREE)
        for index in named:
            if v.has(index) and v.dep(index).axis is None and v.size(index, 0) != 1:
                return v.all(result.broken(Kind.LENGTH, v.name, "position"))
        return v.all(result)

    return rule


def sum_of_equal_shapes(v: NodeView) -> Sequence[Dependence]:
    """Inputs of one shape, joined on the last axis or added (FeatureVectorizer)."""
    result = same_axis(v, v.carriers, v.name) if v.carriers else FREE
    return v.all(result)
