"""The stage graph, the library's one intermediate form: stages and the values between them."""

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
    """Floating-point operations; a multiplication with addition counts as two."""
    seconds: float
    """Predicted or measured seconds of computation, without transfers."""
    parameter_bytes: int
    """Bytes of the weights that the stage reads, each counted once."""
    activation_bytes: int
    """Bytes of the values that the stage sends to consumers."""
    working_bytes: int = 0
    """Peak bytes of activations alive at once while the stage runs."""

    @property
    def held_bytes(self) -> int:
        """Bytes that the stage needs of a worker's memory: weights and activations."""
        return self.parameter_bytes + self.working_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """Convex set of nodes that runs as one task."""

    label: str
    """Name in Dask's dashboard: starts with a letter, contains no hyphen."""
    nodes: tuple[int, ...]
    """Positions of the nodes in the weightless proto, ascending."""
    inputs: tuple[TensorSpec, ...]
    """Values from outside: graph inputs or values of earlier stages."""
    outputs: tuple[TensorSpec, ...]
    """Values that later stages or the caller read."""
    cost: StageCost
    """Predicted cost of one run."""
    kernel: Kernel = "onnxruntime"
    """Kind of kernel that runs all of its nodes."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Value that one stage sends to another."""

    value: str
    """Name of the value."""
    producer: int
    """Position of the producer in `StageGraph.stages`."""
    consumer: int
    """Position of the consumer in `StageGraph.stages`."""
    bytes: int
    """Bytes of the value for one run; open dimensions count as 1."""
    layout: Literal["whole"] = "whole"
    """Layout of the value."""


@dataclass(frozen=True)
class StageGraph:
    """Stages in topological order, and the edges between them."""

    stages: tuple[Stage, ...]
    """Stages in an order in which they can run."""
    edges: tuple[Edge, ...]
    """Values between stages."""
    inputs: tuple[TensorSpec, ...]
    """Graph inputs that some stage reads."""
    outputs: tuple[TensorSpec, ...]
    """Values that the caller asked for, in that order."""

    @property
    def seconds(self) -> float:
        """Predicted seconds of all stages one after the other."""
        return sum(stage.cost.seconds for stage in self.stages)

    @cached_property
    def consumers(self) -> tuple[set[int], ...]:
        """Positions of the stages that read a value of each stage."""
        found: tuple[set[int], ...] = tuple(set() for _ in self.stages)
        for edge in self.edges:
            found[edge.producer].add(edge.consumer)
        return found

    @cached_property
    def seconds_left(self) -> tuple[float, ...]:
        """Predicted seconds from each stage's start to the end, along the longest path."""
        left = [stage.cost.seconds for stage in self.stages]
        for number in reversed(range(len(left))):
            left[number] += max((left[i] for i in self.consumers[number]), default=0.0)
        return tuple(left)

    @cached_property
    def critical_path(self) -> tuple[int, ...]:
        """Positions of the stages on the longest path: a lower bound for any number of workers."""
        left = self.seconds_left
        path: list[int] = []
        following = set(range(len(left)))
        while following:
            path.append(max(following, key=lambda i: (left[i], -i)))
            following = self.consumers[path[-1]]
        return tuple(path)

    @property
    def producers(self) -> Mapping[str, int]:
        """Position of the stage that produces each value, by the value's name."""
        return {spec.name: i for i, stage in enumerate(self.stages) for spec in stage.outputs}
