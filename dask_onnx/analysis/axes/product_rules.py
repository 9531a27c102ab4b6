"""Rules of matrix products, plain, fused and quantised, and of Einsum."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView, Rule, Shape, join


def matmul(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through MatMul."""
    return v.all(product(v, v.dep(0), v.shape(0), v.dep(1), v.shape(1)))


def product(
    v: NodeView,
    a: Dependence,
    a_shape: Shape | None,
    b: Dependence,
    b_shape: Shape | None,
) -> Dependence:
    """Return the dependence of a batched matrix product with the semantics of ``numpy.matmul``.

    Parameters
    ----------
    v : NodeView
        The node, for its name.
    a, b : Dependence
        Dependences of the operands.
    a_shape, b_shape : tuple of int or None
        Shapes of the operands; the last two axes are those of the matrices.
    """
    if a.axis is None and b.axis is None:
        return FREE
    if a_shape is None or b_shape is None:
        return v.opaque("unknown rank")[0]
    a_rank, b_rank = len(a_shape), len(b_shape)
    rank = max(a_rank, b_rank, 2)
    # Axes counted from the last. A rank-1 operand is a row vector before, a column vector after.
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
    """Return `dep` on the axis of the product that `place`, counted from the last, becomes."""
    # If the first operand is a vector, the product has no axis of rows.
    return dep.at(rank - 2 if a_rank == 1 and place == -1 else rank + place)


def gemm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through Gemm: rows of A, columns of B, and the addend C."""
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
    """Return the sum of a product and an addend that carries positions, which must coincide."""
    place = (bias.axis or 0) + 2 - (v.rank(2) or 2)
    if product.axis is None:
        return bias.at(place).broken(Kind.LENGTH, v.name, "position")
    if place != product.axis:
        return v.lost(product, Kind.PAIRED, "different axes")
    if not product.has_blocks_of(bias):
        return v.lost(product, Kind.FACTORED, "different blocks")
    return join(product, bias, v.name)


def fused_matmul(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft FusedMatMul, a product of transposed operands."""
    if v.attr("transBatchA", 0) or v.attr("transBatchB", 0):
        if v.carriers:
            return v.opaque("transposed batch")
        return v.all(FREE)
    a, a_shape = _transposed(v, 0, bool(v.attr("transA", 0)))
    b, b_shape = _transposed(v, 1, bool(v.attr("transB", 0)))
    return v.all(product(v, a, a_shape, b, b_shape))


def _transposed(v: NodeView, index: int, swap: bool) -> tuple[Dependence, Shape | None]:
    """Return dependence and shape of an operand, with its last two axes swapped on request."""
    dep, shape = v.dep(index), v.shape(index)
    if not swap or shape is None or len(shape) < 2:
        return dep, shape
    swapped = (*shape[:-2], shape[-1], shape[-2])
    if dep.axis is not None and dep.axis >= len(shape) - 2:
        dep = dep.at(2 * len(shape) - 3 - dep.axis)
    return dep, swapped


def quantized_matmul(
    first: int, second: int, of_rows: Collection[int], of_columns: Collection[int]
) -> Rule:
    """Return the rule of a product of quantised operands.

    Parameters
    ----------
    first, second : int
        Indices of the operands.
    of_rows, of_columns : collection of int
        Indices of scales and zero points: scalars, vectors along the rows of the first operand or
        the columns of the second, or arrays of the result's rank.
    """

    def rule(v: NodeView) -> Sequence[Dependence]:
        result = product(v, v.dep(first), v.shape(first), v.dep(second), v.shape(second))
        rank = max(v.rank(first) or 0, v.rank(second) or 0)
        return v.all(_scaled(v, result, rank, of_rows, of_columns))

    return rule


def quantized_gemm(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through com.microsoft QGemm.

    A, B and the result each have a scale and a zero point; input 6 is a bias.
    """
    a, a_shape = _transposed(v, 0, bool(v.attr("transA", 0)))
    b, b_shape = _transposed(v, 3, bool(v.attr("transB", 0)))
    result = product(v, a, a_shape, b, b_shape)
    return v.all(_scaled(v, result, 2, (1, 2, 7, 8), (4, 5, 6)))


def _scaled(
    v: NodeView,
    result: Dependence,
    rank: int,
    of_rows: Collection[int],
    of_columns: Collection[int],
) -> Dependence:
    """Return the dependence of a product joined with that of its quantisation parameters."""
    for index in (*of_rows, *of_columns):
        dep, shape = v.dep(index), v.shape(index)
        vector = rank - 2 if index in of_rows else rank - 1
        if dep.axis is not None:
            place = dep.axis if v.rank(index) == rank > 1 else vector
            if place != result.axis or not result.has_blocks_of(dep):
                return v.lost(result, Kind.OPAQUE, "positions in a parameter")
            result = join(result, dep, v.name)
        elif result.axis is None or not v.has(index):
            continue
        elif _sizes_of(shape, rank, vector)[result.axis] != 1:
            return v.lost(result, Kind.LENGTH, "position")
    return result


def _sizes_of(shape: Shape | None, rank: int, vector: int) -> Shape:
    """Return the sizes of a parameter broadcast to `rank` axes; a vector lies along `vector`."""
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
    """Follow positions through Einsum, by the letter of their axis in each term."""
    if not v.carriers:
        return v.all(FREE)
    spelled = _equation(v)
    if spelled is None:
        return v.opaque("equation")
    terms, right = spelled
    letters = {terms[i][v.dep(i).axis or 0] for i in v.carriers}
    result = v.dep(v.carriers[0])
    if len(letters) > 1 or v.sizes_differ(v.carriers):
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
    """Return the terms and the result of an equation, one letter per axis; None if unknown."""
    equation = v.attr("equation", b"").decode(errors="replace").replace(" ", "")
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
    """Return terms and result with each ellipsis replaced by digits, "0" for its last axis."""
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
    """Follow positions through Det and Inverse, whose matrices are on the last two axes."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    if rank is None or dep.axis >= rank - 2:
        return v.all(v.lost(dep, Kind.CONTRACTED, "determinant"))
    return v.all(dep)
