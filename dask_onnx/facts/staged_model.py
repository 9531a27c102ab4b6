"""`StagedModel`: a model with a stage graph, the part of a plan that lower layers need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from dask_onnx.analysis.batch import input_axes
from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.cluster.placement import Placement
from dask_onnx.core.process_caches import KeptResults
from dask_onnx.core.specs import SessionSpec
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.facts.session_choice import session_of
from dask_onnx.planning.chunk_groups import ChunkGroups
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import Stage, StageGraph
from dask_onnx.runtime.codec import Lossy

_RUN_FLOPS = 200e6
"""FLOPs of a run up to which rows are run together. More was measured to gain nothing, and to leave
the CPU's caches."""
_MAX_ROWS = 256
"""Largest number of rows in a run of a plan of several stages."""
_MAX_OTHERS = 32
"""Largest number of sets of outputs for which cuts of a plan are kept."""


@dataclass(frozen=True, eq=False)
class StagedModel:
    """A model cut into stages, with their placement and schedule."""

    facts: ModelFacts
    """Facts of the model."""
    recipe: Recipe
    """Strategy, shapes and options of the cut, to repeat it for other outputs."""
    stage_graph: StageGraph
    """Stages with the values between them."""
    placement: Placement | None = field(default=None, kw_only=True)
    """Worker group of each stage; None lets each run anywhere."""
    schedule: Schedule | None = field(default=None, kw_only=True)
    """Order of micro-batches; None leaves it to Dask where stages run anywhere."""
    lossy: Lossy | None = field(default=None, kw_only=True)
    """Precision that values between stages may lose; None for none."""
    chunk_groups: ChunkGroups | None = field(default=None, kw_only=True)
    """Rule for the chunks of a lazy array that one task computes; None for one."""
    _others: KeptResults[tuple[str, ...], Self] = field(
        default_factory=lambda: KeptResults(_MAX_OTHERS), init=False, repr=False
    )
    """Cuts of the same recipe for other outputs, by these outputs."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages in an order in which they can run."""
        return self.stage_graph.stages

    @property
    def effective_schedule(self) -> Schedule | None:
        """Schedule that applies: `schedule`, or the default one of a plan with a placement.

        Stages that are restricted to workers always have one, since Dask's queuing of root tasks
        does not hold them back.
        """
        return self.schedule or (None if self.placement is None else Schedule())

    @cached_property
    def rows(self) -> int | None:
        """Rows of the run that the stages' costs are for; None if no input has rows."""
        return rows_of(self.facts, assumed_shapes(self.facts.onnx, self.recipe.shapes)[0])

    @cached_property
    def is_measured(self) -> bool:
        """True if the stages' predicted seconds rest on measurements of this host."""
        return self.facts.is_measured

    @cached_property
    def rows_per_run(self) -> int:
        """Rows of each run under ``batch_size="auto"`` for a plan of several stages."""
        return predicted_rows(self.facts, self.stage_graph, self.recipe)

    def for_outputs(self, outputs: tuple[str, ...]) -> Self:
        """Return the cut of the same recipe for other outputs; `self` for the same outputs."""
        if outputs == tuple(spec.name for spec in self.stage_graph.outputs):
            return self
        return self._others.get_or_make(
            outputs,
            lambda: self._with_stages(self.facts, self.facts.cut(self.recipe, outputs)),
        )

    def on(self, facts: ModelFacts) -> Self:
        """Return the cut of the same recipe and outputs for another model with these outputs."""
        names = tuple(spec.name for spec in self.stage_graph.outputs)
        return self._with_stages(facts, facts.cut(self.recipe, names))

    def _with_stages(self, facts: ModelFacts, stages: StageGraph) -> Self:
        placement = self.placement
        if placement is not None and len(placement.worker_groups) != len(stages.stages):
            placement = Placement.one_each(
                len(stages.stages),
                len(set(placement.worker_groups)),
                allow_other_workers=placement.allow_other_workers,
            )
        return dataclasses.replace(self, facts=facts, stage_graph=stages, placement=placement)


def whole_model(facts: ModelFacts, session: SessionSpec | None = None) -> StagedModel:
    """Return the model as one stage, for the graph's outputs. The result is kept.

    Parameters
    ----------
    facts : ModelFacts
    session : SessionSpec, optional
        Options of its sessions; by default those that the model and the settings ask for.
    """
    recipe = Recipe("whole", None, session_of(facts, session))
    whole: StagedModel = facts.kept.get_or_make(
        ("whole", recipe.session),
        lambda: StagedModel(facts, recipe, facts.cut(recipe, facts.graph.outputs)),
    )
    return whole


def rows_of(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the number of rows in inputs of given shapes.

    None if there is no batch axis, or if inputs have different numbers of rows.
    """
    sizes = set(_row_counts(facts, shapes))
    return sizes.pop() if len(sizes) == 1 else None


def predicted_rows(facts: ModelFacts, stages: StageGraph, recipe: Recipe) -> int:
    """Return the rows of a run under ``batch_size="auto"`` for a plan of several stages.

    All stages must split rows alike, wherever they run. So the number is not measured, but follows
    from the FLOPs of a row.

    Parameters
    ----------
    facts : ModelFacts
    stages : StageGraph
        Stages with their costs at the recipe's shapes.
    recipe : Recipe
    """
    sizes = _row_counts(facts, assumed_shapes(facts.onnx, recipe.shapes)[0])
    flops = sum(stage.cost.flops for stage in stages.stages) / max(sizes[0] if sizes else 1, 1)
    return max(1, min(_MAX_ROWS, math.ceil(_RUN_FLOPS / max(flops, 1))))


def _row_counts(facts: ModelFacts, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the size of the batch axis of each input that has one."""
    axes, _ = input_axes(facts.onnx)
    return [shape[axis] for name, shape in shapes.items() if (axis := axes.get(name)) is not None]
