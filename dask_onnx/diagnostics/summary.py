"""Facts about a plan as data: basis of the prediction, critical path, kernels, rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.lossy_fusions import LossyFusions, lossy_fusions
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.collections.row_checks import resolve_batching
from dask_onnx.core.specs import Kernel, SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import predicted_rows, rows_of
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.stages import StageGraph
from dask_onnx.runtime.calibration import saved_calibration
from dask_onnx.runtime.profile import saved_speed
from dask_onnx.runtime.tuning import BatchTuning, sizes_tried, stage_tunings

Basis = Literal[
    "node_times", "node_times_at_other_shapes", "speed_of_other_models", "calibration", "defaults"
]
"""Source of predicted seconds, from the closest to the model to the most general one: times of its
nodes on this host, at these shapes or at others; or FLOPs and bytes, at the speed that other models
ran here, that was calibrated on this host's CPU, or of a common CPU."""


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The longest path through a plan: no number of workers is faster."""

    stages: tuple[int, ...]
    """Positions of its stages; ``(0,)`` for a plan of one stage."""
    nodes: tuple[str, ...]
    """Names of the nodes on the longest path inside a plan of one stage; empty for other plans."""
    seconds: float
    """Predicted seconds of the stages or nodes on it."""
    work_over_span: float
    """Predicted seconds of all stages or nodes, divided by `seconds`."""


@dataclass(frozen=True, slots=True)
class KernelNodes:
    """Nodes that do not run on ONNX Runtime, for one reason."""

    kernel: Kernel
    reason: str
    nodes: tuple[str, ...]
    """Names of the nodes."""


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """The best number of rows in a run of a plan of one stage, as tuned on this host."""

    tuned: BatchTuning
    rows: int | None
    """Rows of a run that the plan's costs are for; None unless such runs were timed on one thread
    at the plan's shapes."""
    seconds: float | None
    """Seconds of a run of `rows`; None where `rows` is."""
    error: float | None
    """Relative error of the plan's prediction, signed; None where `rows` is."""


@dataclass(frozen=True, slots=True)
class RunRows:
    """Rows of each run of a session under ``batch_size="auto"``."""

    rows: int | None
    """None where they depend on the input of `predict`, or have not been measured yet."""
    words: str
    """The number, or why there is none, and the reason for it."""
    measured: tuple[MeasuredRows, ...] = ()
    """Results of tuning, for each shape of rows that ran on this host."""


ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
"""Entry of ONNX Runtime's configuration: 4 multiplies activations of 8 bits, 1 those of float32."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Facts that `Plan.explain` tells, besides stages, schedule, memory and verdict."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the inputs that all costs are for."""
    is_assumed: bool
    """True if an open dimension was given a size that the caller did not name."""
    basis: Basis
    """Source of the predicted seconds."""
    critical_path: CriticalPath
    other_kernels: tuple[KernelNodes, ...]
    """Nodes that do not run on ONNX Runtime."""
    threads: int | None
    """Threads of ONNX Runtime in a task; 0 is every core of the worker; None is the worker's cores
    divided by its Dask threads."""
    rows: RunRows
    random: tuple[str, ...]
    """Names of nodes that draw random numbers from a seed."""
    unseeded: tuple[str, ...]
    """Names of nodes that draw random numbers without a seed."""
    fusions: LossyFusions
    """Quantised nodes whose results depend on whether ONNX Runtime fuses them."""


def summarise(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> Summary:
    """Return the facts about a plan; nothing is run."""
    shapes, is_assumed = assumed_shapes(facts.onnx, recipe.shapes)
    random, unseeded = random_nodes(facts.graph, tuple(spec.name for spec in stages.outputs))
    return Summary(
        shapes=shapes,
        is_assumed=is_assumed,
        basis=basis_of(facts, shapes),
        critical_path=_critical_path(facts, stages, recipe),
        other_kernels=tuple(_other_kernels(facts, stages, recipe.session)),
        threads=recipe.session.intra_op_num_threads,
        rows=_run_rows(facts, stages, recipe, shapes),
        random=tuple(name for name in random if name not in unseeded),
        unseeded=tuple(unseeded),
        fusions=_fusions(facts, stages, recipe.session),
    )


def _fusions(facts: ModelFacts, stages: StageGraph, session: SessionSpec) -> LossyFusions:
    if session.optimization == "disable":
        return LossyFusions((), (), ())
    found = lossy_fusions(facts.graph, [spec.name for spec in stages.outputs])
    if session.optimization == "basic":
        return LossyFusions((), (), found.repeated)
    if dict(session.config).get(ACCURACY_LEVEL, "4") in ("0", "1"):
        return replace(found, products=())
    return found


def basis_of(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> Basis:
    """Return the source of the predicted seconds of a plan for these shapes of the inputs."""
    saved = list(facts.saved_node_times())
    if any(all(t.shapes.get(n) == tuple(s) for n, s in shapes.items()) for t in saved):
        return "node_times"
    if saved:
        return "node_times_at_other_shapes"
    return speed_basis()


def speed_basis() -> Basis:
    """Return the source of predictions that go by FLOPs and bytes alone."""
    if saved_speed() is not None:
        return "speed_of_other_models"
    if saved_calibration() is not None:
        return "calibration"
    return "defaults"


def _critical_path(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> CriticalPath:
    if len(stages.stages) > 1:
        span = max(stages.seconds_left, default=0.0)
        return CriticalPath(
            tuple(stages.critical_path), (), span, stages.seconds / span if span else 1.0
        )
    cut = facts.cut_inputs(recipe, tuple(spec.name for spec in stages.outputs))
    seconds = [0.0] * len(facts.graph.nodes)
    for node in cut.nodes:
        seconds[node] = cut.seconds(node)
    path = facts.graph.longest_path(seconds)
    span = sum(seconds[node] for node in path)
    names = tuple(facts.graph.nodes[node].name for node in path)
    return CriticalPath((0,), names, span, sum(seconds) / span if span else 1.0)


def _other_kernels(
    facts: ModelFacts, stages: StageGraph, session: SessionSpec
) -> Iterator[KernelNodes]:
    kernels = facts.kernels_of(session)
    for kernel in ("reference", "custom"):
        reasons: dict[str, list[str]] = {}
        for stage in stages.stages:
            for index in stage.nodes if stage.kernel == kernel else ():
                reason = kernels[index].reason
                reasons.setdefault(reason, []).append(facts.graph.nodes[index].name)
        for reason, names in reasons.items():
            yield KernelNodes(kernel, reason, tuple(names))


def _run_rows(
    facts: ModelFacts,
    stages: StageGraph,
    recipe: Recipe,
    shapes: Mapping[str, tuple[int, ...]],
) -> RunRows:
    names = tuple(spec.name for spec in stages.outputs)
    batch = facts.batch_at(names, shapes)
    if batch.fixed_rows is not None:
        return RunRows(batch.fixed_rows, f"{batch.fixed_rows}, as the graph was exported")
    if batch.exported is not None:
        return RunRows(batch.exported.rows, rows_in_words(batch))
    if not resolve_batching(batch, names, "auto").is_auto:
        if batch.blockers and not batch.is_declared:
            return RunRows(None, f"all together, since rows are not proven: {batch.blockers[0]}")
        reason = ", ".join(batch.coupled[:3]) or "an input or output without rows"
        return RunRows(None, f"all of a chunk, because of {reason}")
    if len(stages.stages) > 1:
        rows = predicted_rows(facts, stages, recipe)
        return RunRows(rows, f"{rows}, by the work that a row is predicted to be")
    token = stage_ref(facts.onnx.ref, stages.stages[0], facts.custom).token
    found = list(stage_tunings(token))
    if not found:
        tried = ", ".join(map(str, sizes_tried(token)))
        words = f"not settled yet, {tried} tried in this process" if tried else ""
        return RunRows(None, words or "not measured on this host yet")
    measured = tuple(_beside_prediction(facts, stages, shapes, tuned) for tuned in found)
    rows_found = found[0].rows if len(found) == 1 else None
    return RunRows(rows_found, "as measured on this host", measured)


def _beside_prediction(
    facts: ModelFacts, stages: StageGraph, shapes: Mapping[str, tuple[int, ...]], tuned: BatchTuning
) -> MeasuredRows:
    """Compare the prediction with runs at these shapes on one thread, if such were timed."""
    axes, _ = input_axes(facts.onnx)
    count = rows_of(facts, shapes)
    own = tuple(
        tuple(size for i, size in enumerate(shape) if i != axes[name])
        for name, shape in shapes.items()
        if axes.get(name) is not None
    )
    is_alike = tuned.threads == 1 and set(own) == set(tuned.row_shapes)
    rate = tuned.rates.get(count) if is_alike and count is not None else None
    if count is None or not rate:
        return MeasuredRows(tuned, None, None, None)
    seconds = count / rate
    return MeasuredRows(tuned, count, seconds, stages.seconds / seconds - 1)
