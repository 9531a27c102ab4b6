"""The batch of a model: which axis of which input and output carries rows, and how many of them.

`find_batch` answers for a model and its wanted outputs. Candidates come from `row_candidates`, the
proof of each from `row_proofs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch_facts import BatchFacts, ExportedRows
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, open_batch
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
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

_exported_rows: BoundedCache[str, ExportedRows | None] = BoundedCache("exported rows", 256)
"""Results of `exported_rows` by the model's token: a proof rewrites and infers the whole graph."""


def input_axes(model: OnnxModel) -> tuple[dict[str, int | None], int | None]:
    """Return the likely batch axis of each input, and the number of rows if it is fixed.

    Nothing is proven for open axes: costs are predicted for one row along these. The likely axes
    are an open axis 0 and axes of the same symbol in other inputs, unless the caller has declared
    others. A graph without an open axis 0 whose inputs and outputs have k rows is run k rows at a
    time, if the algebra of axes proves that k could be any number.

    Returns
    -------
    axes : dict of input to int or None
        None for an input that every run gets unchanged.
    fixed : int or None
        Rows of one run; None where any number is possible.
    """
    inputs = model.inputs
    declared = declared_rows(model)
    if declared is not None:
        return {spec.name: declared.get(spec.name) for spec in inputs}, None
    if not open_first(model):
        exported = exported_rows(model)
        if exported is None or not exported.is_proven:
            return dict.fromkeys(spec.name for spec in inputs), None
        return _axes_of_size(model, exported.rows), exported.rows
    likely = next(iter(first_axis_candidates(model, None)))
    return {spec.name: likely.get(spec.name) for spec in inputs}, None


def exported_rows(model: OnnxModel) -> ExportedRows | None:
    """Return what is proven of the rows of a graph that was exported with a fixed number of them.

    None where an axis 0 is open, or where inputs and outputs have no size of axis 0 in common.
    """
    if open_first(model):
        return None
    return _exported_rows.get_or_make(model.token, lambda: _find_exported_rows(model))


def _find_exported_rows(model: OnnxModel) -> ExportedRows | None:
    counts = {_first_size(spec) for spec in _outputs_with_sizes(model)}
    rows = counts.pop() if len(counts) == 1 else None
    if not rows:
        return None
    axes = _axes_of_size(model, rows)
    if not any(axis == 0 for axis in axes.values()):
        return None
    # A single row cannot depend on another.
    return ExportedRows(rows) if rows == 1 else _prove_exported_rows(model, axes, rows)


def _outputs_with_sizes(model: OnnxModel) -> Sequence[TensorSpec]:
    """Return the outputs of a graph without open first axes, inferred where axis 0 is a symbol."""
    if all(
        spec.shape is None or not spec.shape or isinstance(spec.shape[0], int)
        for spec in model.outputs
    ):
        return model.outputs
    specs = infer_shapes(GraphFacts(model))
    return [specs.get(spec.name, spec) for spec in model.outputs]


def _axes_of_size(model: OnnxModel, rows: int) -> dict[str, int | None]:
    """Return 0 for each input whose axis 0 has that size, else None."""
    return {spec.name: 0 if _first_size(spec) == rows else None for spec in model.inputs}


def _first_size(spec: TensorSpec) -> int | None:
    """Return the size of axis 0 where it is fixed; a vector of one element has no rows."""
    size = spec.shape[0] if spec.shape else None
    return size if isinstance(size, int) and (size > 1 or len(spec.shape or ()) > 1) else None


def _prove_exported_rows(
    model: OnnxModel, axes: Mapping[str, int | None], rows: int
) -> ExportedRows:
    """Return whether any number of rows would give as many independent rows.

    The graph is rewritten with an open batch, and that batch is proven.
    """
    seeds = {name: axis for name, axis in axes.items() if axis is not None}
    opened = open_batch(model, seeds)
    names = tuple(spec.name for spec in model.outputs)
    if isinstance(opened, Blocked):
        return _blocked_rows(opened, rows, names)
    found = find_batch(GraphFacts(opened.model), names)
    lost = tuple(name for name, axis in found.output_axes.items() if axis != 0)
    return ExportedRows(rows, found.dependent, found.opaque, lost)


def _blocked_rows(blocked: Blocked, rows: int, outputs: Sequence[str]) -> ExportedRows:
    """Return the facts of rows whose number cannot be opened."""
    if not blocked.op_type and blocked.node in outputs:
        return ExportedRows(rows, lost=(blocked.node,))
    if blocked.kind == Kind.OPAQUE:
        return ExportedRows(rows, opaque=(blocked.node,))
    return ExportedRows(rows, mixing=(blocked.node,))


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
        Whether rows can only be on axis 0 of the inputs, as in tables and bags.
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
    return _fixed_batch(facts, outputs, shapes, schemas, likely, fixed)


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
    axes: Mapping[str, int | None],
    fixed: int | None,
) -> BatchFacts:
    """Return the facts of a graph without rows, or with a fixed number of them."""
    specs = infer_shapes(facts, _fixed_shapes(facts.model, axes, shapes, fixed), schemas)
    sizes = {name: _sizes(specs.get(name)) for name in outputs}
    row_axes = {name: _fixed_axis(sizes[name], fixed) for name in outputs}
    return BatchFacts(
        input_axes=dict(axes),
        fixed_rows=fixed,
        output_axes=row_axes,
        sizes={
            name: (1, *found[1:]) if found and row_axes[name] == 0 else found
            for name, found in sizes.items()
        },
        coupled=coupled_nodes(facts, outputs) if fixed != 1 else (),
        exported=exported_rows(facts.model),
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


def _fixed_axis(sizes: tuple[int | float, ...] | None, rows: int | None) -> int | None:
    """Return 0, or None where inference says that axis 0 has another size than the rows."""
    if rows is None or (sizes is not None and not sizes):
        return None
    return 0 if sizes is None or math.isnan(sizes[0]) or sizes[0] == rows else None


def _sizes(spec: TensorSpec | None) -> tuple[int | float, ...] | None:
    """Return a shape with NaN for unknown sizes; None for an unknown rank."""
    if spec is None or spec.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else math.nan for dim in spec.shape)
