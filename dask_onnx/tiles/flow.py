"""The data flow of an image through a graph: which values are made by tiles, and in which pass.

A value that needs all pixels (a mean over them, the keys of an attention) ends a *pass*: it is
available once all tiles of the pass before it are. `level` numbers the passes from 0.

A value is *untiled* if one task makes it in one piece; it may still carry positions of a tiled
axis, and tiles that read it then take their part of it.
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
from dask_onnx.analysis.axes.shape_values import MAX_FOLDED_ELEMENTS
from dask_onnx.analysis.axes.view import Known, Shape
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external
from dask_onnx.tiles.places import Places, ReceptiveField

CAPTURE = -1
"""Input index of an edge from a value that a body of the node captures."""


class SizeMismatchError(Exception):
    """Two inputs of a node differ in size, as where a model accepts multiples of a size only."""


class NotTileableError(Exception):
    """A node needs an unbounded range of pixels, and its inputs are too large to be gathered."""

    def __init__(
        self,
        axis: int,
        value: str,
        node: str,
        op_type: str,
        dep: Dependence,
        needed: int,
        limit: int,
    ) -> None:
        super().__init__(axis, value, node, op_type, dep, needed, limit)
        self.axis = axis
        """Tiled axis."""
        self.value = value
        """Output of the node."""
        self.node = node
        self.op_type = op_type
        self.dep = dep
        """Dependence of the output on the tiled axis."""
        self.needed_bytes = needed
        """Bytes that the node reads and writes for the whole image."""
        self.limit_bytes = limit
        """Bytes that a task may hold."""


class TooLargeError(Exception):
    """A value that must be untiled is larger than a task may hold."""

    def __init__(self, value: str, node: str, op_type: str, needed: int, limit: int) -> None:
        super().__init__(value, node, op_type, needed, limit)
        self.value = value
        self.node = node
        self.op_type = op_type
        self.needed_bytes = needed
        """Bytes that the node reads and writes for the whole image."""
        self.limit_bytes = limit
        """Bytes that a task may hold."""


@dataclass(frozen=True, slots=True)
class TracedValue:
    """A value that depends on the pixels."""

    places: Places
    """Locations of the tiled axes in it."""
    level: int
    """Pass in which it is made."""
    is_untiled: bool
    """True if one task makes it in one piece."""


class Edge(NamedTuple):
    """Read access of a node to one of its inputs."""

    input_index: int
    """Position among the node's inputs."""
    value: str
    """Name of the input."""
    places: Places
    """Locations of the tiled axes in it; empty where every tile receives all of it."""
    receptive_fields: Mapping[int, ReceptiveField]
    """Tiled axis to the positions that the node reads."""
    is_gathered: bool = False
    """True if the tiles of the value are put together before the node runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """Execution of one node: by tiles or untiled, and in which pass."""

    node: NodeFacts
    level: int
    """Pass in which the node runs."""
    is_untiled: bool
    """True if the node runs once, on untiled values."""
    edges: tuple[Edge, ...]
    """Inputs that depend on the pixels or carry positions of a tiled axis."""
    reduced: frozenset[int] = frozenset()
    """Tiled axes over which the node computes a statistic."""


@dataclass
class Flow:
    """Data flow of one image through a graph, as `trace` finds it."""

    facts: GraphFacts
    specs: Mapping[str, TensorSpec]
    """Types and shapes of all values for the whole image."""
    sources: Mapping[str, Places]
    """Inputs that are cut into tiles, the image first, to the locations of the tiled axes."""
    axes: tuple[int, ...]
    """Tiled axes of the image."""
    variances: Mapping[str, str] = field(default_factory=dict)
    """Name of a variance to the name of the value that it is the variance of."""
    values: dict[str, TracedValue] = field(default_factory=dict)
    """Values that depend on the pixels."""
    steps: dict[int, Step] = field(default_factory=dict)
    """Index of a node to its execution."""
    known: dict[str, Known] = field(default_factory=dict)
    """Small arrays that follow from the graph and the size of the image."""
    size_dependent: set[str] = field(default_factory=set)
    """Values that follow from the size of the image, whatever its pixels."""
    kept: frozenset[str] | None = None
    """Values whose tiles later passes read; they compute others again. None for all that they read.
    """
    to_decompose: list[int] = field(default_factory=list)
    """Indices of nodes that normalise over pixels and have to be decomposed; see `decompose`."""

    def shape(self, value: str) -> tuple[int, ...]:
        """Return the shape of a value for the whole image; -1 for an unknown size."""
        spec = self.specs[value]
        assert spec.shape is not None
        return tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)

    def places(self, value: str) -> Places:
        """Return the locations of the tiled axes in a value.

        A constant that is combined with the image position by position (coordinates, a position
        embedding) has the locations that its consumers use.
        """
        traced = self.values.get(value)
        if traced is not None and traced.places:
            return traced.places
        return self._places_of_constants.get(value, {})

    @cached_property
    def _places_of_constants(self) -> dict[str, Places]:
        return {
            edge.value: edge.places
            for step in self.steps.values()
            for edge in step.edges
            if edge.places
        }

    def dims(self, value: str) -> Shape | None:
        """Return the shape of a value for the whole image, or None if its rank is unknown.

        Unknown sizes are None.
        """
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
        """Return a small tensor that is known for the size of the whole image, or None."""
        if name in self.known:
            return self.known[name]
        tensor = self._initializers.get(name)
        if tensor is None or is_external(tensor) or math.prod(tensor.dims) > MAX_FOLDED_ELEMENTS:
            return None
        return Known(numpy_helper.to_array(tensor))

    @cached_property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.facts.proto.graph.initializer}
