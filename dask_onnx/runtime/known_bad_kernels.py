"""Known bad kernels of ONNX Runtime (ORT), which plans avoid.

Such a kernel gives other values than the specification asks for, or can be built and then refuses
to run. The reference evaluator runs these nodes instead.

They were found with ONNX's own test suite (``make conformance``, onnxruntime 1.32.0), whose cases
are named.
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
    """Facts of one node that are known when a plan is made."""

    attributes: Mapping[str, Any]
    """Attributes by name."""
    inputs: tuple[TensorSpec | None, ...]
    """Specs of the inputs: None for one that is left out, without a type where it is not known."""
    constants: Mapping[int, np.ndarray]
    """Values of inputs, by position, that are small initializers."""
    outputs: tuple[str, ...]
    """Names of the outputs; empty for one that is left out."""

    def has_input(self, position: int) -> bool:
        """Return whether the node has this input."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def has_output(self, position: int) -> bool:
        """Return whether the node has this output."""
        return position < len(self.outputs) and bool(self.outputs[position])

    def shape(self, position: int) -> tuple[Any, ...] | None:
        """Return the shape of an input; None if it is not known."""
        spec = self.inputs[position] if position < len(self.inputs) else None
        return None if spec is None else spec.shape


@dataclass(frozen=True, slots=True)
class KnownBadKernel:
    """Kernel of ORT that plans avoid."""

    operator: str
    """Op type of ai.onnx."""
    reason: str
    """Fault of the kernel, as a clause after its name, with the test case that shows it."""
    applies: Callable[[Use], bool] = lambda use: True
    """Predicate on a node: true if the fault concerns it."""


def _is_training(use: Use) -> bool:
    return use.has_input(2) and bool(np.any(use.constants.get(2, True)))


def _is_bool(use: Use) -> bool:
    spec = use.inputs[0]
    return spec is not None and spec.dtype == np.bool_


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


KNOWN_BAD_KERNELS: tuple[KnownBadKernel, ...] = (
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
        _outputs_masked_products,
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
        _is_training,
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
        _rounds_aligned_corners,
    ),
)
"""All known bad kernels; the first that applies to a node is reported."""


def known_bad_kernel(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    initializers: Mapping[str, onnx.TensorProto],
) -> str | None:
    """Return the reason why ORT must not run a node; None if it may.

    Parameters
    ----------
    node : onnx.NodeProto
        Node of the graph, or of a subgraph.
    specs : mapping of str to TensorSpec
        Values by name, as far as their types are known.
    initializers : mapping of str to onnx.TensorProto
        Initializers by name.
    """
    if node.domain:
        return None
    candidates = [bad for bad in KNOWN_BAD_KERNELS if bad.operator == node.op_type]
    if not candidates:
        return None
    small = {
        position: numpy_helper.to_array(initializers[name])
        for position, name in enumerate(node.input)
        if name in initializers and not is_external(initializers[name])
    }
    use = Use(
        {a.name: helper.get_attribute_value(a) for a in node.attribute},
        tuple(specs.get(n, TensorSpec(n, None, None)) if n else None for n in node.input),
        small,
        tuple(node.output),
    )
    for bad in candidates:
        if bad.applies(use):
            return f"onnxruntime's {node.op_type} {bad.reason}"
    return None
