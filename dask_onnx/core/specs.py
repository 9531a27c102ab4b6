"""The small frozen records that cross every layer and every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_onnx.core.errors import PlanError

Dim = int | str | None
"""One axis of a shape: a size, the name of a symbolic size, or None where nothing is known."""

OptimizationLevel = Literal["disable", "basic", "extended", "all"]

Kernel = Literal["onnxruntime", "reference", "custom"]
"""What runs a node: ONNX Runtime, ONNX's reference evaluator, or the caller's own kernel."""


@dataclass(frozen=True, slots=True)
class NodeKernel:
    """What runs one node, and why it is not ONNX Runtime."""

    kernel: Kernel
    reason: str
    """Empty for ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a graph input, output or intermediate value."""

    name: str
    dtype: np.dtype[Any] | None
    """numpy's dtype (ml_dtypes where numpy has none; object for strings); None if not a tensor."""
    shape: tuple[Dim, ...] | None
    """One entry an axis; None if not even the rank is known."""
    kind: str | None = None
    """The type of what is no tensor, in ONNX's notation: ``seq(tensor(float))``."""

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        if self.dtype is None:
            return f"{self.name}: {self.kind or '(unknown type)'}"
        return f"{self.name}: {dtype_name(self.dtype)} {format_shape(self.shape)}"


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
    intra_op_num_threads: int | None = None
    """Threads inside one operator. None (throughput): the cores of the process, by affinity and
    cgroup, over the Dask threads that use them. 0 (latency): every core that the process has."""
    optimization: OptimizationLevel = "all"
    """ORT's graph optimisation level."""
    memory_pattern: bool = True
    """ORT plans one block of memory for inputs of equal shape (``enable_mem_pattern``)."""
    arena_shrinkage: bool = False
    """Give memory back to the system after each run, rather than keep the peak for the next: for
    workers that are short of memory; costs time where runs are short."""
    config: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    """ORT's session config entries by name, as strings, such as
    ``{"session.disable_prepacking": "1"}``; kept as a sorted tuple."""

    custom_op_libraries: tuple[str, ...] = ()
    """Paths, as the workers see them, of shared libraries with operators for ORT."""

    def __post_init__(self) -> None:
        threads = self.intra_op_num_threads
        if threads is not None and (not isinstance(threads, int) or threads < 0):
            raise PlanError(
                f"intra_op_num_threads is {threads!r}",
                "give a number, 0 for every core of the process, or None for its share of them",
            )
        if isinstance(self.providers, str):
            object.__setattr__(self, "providers", (self.providers,))
        entries = self.config.items() if isinstance(self.config, Mapping) else self.config
        object.__setattr__(self, "config", tuple(sorted((str(k), str(v)) for k, v in entries)))

    @property
    def takes_all_cores(self) -> bool:
        """Whether a run uses every core of its process (latency)."""
        return self.intra_op_num_threads == 0
