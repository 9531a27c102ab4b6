"""Sequence shards as an alternative that "auto" weighs against pipelines and branches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from dask_onnx.cluster.delivery import current_client
from dask_onnx.cluster.placement import cluster_facts
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.planning.alternatives import Alternative, Verdict
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
    cluster = cluster_facts(client if client is not None else current_client())
    if cluster.slots < 2:
        return None, verdict
    for sharded, alternative in _alternatives(facts, shapes, session, cluster, (1,)):
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
    cluster = cluster_facts(client if client is not None else current_client())
    for sharded, alternative in _alternatives(facts, shapes, session, cluster, _SHARDS_PER_SLOT):
        if not alternative.refused:
            return sharded
    return None


def _alternatives(
    facts: ModelFacts,
    shapes: Mapping[str, tuple[int, ...]] | None,
    session: SessionSpec | None,
    cluster: Cluster,
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
        needed_bytes = summary.task_bytes * cluster.threads
        refused = (
            ""
            if needed_bytes <= cluster.room
            else f"a worker has room for {format_bytes(max(cluster.room, 0))}"
        )
        yield (
            plan,
            Alternative(
                f"sequence by {count}",
                summary.seconds,
                needed_bytes,
                summary.tasks,
                refused,
                strategy="sharded",
                options={"axis": "sequence", "n": count},
                parts=count,
            ),
        )
