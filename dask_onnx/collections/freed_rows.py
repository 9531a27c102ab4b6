"""Models whose exported number of rows is opened, and compared with the original by running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_onnx.analysis.freeing import check_freed, free_batch
from dask_onnx.analysis.opening.opener import Blocked
from dask_onnx.collections.predictions import predict_inline
from dask_onnx.collections.run_options import RowOptions, RunOptions, TableOptions
from dask_onnx.core.errors import ModelError
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import OnnxModel


def free_rows(facts: ModelFacts, axes: Mapping[str, int] | None) -> ModelFacts:
    """Return a model with an open number of rows instead of the exported one; see `Model.freed`.

    Parameters
    ----------
    facts : ModelFacts
        The model as it was exported.
    axes : mapping of str to int, optional
        Axis of each input that carries rows, by name; the first axes by default.

    Raises
    ------
    ModelError
        The number of rows cannot be opened, or the result differs from the original.
    """
    found = free_batch(facts.onnx, axes, facts.schemas, facts.custom_axes)
    if isinstance(found, Blocked):
        raise ModelError(
            f"model {facts.name!r} keeps the batch that it was exported with: {found}",
            "export it with an open batch dimension, or run it at the exported number of rows",
            node=found.node or None,
            reason=found.how or found.kind.label,
            numbers={} if found.rows is None else {"rows": found.rows},
        )

    def run(onnx_model: OnnxModel, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        model = ModelFacts(onnx_model, facts.custom, facts.libraries)
        options = RunOptions([spec.name for spec in onnx_model.outputs], batch_size=None)
        results: Mapping[str, Any] = predict_inline(
            model, dict(feeds), options, TableOptions(), RowOptions()
        )
        return results

    check_freed(facts.onnx, found, run)
    return ModelFacts(found.model, facts.custom, facts.libraries)
