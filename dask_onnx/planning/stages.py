"""The one intermediate form: stages and the values between them. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dask_onnx.core.specs import Kernel, TensorSpec


@dataclass(frozen=True, slots=True)
class StageCost:
    """Predicted cost of a stage for one run at the shapes that the plan was made for."""

    flops: int
    seconds: float
    parameter_bytes: int
    activation_bytes: int
    """Bytes of the values that the stage gives to others."""
    working_bytes: int = 0
    """The most bytes of activations that are alive at once while it runs."""

    @property
    def held_bytes(self) -> int:
        """What it needs of a worker's memory."""
        return self.parameter_bytes + self.working_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """A convex set of nodes that runs as one task."""

    label: str
    """What the dashboard shows: a letter first, no hyphen."""
    nodes: tuple[int, ...]
    """Positions in the weightless proto, ascending."""
    inputs: tuple[TensorSpec, ...]
    """Values from outside: graph inputs or values of earlier stages."""
    outputs: tuple[TensorSpec, ...]
    """Values that later stages or the caller want."""
    cost: StageCost
    kernel: Kernel = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Edge:
    """A value that goes from one stage to another."""

    value: str
    producer: int
    """Position in `StageGraph.stages`."""
    consumer: int
    bytes: int
    """For one run; open dimensions count as 1."""
    layout: Literal["whole"] = "whole"


@dataclass(frozen=True)
class StageGraph:
    """Stages in an order in which they can run, and the edges between them."""

    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def seconds(self) -> float:
        """Predicted time of all stages one after the other."""
        return sum(stage.cost.seconds for stage in self.stages)

    @cached_property
    def consumers(self) -> tuple[set[int], ...]:
        """For each stage the positions of those that read what it makes."""
        found: tuple[set[int], ...] = tuple(set() for _ in self.stages)
        for edge in self.edges:
            found[edge.producer].add(edge.consumer)
        return found

    @cached_property
    def seconds_left(self) -> tuple[float, ...]:
        """Predicted time from each stage's start to the end of all, over the longest way."""
        left = [stage.cost.seconds for stage in self.stages]
        for number in reversed(range(len(left))):
            left[number] += max((left[i] for i in self.consumers[number]), default=0.0)
        return tuple(left)

    @cached_property
    def critical_path(self) -> tuple[int, ...]:
        """Positions of the stages along the longest way: no number of workers is faster."""
        left = self.seconds_left
        path: list[int] = []
        following = set(range(len(left)))
        while following:
            path.append(max(following, key=lambda i: (left[i], -i)))
            following = self.consumers[path[-1]]
        return tuple(path)

    @property
    def producers(self) -> Mapping[str, int]:
        """Value to the position of the stage that makes it."""
        return {spec.name: i for i, stage in enumerate(self.stages) for spec in stage.outputs}
