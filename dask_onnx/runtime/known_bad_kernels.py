"""Operators for which ORT has a kernel that is not used: it gives other values than the
specification asks for, or can be built and then refuses to run. They run on the reference
evaluator instead.

Found with ONNX's own test suite (``make conformance``, onnxruntime 1.32.0), whose cases are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external


@dataclass(frozen=True, slots=True)
class Use:
    """One node, as far as it is known when a plan is made."""

    attributes: Mapping[str, Any]
    inputs: tuple[TensorSpec | None, ...]
    """None for one that is left out; without a type where that is not known."""
    constants: Mapping[int, np.ndarray]
    """Values of inputs, by position, that are small initializers."""
    outputs: tuple[str, ...]
    """"" for one that nobody wants."""

    def has_input(self, position: int) -> bool:
        return position < len(self.inputs) and self.inputs[position] is not None

    def has_output(self, position: int) -> bool:
        return position < len(self.outputs) and bool(self.outputs[position])

    def shape(self, position: int) -> tuple[Any, ...] | None:
        spec = self.inputs[position] if position < len(self.inputs) else None
        return None if spec is None else spec.shape


@dataclass(frozen=True, slots=True)
class KnownBadKernel:
    """A kernel of ORT that is not to be used."""

    operator: str
    """Op type of ai.onnx."""
    reason: str
    applies: Callable[[Use], bool] = lambda use: True


def _trains(use: Use) -> bool:
    return use.has_input(2) and bool(np.any(use.constants.get(2, True)))


def _is_bool(use: Use) -> bool:
    spec = use.inputs[0]
    return spec is not None and spec.dtype == np.bool_


def _has_many_zero_points(use: Use) -> bool:
    shape = use.shape(3)
    return use.has_input(3) and (shape is None or shape not in ((), (1,)))


def _has_short_mask(use: Use) -> bool:
    """An attention mask with `nonpad_kv_seqlen` that is not known to be as long as the keys."""
    if not (use.has_input(3) and use.has_input(6)):
        return False
    mask, keys = use.shape(3), use.shape(1)
    return not mask or not keys or len(keys) < 2 or mask[-1] is None or mask[-1] != keys[-2]


def _shows_masked_products(use: Use) -> bool:
    return use.has_output(3) and bool(use.attributes.get("is_causal"))


def _cuts_a_corner(use: Use) -> bool:
    """Corners aligned to a size that is not whole: input size times scale."""
    if use.attributes.get("coordinate_transformation_mode") != b"align_corners":
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


_RANDOM = "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli".split()


def _is_seeded(use: Use) -> bool:
    return use.attributes.get("seed") is not None


KNOWN_BAD_KERNELS = (
    *(
        KnownBadKernel(
            operator, "draws on from its last run, so that a seed does not repeat it", _is_seeded
        )
        for operator in _RANDOM
    ),
    KnownBadKernel(
        "Attention",
        "wants a mask as long as the keys beside nonpad_kv_seqlen "
        "(attention_4d_diff_heads_mask4d_padded_kv)",
        _has_short_mask,
    ),
    KnownBadKernel(
        "Attention",
        "gives the lowest float instead of -inf among masked products "
        "(attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal)",
        _shows_masked_products,
    ),
    KnownBadKernel(
        "ConvInteger",
        "refuses a zero point for each channel (convinteger_with_padding)",
        _has_many_zero_points,
    ),
    KnownBadKernel(
        "DFT",
        "is up to 3e-4 away, more than the suite allows, and takes longer than numpy's (dft)",
    ),
    KnownBadKernel(
        "STFT",
        "is up to 1e-3 away for frames that are no power of two, and takes longer than numpy's "
        "(stft)",
    ),
    KnownBadKernel(
        "Dropout",
        "in training mode draws other numbers from a seed (training_dropout)",
        _trains,
    ),
    KnownBadKernel(
        "MaxUnpool",
        "ignores output_shape (maxunpool_export_with_output_shape)",
        lambda use: use.has_input(2),
    ),
    KnownBadKernel(
        "ReduceMax", "does not reduce empty sets of bool (reduce_max_empty_set_bool)", _is_bool
    ),
    KnownBadKernel(
        "Resize",
        "aligns the corners of a rounded size (resize_downsample_scales_linear_align_corners)",
        _cuts_a_corner,
    ),
)


def known_bad_kernel(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    initializers: Mapping[str, onnx.TensorProto],
) -> str | None:
    """Why ORT is not to run a node; None if nothing speaks against it."""
    if node.domain:
        return None
    known = [wrong for wrong in KNOWN_BAD_KERNELS if wrong.operator == node.op_type]
    if not known:
        return None
    small = {
        place: numpy_helper.to_array(initializers[name])
        for place, name in enumerate(node.input)
        if name in initializers and not is_external(initializers[name])
    }
    use = Use(
        {a.name: helper.get_attribute_value(a) for a in node.attribute},
        tuple(specs.get(n, TensorSpec(n, None, None)) if n else None for n in node.input),
        small,
        tuple(node.output),
    )
    for wrong in known:
        if wrong.applies(use):
            return f"onnxruntime's {node.op_type} {wrong.reason}"
    return None
