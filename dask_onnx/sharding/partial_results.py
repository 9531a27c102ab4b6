"""Results over the sharded axis that are combined from those of shards: sums, means, extremes.

A mean over the tokens of a sequence needs no tokens of other shards: each shard takes its own mean,
and the means are combined, weighted by the tokens in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx

from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.sharding.shard_layout import Array, Layout

_REDUCTIONS: Mapping[str, str] = {
    "ReduceMean": "mean",
    "GlobalAveragePool": "mean",
    "ReduceSum": "sum",
    "ReduceL1": "sum",
    "ReduceSumSquare": "sum",
    "ReduceL2": "l2",
    "ReduceLogSumExp": "logsumexp",
    "ReduceMax": "max",
    "GlobalMaxPool": "max",
    "ReduceMin": "min",
    "ReduceProd": "product",
}
"""Operators of ai.onnx to the way in which results of shards are combined."""
_EXACT_ON_INTEGERS = frozenset(("sum", "max", "min", "product"))
"""Ways in which integers are combined without rounding."""
_MATRIX_RANK = 2
_PICKED = "position"
"""Start of the combination that takes the result of the shard that has a position."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Combination of the results of all shards."""

    how: str
    """One of the values of `Layout.combine`."""
    sizes: tuple[int, ...]
    """Positions of each shard, which weigh the means."""


def combination_of(
    proto: onnx.NodeProto,
    layouts: Sequence[Layout | None],
    dep: Dependence,
    ranks: Sequence[int | None],
    dtype: np.dtype | None,
) -> Layout | None:
    """Return the layout of an output that shards compute a partial result of.

    Parameters
    ----------
    proto : NodeProto
    layouts : sequence of Layout or None
        Layout in which each input is read; None for a whole input.
    dep : Dependence
        Dependence of the output on the sharded axis.
    ranks : sequence of int or None
        Rank of each input.
    dtype : numpy.dtype or None
        Dtype of the output.

    Returns
    -------
    Layout or None
        None if the results of shards cannot be combined exactly.
    """
    if proto.domain not in ("", "ai.onnx") or dep.coupled:
        return None
    how = _REDUCTIONS.get(proto.op_type) if dep.kind == Kind.REDUCED else None
    if proto.op_type == "MatMul" and _is_contracted(layouts, ranks):
        how = "sum"
    elif how is not None and (layouts[0] is None or any(layouts[1:])):
        return None
    is_rounded = dtype is None or dtype.kind in "biu"
    if how is None or (is_rounded and how not in _EXACT_ON_INTEGERS):
        return None
    return Layout(0, combine=how)


def picked_position(
    proto: onnx.NodeProto, layouts: Sequence[Layout | None], index: Array | None, positions: int
) -> int | None:
    """Return the position that a Gather takes along the sharded axis, such as a class token.

    Parameters
    ----------
    proto : NodeProto
    layouts : sequence of Layout or None
        Layout in which each input is read.
    index : ndarray or None
        The index, if it is known.
    positions : int
        Size of the sharded axis.

    Returns
    -------
    int or None
        None for any other node, for several indices, and for an index out of range.
    """
    if proto.domain not in ("", "ai.onnx") or proto.op_type != "Gather" or index is None:
        return None
    data = layouts[0]
    axis = next((int(a.i) for a in proto.attribute if a.name == "axis"), 0)
    if data is None or data != Layout(axis) or layouts[1] is not None or index.size != 1:
        return None
    place = int(index.reshape(-1)[0])
    place += positions if place < 0 else 0
    return place if 0 <= place < positions else None


def picked(position: int) -> Layout:
    """Return the layout of a value of which one shard has the wanted position."""
    return Layout(0, combine=f"{_PICKED}{position}")


def _is_contracted(layouts: Sequence[Layout | None], ranks: Sequence[int | None]) -> bool:
    """Return whether both operands of a MatMul are cut along the axis that it sums over."""
    (first, second), (rank, other) = layouts[:2], ranks[:2]
    if first is None or second is None or rank is None or other is None:
        return False
    row_axis = other - _MATRIX_RANK if other >= _MATRIX_RANK else 0
    same_blocks = (first.outer, first.inner) == (second.outer, second.inner)
    return first.axis == rank - 1 and second.axis == row_axis and same_blocks


def combine_parts(parts: Sequence[Array], combination: Combination) -> Array:
    """Return the result over all positions, in the dtype of the parts.

    Parameters
    ----------
    parts : sequence of ndarray
        Result of each shard; equal shapes.
    combination : Combination
    """
    if combination.how.startswith(_PICKED):
        ends = np.cumsum(combination.sizes)
        position = int(combination.how.removeprefix(_PICKED))
        return np.asarray(parts[int(np.searchsorted(ends, position, side="right"))])
    arrays = [np.asarray(part) for part in parts]
    dtype = arrays[0].dtype
    if dtype.kind not in "biu":  # rounded once, at the end
        arrays = [array.astype(np.float64) for array in arrays]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = _COMBINE[combination.how](arrays, combination.sizes)
        return np.asarray(found).astype(dtype)


def _mean(parts: Sequence[Array], sizes: Sequence[int]) -> Array:
    weighted = [part * size for part, size in zip(parts, sizes, strict=True)]
    return np.asarray(reduce(np.add, weighted) / sum(sizes))


def _by(function: np.ufunc) -> Callable[[Sequence[Array], Sequence[int]], Array]:
    """Return the combination that applies a function of two arrays to one part after the other."""

    def combine(parts: Sequence[Array], _sizes: Sequence[int]) -> Array:
        return np.asarray(reduce(function, parts))

    return combine


_COMBINE: Mapping[str, Callable[[Sequence[Array], Sequence[int]], Array]] = {
    "mean": _mean,
    "l2": _by(np.hypot),
    "sum": _by(np.add),
    "max": _by(np.maximum),
    "min": _by(np.minimum),
    "product": _by(np.multiply),
    "logsumexp": _by(np.logaddexp),
}
