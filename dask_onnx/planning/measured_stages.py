"""What a plan's stages took where they have run, beside what was predicted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dask_onnx.core.stage_runs import StageRun
from dask_onnx.planning.stages import StageGraph


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage, wherever it ran."""

    runs: int
    seconds: float
    """Median of a run, in proportion to the rows that the plan is for."""
    workers: tuple[str, ...]
    """Addresses of those that ran it; of this process an empty string."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known after a run."""

    stages: tuple[StageTimes | None, ...]
    """For each stage of the plan; None if it has not run."""
    rows: float | None
    """Of a run, the median; None where no input has rows."""
    peaks: Mapping[str, int]
    """Worker's address to the most bytes that were ever resident of its process."""

    @property
    def seconds(self) -> list[float | None]:
        """For each stage."""
        return [None if times is None else times.seconds for times in self.stages]

    @property
    def runs(self) -> int:
        """Of all stages together."""
        return sum(times.runs for times in self.stages if times is not None)

    def peaks_of(self, stages: Iterable[int]) -> list[int]:
        """Peaks in bytes of the processes that ran any of some stages, largest first."""
        times = [found for i in stages if (found := self.stages[i]) is not None]
        workers = {worker for each in times for worker in each.workers}
        return sorted((self.peaks[worker] for worker in workers), reverse=True)

    def error(self, graph: StageGraph) -> tuple[float, float]:
        """By how much the prediction is off: of all stages that have run together, signed; and of a
        stage, the median of what it is off either way. Shares of what was measured."""
        pairs = [
            (stage.cost.seconds, times.seconds)
            for stage, times in zip(graph.stages, self.stages, strict=True)
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
    """Put together what workers have noted; None if none of the stages has run.

    Parameters
    ----------
    tokens : of the plan's stages, in their order
    runs : worker's address to what it has noted of them
    peaks : worker's address to the peak of its process
    rows : of a run, that the plan is for; None where no input has rows
    """
    by_stage: dict[str, list[tuple[str, StageRun]]] = {token: [] for token in tokens}
    for worker, noted in runs.items():
        for run in noted:
            by_stage[run.token].append((worker, run))
    if not any(by_stage.values()):
        return None
    sizes = [run.rows / run.runs for found in by_stage.values() for _, run in found if run.rows]
    size = statistics.median(sizes) if sizes else None
    return Measured(
        tuple(_times(by_stage[token], rows, size) for token in tokens),
        size,
        {worker: peaks[worker] for worker, noted in runs.items() if noted},
    )


def _times(
    found: Sequence[tuple[str, StageRun]], rows: int | None, size: float | None
) -> StageTimes | None:
    if not found:
        return None
    # A stage that gets all rows in one piece, from another stage, does not know how many they are:
    # then the others' runs tell.
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
