"""Known bad kernels of ONNX's reference evaluator, in which plans run no node.

Each gives other values than ONNX Runtime for the same node, or fails on inputs that the operator
allows. They were found by ``make conformance``, which runs the cases of
``tests/conformance/kernel_cases.py`` on both (onnx 1.23.2, onnxruntime 1.32.0). A node that ONNX
Runtime cannot run either is refused when a plan is made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import onnx

from dask_onnx.runtime.kernel_faults import KernelFault, Use, by_operator, find_fault

_ML = "ai.onnx.ml"


def _given(name: str) -> Callable[[Use], bool]:
    """Return a predicate: an attribute is given and neither zero nor empty."""
    return lambda use: bool(use.attributes.get(name))


def _transforms(use: Use) -> bool:
    return use.text("post_transform", "NONE") != "NONE"


def _before(opset: int) -> Callable[[Use], bool]:
    return lambda use: 0 < use.opset < opset


def _pads_itself(use: Use) -> bool:
    return use.text("auto_pad", "NOTSET") != "NOTSET"


def _is_irregular_pool(use: Use) -> bool:
    pads = list(use.attributes.get("pads") or [])
    half = len(pads) // 2
    return (
        bool(use.attributes.get("ceil_mode"))
        or _pads_itself(use)
        or use.has_output(1)
        or pads[:half] != pads[half:]
    )


def _is_not_square(use: Use) -> bool:
    shape = use.shape(0)
    return shape is None or len(shape) != 4


def _has_negative_pads(use: Use) -> bool:
    pads = use.constants.get(1)
    return pads is not None and bool(np.any(pads < 0))


def _takes_part(use: Use) -> bool:
    """Return whether indices are not known to have the shape of the values."""
    data, indices = use.shape(0), use.shape(1)
    if data is None or indices is None or len(data) != len(indices):
        return True
    return any(a is None or a != b for a, b in zip(data, indices, strict=True))


def _has_other_activations(use: Use) -> bool:
    """Return whether a recurrent node asks for other functions than those it has by default."""
    names = [name.decode(errors="replace") for name in use.attributes.get("activations") or []]
    sides = 2 if use.text("direction") == "bidirectional" else 1
    defaults = (["Tanh"], ["Sigmoid", "Tanh"], ["Sigmoid", "Tanh", "Tanh"])
    return bool(names) and names not in [each * sides for each in defaults]


def _ratios(use: Use) -> list[tuple[float, int | None]] | None:
    """Return output size over input size of each axis of a Resize, and the output size.

    Returns None if they are not known.
    """
    shape, axes = use.shape(0), use.attributes.get("axes")
    if shape is None:
        return None
    places = range(len(shape)) if axes is None else [int(axis) % len(shape) for axis in axes]
    sizes = [shape[place] for place in places]
    if use.has_input(3):
        target = use.constants.get(3)
        if target is None or any(not isinstance(size, int) for size in sizes):
            return None
        return [(int(t) / s, int(t)) for t, s in zip(target.ravel(), sizes, strict=True)]
    scales = use.constants.get(2)
    if scales is None:
        return None
    return [
        (float(scale), math.floor(size * float(scale)) if isinstance(size, int) else None)
        for scale, size in zip(scales.ravel(), sizes, strict=True)
    ]


def _rounds_places(use: Use) -> bool:
    """Return whether a Resize may pick another pixel, or count from another size.

    It does neither where each axis stays, or grows by a whole factor.
    """
    transformation = use.text("coordinate_transformation_mode", "half_pixel")
    ratios = _ratios(use)
    if ratios is not None and all(ratio >= 1 and ratio.is_integer() for ratio, _ in ratios):
        return False
    is_nearest = use.text("mode", "nearest") == "nearest"
    if is_nearest and use.text("nearest_mode", "round_prefer_floor") != "round_prefer_floor":
        return True
    if transformation in ("half_pixel_symmetric", "pytorch_half_pixel"):
        return ratios is None or not use.has_input(3) or any(size == 1 for _, size in ratios)
    return transformation == "align_corners" and is_nearest and not use.has_input(3)


def _has_integers(use: Use) -> bool:
    dtype = use.dtype(0)
    return dtype is None or dtype.kind in "iu"


_RECURRENT = (
    ("ignores clip (kernel_cases: RNN, GRU, LSTM with clip)", _given("clip")),
    (
        "ignores the lengths of the sequences (kernel_cases: with lengths)",
        lambda use: use.has_input(4),
    ),
    ("ignores activations, or fails for them (kernel_cases: Relu)", _has_other_activations),
)

KNOWN_BAD_REFERENCE: tuple[KernelFault, ...] = (
    *(
        KernelFault(operator, reason, applies)
        for operator in ("RNN", "GRU", "LSTM")
        for reason, applies in _RECURRENT
    ),
    KernelFault("LSTM", "ignores input_forget", _given("input_forget")),
    *(
        KernelFault(
            operator, "takes one axis where opsets before 13 join all that follow", _before(13)
        )
        for operator in ("Softmax", "LogSoftmax", "Hardmax")
    ),
    KernelFault("LogSoftmax", "gives -inf where exp underflows (values 1000 apart)"),
    *(
        KernelFault(operator, "fails for integers", _has_integers)
        for operator in ("ReduceLogSum", "ReduceLogSumExp")
    ),
    KernelFault("LRN", "normalises as many channels as there are rows"),
    KernelFault(
        "LpNormalization",
        "adds values instead of their sizes for p=1",
        lambda use: use.attributes.get("p", 2) == 1,
    ),
    KernelFault(
        "LpPool",
        "shifts windows that reach over the end, and leaves out NaN",
    ),
    KernelFault(
        "MaxPool",
        "gives other sizes or places for ceil_mode, auto_pad, uneven pads and indices",
        _is_irregular_pool,
    ),
    KernelFault("GlobalMaxPool", "keeps too few axes except for pictures", _is_not_square),
    KernelFault(
        "ConvTranspose", "fails for several groups", lambda use: use.attributes.get("group", 1) != 1
    ),
    KernelFault("ConvTranspose", "fails for output_shape", _given("output_shape")),
    KernelFault("Resize", "picks other pixels at sizes that are rounded", _rounds_places),
    KernelFault(
        "Resize",
        "rounds integers, which onnxruntime cuts off",
        lambda use: use.text("mode", "nearest") != "nearest" and _has_integers(use),
    ),
    KernelFault(
        "Upsample", "knows mode nearest only", lambda use: use.text("mode", "nearest") != "nearest"
    ),
    KernelFault(
        "GridSample",
        "takes other pixels behind the border in mode cubic",
        lambda use: (
            use.text("mode") in ("cubic", "bicubic") and use.text("padding_mode") == "border"
        ),
    ),
    KernelFault("Pad", "fails for negative pads", _has_negative_pads),
    KernelFault(
        "Unique",
        "fails or transposes for sorted=0",
        lambda use: use.attributes.get("sorted", 1) == 0,
    ),
    KernelFault(
        "GatherElements",
        "fails for indices of another shape than the values",
        _takes_part,
    ),
    KernelFault(
        "Cast",
        "writes whole numbers with a decimal point",
        lambda use: (
            use.attributes.get("to") == onnx.TensorProto.STRING
            and (dtype := use.dtype(0)) is not None
            and dtype.kind not in "OUiub"
        ),
    ),
    KernelFault("Scan", "takes other inputs before opset 9", _before(9)),
    KernelFault("StringSplit", "counts one part in an empty text, and keeps spaces at the end"),
    KernelFault(
        "RegexFullMatch",
        "runs Python's expressions, whose classes of letters are not RE2's",
        lambda use: "\\" in use.text("pattern"),
    ),
    KernelFault(
        "TfIdfVectorizer",
        "takes weights by output instead of n-gram, and fails without them",
        lambda use: use.text("mode") != "TF",
    ),
    KernelFault("TreeEnsemble", "ignores post_transform", _given("post_transform"), _ML),
    KernelFault("TreeEnsembleRegressor", "fails for post_transform", _transforms, _ML),
    KernelFault("TreeEnsembleRegressor", "gives other values for missing ones", domain=_ML),
    KernelFault(
        "TreeEnsembleClassifier", "gives other labels and scores of two classes", domain=_ML
    ),
    KernelFault("LinearClassifier", "gives other scores of two classes", domain=_ML),
    KernelFault("LinearRegressor", "fails for post_transform", _transforms, _ML),
    KernelFault("SVMRegressor", "fails for post_transform", _transforms, _ML),
    KernelFault("SVMClassifier", "gives other scores for post_transform", _transforms, _ML),
    KernelFault(
        "SVMClassifier",
        "fails for a single class",
        lambda use: len(use.attributes.get("vectors_per_class", ())) == 1,
        _ML,
    ),
    KernelFault(
        "Normalizer",
        "divides by the largest size",
        lambda use: use.text("norm", "MAX") == "MAX",
        _ML,
    ),
    KernelFault(
        "Scaler",
        "rounds integers",
        lambda use: use.dtype(0) not in (np.dtype("f4"), np.dtype("f8")),
        _ML,
    ),
    KernelFault(
        "FeatureVectorizer", "keeps integers", lambda use: use.dtype(0) != np.dtype("f4"), _ML
    ),
)
"""All known bad kernels; the first that applies to a node is reported."""

known_bad_reference = functools.partial(
    find_fault, "onnx.reference", by_operator(KNOWN_BAD_REFERENCE)
)
"""Function that returns the reason why the reference evaluator must not run a node; None if it may.
Takes what `find_fault` takes: node, specs, initializers and opsets."""
