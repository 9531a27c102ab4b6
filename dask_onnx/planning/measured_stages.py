"""Measured run times of a plan's stages, beside the predicted ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dask_onnx.core.stage_runs import StageRun


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Measured runs of one stage, on whichever workers."""

    runs: int
    """Number of runs."""
    seconds: float
    """Median seconds of a run, scaled to the rows that the plan is for."""
    workers: tuple[str, ...]
    """Addresses of the workers that ran it; an empty string stands for this process."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a plan that has run."""

    stages: tuple[StageTimes | None, ...]
    """Measured runs of each stage of the plan; None if the stage has not run."""
    rows: float | None
    """Median number of rows of a run; None where no input has rows."""
    peaks: Mapping[str, int]
    """Peak resident bytes of each worker's process, by the worker's address."""
    predicted: tuple[float, ...] = ()
    """Predicted seconds of each stage, with the shapes and the threads of these runs."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the inputs of the runs, with the rows that the plan is for."""
    is_planned: bool = True
    """True if `shapes` are those that the plan was made for."""
    threads: int = 1
    """Threads that a run could use."""
    other_runs: int = 0
    """Number of runs of inputs of other shapes, which are left out."""

    @property
    def seconds(self) -> list[float | None]:
        """Median seconds of each stage; None for those that have not run."""
        return [None if times is None else times.seconds for times in self.stages]

    @property
    def runs(self) -> int:
        """Number of runs of all stages together."""
        return sum(times.runs for times in self.stages if times is not None)

    def peaks_of(self, stages: Iterable[int]) -> list[int]:
        """Return the peak bytes of the processes that ran any of `stages`, largest first."""
        times = [found for i in stages if (found := self.stages[i]) is not None]
        workers = {worker for each in times for worker in each.workers}
        return sorted((self.peaks[worker] for worker in workers), reverse=True)

    def error(self) -> tuple[float, float]:
        """Return the relative error of the prediction that was made for what ran.

        Returns
        -------
        tuple of float
            The signed error of all measured stages together, and the median absolute error of a
            stage, both as shares of the measured time.
        """
        pairs = [
            (predicted, times.seconds)
            for predicted, times in zip(self.predicted, self.stages, strict=True)
            if times is not None and times.seconds > 0
        ]
        if not pairs:
            return 0.0, 0.0
        total = sum(predicted for predicted, _ in pairs) / sum(found for _, found in pairs) - 1
        return total, statistics.median(abs(predicted / found - 1) for predicted, found in pairs)


def measured(
    tokens: Sequence[str],
    runs: Mapping[str, Sequence[StageRun]],
    peaks: Mapping[str, int],
    rows: int | None,
) -> Measured | None:
    """Combine what workers have recorded of a plan's stages.

    Parameters
    ----------
    tokens : sequence of str
        Tokens of the plan's stages, in their order.
    runs : mapping of str to sequence of StageRun
        Recorded runs of these stages, by the worker's address.
    peaks : mapping of str to int
        Peak resident bytes of each worker's process, by its address.
    rows : int or None
        Rows of the run that the plan is for; None where no input has rows.

    Returns
    -------
    Measured or None
        None if none of the stages has run.
    """
    by_stage: dict[str, list[tuple[str, StageRun]]] = {token: [] for token in tokens}
    for worker, recorded in runs.items():
        for run in recorded:
            by_stage[run.token].append((worker, run))
    if not any(by_stage.values()):
        return None
    sizes = [run.rows / run.runs for found in by_stage.values() for _, run in found if run.rows]
    size = statistics.median(sizes) if sizes else None
    return Measured(
        tuple(_times(by_stage[token], rows, size) for token in tokens),
        size,
        {worker: peaks[worker] for worker, recorded in runs.items() if recorded},
    )


def _times(
    found: Sequence[tuple[str, StageRun]], rows: int | None, size: float | None
) -> StageTimes | None:
    if not found:
        return None
    # A stage that receives all rows from another stage in one piece does not know their number;
    # the other stages' median size is used instead.
    seconds = [
        run.seconds / run.runs * (rows / each if rows and each else 1.0)
        for _, run in found
        for each in [run.rows / run.runs if run.rows else size]
    ]
    return StageTimes(
        sum(run.runs for _, run in found),
        statistics.median(seconds),
        tuple(sorted({worker for worker, _ in found})),
    )
