"""A part of a model as something that a task can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dask.task_spec import TaskRef

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.api.model import Model
from dask_onnx.cluster.delivery import plan_delivery
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.inline import InlineGraph, inline_graph
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.runtime.batching import Batching
from dask_onnx.store.weight_store import Store


def part_here(
    part: Model, wanted: Sequence[str]
) -> tuple[InlineGraph, list[TaskRef], dict[str, dict[Any, Any]]]:
    """Return what a task runs, the arguments that bring the part to its worker, and the layers of
    tasks that these refer to."""
    if not part._onnx.blobs:
        # The weights stay in the model's file until a worker wants them.
        Store().note_places(part._onnx)
    else:
        Store().put(part._onnx)
    plan = part._whole_plan(tuple(wanted))
    names = [spec.name for spec in plan.stage_graph.inputs]
    request = Request(
        model=part._onnx.ref,
        stages=plan.stage_graph,
        session=plan.recipe.session,
        wanted=Wanted(tuple(wanted), is_bare=False),
        batch=BatchFacts(dict.fromkeys(names), None, dict.fromkeys(wanted), {}),
        batching=Batching(),
        retries=effective_retries(None),
        custom=part._facts.custom,
        delivery=plan_delivery(part._onnx, plan.stage_graph),
    )
    graph = inline_graph(request, names, list(wanted))
    layers = {key: dict(layer) for key, layer in request.supply_layers.items()}
    return graph, [TaskRef(key) for key in graph.supplies], layers
