"""Measurement of the loss of precision that a plan with lossy compression would cause."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_builder import build_request
from dask_onnx.collections.run_options import RunOptions
from dask_onnx.core.errors import InputError, PlanError, Suggestion
from dask_onnx.diagnostics.drift import Drift, measure_drift
from dask_onnx.facts.staged_model import StagedModel
from dask_onnx.runtime.codec import Lossy


def measure_loss(staged: StagedModel, way: Lossy, sample: Any, budget: float) -> Drift:
    """Run a sample with and without loss between all stages, and compare the outputs.

    Runs in this thread, and treats every link between stages as slow.

    Parameters
    ----------
    staged : StagedModel
        A plan of two or more stages.
    way, sample, budget
        As for `Plan.with_loss`.

    Raises
    ------
    PlanError
        There is no such way, the plan has one stage, or an output differs by more than `budget`.
    InputError
        The sample is lazy, or does not fit the model.
    """
    if way not in get_args(Lossy):
        raise PlanError(
            f"there is no lossy encoding {way!r}",
            f"choose {' or '.join(map(repr, get_args(Lossy)))}",
            option="way",
            suggestions=[Suggestion("way", each) for each in get_args(Lossy)],
        )
    if len(staged.stages) == 1:
        raise PlanError(
            "a plan of one stage sends nothing between stages",
            "cut the model: model.plan('pipeline', n_stages=2)",
            numbers={"stages": 1},
            suggestions=[Suggestion("n_stages", 2)],
        )
    outputs = [spec.name for spec in staged.stage_graph.outputs]
    run = RunOptions(outputs, batch_size=None, plan=staged)
    request, feeds, kind = build_request(staged.facts, sample, run, inline=True)
    if kind != "eager":
        raise InputError("the sample is lazy", "pass a few rows as numpy arrays", option="sample")
    exact = predict_eager(_with_loss(request, None), feeds, inline=True)
    packed = predict_eager(_with_loss(request, way), feeds, inline=True)
    drift = measure_drift(way, budget, exact, packed)
    largest = max(drift.relative.values(), default=0.0)
    if largest > budget:
        raise PlanError(
            drift.describe(),
            "raise the budget, choose 'float16', or cut where values are smaller",
            option="budget",
            numbers={"relative_difference": largest, "budget": budget},
            suggestions=[
                Suggestion("budget"),
                *([Suggestion("way", "float16")] if way != "float16" else []),
            ],
        )
    return drift


def _with_loss(request: Request, way: Lossy | None) -> Request:
    """Return a request whose stages encode every value that they pass on, or none."""
    options = request.options
    run = dataclasses.replace(options.run, lossy=way, always_lossy=way is not None)
    return dataclasses.replace(request, options=dataclasses.replace(options, run=run))
