"""Sequence shards as an alternative that "auto" weighs against pipelines and branches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dask_onnx.analysis.cost import CostTable
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.links import known_link
from dask_onnx.cluster.overhead import with_known_overhead
from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.planning.alternatives import Alternative, Verdict
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import Cluster
from dask_onnx.sharding.on_shards import ShardedPlan, plan_on_shards
from dask_onnx.sharding.sequence_plan import SequencePlan
from dask_onnx.sharding.strategy import Sharded

log = logging.getLogger(__name__)

_MAX_RELATIVE_TIME = 0.9
"""Largest predicted time, relative to the best alternative, at which shards are chosen.

Below 1 because the costs of shards are less certain.
"""
_SHARDS_PER_SLOT = (1, 4, 16, 64)
"""Multiples of the cluster's task slots to try as number of shards, when fewer need too much
memory."""


def weigh_shards(
    facts: ModelFacts,
    verdict: Verdict,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    client: Any,
) -> tuple[ShardedPlan | None, Verdict]:
    """Compare sequence shards with the plan that "auto" has chosen.

    Returns
    -------
    sharded
        Sharded plan if it is predicted to be clearly faster; None otherwise.
    verdict
        `verdict` with the shards among its alternatives, if the model has a sequence axis and the
        cluster more than one slot.
    """
    client = client if client is not None else current_client()
    cluster = with_known_overhead(cluster_facts(client), client)
    if cluster.slots < 2:
        return None, verdict
    costs = _costs(facts, cluster, client)
    for sharded, alternative in _alternatives(facts, shapes, session, cluster, costs, (1,)):
        verdict = dataclasses.replace(verdict, alternatives=(*verdict.alternatives, alternative))
        if (
            not alternative.refused
            and alternative.seconds < _MAX_RELATIVE_TIME * verdict.best.seconds
        ):
            return sharded, verdict
    return None, verdict


def shards_that_fit(
    facts: ModelFacts,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    client: Any,
) -> ShardedPlan | None:
    """Return the plan with the fewest sequence shards that fit the workers; None if none fit."""
    client = client if client is not None else current_client()
    cluster = with_known_overhead(cluster_facts(client), client)
    costs, multiples = _costs(facts, cluster, client), _SHARDS_PER_SLOT
    for sharded, alternative in _alternatives(facts, shapes, session, cluster, costs, multiples):
        if not alternative.refused:
            return sharded
    return None


def _costs(facts: ModelFacts, cluster: Cluster, client: Any) -> CostTable:
    """Return the costs that plans of stages are weighed with on the same cluster."""
    link = None if cluster.is_local else known_link(client)
    return cluster.costs(facts.costs_for(Recipe("whole", None, SessionSpec(), link=link)))


def _alternatives(
    facts: ModelFacts,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    cluster: Cluster,
    costs: CostTable,
    multiples: tuple[int, ...],
) -> Iterator[tuple[SequencePlan, Alternative]]:
    """Yield a sharded plan and its predicted costs for each multiple of the cluster's slots."""
    for multiple in multiples:
        count = multiple * cluster.slots
        try:
            plan = plan_on_shards(
                facts,
                Sharded("sequence", count),
                outputs=None,
                shapes=shapes,
                session=session,
                others={},
            )
        except PlanError as error:
            log.debug("no shards of a sequence: %s", error)
            return
        assert isinstance(plan, SequencePlan)
        summary = plan.at().summary
        needed_bytes = int(summary.memory.on_each_of(cluster))
        refused = (
            ""
            if needed_bytes <= cluster.room
            else f"a worker has room for {format_bytes(max(cluster.room, 0))}"
        )
        yield (
            plan,
            Alternative(
                f"sequence by {count}",
                summary.seconds_on(costs, cluster.slowdowns(cluster.slots)[-1]),
                needed_bytes,
                summary.tasks,
                refused,
                strategy="sharded",
                options={"axis": "sequence", "n": count},
                parts=count,
            ),
        )
