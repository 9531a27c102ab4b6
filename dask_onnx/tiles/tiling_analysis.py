"""From a model and the size of an image to a tile plan: shapes, padding, data flow, alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from onnx.shape_inference import InferenceError

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.tiles.companions import Companion
from dask_onnx.tiles.flow import Flow, NotTileableError, SizeMismatchError, TooLargeError
from dask_onnx.tiles.graph_rewrites import decompose, with_fixed_attributes
from dask_onnx.tiles.places import Place, Places
from dask_onnx.tiles.tile_plan import (
    AxisGrid,
    TilePlan,
    alignment,
    borders_of,
    deficits_of,
    strides_of,
)
from dask_onnx.tiles.trace import trace

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128, 256)
"""Multiples to which a refused image size is rounded up, tried in turn."""
_MAX_DECOMPOSITIONS = 4
"""Rounds of decomposing and tracing: a decomposed node may reveal another one behind it."""


@dataclass(frozen=True, slots=True)
class TilingRequest:
    """A model and the size of an image to run it on by tiles."""

    facts: GraphFacts
    schemas: Schemas
    custom_axes: CustomAxes
    """Axes that the caller's custom operators declare."""
    source: str
    """Name of the input that takes the image."""
    shape: tuple[int, ...]
    """Shape of the image, with the batch axis."""
    axes: tuple[int, ...]
    """Tiled axes of the image."""
    outputs: tuple[str, ...]
    """Values to compute."""
    max_untiled_bytes: int
    """Bytes of activations up to which nodes that have no tiles run on untiled values."""
    companions: Mapping[str, Companion] = field(default_factory=dict)
    """Further inputs that are cut into tiles."""

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all inputs for an image of some shape."""
        others = {name: companion.at(shape) for name, companion in self.companions.items()}
        return {self.source: shape, **others}

    def places(self, specs: Mapping[str, TensorSpec]) -> dict[str, Places]:
        """Return the locations of the tiled axes in each input that is cut."""
        image = Companion(self.shape, {k: k for k in self.axes}, dict.fromkeys(self.axes, 1))
        found: dict[str, Places] = {}
        for name, each in {self.source: image, **self.companions}.items():
            dims = specs[name].shape or ()
            sizes = {k: dim for k, axis in each.axes.items() if isinstance(dim := dims[axis], int)}
            found[name] = {
                k: Place(each.axes[k], 1, 1, size, Fraction(each.strides[k]))
                for k, size in sizes.items()
            }
        return found

    def specs(self, facts: GraphFacts, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Return type and shape of every value for an image of some shape.

        Raises
        ------
        SizeMismatchError
            The model does not accept an image of that size.
        """
        try:
            return infer_shapes(facts, self.shapes(shape), self.schemas, is_strict=True)
        except InferenceError as error:
            raise SizeMismatchError(str(error).splitlines()[0]) from error

    def padded(self, multiple: int) -> tuple[int, ...]:
        """Return the shape with each tiled axis rounded up to a multiple."""
        return tuple(
            _round_up(size, multiple) if axis in self.axes else size
            for axis, size in enumerate(self.shape)
        )

    def trace(
        self,
        facts: GraphFacts,
        specs: Mapping[str, TensorSpec],
        variances: Mapping[str, str],
        reference: Flow | None = None,
    ) -> Flow:
        """Return the data flow of a graph for the shapes in `specs`; see `trace.trace`."""
        return trace(
            facts,
            specs,
            self.places(specs),
            self.axes,
            self.outputs,
            self.custom_axes,
            max_untiled_bytes=self.max_untiled_bytes,
            variances=variances,
            reference=reference,
        )


@dataclass(frozen=True, slots=True)
class TilingAnalysis:
    """Data flow of an image through a model, before tiles are chosen."""

    flow: Flow
    deficits: Mapping[tuple[str, int], Fraction]
    """Value and tiled axis to the positions that an aligned crop lacks; see `deficits_of`."""
    shape: tuple[int, ...]
    """Shape of the image that the model runs on, padded at the end if its own size is refused."""
    multiple: int
    """Number of pixels of which the model accepts multiples only; 1 for any size."""

    def align(self, k: int) -> int:
        """Return the pixels of which tile borders along an axis are multiples."""
        return alignment(strides_of(self.flow, k))

    def plan(self, tiles: Mapping[int, int], outputs: tuple[str, ...]) -> TilePlan:
        """Return the plan for a tile size.

        Parameters
        ----------
        tiles : mapping of int to int
            Tiled axis to the pixels of a tile, which are rounded down to the alignment.
        outputs : tuple of str
            Values to compute.
        """
        grids = {}
        for k, tile in tiles.items():
            size, align = self.shape[k], self.align(k)
            grids[k] = AxisGrid(size, align, borders_of(size, tile, align, self.flow, k))
        return TilePlan(self.flow, outputs, grids, self.deficits)


def analyze_tiling(request: TilingRequest) -> TilingAnalysis:
    """Trace an image through a model, padding it where the model refuses its size.

    Raises
    ------
    InputError
        There are no exact tiles along these axes, a value that must be untiled is too large, or the
        model accepts no size near that of the image.
    """
    refused: SizeMismatchError | None = None
    for multiple in (1, *_MULTIPLES):
        padded = replace(request, shape=request.padded(multiple))
        if multiple > 1 and padded.shape == request.shape:
            continue
        try:
            return _analyze(padded, multiple)
        except SizeMismatchError as error:
            refused = refused or error
        except NotTileableError as error:
            raise _not_tileable(request, error) from None
        except TooLargeError as error:
            raise _too_large(error) from None
    raise InputError(
        f"the model does not accept an image of shape {request.shape}: {refused}",
        f"crop or pad it to a size that the model accepts; multiples of {_MULTIPLES} were tried",
        input=request.source,
        reason=str(refused),
    )


def _not_tileable(request: TilingRequest, error: NotTileableError) -> InputError:
    """Return the error for an axis that cannot be cut exactly."""
    dep = error.dep
    node = dep.node or error.node
    how = f", {dep.how}" if dep.how else ""
    others = tuple(axis for axis in request.axes if axis != error.axis)
    next_step = (
        "pass exact=False, overlap=64 to blend overlapping tiles (tiling_drift measures the error),"
        " use detect_sliced for a detector, or raise memory_limit"
    )
    suggestions = [
        Suggestion("exact", False),
        Suggestion("overlap", 64),
        Suggestion("memory_limit", error.needed_bytes),
    ]
    if others:
        next_step += f", or cut other axes only: axes={others}"
        suggestions.append(Suggestion("axes", others))
    return InputError(
        f"axis {error.axis} of input {request.source!r} cannot be cut into exact tiles: value "
        f"{error.value!r} is {dep.kind.label} at node {node!r} ({error.op_type}){how}, and "
        f"the node needs {error.needed_bytes:,} bytes at once; a task may take "
        f"{error.limit_bytes:,}",
        next_step,
        input=request.source,
        axis=error.axis,
        node=node,
        numbers={"needed_bytes": error.needed_bytes, "limit_bytes": error.limit_bytes},
        suggestions=suggestions,
    )


def _too_large(error: TooLargeError) -> InputError:
    """Return the error for a value that must be untiled and exceeds the memory of a task."""
    return InputError(
        f"node {error.node!r} ({error.op_type}) needs all of {error.value!r} at once: "
        f"{error.needed_bytes:,} bytes; a task may take {error.limit_bytes:,}",
        "raise memory_limit, pass a smaller image, pass exact=False, or use detect_sliced for a "
        "detector",
        option="memory_limit",
        node=error.node,
        numbers={"needed_bytes": error.needed_bytes, "limit_bytes": error.limit_bytes},
        suggestions=[Suggestion("memory_limit", error.needed_bytes), Suggestion("exact", False)],
    )


def _analyze(request: TilingRequest, multiple: int) -> TilingAnalysis:
    """Return the analysis for one size of the image."""
    shape, variances = request.shape, dict[str, str]()
    facts, specs = _with_known_shapes(request, variances)
    flow = request.trace(facts, specs, variances)
    for _ in range(_MAX_DECOMPOSITIONS):
        if not flow.to_decompose:
            break
        facts, specs = _decomposed(request, facts, specs, flow.to_decompose, variances)
        flow = request.trace(facts, specs, variances)
    aligned = {k: _round_up(shape[k], alignment(strides_of(flow, k))) for k in request.axes}
    aligned_flow = flow
    if any(size != shape[k] for k, size in aligned.items()):
        sizes = tuple(aligned.get(axis, size) for axis, size in enumerate(shape))
        specs = request.specs(facts, sizes)
        aligned_flow = request.trace(facts, specs, variances, reference=flow)
    return TilingAnalysis(flow, deficits_of(aligned_flow, aligned), shape, multiple)


def _with_known_shapes(
    request: TilingRequest, variances: dict[str, str]
) -> tuple[GraphFacts, dict[str, TensorSpec]]:
    """Return the graph with explicit padding, and its types and shapes.

    ONNX infers no output shape for some normalisations, which are decomposed first. Their variances
    are added to `variances`.
    """
    facts, specs = request.facts, request.specs(request.facts, request.shape)
    unknown = _unknown_norms(facts, specs)
    while unknown:
        facts, specs = _decomposed(request, facts, specs, unknown, variances)
        unknown = _unknown_norms(facts, specs)
    model = with_fixed_attributes(facts, specs)
    if model is not facts.model:
        facts = GraphFacts(model)
        specs = request.specs(facts, request.shape)
    return facts, specs


def _unknown_norms(facts: GraphFacts, specs: Mapping[str, TensorSpec]) -> list[int]:
    """Return the normalisations whose input shape is known and whose output shape is not."""
    return [
        node.index
        for node in facts.nodes
        if standard_op_type(node) in ("GroupNormalization", "MeanVarianceNormalization")
        and _has_shape(specs, node.inputs[0])
        and not _has_shape(specs, node.outputs[0])
    ]


def _has_shape(specs: Mapping[str, TensorSpec], value: str) -> bool:
    spec = specs.get(value)
    return spec is not None and spec.dtype is not None and spec.shape is not None


def _decomposed(
    request: TilingRequest,
    facts: GraphFacts,
    specs: Mapping[str, TensorSpec],
    nodes: Sequence[int],
    variances: dict[str, str],
) -> tuple[GraphFacts, dict[str, TensorSpec]]:
    """Return the graph with some nodes decomposed, and add their variances to `variances`."""
    decomposed = decompose(facts, specs, nodes)
    variances |= decomposed.variances
    found = GraphFacts(decomposed.model)
    return found, request.specs(found, request.shape)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def window_axes(
    facts: GraphFacts,
    schemas: Schemas,
    custom_axes: CustomAxes,
    spec: TensorSpec,
    shape: Sequence[int],
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """Return the axes of an input that are tiled by default.

    They are the open axes behind the first along which some node slides a window (convolution,
    pooling, resizing), or all open axes behind the first if there is no such node.

    Parameters
    ----------
    facts : GraphFacts
    schemas : Schemas
    custom_axes : CustomAxes
    spec : TensorSpec
        The input. If all of its axes but the first are fixed, those behind the channels count as
        open.
    shape : sequence of int
        Shape of the image, with the batch axis.
    others : mapping of str to tuple of int, optional
        Shapes of the other inputs.

    Raises
    ------
    InputError
        No axis is open.
    """
    dims = spec.shape or (None,) * len(shape)
    candidates = [axis for axis in range(1, len(dims)) if not isinstance(dims[axis], int)]
    if not candidates:
        candidates = list(range(2, len(dims)))
    if not candidates:
        raise InputError(
            f"input {spec} has no open axis behind the first along which tiles could be cut",
            "name the axes to cut as axes=, or use model.predict",
            option="axes",
            input=spec.name,
        )
    specs = infer_shapes(facts, {**(others or {}), spec.name: tuple(shape)}, schemas)
    windowed = [
        axis
        for axis in candidates
        if any(
            dep.kind == Kind.WINDOW
            for dep in propagate(facts, specs, {spec.name: axis}, custom_axes).values()
        )
    ]
    return tuple(windowed or candidates)
