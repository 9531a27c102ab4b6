"""What a plan needs of the model that it belongs to."""

from __future__ import annotations

from typing import Any, Protocol

from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.run_options import BatchSize, RunOptions
from dask_onnx.core.specs import TensorSpec
from dask_onnx.facts.model_facts import ModelFacts


class PlannedModel(Protocol):
    """What a plan needs of its `Model`, which stands a layer above."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def __dask_tokenize__(self) -> tuple[str, ...]: ...

    @property
    def _facts(self) -> ModelFacts: ...

    def _fed_with(self, x: Any) -> PlannedModel:
        """The model that takes what `x` has."""
        ...

    def _request(
        self, x: Any, run: RunOptions, *, inline: bool = False
    ) -> tuple[Request, dict[str, Any], str]:
        """What is asked for, checked; the feeds; their kind."""
        ...

    def check(self, x: Any, *, outputs: list[str] | None = None) -> None:
        """Compare inputs with the model."""
        ...

    def predict(self, x: Any, *, outputs: list[str], batch_size: BatchSize, plan: Any) -> Any: ...
