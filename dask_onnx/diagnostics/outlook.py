"""Predictions for a plan on a given cluster: schedule, memory, and how other plans compare."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.cluster.measurements import collect
from dask_onnx.cluster.placement import Placement
from dask_onnx.diagnostics.as_ran import measured_as_ran
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.alternatives import Verdict, alternative_of_plan
from dask_onnx.planning.choice import judge
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import PROCESS_BYTES, Cluster
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import StageGraph
from dask_onnx.planning.timeline import Scenario
from dask_onnx.planning.worker_memory import WorkerMemory, project


@dataclass(frozen=True, slots=True)
class Outlook:
    """Cluster, placement and schedule that a plan is to run with."""

    cluster: Cluster
    placement: Placement | None
    schedule: Schedule | None
    batches: int
    """Micro-batches that the timetable is for."""

    @property
    def worker_groups(self) -> tuple[int, ...] | None:
        """Worker group of each stage; None where each runs anywhere."""
        return None if self.placement is None else self.placement.worker_groups

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        """The same, but None too where idle workers may take stages of other groups."""
        return None if self.placement is None else self.placement.only_worker_groups


def measured_stages(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, client: object
) -> Measured | None:
    """Return what this process, and a client's workers, have recorded of the stages."""
    tokens = [stage_ref(facts.onnx.ref, stage, facts.custom).token for stage in stages.stages]
    runs, peaks = collect(client, tokens)
    return measured_as_ran(facts, stages, recipe, tokens, runs, peaks)


def course_of(facts: ModelFacts, recipe: Recipe, outlook: Outlook) -> Scenario:
    """Return the parameters of a simulation of the outlook's micro-batches."""
    cluster, worker_groups = outlook.cluster, outlook.worker_groups
    workers, places = cluster.slots, None
    if worker_groups is not None:
        groups = sorted(set(worker_groups))
        workers = len(groups) if cluster.is_local else min(cluster.workers, len(groups))
        places = tuple(map(groups.index, worker_groups))
    costs = cluster.costs(facts.costs_for(recipe))
    slowdowns = cluster.slowdowns(workers, cluster.threads_of_task(recipe.session))
    return Scenario(outlook.batches, workers, costs, places, outlook.schedule, slowdowns)


def verdict_on(facts: ModelFacts, stages: StageGraph, recipe: Recipe, outlook: Outlook) -> Verdict:
    """Compare the caller's plan with those that "auto" would consider for the same work."""
    shapes, _ = assumed_shapes(facts.onnx, recipe.shapes)
    outputs = tuple(spec.name for spec in stages.outputs)
    if recipe.session.takes_all_cores:
        outlook = replace(outlook, batches=1)  # aim="latency": there is one request at a time
    threads = outlook.cluster.threads_of_task(recipe.session)
    work = facts.work(shapes, outputs, outlook.batches, threads)
    cut = facts.cut_inputs(recipe, outputs)
    course = course_of(facts, recipe, outlook)
    asked = alternative_of_plan(cut, stages, recipe.strategy, outlook.cluster, work, course)
    return judge(asked, cut, outlook.cluster, work)


def memory_of(stages: StageGraph, outlook: Outlook) -> list[WorkerMemory]:
    """Return the projected memory of each worker group's process, in bytes."""
    process = PROCESS_BYTES if outlook.cluster.is_local else outlook.cluster.resident
    in_flight = (outlook.schedule or Schedule()).limit(len(stages.stages))
    return list(project(stages, outlook.only_worker_groups, in_flight, process))
