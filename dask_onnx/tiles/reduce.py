"""Statistics over the pixels of an image, combined from partial statistics of its tiles.

A partial statistic is a tuple of arrays whose reduced axes have size 1, in float64 (or int64, for
integers). Variances are combined with the algorithm of Chan, Golub and LeVeque (1979): by counts,
means and sums of squared deviations, without the cancellation of ``E[x**2] - E[x]**2``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Partial = tuple[Array, ...]
"""Partial statistic of some of the pixels."""


def partial(kind: str, array: Array, axes: Sequence[int]) -> Partial:
    """Return the partial statistic of one tile.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    array : ndarray
        Pixels of the tile, of any numeric dtype and shape.
    axes : sequence of int
        Axes of the array that are reduced.
    """
    return _KINDS[kind][0](array, tuple(axes))


def merge(kind: str, parts: Sequence[Partial]) -> Partial:
    """Return the partial statistic of the pixels of several tiles together."""
    return functools.reduce(_KINDS[kind][1], parts)


def finish(kind: str, part: Partial, dtype: np.dtype[Any]) -> Array:
    """Return the statistic itself, once the partial one covers all pixels.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    part : Partial
    dtype : numpy.dtype
        Dtype of the value in the model.

    Returns
    -------
    ndarray
        Reduced axes have size 1.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(_KINDS[kind][2](part)).astype(dtype)


def _sum_type(array: Array) -> Any:
    return np.int64 if array.dtype.kind in "iub" else np.float64


def _sum(array: Array, axes: tuple[int, ...]) -> Partial:
    return (np.add.reduce(array, axis=axes, keepdims=True, dtype=_sum_type(array)),)


def _mean(array: Array, axes: tuple[int, ...]) -> Partial:
    return _count(array, axes), *_sum(array, axes)


def _count(array: Array, axes: tuple[int, ...]) -> Array:
    return np.array(float(np.prod([array.shape[axis] for axis in axes])))


def _variance(array: Array, axes: tuple[int, ...]) -> Partial:
    if array.dtype.itemsize < 4:  # squares of float16 overflow above 256
        array = array.astype(np.float32)
    count = _count(array, axes)
    mean = np.add.reduce(array, axis=axes, keepdims=True, dtype=np.float64) / count
    left = array - mean.astype(array.dtype)
    # The mean was rounded to the array's dtype; correct the sum of squares for that error below.
    rest = np.add.reduce(left, axis=axes, keepdims=True, dtype=np.float64) / count
    np.multiply(left, left, out=left)
    squares = np.add.reduce(left, axis=axes, keepdims=True, dtype=np.float64)
    return count, mean, squares - count * rest**2


def _merge_variance(a: Partial, b: Partial) -> Partial:
    (count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
    count = count_a + count_b
    gap = mean_b - mean_a
    mean = mean_a + gap * (count_b / count)
    return count, mean, squares_a + squares_b + gap**2 * (count_a * count_b / count)


def _add(a: Partial, b: Partial) -> Partial:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _of(function: Callable[[Array], Array]) -> Callable[[Array, tuple[int, ...]], Partial]:
    """Return the partial statistic that sums a function of the elements."""

    def part(array: Array, axes: tuple[int, ...]) -> Partial:
        return _sum(function(array.astype(_sum_type(array))), axes)

    return part


def _extreme(function: np.ufunc) -> Callable[[Array, tuple[int, ...]], Partial]:
    """Return the partial statistic that reduces by `numpy.maximum` or `numpy.minimum`."""

    def part(array: Array, axes: tuple[int, ...]) -> Partial:
        return (function.reduce(array, axis=axes, keepdims=True),)

    return part


def _product(array: Array, axes: tuple[int, ...]) -> Partial:
    return (np.multiply.reduce(array, axis=axes, keepdims=True, dtype=_sum_type(array)),)


def _log_sum_exp(array: Array, axes: tuple[int, ...]) -> Partial:
    # The largest element is factored out, so that no exponential overflows.
    most = np.maximum.reduce(array, axis=axes, keepdims=True).astype(np.float64)
    base = np.where(np.isfinite(most), most, 0.0)
    return most, np.add.reduce(np.exp(array - base), axis=axes, keepdims=True, dtype=np.float64)


def _merge_log_sum_exp(a: Partial, b: Partial) -> Partial:
    most = np.maximum(a[0], b[0])
    base = np.where(np.isfinite(most), most, 0.0)
    shifted = [total * np.exp(np.where(np.isfinite(top), top, 0.0) - base) for top, total in (a, b)]
    return most, shifted[0] + shifted[1]


def _finish_log_sum_exp(part: Partial) -> Array:
    most, total = part
    return np.where(np.isfinite(most), most, 0.0) + np.log(total)


_Part = Callable[[Array, tuple[int, ...]], Partial]
_Merge = Callable[[Partial, Partial], Partial]
_Finish = Callable[[Partial], Array]


def _first(part: Partial) -> Array:
    return part[0]


_KINDS: Mapping[str, tuple[_Part, _Merge, _Finish]] = {
    "mean": (_mean, _add, lambda part: part[1] / part[0]),
    "variance": (_variance, _merge_variance, lambda part: part[2] / part[0]),
    "sum": (_sum, _add, _first),
    "max": (
        _extreme(np.maximum),
        lambda a, b: (np.maximum(a[0], b[0]),),
        _first,
    ),
    "min": (
        _extreme(np.minimum),
        lambda a, b: (np.minimum(a[0], b[0]),),
        _first,
    ),
    "product": (_product, lambda a, b: (a[0] * b[0],), _first),
    "l1": (_of(np.abs), _add, _first),
    "l2": (_of(np.square), _add, lambda part: np.sqrt(part[0])),
    "sum_of_squares": (_of(np.square), _add, _first),
    "log_sum": (_sum, _add, lambda part: np.log(part[0])),
    "logsumexp": (_log_sum_exp, _merge_log_sum_exp, _finish_log_sum_exp),
}

KINDS = frozenset(_KINDS)
"""Statistics that can be combined from partial ones."""

STATISTIC_OF = {
    "ReduceMean": "mean",
    "GlobalAveragePool": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "max",
    "GlobalMaxPool": "max",
    "ReduceMin": "min",
    "ReduceProd": "product",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceSumSquare": "sum_of_squares",
    "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "logsumexp",
}
"""Operator of ai.onnx to the statistic that it computes."""
