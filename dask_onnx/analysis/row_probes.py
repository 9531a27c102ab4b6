"""Shapes of a graph at two batch sizes, at which a candidate batch axis is examined.

Open axes that carry no rows get sizes that differ between the two, so that nothing depends on a
coincidence of sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.operands import Specs
from dask_onnx.analysis.row_candidates import Candidate, open_first
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

PROBES = (7, 4099)
"""Two batch sizes: primes, which real dimensions seldom are, the second above most bounds."""
OPEN_SIZES = ((64,), (48,), (224,), (16,))
"""Sizes of other open dimensions at the first batch size: the first that the graph accepts."""
_UNLIKE_SIZES = (96, 160, 224, 288)
"""Sizes of other open dimensions at the second batch size, in turns: no two are equal."""


def probe_specs(
    facts: GraphFacts,
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
) -> tuple[Specs, Specs]:
    """Return every value's spec at both batch sizes.

    Parameters
    ----------
    facts : GraphFacts
    seeds : mapping of input to axis
        The candidate batch axes.
    shapes : mapping of input to shape, optional
        Binds axes that carry no rows. Other open dimensions get sizes that the graph accepts, as
        far as some are found (a text recogniser takes pictures that are 48 high, for instance), and
        different ones at the second batch size.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX does not know.
    """

    def infer(probe: int, sizes: Sequence[int]) -> tuple[int, Specs]:
        bound = probe_shapes(facts.model, seeds, shapes, PROBES[probe], sizes)
        specs = infer_shapes(facts, bound, schemas)
        return _count_unknown(facts, specs), specs

    if not has_open(facts.model, seeds, shapes):
        return infer(0, ())[1], infer(1, ())[1]
    best = infer(0, OPEN_SIZES[0])
    sizes, number = OPEN_SIZES[0], 1
    while best[0] and number < len(OPEN_SIZES):
        other = infer(0, OPEN_SIZES[number])
        if other[0] < best[0]:
            best, sizes = other, OPEN_SIZES[number]
        number += 1
    for again in (_UNLIKE_SIZES, *OPEN_SIZES[1:], sizes):
        if again == sizes or again != OPEN_SIZES[0]:
            second = infer(1, again)
            if second[0] <= best[0]:
                break
    return best[1], second[1]


def _count_unknown(facts: GraphFacts, specs: Specs) -> int:
    """Count the values of which not even the rank is known."""
    return sum(
        (spec := specs.get(name)) is None or (spec.shape is None and spec.kind is None)
        for node in facts.nodes
        for name in node.outputs
        if name in facts.consumers
    )


def has_open(
    model: OnnxModel, seeds: Candidate, shapes: Mapping[str, tuple[Dim, ...]] | None
) -> bool:
    """Return whether an axis that carries no rows is open."""
    return any(
        not isinstance(dim, int) and seeds.get(spec.name) != axis
        for spec in model.inputs
        for axis, dim in enumerate(shape_of(spec, shapes) or ())
    )


def shape_of(
    spec: TensorSpec, shapes: Mapping[str, tuple[Dim, ...]] | None
) -> tuple[Dim, ...] | None:
    """Return the shape that is given for an input, else the declared one."""
    return shapes[spec.name] if shapes and spec.name in shapes else spec.shape


def probe_shapes(
    model: OnnxModel,
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    rows: int,
    sizes: Sequence[int],
) -> dict[str, tuple[Dim, ...]]:
    """Return input shapes for one batch size.

    Parameters
    ----------
    model : OnnxModel
    seeds : mapping of input to axis
        The candidate batch axes.
    shapes : mapping of input to shape, optional
        Binds axes that carry no rows.
    rows : int
        Batch size.
    sizes : sequence of int
        Sizes of other open dimensions, in turns; symbols are kept if it is empty.
    """
    leading = {spec.shape[0] for spec in open_first(model) if spec.shape}
    carried = {
        spec.shape[axis]
        for spec in model.inputs
        if spec.shape and (axis := seeds.get(spec.name, -1)) >= 0 and axis < len(spec.shape)
    }
    carried = {symbol for symbol in carried if isinstance(symbol, str)}
    symbols: dict[object, int] = {}

    def size(spec: TensorSpec, axis: int, given: Dim, declared: Dim) -> Dim:
        if seeds.get(spec.name) == axis:
            return rows
        if isinstance(given, int):
            return given  # also where the axis has the symbol of the rows: exporters repeat names
        if declared in carried:
            return rows
        if declared in leading and axis == 0 and spec.name not in seeds and shapes is None:
            return 1  # rows of another kind, of which every run gets the same
        if not sizes:
            return given or declared
        return symbols.setdefault(declared or (spec.name, axis), sizes[len(symbols) % len(sizes)])

    bound = {}
    for spec in model.inputs:
        shape = shape_of(spec, shapes)
        declared = spec.shape if spec.shape is not None else (None,) * len(shape or ())
        if shape is not None and spec.kind is None and len(declared) == len(shape):
            bound[spec.name] = tuple(
                size(spec, axis, given, own)
                for axis, (given, own) in enumerate(zip(shape, declared, strict=True))
            )
    return bound
