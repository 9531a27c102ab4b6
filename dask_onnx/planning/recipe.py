"""How a plan was asked for, so that it can be made again for other outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dask_onnx import config
from dask_onnx.errors import PlanError
from dask_onnx.planning.partition import STRATEGIES, CutInputs
from dask_onnx.planning.stages import StageGraph
from dask_onnx.specs import SessionSpec


@dataclass(frozen=True, eq=False)
class Recipe:
    """A strategy with its options; `strategy_function` says whether they go together."""

    strategy: str
    n_stages: int | None
    min_seconds: float | None
    shapes: Mapping[str, tuple[int, ...]] | None
    session: SessionSpec

    def strategy_function(self) -> Callable[[CutInputs], StageGraph]:
        if self.strategy not in STRATEGIES:
            raise PlanError(
                f"there is no strategy {self.strategy!r}", f"choose one of {', '.join(STRATEGIES)}"
            )
        function = STRATEGIES[self.strategy]
        if self.strategy != "fused":
            if self.n_stages is not None or self.min_seconds is not None:
                raise PlanError(
                    f"strategy {self.strategy!r} takes neither n_stages nor min_seconds",
                    "leave them out, or use strategy 'fused'",
                )
            return function
        seconds = self.min_seconds
        if seconds is None:
            seconds = float(config.get("plan.min-seconds"))
        if seconds <= 0:
            raise PlanError(f"min_seconds is {seconds}", "give a number of seconds above 0")
        return lambda cut: function(cut, n_stages=self.n_stages, min_seconds=seconds)
