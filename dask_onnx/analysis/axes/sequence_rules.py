"""Rules of sequences and optionals whose tensors all carry the positions on the same axis."""

from __future__ import annotations

from collections.abc import Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView, join


def sequence_of(v: NodeView) -> Sequence[Dependence]:
    """Follow positions into a sequence or optional; its tensors must have equal layouts."""
    held = [v.dep(i) for i in range(len(v.ins)) if v.has(i)]
    if not held or all(dep.kind == Kind.FREE for dep in held):
        return v.all(FREE)
    first = held[0]
    if any((d.axis, d.outer, d.inner) != (first.axis, first.outer, first.inner) for d in held):
        return v.opaque("sequence of different tensors")
    for dep in held[1:]:
        first = join(first, dep, v.name)
    return v.all(first)


def sequence_item(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through SequenceAt and SequenceErase by an index that is FREE."""
    if v.dep(1).kind != Kind.FREE:
        return v.opaque("index")
    return v.all(v.dep(0))


def sequence_insert(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through SequenceInsert of a tensor with the sequence's layout."""
    first, second = v.dep(0), v.dep(1)
    is_alike = (first.axis, first.kind) == (second.axis, second.kind)
    if v.dep(2).kind != Kind.FREE or not is_alike or not first.has_blocks_of(second):
        return v.opaque("sequence of different tensors")
    return v.all(join(first, second, v.name))


def split_to_sequence(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through SplitToSequence along another axis."""
    dep, rank = v.dep(0), v.rank(0)
    if dep.axis is None:
        return v.all(dep)
    axis = v.attr("axis", 0)
    keeps = bool(v.attr("keepdims", 1)) or v.has(1)
    if rank is None or axis % rank == dep.axis:
        return v.all(v.lost(dep, Kind.GATHERED, "split"))
    axis %= rank
    return v.all(dep if keeps else dep.at(dep.axis - (axis < dep.axis)))


def concat_from_sequence(v: NodeView) -> Sequence[Dependence]:
    """Follow positions through ConcatFromSequence along another, or a new, axis."""
    dep, after = v.dep(0), v.out_shape()
    if dep.axis is None:
        return v.all(dep)
    is_new, axis = bool(v.attr("new_axis", 0)), v.attr("axis", 0)
    if axis < 0:
        if after is None:
            return v.opaque("unknown rank")
        axis += len(after)
    if is_new:
        return v.all(dep.at(dep.axis + (axis <= dep.axis)))
    if axis == dep.axis:
        return v.all(v.lost(dep, Kind.GATHERED, "concatenation"))
    return v.all(dep)
