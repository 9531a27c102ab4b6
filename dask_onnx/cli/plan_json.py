"""Plans as JSON: everything that `Plan.explain` tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dask_onnx.api.plan import Plan
from dask_onnx.diagnostics.plan_text import BASIS_IN_WORDS
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.stages import Stage
from dask_onnx.planning.worker_memory import WorkerMemory


def as_dict(plan: Plan, difference: str | None = None, *, batches: int = 16) -> dict[str, Any]:
    """Return all facts about a plan.

    Parameters
    ----------
    plan : Plan
    difference : str, optional
        Difference from another plan, from `Plan.diff`.
    batches : int
        Micro-batches of the schedule.
    """
    summary, measured, verdict = plan.summary(), plan.measured(), plan.judge(batches=batches)
    path = asdict(summary.critical_path)
    return {
        "strategy": plan.recipe.strategy,
        "predicted_seconds": plan.stage_graph.seconds,
        "basis": BASIS_IN_WORDS[summary.basis],
        "basis_kind": summary.basis,
        "shapes": summary.shapes,
        "shapes_assumed": summary.is_assumed,
        "stages": [_stage(stage, i, measured) for i, stage in enumerate(plan.stages)],
        "edges": [
            {
                "value": edge.value,
                "producer": edge.producer,
                "consumer": edge.consumer,
                "bytes": edge.bytes,
            }
            for edge in plan.stage_graph.edges
        ],
        "critical_path": {name: value for name, value in path.items() if value != ()},
        **dict(_schedule(plan, batches)),
        "memory": [_memory(each, measured) for each in plan.memory()],
        **dict(_placement(plan)),
        "threads": summary.threads,
        "rows_of_run": asdict(summary.rows),
        "not_on_onnxruntime": [asdict(each) for each in summary.other_kernels],
        "random_nodes": {"seeded": summary.random, "unseeded": summary.unseeded},
        "lossy_fusions": asdict(summary.fusions),
        **dict(_measured(plan, measured)),
        "verdict": verdict.sentence,
        "alternatives": [asdict(each) for each in verdict.alternatives],
        "overhead": asdict(verdict.overhead),
        **({} if difference is None else {"difference": difference.splitlines()}),
    }


def _stage(stage: Stage, number: int, measured: Measured | None) -> dict[str, Any]:
    times = None if measured is None else measured.stages[number]
    return {
        "label": stage.label,
        "kernel": stage.kernel,
        "nodes": len(stage.nodes),
        "inputs": [spec.name for spec in stage.inputs],
        "outputs": [spec.name for spec in stage.outputs],
        **asdict(stage.cost),
        **({} if times is None else {"measured": asdict(times)}),
    }


def _schedule(plan: Plan, batches: int) -> Iterator[tuple[str, Any]]:
    if len(plan.stages) == 1:
        return
    timeline, link = plan.timeline(batches=batches), plan.recipe.link
    yield (
        "schedule",
        {
            "how": None
            if plan.effective_schedule is None
            else plan.effective_schedule.describe(len(plan.stages)),
            "batches": batches,
            "workers": timeline.workers,
            "predicted_seconds": timeline.seconds,
            "bubble": timeline.bubble,
        },
    )
    if link is not None:
        yield "link", asdict(link)


def _memory(memory: WorkerMemory, measured: Measured | None) -> dict[str, Any]:
    peaks = {} if measured is None else {"measured_peaks": measured.peaks_of(memory.stages)}
    return asdict(memory) | {"total": memory.total} | peaks


def _placement(plan: Plan) -> Iterator[tuple[str, Any]]:
    if plan.placement is not None:
        yield "worker_groups", plan.placement.worker_groups
        yield "allow_other_workers", plan.placement.allow_other_workers


def _measured(plan: Plan, measured: Measured | None) -> Iterator[tuple[str, Any]]:
    if measured is None:
        return
    total, stage = measured.error()
    yield (
        "measured",
        {
            "runs": measured.runs,
            "rows": measured.rows,
            "shapes": dict(measured.shapes),
            "threads": measured.threads,
            "other_runs": measured.other_runs,
            "predicted_seconds": sum(measured.predicted),
            "prediction_error": total,
            "stage_error": stage,
            "peaks": dict(measured.peaks),
        },
    )
