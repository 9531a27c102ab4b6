"""Calls of stages: what the task of a stage carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dask_onnx.core.stage_tasks import Hints
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.stage_refs import StageRef


@dataclass(frozen=True, slots=True)
class RunAxes:
    """Batch axes of the values of one run, by which it can be cut where memory is short."""

    inputs: tuple[int | None, ...]
    """For each stage input its batch axis; None for one without rows."""
    outputs: tuple[int | None, ...]
    """For each stage output its batch axis; None for one without rows."""


@dataclass(frozen=True, slots=True)
class StageCall:
    """Call of one stage by a task: the stage, and where its inputs are among the arguments."""

    stage: StageRef
    """Stage to run."""
    options: StageOptions
    """Options of the request."""
    picks: tuple[tuple[int, int | None], ...]
    """For each stage input the argument that has it, and the position inside if that is a tuple."""
    row_axes: tuple[int | None, ...]
    """For each stage input the axis to split rows on; None for one that is given whole or in
    micro-batches."""
    join_axes: tuple[int | Literal["split"] | None, ...]
    """For each stage output the axis to join the runs on; None if it has no rows; "split" leaves
    it in micro-batches for the next stage."""
    run_axes: RunAxes | None = None
    """Axes of one micro-batch, where this stage gets or gives any; None if the rows of a value
    between stages are not proven to be independent. No part of what is computed."""
    count_axes: tuple[int | None, ...] = ()
    """For each stage input the axis that its rows lie on, to count them; None for one that has no
    rows, or comes from another stage. Empty if none is known. No part of what is computed."""
    hints: Hints = field(default_factory=Hints)
    """Facts for Dask's scheduler; no part of what is computed."""
    supplies: int = 0
    """Number of last arguments that bring the model to this host; no part of what is computed."""
