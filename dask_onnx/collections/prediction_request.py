"""A request, resolved: what each kind of collection needs to turn it into tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.cluster.delivery import Delivery
from dask_onnx.cluster.placement import Placement
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.core.specs import SessionSpec, TensorSpec
from dask_onnx.lowering.lower import Options
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.codec import Lossy
from dask_onnx.runtime.custom_kernels import CustomKernels


@dataclass(frozen=True, slots=True)
class Request:
    """One `predict`, checked against the model."""

    model: ModelRef
    stages: StageGraph
    session: SessionSpec
    wanted: Wanted
    batch: BatchFacts
    batching: Batching
    retries: int
    lossy: Lossy | None = None
    """What may be lost of values between stages, on slow links."""
    always_lossy: bool = False
    custom: CustomKernels | None = None
    """The caller's kernels."""
    salt: str = ""
    """Part of all keys, and empty where the same request has the same result."""
    placement: Placement | None = None
    """Which stages share a worker."""
    schedule: Schedule | None = None
    """What bounds the chunks that are on their way through several stages."""
    rows: int | None = None
    """That the stages' costs are for."""
    expects: bool = False
    """The costs rest on what was measured."""
    is_batched: bool = False
    """The caller has said how many rows a batch has."""
    delivery: Delivery | None = None
    """What brings the model to workers that cannot get it themselves."""

    @property
    def supplies(self) -> tuple[tuple[str, ...], ...] | None:
        return None if self.delivery is None else self.delivery.keys

    @property
    def supply_layers(self) -> dict[str, dict[Any, Any]]:
        """The delivery's tasks, each a layer of its own, as graphs of Delayed have them."""
        tasks = {} if self.delivery is None else self.delivery.tasks
        return {key: {key: task} for key, task in tasks.items()}

    @property
    def options(self) -> Options:
        return Options(
            self.session,
            self.batching,
            self.batch.output_axes,
            self.retries,
            self.lossy,
            self.always_lossy,
            self.custom,
            self.salt,
            self.placement,
            self.schedule,
            self.rows,
            self.expects,
        )

    def spec(self, output: str) -> TensorSpec:
        return next(spec for spec in self.stages.outputs if spec.name == output)

    def dtype(self, output: str) -> np.dtype:
        dtype = self.spec(output).dtype
        return np.dtype(object) if dtype is None else dtype
