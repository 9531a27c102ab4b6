"""Speeds of a host's CPU on one thread: the bounds that kernels are compared with."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from onnx import helper

from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.runtime.reference_workload import session_of_nodes
from dask_onnx.runtime.session import Session

_SIDE = 512
"""Rows and columns of the matrices."""
_ELEMENTS = 2**22
"""Values of the element-wise operator: 16 MiB, more than the caches of one core."""
_RUNS = 6


@dataclass(frozen=True, slots=True)
class HostSpeed:
    """Speeds of one thread."""

    flops_per_second: float
    """Operations per second of a product of large matrices."""
    bytes_per_second: float
    """Bytes that an element-wise operator reads and writes per second, beyond the caches."""


@cached_in_process("speeds of this host")
def host_speed() -> HostSpeed:
    """Measure this host once; it takes some hundredths of a second.

    Raises
    ------
    StageError
        ONNX Runtime cannot run the two operators.
    """
    square = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    product = session_of_nodes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": square}, "speed of products"
    )
    stream = session_of_nodes([helper.make_node("Neg", ["x"], ["y"])], {}, "speed of memory")
    return HostSpeed(
        2 * _SIDE**3 / _seconds(product, square),
        2 * 4 * _ELEMENTS / _seconds(stream, np.ones(_ELEMENTS, np.float32)),
    )


def _seconds(session: Session, x: np.ndarray) -> float:
    """Return the seconds of the fastest run."""
    taken = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        session.run([x])
        taken.append(time.perf_counter() - began)
    return max(min(taken), 1e-9)
