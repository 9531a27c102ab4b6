"""From a model and the size of a picture to a tile plan: shapes, padding, flow, alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx.shape_inference import InferenceError

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.flow import Flow, NotTileableError, SizeMismatchError, TooLargeError
from dask_onnx.tiles.primitives import unroll, with_plain_padding
from dask_onnx.tiles.tile_plan import (
    AxisGrid,
    TilePlan,
    alignment,
    borders_of,
    lacks_of,
    strides_of,
)
from dask_onnx.tiles.trace import trace

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128, 256)
"""Of which a model may take pictures only, tried in turn."""
_MOST_ROUNDS = 4
"""Times that nodes are unrolled: what was hidden behind one may show a second."""


@dataclass(frozen=True, slots=True)
class Question:
    """A picture that is to go through a model."""

    facts: GraphFacts
    schemas: Schemas
    own: CustomAxes
    source: str
    shape: tuple[int, ...]
    """Of the picture, as the model takes it."""
    axes: tuple[int, ...]
    """That are cut."""
    outputs: tuple[str, ...]
    whole_bytes: int
    """Up to so many bytes of activations may be there as a whole."""

    def specs(self, facts: GraphFacts, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Every value's spec for a picture of that shape.

        Raises
        ------
        SizeMismatchError
            The model does not take pictures of that size.
        """
        try:
            return infer_shapes(facts, {self.source: shape}, self.schemas)
        except InferenceError as error:
            raise SizeMismatchError(str(error).splitlines()[0]) from error

    def padded(self, multiple: int) -> tuple[int, ...]:
        """The shape, each axis that is cut rounded up to a multiple."""
        return tuple(
            -(-size // multiple) * multiple if axis in self.axes else size
            for axis, size in enumerate(self.shape)
        )

    def trace(
        self,
        facts: GraphFacts,
        specs: Mapping[str, TensorSpec],
        variances: Mapping[str, str],
        decided: Flow | None = None,
    ) -> Flow:
        """The flow of a graph at the shapes of `specs`."""
        return trace(
            facts,
            specs,
            self.source,
            self.axes,
            self.outputs,
            self.own,
            whole_bytes=self.whole_bytes,
            variances=variances,
            decided=decided,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a picture's way through a model, before any tile is cut."""

    flow: Flow
    lacks: Mapping[tuple[str, int], object]
    shape: tuple[int, ...]
    """Of the picture as the model takes it: padded at the end where it refuses its size."""
    multiple: int
    """Of which the model takes pictures only; 1 for any size."""

    def align(self, k: int) -> int:
        """Pixels that borders of tiles along an axis are a multiple of."""
        return alignment(strides_of(self.flow, k))

    def plan(self, tiles: Mapping[int, int], outputs: tuple[str, ...]) -> TilePlan:
        """Return the plan with tiles of about so many pixels along each axis."""
        grids = {}
        for k, tile in tiles.items():
            size, align = self.shape[k], self.align(k)
            grids[k] = AxisGrid(size, align, borders_of(size, tile, align, self.flow, k))
        return TilePlan(self.flow, outputs, grids, self.lacks)  # type: ignore[arg-type]


def survey(question: Question) -> Survey:
    """Find out how a picture goes through a model.

    Raises
    ------
    InputError
        No exact tiles along these axes: says axis, value, node, kind and the next step.
    """
    refused: SizeMismatchError | None = None
    for multiple in (1, *_MULTIPLES):
        padded = replace(question, shape=question.padded(multiple))
        if multiple > 1 and padded.shape == question.shape:
            continue
        try:
            return _survey(padded, multiple)
        except SizeMismatchError as error:
            refused = refused or error
        except NotTileableError as error:
            raise refusal(question, error) from None
        except TooLargeError as error:
            raise InputError(
                f"node {error.node!r} ({error.op_type}) needs all of {error.value!r} at once: "
                f"{error.bytes:,} bytes, and {error.limit:,} are allowed",
                "give memory_limit=, or a smaller picture, or exact=False",
            ) from None
    raise InputError(
        f"the model does not take a picture of {question.shape}: {refused}",
        f"crop or pad it to a size that the model takes; multiples of {_MULTIPLES} were tried",
    )


def refusal(question: Question, error: NotTileableError) -> InputError:
    """Return the error for an axis that cannot be cut exactly."""
    dep = error.dep
    how = f", {dep.how}" if dep.how else ""
    others = [axis for axis in question.axes if axis != error.axis]
    way = (
        "pass exact=False, overlap=64 to blend overlapping tiles (tiling_drift measures the error)"
    )
    if others:
        way += f", or cut other axes only: axes={tuple(others)}"
    return InputError(
        f"axis {error.axis} of input {question.source!r} cannot be cut into exact tiles: value "
        f"{error.value!r} is {dep.kind.label} at node {dep.node or error.node!r} "
        f"({error.op_type}){how}",
        way,
    )


def _survey(question: Question, multiple: int) -> Survey:
    facts, shape, variances = question.facts, question.shape, dict[str, str]()
    specs = question.specs(facts, shape)
    # ONNX infers no shapes behind some of these.
    unknown = _unknown_norms(facts, specs)
    while unknown:
        facts, specs = _unrolled(question, facts, specs, unknown, variances)
        unknown = _unknown_norms(facts, specs)
    plain = with_plain_padding(facts, specs)
    if plain is not facts.model:
        facts = GraphFacts(plain)
        specs = question.specs(facts, shape)
    flow = question.trace(facts, specs, variances)
    for _ in range(_MOST_ROUNDS):
        if not flow.unrolled:
            break
        facts, specs = _unrolled(question, facts, specs, flow.unrolled, variances)
        flow = question.trace(facts, specs, variances)
    aligned = {k: _rounded(shape[k], alignment(strides_of(flow, k))) for k in question.axes}
    whole = flow
    if any(size != shape[k] for k, size in aligned.items()):
        sizes = tuple(aligned.get(axis, size) for axis, size in enumerate(shape))
        whole = question.trace(facts, question.specs(facts, sizes), variances, decided=flow)
    return Survey(flow, lacks_of(whole, aligned), shape, multiple)


def _unknown_norms(facts: GraphFacts, specs: Mapping[str, TensorSpec]) -> list[int]:
    """Normalisations of known input and unknown output."""
    return [
        node.index
        for node in facts.nodes
        if node.op_type in ("GroupNormalization", "MeanVarianceNormalization")
        and _has_shape(specs, node.inputs[0])
        and not _has_shape(specs, node.outputs[0])
    ]


def _has_shape(specs: Mapping[str, TensorSpec], value: str) -> bool:
    spec = specs.get(value)
    return spec is not None and spec.dtype is not None and spec.shape is not None


def _unrolled(
    question: Question,
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    nodes: Sequence[int],
    variances: dict[str, str],
) -> tuple[GraphFacts, dict[str, TensorSpec]]:
    unrolled = unroll(facts, specs, nodes)
    variances |= unrolled.variances
    made = GraphFacts(unrolled.model)
    return made, question.specs(made, question.shape)


def _rounded(size: int, align: int) -> int:
    return -(-size // align) * align


def window_axes(
    facts: GraphFacts,
    schemas: Schemas,
    own: CustomAxes,
    spec: TensorSpec,
    shape: Sequence[int],
) -> tuple[int, ...]:
    """Return the axes of an input that are cut unless the caller says which: the open ones behind
    the first along which a node slides a window; all open ones where none does.

    Raises
    ------
    InputError
        None is open.
    """
    dims = spec.shape or (None,) * len(shape)
    candidates = [axis for axis in range(1, len(dims)) if not isinstance(dims[axis], int)]
    if not candidates:
        candidates = list(range(2, len(dims)))
    if not candidates:
        raise InputError(
            f"no axis of input {spec} behind the first is open, so that there is nothing to cut",
            "name axes= to cut, or use model.predict",
        )
    try:
        specs = infer_shapes(facts, {spec.name: tuple(shape)}, schemas)
    except InferenceError:
        return tuple(candidates)
    windowed = [
        axis
        for axis in candidates
        if any(
            dep.kind == Kind.WINDOW
            for dep in propagate(facts, specs, {spec.name: axis}, own).values()
        )
    ]
    return tuple(windowed or candidates)
