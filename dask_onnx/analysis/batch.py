"""The batch of a model: which axis of which input and output carries rows, and how many of them.

`find_batch` answers for a model and its wanted outputs. Candidates come from `row_candidates`, the
proof of each from `row_proofs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch_facts import BatchFacts, ExportedRows
from dask_onnx.analysis.exported_batch import exported_rows
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.row_candidates import (
    Candidate,
    declared_rows,
    first_axis_candidates,
    open_first,
    open_groups,
)
from dask_onnx.analysis.row_probes import shape_of
from dask_onnx.analysis.row_proofs import coupled_nodes, prove_best
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel


def input_axes(model: OnnxModel) -> tuple[dict[str, int | None], int | None]:
    """Return the likely batch axis of each input, and the number of rows if it is fixed.

    Nothing is proven for open axes: costs are predicted for one row along these. The likely axes
    are an open axis 0 and axes of the same symbol in other inputs, unless the caller has declared
    others. A graph whose inputs have k rows, or that takes k rows only because of a constant
    inside, is run k rows at a time, if the algebra of axes proves that k could be any number.

    Returns
    -------
    axes : dict of input to int or None
        None for an input that every run gets unchanged.
    fixed : int or None
        Rows of one run; None where any number is possible.
    """
    inputs = model.inputs
    exported = exported_rows(model)
    if exported is not None and exported.is_proven:
        return {spec.name: exported.axes.get(spec.name) for spec in inputs}, exported.rows
    declared = declared_rows(model)
    if declared is None and open_first(model):
        likely: Candidate = next(iter(first_axis_candidates(model, None)))
    else:
        likely = declared or {}
    return {spec.name: likely.get(spec.name) for spec in inputs}, None


def find_batch(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
    custom: CustomAxes | None = None,
    *,
    first_axis_only: bool = False,
) -> BatchFacts:
    """Return the batch axes of inputs and outputs, and what blocks them if none is proven.

    Parameters
    ----------
    facts : GraphFacts
    outputs : tuple of str
        Names of graph outputs or of intermediate values.
    shapes : mapping of input to shape, optional
        Binds axes that carry no rows, and tells apart inputs that cannot have as many rows as
        others; the number of rows in it is ignored otherwise. Declared shapes by default.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX does not know.
    custom : mapping of (domain, op type) to axes, optional
        Axes that the caller's operators declare.
    first_axis_only : bool
        True if rows can only be on axis 0 of the inputs, as in tables and bags.
    """
    random, unseeded = random_nodes(facts, outputs)
    likely, fixed = input_axes(facts.model)
    if fixed is not None or not any(axis is not None for axis in likely.values()):
        found = _without_open_batch(
            facts, outputs, shapes, schemas, custom, likely, fixed, first_axis_only
        )
        return replace(found, random=random, unseeded=unseeded)
    found = _with_open_batch(facts, outputs, shapes, schemas, custom, first_axis_only)
    return replace(
        found,
        random=random,
        unseeded=unseeded,
        likely_axes=likely,
        exported=exported_rows(facts.model) if found.blockers else None,
        is_declared=facts.model.rows is not None,
    )


def _without_open_batch(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
    likely: Mapping[str, int | None],
    fixed: int | None,
    first_axis_only: bool,
) -> BatchFacts:
    """Return the facts of a graph whose axes 0 are fixed, or which the caller said has no rows."""
    if not first_axis_only and fixed is None and facts.model.rows != "none":
        # Rows may lie on an axis other than 0: (time, batch, features).
        others = open_groups(facts.model, first=False)
        found = prove_best(facts, outputs, others, shapes, schemas, custom, proven_only=True)
        if found is not None:
            return found
    return _fixed_batch(facts, outputs, shapes, schemas, custom, likely, fixed)


def _with_open_batch(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
    first_axis_only: bool,
) -> BatchFacts:
    """Return the facts of a graph with an open axis 0, or with axes that the caller declared."""
    model = facts.model
    declared = declared_rows(model)
    candidates: Iterator[Candidate] | list[Candidate]
    candidates = [declared] if declared else first_axis_candidates(model, shapes)
    found = prove_best(facts, outputs, list(candidates), shapes, schemas, custom)
    assert found is not None
    if found.blockers and not declared and not first_axis_only and model.rows is None:
        others = open_groups(model, first=False)
        found = (
            prove_best(facts, outputs, others, shapes, schemas, custom, proven_only=True) or found
        )
    if shapes is not None and found.blockers and all(b.kind == Kind.OPAQUE for b in found.blockers):
        # A branch that does not fit these sizes, and does not run, hides what holds at others.
        general = find_batch(facts, outputs, None, schemas, custom, first_axis_only=first_axis_only)
        if not general.blockers:
            return general
    return found


def _fixed_batch(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
    axes: Mapping[str, int | None],
    fixed: int | None,
) -> BatchFacts:
    """Return the facts of a graph without rows, or with a fixed number of them."""
    exported = exported_rows(facts.model)
    specs = infer_shapes(facts, _fixed_shapes(facts.model, axes, shapes, fixed), schemas)
    sizes = {name: _sizes(specs.get(name)) for name in outputs}
    row_axes: dict[str, int | None] = dict.fromkeys(outputs)
    if fixed is not None and exported is not None:
        deps = propagate(facts, specs, exported.axes, custom)
        row_axes = {
            name: _fixed_axis(exported, name, deps.get(name, FREE), sizes[name]) for name in outputs
        }
        if facts.model.rows is not None:
            row_axes = {
                name: _only_axis(sizes[name], fixed) if axis is None else axis
                for name, axis in row_axes.items()
            }
    return BatchFacts(
        input_axes=dict(axes),
        fixed_rows=fixed,
        output_axes=row_axes,
        sizes={
            name: None
            if (found := sizes[name]) is None
            else tuple(1 if i == row_axes[name] else size for i, size in enumerate(found))
            for name in outputs
        },
        coupled=coupled_nodes(facts, outputs) if fixed != 1 else (),
        exported=exported,
    )


def whole_sizes(
    facts: GraphFacts,
    outputs: Sequence[str],
    shapes: Mapping[str, tuple[Dim, ...]],
    schemas: Schemas | None = None,
) -> dict[str, tuple[int | float, ...] | None]:
    """Return the shapes of outputs for inputs of exactly these shapes, NaN where unknown."""
    specs = infer_shapes(facts, dict(shapes), schemas)
    return {name: _sizes(specs.get(name)) for name in outputs}


def _fixed_shapes(
    model: OnnxModel,
    axes: Mapping[str, int | None],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    rows: int | None,
) -> dict[str, tuple[Dim, ...]]:
    """Return input shapes with a fixed number of rows on every batch axis."""
    bound = {}
    for spec in model.inputs:
        shape = shape_of(spec, shapes)
        if shape is None:
            continue
        dims = list(shape)
        axis = axes[spec.name]
        if axis is not None and rows is not None and dims:
            dims[axis] = rows
        bound[spec.name] = tuple(dims)
    return bound


def _fixed_axis(
    exported: ExportedRows, name: str, dep: Dependence, sizes: tuple[int | float, ...] | None
) -> int | None:
    """Return the axis of the rows in an output of a graph that takes a fixed number of them.

    The proven axis of a graph output; for other values that on which the rows lie at the exported
    number. Of a single row, whose place cannot be told from other axes of size 1, axis 0.
    """
    if name in exported.output_axes:
        return exported.output_axes[name]
    if exported.rows > 1 or any(exported.axes.values()):
        lies_alone = dep.axis is not None and (dep.outer, dep.inner) == (1, 1)
        return dep.axis if lies_alone else None
    if sizes is not None and not sizes:
        return None
    return 0 if sizes is None or math.isnan(sizes[0]) or sizes[0] == 1 else None


def _only_axis(sizes: tuple[int | float, ...] | None, rows: int) -> int | None:
    """Return the only axis of that size; None if there is not exactly one."""
    found = [axis for axis, size in enumerate(sizes or ()) if size == rows]
    return found[0] if len(found) == 1 else None


def _sizes(spec: TensorSpec | None) -> tuple[int | float, ...] | None:
    """Return a shape with NaN for unknown sizes; None for an unknown rank."""
    if spec is None or spec.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else math.nan for dim in spec.shape)
