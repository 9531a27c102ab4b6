"""Two questions about a candidate for rows: all shapes for few rows, and for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.row_candidates import Candidate, open_first
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

PROBES = (7, 4099)
"""Two numbers of rows: primes that real dimensions seldom are, the second above most bounds."""


_OPEN_SIZES = ((64,), (48,), (224,), (16,))
"""What other open dimensions are in the first question: the first that a graph can have."""


_UNLIKE_SIZES = (96, 160, 224, 288)
"""What they are in the second, in turns, so that no two sizes are equal by chance."""


Specs = Mapping[str, TensorSpec]


def probe_specs(
    facts: GraphFacts,
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
) -> tuple[Specs, Specs]:
    """Return every value's spec for both numbers of rows.

    Other open dimensions get sizes that the graph can have, as far as some are found (a text
    recogniser takes pictures that are 48 high, say), and the second time others.
    """

    def ask(probe: int, sizes: Sequence[int]) -> tuple[int, Specs]:
        bound = probe_shapes(facts.model, seeds, shapes, PROBES[probe], sizes)
        specs = infer_shapes(facts, bound, schemas)
        return _unknown(facts, specs), specs

    if not has_open(facts.model, seeds, shapes):
        return ask(0, ())[1], ask(1, ())[1]
    best = ask(0, _OPEN_SIZES[0])
    sizes, number = _OPEN_SIZES[0], 1
    while best[0] and number < len(_OPEN_SIZES):
        other = ask(0, _OPEN_SIZES[number])
        if other[0] < best[0]:
            best, sizes = other, _OPEN_SIZES[number]
        number += 1
    for again in (_UNLIKE_SIZES, *_OPEN_SIZES[1:], sizes):
        if again == sizes or again != _OPEN_SIZES[0]:
            second = ask(1, again)
            if second[0] <= best[0]:
                break
    return best[1], second[1]


def _unknown(facts: GraphFacts, specs: Specs) -> int:
    """Number of values of which not even the rank is known."""
    return sum(
        (spec := specs.get(name)) is None or (spec.shape is None and spec.kind is None)
        for node in facts.nodes
        for name in node.outputs
        if name in facts.consumers
    )


def has_open(
    model: OnnxModel, seeds: Candidate, shapes: Mapping[str, tuple[Dim, ...]] | None
) -> bool:
    """Whether an axis that carries no rows is open."""
    return any(
        not isinstance(dim, int) and seeds.get(spec.name) != axis
        for spec in model.inputs
        for axis, dim in enumerate(shape_of(spec, shapes) or ())
    )


def shape_of(
    spec: TensorSpec, shapes: Mapping[str, tuple[Dim, ...]] | None
) -> tuple[Dim, ...] | None:
    return shapes[spec.name] if shapes and spec.name in shapes else spec.shape


def probe_shapes(
    model: OnnxModel,
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    rows: int,
    sizes: Sequence[int],
) -> dict[str, tuple[Dim, ...]]:
    """Return input shapes with so many rows, and other open dimensions of `sizes` in turns.

    Without `sizes` these keep their symbols.
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
        if seeds.get(spec.name) == axis or declared in carried:
            return rows
        if isinstance(given, int):
            return given
        if declared in leading and axis == 0 and spec.name not in seeds and shapes is None:
            return 1  # rows of another kind, given once
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
