"""Known bad kernels of ONNX Runtime (ORT), which plans avoid.

Such a kernel gives other values than the specification asks for, or can be built and then refuses
to run. The reference evaluator runs these nodes instead.

They were found with ONNX's own test suite (``make conformance``, onnxruntime 1.32.0), whose cases
are named.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from dask_onnx.runtime.kernel_faults import KernelFault, Use, by_operator, find_fault


def _is_training(use: Use) -> bool:
    return use.has_input(2) and bool(np.any(use.constants.get(2, True)))


def _has_many_zero_points(use: Use) -> bool:
    shape = use.shape(3)
    return use.has_input(3) and (shape is None or shape not in ((), (1,)))


def _has_short_mask(use: Use) -> bool:
    """Return whether a mask with `nonpad_kv_seqlen` is not known to be as long as the keys."""
    if not (use.has_input(3) and use.has_input(6)):
        return False
    mask, keys = use.shape(3), use.shape(1)
    return not mask or not keys or len(keys) < 2 or mask[-1] is None or mask[-1] != keys[-2]


def _outputs_masked_products(use: Use) -> bool:
    return use.has_output(3) and bool(use.attributes.get("is_causal"))


def _rounds_aligned_corners(use: Use) -> bool:
    """Return whether corners are aligned to a fractional size: input size times scale."""
    if use.text("coordinate_transformation_mode") != "align_corners":
        return False
    if use.has_input(3) or not use.has_input(2):
        return False
    if 2 not in use.constants:
        return True
    scales = use.constants[2].ravel()
    if all(float(scale).is_integer() for scale in scales):
        return False
    shape = use.shape(0) or ()
    if len(shape) != len(scales) or not all(isinstance(dim, int) for dim in shape):
        return True
    return any(
        not math.isclose(size, round(size), rel_tol=1e-6)
        for size in (float(dim) * float(scale) for dim, scale in zip(shape, scales, strict=True))
    )


_ML = "ai.onnx.ml"


def _classes(use: Use) -> int:
    """Return the number of classes of a classifier of ai.onnx.ml."""
    names = ("classlabels_strings", "classlabels_ints", "classlabels_int64s")
    return max(len(use.attributes.get(name, ())) for name in names)


def _has_probit_of_two(use: Use) -> bool:
    return use.text("post_transform") == "PROBIT" and _classes(use) == 2


def _has_no_pairs(use: Use) -> bool:
    """Return whether a machine of vectors has one class, and so no pair of classes to compare."""
    has_vectors = bool(use.attributes.get("vectors_per_class"))
    return has_vectors and _classes(use) < 2 and not use.attributes.get("prob_a")


_RANDOM = "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli".split()


def _is_seeded(use: Use) -> bool:
    return use.attributes.get("seed") is not None


KNOWN_BAD_KERNELS: tuple[KernelFault, ...] = (
    *(
        KernelFault(
            operator, "draws on from its last run, so that a seed does not repeat it", _is_seeded
        )
        for operator in _RANDOM
    ),
    KernelFault(
        "Attention",
        "wants a mask as long as the keys beside nonpad_kv_seqlen "
        "(attention_4d_diff_heads_mask4d_padded_kv)",
        _has_short_mask,
    ),
    KernelFault(
        "Attention",
        "gives the lowest float instead of -inf among masked products "
        "(attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal)",
        _outputs_masked_products,
    ),
    KernelFault(
        "MultiHeadAttention",
        "reads memory that it never wrote where keys are cached and the grown cache is no output",
        lambda use: use.has_input(6) and not use.has_output(1),
        "com.microsoft",
    ),
    *(
        KernelFault(
            operator,
            "reads memory that it never wrote: PROBIT fills one of the scores of two classes",
            _has_probit_of_two,
            _ML,
        )
        for operator in ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")
    ),
    KernelFault(
        "SVMClassifier",
        "reads memory that it never wrote for a single class without probabilities",
        _has_no_pairs,
        _ML,
    ),
    KernelFault(
        "TreeEnsembleClassifier",
        "ends the process for a single class that is a text, and calls any other class 1",
        lambda use: _classes(use) == 1,
        _ML,
    ),
    KernelFault(
        "ConvInteger",
        "refuses a zero point for each channel (convinteger_with_padding)",
        _has_many_zero_points,
    ),
    KernelFault(
        "DFT",
        "is up to 3e-4 away, more than the suite allows, and takes longer than numpy's (dft)",
    ),
    KernelFault(
        "STFT",
        "is up to 1e-3 away for frames that are no power of two, and takes longer than numpy's "
        "(stft)",
    ),
    KernelFault(
        "Dropout",
        "in training mode draws other numbers from a seed (training_dropout)",
        _is_training,
    ),
    KernelFault(
        "MaxUnpool",
        "ignores output_shape (maxunpool_export_with_output_shape)",
        lambda use: use.has_input(2),
    ),
    KernelFault(
        "ReduceMax",
        "does not reduce empty sets of bool (reduce_max_empty_set_bool)",
        lambda use: use.dtype(0) == np.bool_,
    ),
    KernelFault(
        "Resize",
        "aligns the corners of a rounded size (resize_downsample_scales_linear_align_corners)",
        _rounds_aligned_corners,
    ),
)
"""All known bad kernels; the first that applies to a node is reported."""

known_bad_kernel = functools.partial(find_fault, "onnxruntime", by_operator(KNOWN_BAD_KERNELS))
"""Function that returns the reason why ORT must not run a node; None if it may. Takes what
`find_fault` takes: node, specs, initializers and opsets."""
