"""Types of values that runs of single nodes have shown, where no rule infers them.

`collections.observed_types` runs a node on made-up inputs of two shapes; `learned_type` says what
their results have in common; `analysis.shapes` applies it like the rule of an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.value_types import kind_of_value

Shape = tuple[int, ...]
InputAxis = tuple[int, int]
"""An input of a node, by its position, and an axis of that input."""


@dataclass(frozen=True, slots=True)
class LearnedType:
    """Type of one output of a node, as a function of the shapes of its inputs."""

    dtype: np.dtype[Any] | None
    """Dtype; None for a value that is not a tensor."""
    dims: tuple[int | InputAxis | None, ...] = ()
    """For each axis a fixed size, the axis of an input that is as long, or None."""
    kind: str | None = None
    """Type of a value that is not a tensor, in ONNX's notation."""

    def spec(self, name: str, inputs: Sequence[TensorSpec | None]) -> TensorSpec:
        """Return the spec of the output for inputs of these specs."""
        if self.dtype is None:
            return TensorSpec(name, None, None, self.kind)
        return TensorSpec(name, self.dtype, tuple(_dim(dim, inputs) for dim in self.dims))


def is_typed(spec: TensorSpec | None) -> bool:
    """Return whether dtype and rank are known, or the type of a value that is not a tensor."""
    if spec is None:
        return False
    return spec.kind is not None or (spec.dtype is not None and spec.shape is not None)


def _dim(dim: int | InputAxis | None, inputs: Sequence[TensorSpec | None]) -> Dim:
    if not isinstance(dim, tuple):
        return dim
    position, axis = dim
    spec = inputs[position] if position < len(inputs) else None
    return None if spec is None or spec.shape is None else spec.shape[axis]


@dataclass(frozen=True, slots=True)
class Observation:
    """One run of a node: shapes of its inputs, and one of its outputs."""

    inputs: tuple[Shape | None, ...]
    """Shape of each input; None for one that is left out or no tensor."""
    output: Any
    """Array, list, dict or None."""


def learned_type(runs: Sequence[Observation]) -> LearnedType | None:
    """Return the type that all runs of a node agree on; None if their types differ.

    Parameters
    ----------
    runs : sequence of Observation
        Runs with inputs of different shapes and values, one after the other.
    """
    values = [run.output for run in runs]
    if not all(isinstance(value, np.ndarray) for value in values):
        kinds = {None if value is None else kind_of_value(value) for value in values}
        return (
            LearnedType(None, kind=kinds.pop()) if len(kinds) == 1 and None not in kinds else None
        )
    dtypes = {np.dtype(object) if v.dtype.kind in "OUST" else v.dtype for v in values}
    ranks = {value.ndim for value in values}
    if len(dtypes) != 1 or len(ranks) != 1:
        return None
    return LearnedType(dtypes.pop(), tuple(_learned_dim(runs, axis) for axis in range(ranks.pop())))


def _learned_dim(runs: Sequence[Observation], axis: int) -> int | InputAxis | None:
    """Return the input axis that an output axis is always as long as, a fixed size, or None."""
    sizes = [run.output.shape[axis] for run in runs]
    if len(set(sizes)) == 1:
        return int(sizes[0])
    candidates = [
        (position, own)
        for position, shape in enumerate(runs[0].inputs)
        for own in range(len(shape or ()))
    ]
    # An axis of the same number first: an operator that keeps its axes is the common case.
    for position, own in sorted(candidates, key=lambda each: (each[1] != axis, each)):
        if all(
            (shape := run.inputs[position]) is not None and shape[own] == size
            for run, size in zip(runs, sizes, strict=True)
        ):
            return position, own
    return None
