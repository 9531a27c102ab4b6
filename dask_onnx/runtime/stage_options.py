"""Options of how stages run, as one record from a request through lowering into every task."""

from __future__ import annotations

from dataclasses import dataclass

from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.codec import Lossy
from dask_onnx.runtime.host_contracts import HostContract


@dataclass(frozen=True, slots=True)
class StageOptions:
    """Options that are the same for all stages of a request, and that change results or keys."""

    session: SessionSpec
    """Options of the ONNX Runtime sessions."""
    batching: Batching
    """Rows of each run of a session."""
    lossy: Lossy | None = None
    """Precision that values between stages may lose where a slow link makes it pay; None: none."""
    always_lossy: bool = False
    """Lose that precision on every link, to measure what it does to the results."""
    host: HostContract | None = None
    """Results that kernels must show on the host of a task; None for most models."""
