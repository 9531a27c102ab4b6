"""Measured runs of a plan beside a prediction for the shapes and threads that ran.

A plan may have been made for other shapes than those that it was then given: the seconds of a
picture of 320 x 320 say nothing about a prediction for 64 x 64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_runs import StageRun
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.staged_model import rows_of
from dask_onnx.planning.cutting import stage_graph_of
from dask_onnx.planning.measured_stages import Measured, measured
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.resources import thread_gain
from dask_onnx.planning.stages import Stage, StageGraph

_Shape = tuple[int | None, ...]
"""Sizes of a value; None along its rows, and where the size is not known."""
_Runs = Mapping[str, Sequence[StageRun]]
"""Recorded runs by the worker's address."""


def measured_as_ran(
    facts: ModelFacts,
    stages: StageGraph,
    recipe: Recipe,
    tokens: Sequence[str],
    runs: _Runs,
    peaks: Mapping[str, int],
) -> Measured | None:
    """Return the measured runs of a plan's stages, of the shapes of inputs that most of them had.

    Parameters
    ----------
    facts : ModelFacts
    stages : StageGraph
        Stages of the plan.
    recipe : Recipe
        Recipe of the plan, with the shapes that it was made for.
    tokens : sequence of str
        Tokens of the stages, in their order.
    runs : mapping of str to sequence of StageRun
        Recorded runs by the worker's address.
    peaks : mapping of str to int
        Peak resident bytes of each worker's process, by its address.

    Returns
    -------
    Measured or None
        None if none of the stages has run.
    """
    if not any(runs.values()):
        return None
    planned, _ = assumed_shapes(facts.onnx, recipe.shapes)
    inputs = _InputShapes.of(facts, stages, tokens, runs)
    shapes = inputs.with_rows_of(planned)
    is_planned = shapes == planned
    graph = stages if is_planned else _predicted_for(facts, stages, recipe, shapes)
    if inputs.are_several:
        chosen = _runs_of_shapes(facts, stages, tokens, runs, shapes)
    else:
        chosen = {worker: list(own) for worker, own in runs.items()}
    found = measured(tokens, chosen, peaks, rows_of(facts, shapes))
    if found is None:
        return None
    threads = Counter(run.threads for own in chosen.values() for run in own).most_common(1)[0][0]
    return replace(
        found,
        predicted=tuple(each.cost.seconds / thread_gain(threads) for each in graph.stages),
        shapes=shapes,
        is_planned=is_planned,
        threads=threads,
        other_runs=_count(runs) - _count(chosen),
    )


@dataclass(frozen=True, slots=True)
class _InputShapes:
    """Shapes of the model's inputs in the runs of its stages."""

    chosen: Mapping[str, _Shape]
    """Most frequent shape of each input that a recorded run read."""
    are_several: bool
    """True if there were runs of other shapes too."""

    @classmethod
    def of(
        cls, facts: ModelFacts, stages: StageGraph, tokens: Sequence[str], runs: _Runs
    ) -> _InputShapes:
        axes, _ = input_axes(facts.onnx)
        chosen: dict[str, _Shape] = {}
        are_several = False
        for stage, token in zip(stages.stages, tokens, strict=True):
            counts = Counter[tuple[tuple[str, _Shape], ...]]()
            for run in _newest_first(runs, token):
                read = tuple(_inputs_read(stage, run, axes))
                counts[read] += run.runs
            are_several |= len(counts) > 1
            fitting = [each for each, _ in counts.most_common() if _agree(each, chosen)]
            chosen |= dict(fitting[0]) if fitting else {}
        return cls(chosen, are_several)

    def with_rows_of(self, planned: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return complete shapes of all inputs, with the rows of the planned ones."""
        found = dict(planned)
        for name, shape in self.chosen.items():
            if name in planned and len(shape) == len(planned[name]):
                pairs = zip(shape, planned[name], strict=True)
                found[name] = tuple(size if ran is None else ran for ran, size in pairs)
        return found


def _newest_first(runs: _Runs, token: str) -> list[StageRun]:
    own = [run for each in runs.values() for run in each if run.token == token and run.shapes]
    return sorted(own, key=lambda run: -run.started)


def _inputs_read(
    stage: Stage, run: StageRun, axes: Mapping[str, int | None]
) -> Iterator[tuple[str, _Shape]]:
    """Yield the model's inputs among a stage's, with their shapes in a run apart from the rows."""
    for spec, shape in zip(stage.inputs, run.shapes, strict=True):
        if spec.name in axes:
            rows = axes[spec.name]
            yield spec.name, tuple(None if i == rows else size for i, size in enumerate(shape))


def _agree(each: Sequence[tuple[str, _Shape]], chosen: Mapping[str, _Shape]) -> bool:
    return all(chosen.get(name, shape) == shape for name, shape in each)


def _predicted_for(
    facts: ModelFacts, stages: StageGraph, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]
) -> StageGraph:
    """Return the same stages with their cost at other shapes."""
    outputs = tuple(spec.name for spec in stages.outputs)
    cut = facts.cut_inputs(replace(recipe, shapes=shapes), outputs)
    return stage_graph_of(cut, [stage.nodes for stage in stages.stages])


def _runs_of_shapes(
    facts: ModelFacts,
    stages: StageGraph,
    tokens: Sequence[str],
    runs: _Runs,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, list[StageRun]]:
    """Return the runs whose stages had the inputs that follow from these shapes of the model's."""
    expected = _value_shapes(facts, shapes)
    names = {
        token: [spec.name for spec in stage.inputs]
        for stage, token in zip(stages.stages, tokens, strict=True)
    }

    def is_alike(run: StageRun) -> bool:
        pairs = zip(names[run.token], run.shapes, strict=False)
        return all(_may_be(shape, expected.get(name)) for name, shape in pairs)

    return {worker: [run for run in own if is_alike(run)] for worker, own in runs.items()}


def _value_shapes(
    facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, _Shape | None]:
    """Return the shape of every value; None along axes whose size changes with the rows."""
    axes, _ = input_axes(facts.onnx)
    more = {
        name: tuple(size + (axis == axes.get(name)) for axis, size in enumerate(shape))
        for name, shape in shapes.items()
    }
    once, again = (infer_shapes(facts.graph, each, facts.schemas) for each in (dict(shapes), more))
    return {name: _common(spec, again.get(name)) for name, spec in once.items()}


def _common(one: TensorSpec, other: TensorSpec | None) -> _Shape | None:
    if one.shape is None or other is None or other.shape is None:
        return None
    if len(one.shape) != len(other.shape):
        return None
    pairs = zip(one.shape, other.shape, strict=True)
    return tuple(a if a == b and isinstance(a, int) else None for a, b in pairs)


def _may_be(found: tuple[int, ...], expected: _Shape | None) -> bool:
    if expected is None:
        return True
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(size in (ran, None) for ran, size in pairs)


def _count(runs: _Runs) -> int:
    return sum(run.runs for own in runs.values() for run in own)
