"""Checks of input shapes against a graph: ranks, fixed sizes, and sizes of one symbol."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from onnx.shape_inference import InferenceError

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.onnx_inference import inferred_model
from dask_onnx.analysis.shapes import bound_model, symbol_sizes
from dask_onnx.core.errors import InputError
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import Dim, TensorSpec

_faults: BoundedCache[Hashable, str | None] = BoundedCache("faults of unequal sizes", 256)
"""Results of `_fault_at` by the model's token and the shapes: each request asks for them."""


def check_static_sizes(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check shapes against the declared ranks and fixed sizes.

    Parameters
    ----------
    inputs : sequence of TensorSpec
        Declared inputs; those without a shape in `shapes` are skipped.
    shapes : mapping of input to shape

    Raises
    ------
    InputError
        A rank or a static dimension differs from the declared one.
    """
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is None or spec.shape is None:
            continue
        if len(shape) != len(spec.shape):
            raise InputError(
                f"input {spec.name!r} has rank {len(shape)}, shape {shape}; the model takes {spec}",
                "give every axis that the model names, the batch axis included",
                input=spec.name,
                numbers={"rank": len(shape), "expected_rank": len(spec.shape)},
            )
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(dim, int) and dim != size:
                raise InputError(
                    f"input {spec.name!r} has size {size} on axis {axis}; the model takes {spec}",
                    f"make axis {axis} of {spec.name!r} {dim} long",
                    input=spec.name,
                    axis=axis,
                    numbers={"size": size, "expected_size": dim},
                )


def check_symbol_sizes(
    facts: GraphFacts,
    shapes: Mapping[str, tuple[Dim, ...]],
) -> None:
    """Check that the graph accepts inputs whose sizes of one symbol differ.

    That depends on the nodes: a branch may read one of them alone, or broadcast it.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input to shape
        Shapes of some inputs.

    Raises
    ------
    InputError
        The sizes of a symbol differ, and some node does not accept that.
    """
    inputs = facts.model.inputs
    differing = {n: sizes for n, sizes in symbol_sizes(inputs, shapes).items() if sizes[1:]}
    if not differing:
        return
    reason = _fault_at(facts, shapes)
    if reason is None or _fault_at(facts, {}) is not None:
        return
    symbol, sizes = next(iter(differing.items()))
    places = _places_of(symbol, inputs, shapes)
    name, axis, _ = next(place for place in places if place[2] != sizes[0])
    listed = ", ".join(f"{size} on axis {i} of {each!r}" for each, i, size in places)
    raise InputError(
        f"dimension {symbol!r} is {listed}, and the model does not accept that: {reason}",
        "inputs that share a symbolic dimension must agree on its size here",
        input=name,
        axis=axis,
        reason=reason,
        numbers={"size": sizes[1], "expected_size": sizes[0]},
    )


def _fault_at(facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]) -> str | None:
    """Return why a node does not accept these shapes; None if ONNX finds no fault."""
    key = (facts.model.token, tuple(sorted(shapes.items())))
    return _faults.get_or_make(key, lambda: _find_fault(facts, shapes))


def _find_fault(facts: GraphFacts, shapes: Mapping[str, tuple[Dim, ...]]) -> str | None:
    model, _ = bound_model(facts, shapes)
    try:
        inferred_model(model, mode="strict")
    except InferenceError as error:
        return " ".join(str(error).split())
    return None


def _places_of(
    symbol: str, inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[Dim, ...]]
) -> list[tuple[str, int, int]]:
    """Return input, axis and size of each axis that has a symbol."""
    return [
        (spec.name, axis, size)
        for spec in inputs
        for axis, (dim, size) in enumerate(
            zip(spec.shape or (), shapes.get(spec.name, ()), strict=False)
        )
        if dim == symbol and isinstance(size, int)
    ]
