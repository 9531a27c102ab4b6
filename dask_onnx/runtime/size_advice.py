"""Advice about sizes that a stage has rejected: the multiple of pixels that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.size_conflicts import conflict_at
from dask_onnx.analysis.size_multiples import accepted_multiple
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.runtime.stage_refs import StageRef

_LEAST_RANK = 3
"""Axes of an input that may be an image or a sequence of features, at least."""


@dataclass(frozen=True, slots=True)
class SizeAdvice:
    """The multiple that an input's sizes must have."""

    input: str
    """Name of the input."""
    axis: int
    """First axis whose size is none."""
    size: int
    """Its size."""
    multiple: int
    """Number of which it must be a multiple."""
    conflict: str
    """Description of the node where two parts of the graph have unequal sizes."""

    def __str__(self) -> str:
        low = self.size // self.multiple * self.multiple
        fitting = " or ".join(str(size) for size in (low, low + self.multiple) if size)
        return (
            f"the size of axis {self.axis} of input {self.input!r} must be a multiple of "
            f"{self.multiple}, such as {fitting} for {self.size}: pad or resize it"
        )


def size_advice(
    stage: StageRef, proto: onnx.ModelProto | None, arrays: Sequence[Any]
) -> SizeAdvice | None:
    """Return the multiple that sizes must have, if that is why a stage has failed.

    Parameters
    ----------
    stage : StageRef
    proto : ModelProto or None
        The stage without weights; None if it is not at hand.
    arrays : sequence of array
        Inputs of the stage, in its order.
    """
    if proto is None or len(arrays) != 1 or not isinstance(arrays[0], np.ndarray):
        return None
    (spec,), shape = stage.inputs, arrays[0].shape
    declared = spec.shape or ()
    if len(declared) < _LEAST_RANK or len(declared) != len(shape):
        return None
    model = OnnxModel(
        proto=proto.SerializeToString(),
        token="",
        name=stage.label,
        inputs=stage.inputs,
        outputs=stage.outputs,
        defaults=(),
        opsets={opset.domain: opset.version for opset in proto.opset_import},
        ir_version=proto.ir_version,
        parameters=0,
        parameter_bytes=0,
    )
    facts = GraphFacts(model)
    conflict = conflict_at(facts, {spec.name: shape})
    if conflict is None:
        return None
    axes = [axis for axis in range(1, len(shape)) if not isinstance(declared[axis], int)]
    multiple = accepted_multiple(facts, spec.name, shape, axes, {})
    wrong = [axis for axis in axes if multiple and shape[axis] % multiple]
    if not wrong or multiple is None:
        return None
    return SizeAdvice(spec.name, wrong[0], shape[wrong[0]], multiple, str(conflict))
