"""How a picture flows through a graph: which values are tiles, which are made once, and in what
order of passes.

A value that needs all pixels (a mean over them, the keys of an attention) ends a *pass*: it can be
had once all tiles of the pass before it are there. `level` counts the passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import onnx
from onnx import numpy_helper

from dask_onnx.analysis.axes.dependence import Dependence
from dask_onnx.analysis.axes.shape_values import MOST_ELEMENTS
from dask_onnx.analysis.axes.view import Known, Shape
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external
from dask_onnx.tiles.places import Places, Reach


class SizeMismatchError(Exception):
    """Two inputs of a node differ in size, as they do where a model takes multiples of a size."""


class NotTileableError(Exception):
    """A node needs more than a bounded range of pixels, and no pass over all tiles gives it."""

    def __init__(self, axis: int, value: str, node: str, op_type: str, dep: Dependence) -> None:
        super().__init__(axis, value, node, op_type, dep)
        self.axis, self.value, self.node, self.op_type, self.dep = axis, value, node, op_type, dep


class TooLargeError(Exception):
    """A value that must be there as a whole is larger than a task may hold."""

    def __init__(self, value: str, node: str, op_type: str, size: int, limit: int) -> None:
        super().__init__(value, node, op_type, size, limit)
        self.value, self.node, self.op_type = value, node, op_type
        self.bytes, self.limit = size, limit


@dataclass(frozen=True, slots=True)
class Traced:
    """A value that depends on the pixels, or on the size of the picture."""

    places: Places
    level: int
    is_once: bool
    """Made in one piece; a tile of it is cut out of that."""


class Edge(NamedTuple):
    """How a node that runs on tiles reads a value."""

    place: int
    """Position among the node's inputs."""
    value: str
    places: Places
    """Where the tiled axes lie in it; empty where every tile is given all of it."""
    reaches: Mapping[int, Reach]
    is_whole: bool = False
    """All positions are gathered first, though the value is made of tiles."""


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the graph, as it runs."""

    node: NodeFacts
    level: int
    is_once: bool
    edges: tuple[Edge, ...]
    reduced: frozenset[int] = frozenset()
    """Tiled axes of the picture over which the node takes a statistic."""


@dataclass
class Flow:
    """What `trace` has found."""

    facts: GraphFacts
    specs: Mapping[str, TensorSpec]
    source: str
    axes: tuple[int, ...]
    variances: Mapping[str, str] = field(default_factory=dict)
    """Value to the one whose variance it is."""
    values: dict[str, Traced] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    """Small arrays that follow from the graph and the size of the picture."""
    sized: set[str] = field(default_factory=set)
    """Values that follow from the size of the picture, whatever its pixels."""
    unrolled: list[int] = field(default_factory=list)
    """Nodes that normalise over pixels: to be written as statistics and element-wise nodes."""

    def shape(self, value: str) -> tuple[int, ...]:
        """Sizes of a value at the whole picture."""
        spec = self.specs[value]
        assert spec.shape is not None
        return tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)

    def places(self, value: str) -> Places:
        """Where the tiled axes lie in a value; in one that stands beside the picture, as the nodes
        see it that read it."""
        traced = self.values.get(value)
        if traced is not None and traced.places:
            return traced.places
        return self._beside.get(value, {})

    @cached_property
    def _beside(self) -> dict[str, Places]:
        return {
            edge.value: edge.places
            for step in self.steps.values()
            for edge in step.edges
            if edge.places
        }

    def dims(self, value: str) -> Shape | None:
        """Sizes of a value at the whole picture, None for one that is not known."""
        if value not in self._dims:
            spec = self.specs.get(value)
            self._dims[value] = (
                None
                if spec is None or spec.shape is None
                else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
            )
        return self._dims[value]

    @cached_property
    def _dims(self) -> dict[str, Shape | None]:
        return {}

    def constant(self, name: str) -> Known | None:
        """The value of a small tensor that is known at the size of the whole picture."""
        if name in self.known:
            return self.known[name]
        tensor = self._initializers.get(name)
        if tensor is None or is_external(tensor) or math.prod(tensor.dims) > MOST_ELEMENTS:
            return None
        return Known(numpy_helper.to_array(tensor))

    @cached_property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.facts.proto.graph.initializer}
