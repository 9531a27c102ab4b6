"""Choice of strategy "auto" among alternatives on a cluster, and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_bytes, format_count, format_seconds
from dask_onnx.planning.alternatives import (
    Alternative,
    Verdict,
    Work,
    branches_side_by_side,
    pipeline_shared,
    rows_shared,
    whole_model,
)
from dask_onnx.planning.branch_stages import branches
from dask_onnx.planning.cutting import CutInputs
from dask_onnx.planning.partition import whole
from dask_onnx.planning.pipeline import Pieces
from dask_onnx.planning.resources import Cluster
from dask_onnx.planning.stages import StageGraph

_MOST_STAGES = 8
"""Most stages of a pipeline that is considered, unless memory requires more."""
_MOST_SHARED_STAGES = 16
"""Most stages that workers of unequal memory share among them."""
_MAX_RELATIVE_TIME = 0.9
"""Predicted time, relative to the whole model's, above which a cut is not worth it: predictions are
no better than that, and an uncut model is the safer mistake."""
LEAST_TASK_SECONDS = 0.05
"""Least seconds that a task should compute: shorter ones do not share the rows of a batch."""


Candidate = tuple[Alternative, StageGraph]
"""Alternative with the stage graph that it would run."""


def candidates(cut: CutInputs, cluster: Cluster, work: Work) -> list[Candidate]:
    """Return the whole model and all other alternatives worth comparing, refused ones too."""
    model = whole(cut)
    first = whole_model(cut, model, cluster, work)
    return [
        (first, model),
        *_shared_batches(cut, model, cluster, work),
        *_pipelines(cut, cluster, work.batches, is_needed=bool(first.refused)),
    ]


def choose(cut: CutInputs, cluster: Cluster, work: Work) -> tuple[StageGraph, Verdict]:
    """Return the stage graph of the least predicted time that fits the cluster.

    Parameters
    ----------
    cut : CutInputs
        The graph and what its nodes cost.
    cluster : Cluster
        The workers.
    work : Work
        Number of batches and their rows.

    Returns
    -------
    stages : StageGraph
        Stages of the alternative that was chosen.
    verdict : Verdict
        All alternatives, and the reason for this one.

    Raises
    ------
    PlanError
        No alternative fits the cluster.
    """
    found = candidates(cut, cluster, work)
    fitting = [each for each in found if not each[0].refused]
    if not fitting:
        raise _nothing_fits(cut, found[0][0], cluster)
    best, graph = _clearly_fastest(fitting)
    alternatives = tuple(each[0] for each in found)
    sentence = _sentence(best, alternatives, cluster, work)
    return graph, Verdict(best, sentence, alternatives, overhead=cluster.overhead)


def _clearly_fastest(fitting: Sequence[Candidate]) -> Candidate:
    """Return the fastest candidate; the whole model if no other one is clearly faster."""
    best = min(fitting, key=lambda each: each[0].seconds)
    whole_first = fitting[0]
    is_uncut = whole_first[0].strategy == "whole" and whole_first[0].parts == 1
    if is_uncut and best[0].seconds > _MAX_RELATIVE_TIME * whole_first[0].seconds:
        return whole_first
    return best


def judge(asked: Alternative, cut: CutInputs, cluster: Cluster, work: Work) -> Verdict:
    """Compare the alternative that the caller asked for with those that "auto" would consider."""
    found = [each[0] for each in candidates(cut, cluster, work)]
    rivals = [each for each in found if not each.refused]
    best = min(rivals, key=lambda each: each.seconds, default=None)
    takes = (
        f"refused: {asked.refused}" if asked.refused else f"takes {format_seconds(asked.seconds)}"
    )
    sentence = f"as asked, {asked.name} {takes} for {_batches_and_workers(cluster, work)}; "
    if best is None:
        sentence += "nothing else fits the workers either"
    elif asked.refused or best.seconds < asked.seconds:
        sentence += f"{best.name} would take {format_seconds(best.seconds)}, as predicted"
    else:
        sentence += "no other way is predicted to be faster"
    others = [each for each in found if each.name != asked.name]
    return Verdict(asked, sentence, (asked, *others), "as asked", cluster.overhead)


def _shared_batches(
    cut: CutInputs, model: StageGraph, cluster: Cluster, work: Work
) -> Iterator[Candidate]:
    """Yield alternatives in which several workers share one batch, where workers are spare."""
    share = cluster.slots // work.batches
    if share < 2:
        return
    parts = min(share, work.rows_to_share, int(model.seconds / LEAST_TASK_SECONDS))
    if parts > 1:
        yield rows_shared(cut, model, cluster, work, parts), model
    graph = branches(cut, n_workers=share)
    if len(graph.stages) > 1:
        yield branches_side_by_side(cut, graph, cluster, work.batches, share), graph


def _pipelines(
    cut: CutInputs, cluster: Cluster, batches: int, *, is_needed: bool
) -> Iterator[Candidate]:
    if cluster.workers == 1 and not is_needed:
        return
    rooms, pieces = cluster.rooms, Pieces(cut)
    while rooms:
        found = list(_pipelines_on(pieces, cluster, batches, rooms))
        yield from found
        if any(not alternative.refused for alternative, _ in found):
            return
        # The smallest worker may have no room for any stage; then only the larger ones share them.
        rooms = rooms[: rooms.index(rooms[-1])]


def _pipelines_on(
    pieces: Pieces, cluster: Cluster, batches: int, rooms: tuple[float, ...]
) -> Iterator[Candidate]:
    """Yield pipelines on workers with these rooms in bytes; any stage fits each of them."""
    try:
        least = max(2, pieces.fewest_stages(rooms[-1]))
    except PlanError:
        return  # one node alone is too large
    limit = None if math.isinf(rooms[-1]) else max(int(rooms[-1]), 0)
    for count in _stage_counts(least, rooms):
        if count > pieces.most_stages:
            return
        graph = pieces.pipeline(count, limit)
        yield pipeline_shared(pieces.cut, graph, cluster, batches, rooms), graph


def _nothing_fits(cut: CutInputs, uncut: Alternative, cluster: Cluster) -> PlanError:
    """Return the error that says why no alternative fits."""
    reason, node = uncut.refused, None
    try:
        Pieces(cut).fewest_stages(max(cluster.rooms))
    except PlanError as error:
        reason, node = error.cause, error.node
    total = max(sum(cluster.rooms), 0)
    return PlanError(
        f"the model does not fit {format_count(cluster.workers, 'worker')} in any way: {reason}; "
        f"all of them together have room for {format_bytes(total)}",
        "add workers, or give each more memory",
        node=node,
        numbers={
            "workers": cluster.workers,
            "room_bytes": total,
            "needed_bytes": uncut.worker_bytes,
        },
    )


def _stage_counts(least: int, rooms: Sequence[float]) -> Sequence[int]:
    """Return the numbers of stages to try: from the fewest that fit up to the number of workers.

    Where rooms differ, larger numbers let workers share the stages in proportion to them.
    """
    most = max(least, min(_MOST_STAGES, len(rooms)))
    if rooms[0] > rooms[-1] > 0:
        shares = math.ceil(sum(rooms) / rooms[-1])
        most = max(most, min(shares, _MOST_SHARED_STAGES))
    return range(least, most + 1)


def _batches_and_workers(cluster: Cluster, work: Work) -> str:
    kind = "thread" if cluster.is_local else "worker"
    workers = format_count(cluster.parallel_workers, kind)
    return f"{format_count(work.batches, 'batch', 'es')} on {workers}"


def _sentence(best: Alternative, found: Sequence[Alternative], cluster: Cluster, work: Work) -> str:
    others = [each for each in found if each.name != best.name and not each.refused]
    rival = min(others, key=lambda each: each.seconds, default=None)
    compared = f", {rival.name} {format_seconds(rival.seconds)}" if rival else ""
    return (
        f"{_reason(best, found, cluster, work)}; {_batches_and_workers(cluster, work)}: "
        f"{best.name} {format_seconds(best.seconds)}{compared}, as predicted"
    )


def _reason(best: Alternative, found: Sequence[Alternative], cluster: Cluster, work: Work) -> str:
    if best.parts > 1:
        size = math.ceil(work.rows_to_share / best.parts)
        return (
            f"do not cut: rows are independent, {best.parts} tasks share each batch (of lazy "
            f"arrays those with chunks of {format_count(size, 'row')})"
        )
    if best.stages > 1:
        if found[0].refused:
            return "cut, since the whole model does not fit a worker"
        return "cut, since that is faster"
    if any(each.seconds < best.seconds for each in found if not each.refused):
        return "do not cut: the gain would be no larger than the error of the prediction"
    if work.rows_depend:
        return f"do not cut, each batch in one task ({work.rows_depend[0]} keeps its rows together)"
    if cluster.slots == 1:
        return "do not cut: one task runs at a time, and a cut would add to its work"
    if work.batches == 1:
        return "do not cut: sharing one batch would gain less than it costs"
    if work.rows is None:
        return "do not cut: requests are independent, each is a task"
    kind = "thread" if cluster.is_local else "worker"
    return f"do not cut: rows are independent, each {kind} runs batches of its own"
