"""Shards of a sequence as a way that "auto" weighs beside pipelines and branches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dask_onnx.cluster.delivery import current_client
from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.choice import Alternative, Verdict
from dask_onnx.planning.resources import Cluster
from dask_onnx.sharding.on_shards import ShardedPlan, plan_on_shards
from dask_onnx.sharding.sequence_plan import SequencePlan
from dask_onnx.sharding.strategy import Sharded

log = logging.getLogger(__name__)

_GAIN = 0.9
"""Share of the best other time that shards must stay under: their costs are known less well."""
_FINER = (1, 4, 16, 64)
"""Shards for each slot of the cluster to try, where fewer need too much memory."""


def weigh_shards(
    model: PlannedModel,
    verdict: Verdict,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    client: Any,
) -> tuple[ShardedPlan | None, Verdict]:
    """Weigh shards of a sequence against the plan that "auto" has chosen.

    Returns
    -------
    sharded
        The plan on shards where that is predicted to be faster; None otherwise.
    verdict
        With the shards among its alternatives, if the model has a sequence.
    """
    cluster = cluster_facts(client if client is not None else current_client())
    if cluster.slots < 2:
        return None, verdict
    for sharded, way in _ways(model, shapes, session, cluster, (1,)):
        verdict = dataclasses.replace(verdict, alternatives=(*verdict.alternatives, way))
        if not way.refused and way.seconds < _GAIN * verdict.best.seconds:
            return sharded, verdict
    return None, verdict


def shards_that_fit(
    model: PlannedModel,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    client: Any,
) -> ShardedPlan | None:
    """Return the fewest shards whose tasks fit the workers, where nothing else does."""
    cluster = cluster_facts(client if client is not None else current_client())
    for sharded, way in _ways(model, shapes, session, cluster, _FINER):
        if not way.refused:
            return sharded
    return None


def _ways(
    model: PlannedModel,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    cluster: Cluster,
    multiples: tuple[int, ...],
) -> Iterator[tuple[SequencePlan, Alternative]]:
    for multiple in multiples:
        count = multiple * cluster.slots
        try:
            made = plan_on_shards(
                model,
                Sharded("sequence", count),
                outputs=None,
                shapes=shapes,
                session=session,
                others={},
            )
        except PlanError as error:
            log.debug("no shards of a sequence: %s", error)
            return
        assert isinstance(made, SequencePlan)
        summary = made.at().summary
        needs = summary.task_bytes * cluster.threads
        refused = (
            ""
            if needs <= cluster.room
            else f"a worker has room for {format_bytes(max(cluster.room, 0))}"
        )
        yield (
            made,
            Alternative(
                f"sequence by {count}",
                summary.seconds,
                needs,
                summary.tasks,
                refused,
                strategy="sharded",
                options={"axis": "sequence", "n": count},
                parts=count,
            ),
        )
