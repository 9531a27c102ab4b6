"""Small frozen records that cross every layer and every process."""

from __future__ import annotations

import numbers
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import printable

Dim = int | str | None
"""Size of one axis: a number, the name of a symbolic size, or None where it is unknown."""

OptimizationLevel = Literal["disable", "basic", "extended", "all"]
"""ONNX Runtime's graph optimisation levels."""

ORT_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)
"""Packages that are builds of ONNX Runtime, each with other execution providers."""

CPU_PROVIDER = "CPUExecutionProvider"
"""Execution provider of ONNX Runtime that every build has."""

ProviderOptions = tuple[tuple[str, str], ...]
"""Options of an execution provider, by name, sorted."""

Provider = str | tuple[str, ProviderOptions]
"""Execution provider of ONNX Runtime: its name, or its name with options."""

Kernel = Literal["onnxruntime", "reference", "custom"]
"""Implementation of a node: ONNX Runtime, ONNX's reference evaluator, or a custom kernel."""


@dataclass(frozen=True, slots=True)
class NodeKernel:
    """The kernel that runs a node, with the reason if it is not ONNX Runtime."""

    kernel: Kernel
    reason: str
    """Reason why ONNX Runtime does not run the node; empty if it does."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a graph input, output or intermediate value."""

    name: str
    dtype: np.dtype[Any] | None
    """numpy's dtype (of ml_dtypes where numpy has none; object for strings); None if the value is
    not a tensor or its type is unknown."""
    shape: tuple[Dim, ...] | None
    """One entry for each axis; None if the rank is unknown."""
    kind: str | None = None
    """Type of a value that is not a tensor, in ONNX's notation: ``seq(tensor(float))``."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorSpec):
            return NotImplemented
        same = (self.name, self.shape, self.kind) == (other.name, other.shape, other.kind)
        return same and same_dtype(self.dtype, other.dtype)

    @property
    def rank(self) -> int | None:
        """Number of axes; None if unknown."""
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        name = printable(self.name)
        if self.dtype is None:
            return f"{name}: {printable(self.kind or '(unknown type)')}"
        return f"{name}: {dtype_name(self.dtype)} {format_shape(self.shape)}"


def same_dtype(one: np.dtype[Any] | None, other: np.dtype[Any] | None) -> bool:
    """Return whether two dtypes are the same; an unknown one, None, is the same as itself only.

    numpy takes None for float64 where dtypes are compared.
    """
    return one is other if one is None or other is None else bool(one == other)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype; ONNX's "string" for numpy's objects."""
    return "string" if dtype.kind == "O" else str(dtype.name)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype holds floating-point numbers, those of ml_dtypes included."""
    # numpy has no kind of its own for the types of ml_dtypes, which also has integers of 4 bits.
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def format_shape(shape: tuple[Dim, ...] | None) -> str:
    """Return a shape as text, such as ``(N, 3, 224, ?)`` or ``(unknown rank)``."""
    if shape is None:
        return "(unknown rank)"
    dims = ["?" if dim is None else printable(str(dim)) for dim in shape]
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """Options of ONNX Runtime for a stage. Every field is part of the session cache's key."""

    providers: Sequence[str | tuple[str, Mapping[str, Any] | ProviderOptions]] | str = (
        CPU_PROVIDER,
    )
    """ORT's execution providers, in order of preference: names, or names with options, such as
    ``("CUDAExecutionProvider", {"device_id": 1})``; stored as a tuple, options as a sorted tuple of
    texts. ORT's own default is never used; nodes that no provider takes run on the CPU. A worker
    that dask-cuda has bound to a device (``CUDA_VISIBLE_DEVICES``) sees it as device 0."""
    intra_op_num_threads: int | None = None
    """Threads inside one operator. None (throughput): the cores of the process, by affinity and
    cgroup, divided by its Dask threads. 0 (latency): all cores of the process."""
    optimization: OptimizationLevel = "all"
    """ORT's graph optimisation level."""
    memory_pattern: bool = True
    """True if ORT plans one block of memory for inputs of equal shape (``enable_mem_pattern``)."""
    arena_shrinkage: bool = False
    """True if each run returns its memory to the system instead of keeping the peak for the next.
    For workers that are short of memory; slows short runs down."""
    config: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    """ORT's session config entries by name, as strings, such as
    ``{"session.disable_prepacking": "1"}``; stored as a sorted tuple."""
    custom_op_libraries: tuple[str, ...] = ()
    """Paths on the workers of shared libraries with custom operators for ORT."""
    max_run_seconds: float | None = None
    """Seconds that a run may take before it is ended, at its next node, with a `TimeLimitError`.
    None: as ``onnx.session.max-run-seconds`` says (any time); 600 s of models that have loops and
    were loaded with ``untrusted=True`` (``onnx.untrusted.max-run-seconds``)."""

    def __post_init__(self) -> None:
        threads = self.intra_op_num_threads
        if threads is not None and (not isinstance(threads, int) or threads < 0):
            raise PlanError(
                f"intra_op_num_threads is {threads!r}, and must be None or an integer from 0 on",
                "give a number of threads, 0 for all cores of the process, or None for its share",
                option="intra_op_num_threads",
                suggestions=[Suggestion("intra_op_num_threads", 0)],
            )
        seconds = self.max_run_seconds
        is_number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and 0 < seconds <= threading.TIMEOUT_MAX):
            raise PlanError(
                f"max_run_seconds is {seconds!r}, and must be None or a number above 0",
                "give seconds, or None for any time",
                option="max_run_seconds",
                suggestions=[Suggestion("max_run_seconds")],
            )
        if seconds is not None:
            object.__setattr__(self, "max_run_seconds", float(seconds))
        object.__setattr__(self, "providers", _providers(self.providers))
        entries = self.config.items() if isinstance(self.config, Mapping) else self.config
        object.__setattr__(self, "config", tuple(sorted((str(k), str(v)) for k, v in entries)))

    @property
    def provider_list(self) -> tuple[Provider, ...]:
        """Execution providers in the form in which they are stored."""
        return cast(tuple[Provider, ...], self.providers)

    @property
    def provider_options(self) -> Mapping[str, ProviderOptions]:
        """Options of each execution provider by its name, in order of preference."""
        return dict((each, ()) if isinstance(each, str) else each for each in self.provider_list)

    @property
    def is_on_cpu(self) -> bool:
        """True if the CPU's execution provider is the only one, without options."""
        return self.providers == (CPU_PROVIDER,)

    @property
    def takes_all_cores(self) -> bool:
        """True if a run uses all cores of its process (latency)."""
        return self.intra_op_num_threads == 0


def _providers(given: Any) -> tuple[Provider, ...]:
    """Return execution providers in the form in which a `SessionSpec` stores them.

    Raises
    ------
    PlanError
        There are none; one is no name, or has options that are no mapping; one is there twice.
    """
    if isinstance(given, str):
        given = (given,)
    entries = list(given) if isinstance(given, Sequence) else [given]
    if len(entries) == 2 and isinstance(entries[0], str) and isinstance(entries[1], Mapping):
        entries = [tuple(entries)]  # one provider with its options
    found = [_provider(entry) for entry in entries]
    names = [each if isinstance(each, str) else each[0] for each in found]
    if not names or len(set(names)) < len(names):
        raise PlanError(
            f"providers are {given!r}: "
            + ("one is there twice" if names else "there must be one at least"),
            "give each execution provider once, in order of preference",
            option="providers",
            suggestions=[Suggestion("providers", tuple(dict.fromkeys(names)) or (CPU_PROVIDER,))],
        )
    return tuple(found)


def _provider(entry: Any) -> Provider:
    name: Any = entry
    options: Any = ()
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        name, options = entry
    pairs = options.items() if isinstance(options, Mapping) else options
    is_pairs = isinstance(pairs, Iterable) and not isinstance(pairs, str)
    if not isinstance(name, str) or not name or not is_pairs:
        raise PlanError(
            f"providers has {entry!r}, which is no execution provider",
            'give a name, or a name with options: ("CUDAExecutionProvider", {"device_id": 1})',
            option="providers",
            suggestions=[Suggestion("providers", (CPU_PROVIDER,))],
        )
    stored = tuple(sorted((str(key), str(value)) for key, value in pairs))
    return (name, stored) if stored else name
