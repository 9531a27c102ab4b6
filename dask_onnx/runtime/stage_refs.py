"""References to stages: everything that a worker must know of a stage, without its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dask_onnx.core.specs import Kernel, TensorSpec
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.modelio.value_types import kind_of_value
from dask_onnx.runtime.batching import MicroBatches
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.package_versions import PackageVersions


@dataclass(frozen=True, slots=True)
class StageRef:
    """Everything that a worker must know of a stage; about a kilobyte, without weights."""

    model: ModelRef
    """Model that the nodes are of."""
    label: str
    """Name of the stage in the dashboard and in errors."""
    nodes: tuple[tuple[int, int], ...]
    """Positions of the nodes in the weightless proto, as half-open ranges."""
    inputs: tuple[TensorSpec, ...]
    """Values that the stage reads."""
    outputs: tuple[TensorSpec, ...]
    """Values that the stage returns."""
    token: str
    """Content digest of all of the above but the label."""
    versions: PackageVersions
    """Packages of the process that made the plan."""
    kernel: Kernel = "onnxruntime"
    """Kernel that runs the nodes."""
    custom: CustomKernels | None = None
    """The caller's kernels, where the stage runs on them."""

    @property
    def indices(self) -> list[int]:
        """Positions of the nodes in the weightless proto, ascending."""
        return [index for start, stop in self.nodes for index in range(start, stop)]


def as_ranges(indices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending indices as half-open ranges: (1, 2, 3, 7) is ((1, 4), (7, 8))."""
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)


def with_value_types(stage: StageRef, values: Sequence[Any]) -> StageRef:
    """Return the stage with the types of its inputs, where only the values tell them.

    Such inputs are behind operators without a known schema, such as a caller's kernel. The result
    has a token of its own, since other types need another session.
    """
    if all(spec.dtype is not None or spec.kind is not None for spec in stage.inputs):
        return stage
    inputs = tuple(map(spec_of_value, stage.inputs, values))
    types = ", ".join(map(str, inputs))
    token = hashlib.sha256(f"{stage.token} on {types}".encode()).hexdigest()[:32]
    return replace(stage, inputs=inputs, token=token)


def spec_of_value(spec: TensorSpec, value: Any) -> TensorSpec:
    """Return an input's spec with the type of its value, where the model does not tell it."""
    if spec.dtype is not None or spec.kind is not None:
        return spec
    first = value.pieces[0] if isinstance(value, MicroBatches) else value
    if isinstance(first, np.ndarray):
        return TensorSpec(spec.name, first.dtype, (None,) * first.ndim)
    return TensorSpec(spec.name, None, None, kind_of_value(first))
