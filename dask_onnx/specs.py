"""The small frozen records that cross every layer and every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Dim = int | str | None
"""One axis of a shape: a size, the name of a symbolic size, or None where nothing is known."""

OptimizationLevel = Literal["disable", "basic", "extended", "all"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a graph input, output or intermediate value."""

    name: str
    dtype: np.dtype[Any] | None
    """numpy's dtype (ml_dtypes where numpy has none; object for strings); None if not a tensor."""
    shape: tuple[Dim, ...] | None
    """One entry an axis; None if not even the rank is known."""

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        dtype = "not a tensor" if self.dtype is None else dtype_name(self.dtype)
        return f"{self.name}: {dtype} {format_shape(self.shape)}"


def dtype_name(dtype: np.dtype[Any]) -> str:
    """ONNX has a string type where numpy has objects."""
    return "string" if dtype.kind == "O" else str(dtype.name)


def format_shape(shape: tuple[Dim, ...] | None) -> str:
    """``(N, 3, 224, ?)``, or ``(unknown rank)``."""
    if shape is None:
        return "(unknown rank)"
    dims = ["?" if dim is None else str(dim) for dim in shape]
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """How ONNX Runtime is to run a stage. Every field is part of the session cache's key."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ORT's execution providers, in order of preference; always named, never ORT's default."""
    intra_op_num_threads: int = 1
    """Threads inside one operator; 0 takes every core that the process may use. One thread a task
    is what several tasks at a time want; a single request alone is faster with more."""
    optimization: OptimizationLevel = "all"
    """ORT's graph optimisation level."""
