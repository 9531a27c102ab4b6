"""A request, resolved: what each kind of collection needs to turn it into tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dask_onnx.analysis.axes import BatchFacts
from dask_onnx.collections.request import Wanted
from dask_onnx.lower import Options
from dask_onnx.onnx_model import ModelRef
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.runs import Batching
from dask_onnx.specs import SessionSpec, TensorSpec


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

    @property
    def options(self) -> Options:
        return Options(self.session, self.batching, self.batch.output_axes, self.retries)

    def spec(self, output: str) -> TensorSpec:
        return next(spec for spec in self.stages.outputs if spec.name == output)

    def dtype(self, output: str) -> np.dtype:
        dtype = self.spec(output).dtype
        return np.dtype(object) if dtype is None else dtype
