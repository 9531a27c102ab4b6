"""Operation counts of nodes, from the shapes of their inputs and outputs."""

from __future__ import annotations

import math

import onnx

from dask_onnx.analysis.attention import ATTENTION
from dask_onnx.analysis.elementwise import MOVES_ONLY, PER_INPUT_ELEMENT, PER_OUTPUT_ELEMENT
from dask_onnx.analysis.operands import Constants, Operands, Rule, Specs
from dask_onnx.analysis.products import CONVOLUTIONS, PRODUCTS, window_positions
from dask_onnx.modelio.operator_names import public_op_type

__all__ = ["CONVOLUTIONS", "COUNTED", "TREES", "WEIGHTY", "flops_of"]


def flops_of(proto: onnx.NodeProto, specs: Specs, constants: Constants = lambda _: None) -> int:
    """Return the floating-point (or integer) operations of a node, without those of its bodies.

    A multiply-add counts as two.

    Parameters
    ----------
    proto : NodeProto
    specs : mapping of value to TensorSpec
        Open dimensions count as 1, unknown values as nothing.
    constants : callable, optional
        Lookup of the model's scalar constants by name; None for other values.
    """
    call = Operands(proto, specs, constants)
    op = public_op_type(proto)
    if op in _RULES:
        return _RULES[op](call)
    if op in MOVES_ONLY:
        return 0
    if op in PER_INPUT_ELEMENT:
        return PER_INPUT_ELEMENT[op] * call.size(0)
    # Outputs of operators in other domains may be unknown; they are about as large as the input.
    return PER_OUTPUT_ELEMENT.get(op, 1) * (call.result_size or call.size(0))


def _window(per_element: int) -> Rule:
    """Return the count of pooling: `per_element` operations per kernel element and position."""

    def rule(call: Operands) -> int:
        kernel = call.integers("kernel_shape")
        out = call.result_size
        if not out:
            x = call.shape(0)
            last = call.proto.op_type.startswith("Nhwc") or call.integer("channels_last")
            out = math.prod(x[:1]) * call.dim(0, -1 if last else 1)
            out *= window_positions(call, kernel)
        return per_element * out * math.prod(kernel)

    return rule


def _fourier(length: int) -> int:
    """Return the operations of one complex Fourier transform of `length` points.

    5 n log2 n where n is a power of two, as FFTW counts (fftw.org/speed/method.html). For other
    lengths ONNX Runtime uses Bluestein's algorithm: two transforms of the next power of two from
    2 n - 1. It saves nothing on real signals or for half a spectrum.
    """
    if length <= 1:
        return 0
    if length & (length - 1) == 0:
        return 5 * length * (length.bit_length() - 1)
    return 2 * _fourier(1 << (2 * length - 2).bit_length())


def _dft(call: Operands) -> int:
    # Input (..., signal, ..., 1 or 2); up to opset 19 the axis is an attribute. The inverse of half
    # a spectrum is longer than its input.
    axis = call.constant(2)
    if axis is None:
        axis = call.integer("axis", -2)
    signal = call.dim(0, axis)
    longest = max(signal, call.result_dim(axis))
    others = call.size(0) // max(signal * call.dim(0, -1), 1)
    return others * _fourier(call.constant(1) or longest)


def _stft(call: Operands) -> int:
    # Signal (batch, length, 1 or 2), result (batch, frames, bins, 2). Each frame is multiplied by
    # the window and transformed.
    length = call.dim(2, 0) or call.constant(3) or call.dim(0, 1)
    step = call.constant(1) or length
    frames = call.result_dim(1) or max(call.dim(0, 1) - length, 0) // max(step, 1) + 1
    return call.dim(0, 0) * frames * (length + _fourier(length))


def _real_fourier(call: Operands) -> int:
    # Rfft (..., n), Irfft (..., n // 2 + 1, 2): the last signal_ndim axes together are one
    # transform of as many points.
    is_inverse = call.proto.op_type == "Irfft"
    shape = call.shape(0)[: -1 if is_inverse else None]
    if is_inverse and call.integer("onesided", 1) and shape:
        shape[-1] = 2 * (shape[-1] - 1)
    points = math.prod(shape[len(shape) - call.integer("signal_ndim", 1) :])
    return math.ceil(math.prod(shape) * 5 * math.log2(max(points, 1)))


def _roi_align(call: Operands) -> int:
    # Bilinear samples of 8 operations (four corners), sampling_ratio squared for each output
    # element; 0 takes as many as the region has pixels there, for which 2 is usual.
    side = call.integer("sampling_ratio") or 2
    channels = call.dim(0, 1)
    cells = call.integer("output_height", 1) * call.integer("output_width", 1)
    return 8 * side * side * call.dim(1, 0) * channels * cells


def _roi_pool(call: Operands) -> int:
    # Assume regions of half the image's height and width.
    return call.dim(1, 0) * math.prod(call.shape(0)[1:]) // 4


def _local_response(call: Operands) -> int:
    # Squares, their sum over `size` channels, and a power of it: the exponential of a logarithm.
    return (call.integer("size") + 12) * call.size(0)


def _resize(call: Operands) -> int:
    # Each output element is a weighted sum of neighbours; axes that keep their size have none.
    result = call.result
    axes = sum(old != new for old, new in zip(call.shape(0), result, strict=False))
    return math.prod(result or [0]) * (2 * _taps(call, "nearest", axes) - 1)


def _grid_sample(call: Operands) -> int:
    # Input (batch, channels, ...), grid (batch, ..., 2 or 3); finding the neighbours counts as 3.
    points = call.size(1) // max(call.dim(1, -1), 1)
    return call.dim(0, 1) * points * (2 * _taps(call, "linear", call.dim(1, -1)) + 3)


def _taps(call: Operands, default: str, axes: int) -> int:
    """Return the neighbours of one element: 1, 2 or 4 along each axis, by the mode."""
    mode = call.text("mode", default)
    along = {"nearest": 1, "cubic": 4, "bicubic": 4}.get(mode, 2)
    return math.prod([along] * axes)


def _top(call: Operands) -> int:
    # Every element is compared, and the k best are kept in order.
    axis = call.integer("axis", -1)
    length = call.dim(0, axis)
    kept = call.constant(1) or call.result_dim(axis) or 1
    rows = call.size(0) // max(length, 1)
    return rows * (length + math.ceil(kept * math.log2(max(length, 1))))


def _sort(call: Operands) -> int:
    return math.ceil(call.size(0) * math.log2(max(call.size(0), 2)))


_OVERLAP = 16
"""Operations of one overlap of two boxes: corners of the intersection, three areas, a division."""


def _suppression(call: Operands) -> int:
    # Scores (batch, classes, boxes). Candidates, sorted by score, are each compared with the boxes
    # kept so far, half of the final number on average. Without a score threshold every box is a
    # candidate of every class; with one, usually of a single class.
    batch, classes, boxes = (call.dim(1, axis) for axis in range(3))
    candidates = boxes // max(classes, 1) if call.has(4) else boxes
    kept = min(candidates, call.constant(2) or candidates) if call.has(2) else 0
    sort = math.ceil(candidates * math.log2(max(candidates, 1)))
    return batch * classes * (boxes + sort + candidates * kept * _OVERLAP // 2)


def _determinant(call: Operands) -> int:
    # LU decomposition of (..., n, n): 2/3 n^3 (Golub and Van Loan, Matrix Computations, 3.2).
    return 2 * call.size(0) * call.dim(0, -1) // 3


def _inverse(call: Operands) -> int:
    return 2 * call.size(0) * call.dim(0, -1)


def _embedding(per_element: int) -> Rule:
    """Return the count of summed embeddings: ids (batch, tokens), tables (words, size)."""
    return lambda call: per_element * call.size(0) * call.dim(2, 1)


def _affine_grid(call: Operands) -> int:
    # theta (batch, axes, axes + 1) times the homogeneous coordinates of each output element.
    return 2 * call.result_size * call.dim(0, -1)


def _trees(call: Operands) -> int:
    """Return the comparisons on the way to a leaf of each tree, as if trees were balanced.

    Only the lengths of the attributes are read: a forest may have millions of nodes.
    """
    lists = {a.name: a.ints for a in call.proto.attribute}
    if call.proto.op_type == "TreeEnsemble":
        trees = len(lists.get("tree_roots", ()))
        leaves = len(lists.get("leaf_targetids", ()))
    else:
        ids = lists.get("nodes_treeids", ())
        trees = ids[-1] + 1 if ids else 0  # exporters write one tree after the other
        leaves = (len(ids) + trees) // 2  # of binary trees
    if trees <= 0 or leaves < trees:
        return 0
    rows = call.shape(0)[:1] or [1]
    return math.ceil(rows[0] * trees * math.log2(leaves / trees))


def _linear(*vectors: str) -> Rule:
    """Return the count of products of each row with the vectors in these attributes."""

    def rule(call: Operands) -> int:
        held = sum(len(a.floats) for a in call.proto.attribute if a.name in vectors)
        rows = call.shape(0)[:1] or [1]
        return 2 * rows[0] * held

    return rule


TREES = frozenset(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"))
"""Operators that evaluate decision trees."""

_RULES: dict[str, Rule] = {
    **PRODUCTS,
    **ATTENTION,
    **dict.fromkeys(TREES, _trees),
    "LinearClassifier": _linear("coefficients"),
    "LinearRegressor": _linear("coefficients"),
    "SVMClassifier": _linear("support_vectors", "coefficients"),
    "SVMRegressor": _linear("support_vectors", "coefficients"),
    "MaxPool": _window(1),
    "AveragePool": _window(1),
    "LpPool": _window(2),
    "LRN": _local_response,
    "RoiAlign": _roi_align,
    "MaxRoiPool": _roi_pool,
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
    "DFT": _dft,
    "STFT": _stft,
    "TopK": _top,
    "Unique": _sort,
    "NonMaxSuppression": _suppression,
    "Det": _determinant,
    # ONNX Runtime's own.
    "NhwcMaxPool": _window(1),
    "MaxpoolWithMask": _window(1),
    "QLinearAveragePool": _window(1),
    "Rfft": _real_fourier,
    "Irfft": _real_fourier,
    "Inverse": _inverse,
    "EmbedLayerNormalization": _embedding(10),
    "QEmbedLayerNormalization": _embedding(16),
}
WEIGHTY = frozenset(_RULES)
"""Operators that do more than a few operations per element."""

COUNTED = WEIGHTY | MOVES_ONLY | set(PER_INPUT_ELEMENT) | set(PER_OUTPUT_ELEMENT)
"""Operators with a count of their own; any other counts as one operation per element."""
