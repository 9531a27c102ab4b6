"""Parts of a model in the form in which a task runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dask.task_spec import TaskRef

from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.delivery import plan_delivery
from dask_onnx.collections.inline import InlineGraph, inline_graph
from dask_onnx.collections.request_builder import request_of
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.facts.host_checks import check_hosts
from dask_onnx.facts.staged_model import whole_model
from dask_onnx.runtime.batching import Batching
from dask_onnx.store.weight_store import Store


def inline_part(
    part: Model, wanted: Sequence[str]
) -> tuple[InlineGraph, list[TaskRef], dict[str, dict[Any, Any]]]:
    """Return a part of a model to run inline in a task, and what brings it to the worker.

    Parameters
    ----------
    part : Model
    wanted : sequence of str
        Values to compute.

    Returns
    -------
    graph : InlineGraph
        What the task runs.
    references : list of TaskRef
        Arguments of the task that bring the part to its worker.
    layers : dict of str to dict
        Layers of tasks to which the references refer.
    """
    if not part._onnx.blobs:
        # Weights stay in the model's file until a worker reads them.
        Store().put_proto(part._onnx)
    else:
        Store().put(part._onnx)
    plan = whole_model(part._facts).for_outputs(tuple(wanted))
    check_hosts(current_client(), part._facts, plan.recipe.session)
    names = [spec.name for spec in plan.stage_graph.inputs]
    batch = BatchFacts(dict.fromkeys(names), None, dict.fromkeys(wanted), {})
    request = dataclasses.replace(
        request_of(plan, Wanted(tuple(wanted), is_bare=False), batch, Batching()),
        delivery=plan_delivery(part._onnx, plan.stage_graph),
    )
    graph = inline_graph(request, names, list(wanted))
    layers = {key: dict(layer) for key, layer in request.supply_layers.items()}
    return graph, [TaskRef(key) for key in graph.supplies], layers
