"""Checked and resolved requests, which each kind of collection turns into tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.cluster.delivery import Delivery
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.core.specs import TensorSpec
from dask_onnx.lowering.lower import LoweringOptions
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.planning.chunk_groups import ChunkGroups
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.batching import Batching


@dataclass(frozen=True, slots=True)
class Request:
    """One `predict`, checked against the model."""

    model: ModelRef
    stages: StageGraph
    wanted: Wanted
    """Outputs, and the form in which the caller wants them."""
    batch: BatchFacts
    """Axes that carry rows, and whether these are independent."""
    options: LoweringOptions
    is_batched: bool = False
    """True if the caller gave the number of rows of a batch."""
    delivery: Delivery | None = None
    """Tasks that bring the model to workers that cannot get it themselves."""
    types: Mapping[str, TensorSpec] = field(default_factory=dict)
    """Specs of outputs that are known better than when the stages were cut."""
    unproven_types: frozenset[str] = frozenset()
    """Outputs whose rank is declared but follows from no rule; their blocks are checked."""
    chunk_groups: ChunkGroups | None = None
    """Rule for the chunks of a lazy array that one task computes; None for one."""

    @property
    def batching(self) -> Batching:
        """Rows of each run of a session."""
        return self.options.run.batching

    @property
    def supplies(self) -> tuple[tuple[str, ...], ...] | None:
        """Keys of the tasks that bring each stage its weights; None if workers fetch them."""
        return None if self.delivery is None else self.delivery.keys

    @property
    def supply_layers(self) -> dict[str, dict[Any, Any]]:
        """Tasks of the delivery, each a layer of its own, as graphs of Delayed have them."""
        tasks = {} if self.delivery is None else self.delivery.tasks
        return {key: {key: task} for key, task in tasks.items()}

    def spec(self, output: str) -> TensorSpec:
        """Return the dtype and shape of an output."""
        known = self.types.get(output)
        return known or next(spec for spec in self.stages.outputs if spec.name == output)

    def dtype(self, output: str) -> np.dtype:
        """Return the dtype of an output; object where ONNX's type has no numpy dtype."""
        dtype = self.spec(output).dtype
        return np.dtype(object) if dtype is None else dtype
