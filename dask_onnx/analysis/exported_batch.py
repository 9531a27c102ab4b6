"""Numbers of rows that graphs were exported for: in the sizes of inputs, or in constants inside.

Such a graph is run that many rows at a time, if its rows are proven to be independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.batch_facts import ExportedRows
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked, open_batch
from dask_onnx.analysis.operands import Specs
from dask_onnx.analysis.row_candidates import (
    Candidate,
    declared_rows,
    first_axis_candidates,
    first_size,
    open_first,
    open_groups,
)
from dask_onnx.analysis.row_probes import OPEN_SIZES, PROBES, has_open, probe_shapes
from dask_onnx.analysis.row_proofs import prove
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.analysis.size_conflicts import (
    SizeConflict,
    first_conflict,
    fitting_rows,
    knows_sizes,
    may_name_sizes,
    named_rows,
)
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

_SIZES_APART = (64, 160, 96, 224)
"""Sizes of other open dimensions, in turns, at which no group of axes names its own by chance."""
_exported_rows: BoundedCache[tuple[str, str], ExportedRows | None] = BoundedCache(
    "exported rows", 256
)
"""Results of `exported_rows` by the model's token and declaration: a proof rewrites and infers the
whole graph."""


def exported_rows(model: OnnxModel, graph: GraphFacts | None = None) -> ExportedRows | None:
    """Return what is known of the number of rows that a graph was exported for.

    None where any number can be run, where inputs and outputs have no size in common, and where the
    caller declared that there are no rows.

    Parameters
    ----------
    model : OnnxModel
    graph : GraphFacts, optional
        Facts of its graph, if they are known already; finding them takes as long as all the rest.
    """
    return _exported_rows.get_or_make(
        (model.token, repr(model.rows)), lambda: _find_exported_rows(model, graph)
    )


def _find_exported_rows(model: OnnxModel, graph: GraphFacts | None) -> ExportedRows | None:
    if model.rows == "none":
        return None
    declared = declared_rows(model)
    if declared is not None:
        return _declared_size(model, declared) or next(_named(model, [declared], graph), None)
    others = open_groups(model, first=False)
    if open_first(model):
        groups = [next(iter(first_axis_candidates(model, None))), *others]
        candidates = _named(model, groups, graph)
        found = next(candidates, None)
    else:
        found = _on_first_axis(model)
        candidates = _named(model, others, graph) if others else _on_second_axis(model)
    if found is not None and found.is_proven:
        return found
    return next((each for each in candidates if each is not None and each.is_proven), found)


def _declared_size(model: OnnxModel, axes: Candidate) -> ExportedRows | None:
    """Return the fixed size of the axes that the caller declared, which is not checked."""
    shapes = {spec.name: spec.shape for spec in model.inputs}
    sizes = {
        shape[axis]
        for name, axis in axes.items()
        if (shape := shapes.get(name)) is not None and isinstance(shape[axis], int)
    }
    rows = sizes.pop() if len(sizes) == 1 else None
    return _declared(model, ExportedRows(rows, dict(axes))) if isinstance(rows, int) else None


def _declared(model: OnnxModel, found: ExportedRows) -> ExportedRows:
    """Return the facts of rows that the caller declared, with the outputs' axes if proven."""
    return replace(found, output_axes=_proven(model, found).output_axes)


def _on_first_axis(model: OnnxModel) -> ExportedRows | None:
    """Return the common size of axis 0 of all outputs, if some input has it too."""
    outputs = _outputs_with_sizes(model)
    counts = {first_size(spec) for spec in outputs if spec.shape != (1,)}
    rows = counts.pop() if len(counts) == 1 else None
    axes = {spec.name: 0 for spec in model.inputs if first_size(spec) == rows}
    if not rows or not axes:
        return None
    found = ExportedRows(rows, axes)
    if any(spec.shape == (1,) for spec in outputs):
        # The label of one row, or one number for all rows: the proof tells which.
        found = _proven(model, found)
        return found if found.is_proven else None
    # A single row cannot depend on another.
    return found if rows == 1 else _proven(model, found)


def _on_second_axis(model: OnnxModel) -> Iterator[ExportedRows | None]:
    """Yield the common size of axis 1 of all inputs, as of (time, batch, features), proven or not.

    Sequence models have their rows there by default in some frameworks.
    """
    shapes = [spec.shape or () for spec in model.inputs if spec.kind is None]
    sizes = {shape[1] if len(shape) > 2 else None for shape in shapes}
    rows = sizes.pop() if len(sizes) == 1 else None
    if isinstance(rows, int) and rows > 0:
        axes = {spec.name: 1 for spec in model.inputs if spec.kind is None}
        yield _proven(model, ExportedRows(rows, axes))


def _outputs_with_sizes(model: OnnxModel) -> Sequence[TensorSpec]:
    """Return the outputs of a graph without open first axes, inferred where axis 0 is a symbol."""
    if all(
        spec.shape is None or not spec.shape or isinstance(spec.shape[0], int)
        for spec in model.outputs
    ):
        return model.outputs
    specs = infer_shapes(GraphFacts(model))
    return [specs.get(spec.name, spec) for spec in model.outputs]


def _proven(model: OnnxModel, found: ExportedRows) -> ExportedRows:
    """Return whether any number of rows would give as many independent rows.

    The graph is rewritten with an open batch, and that batch is proven.
    """
    opened = open_batch(model, found.axes, rows=found.rows)
    names = tuple(spec.name for spec in model.outputs)
    if isinstance(opened, Blocked):
        return _blocked(opened, found, names)
    proof = prove(GraphFacts(opened.model), names, opened.input_axes)
    lost = tuple(name for name, axis in proof.output_axes.items() if axis is None)
    return replace(
        found,
        mixing=proof.dependent,
        opaque=proof.opaque,
        lost=lost,
        output_axes=proof.output_axes,
    )


def _blocked(blocked: Blocked, found: ExportedRows, outputs: Sequence[str]) -> ExportedRows:
    """Return the facts of rows whose number cannot be opened."""
    if not blocked.op_type and blocked.node in outputs:
        return replace(found, lost=(blocked.node,))
    if blocked.kind == Kind.OPAQUE:
        return replace(found, opaque=(blocked.node,))
    return replace(found, mixing=(blocked.node,))


def _named(
    model: OnnxModel, groups: Sequence[Candidate], graph: GraphFacts | None
) -> Iterator[ExportedRows | None]:
    """Yield the number of rows that constants inside a graph name, for each group of open axes."""
    facts = GraphFacts(model) if graph is None else graph
    # The sizes that are tried differ on all open axes: one inference answers for all groups.
    if may_name_sizes(facts) and not (len(groups) > 1 and _takes_probes(facts, groups[0])):
        yield from (_named_on(facts, axes) for axes in groups)


def _takes_probes(facts: GraphFacts, axes: Candidate) -> bool:
    """Return whether the graph certainly runs at other sizes of all open axes than it may name."""
    if not axes or not has_open(facts.model, axes, None):
        return False
    specs = _specs_at(facts, axes, PROBES[0], _SIZES_APART)
    return first_conflict(facts, specs) is None and knows_sizes(facts, specs)


def _named_on(facts: GraphFacts, axes: Candidate) -> ExportedRows | None:
    """Return the number of rows that constants inside a graph name for some open axes.

    None if no node is found that takes one number only. Rows that the caller declared independent
    need no proof, and neither does a single row.
    """
    model = facts.model
    if not axes:
        return None
    for sizes in OPEN_SIZES if has_open(model, axes, None) else ((),):
        specs = _specs_at(facts, axes, PROBES[0], sizes)
        conflict = first_conflict(facts, specs)
        if conflict is None and knows_sizes(facts, specs):
            return None  # the graph takes this number of rows
        rows = None if conflict is None else _named_number(facts, axes, sizes, conflict)
        if conflict is None or rows is None:
            continue
        specs = _specs_at(facts, axes, rows, sizes)
        if first_conflict(facts, specs) is not None:
            continue
        found = ExportedRows(rows, dict(axes), is_open=True, conflict=str(conflict))
        if model.rows is not None:
            return _declared(model, found)
        if rows == 1 and _is_single_row(model, specs):
            return found
        return _proven(model, found)
    return None


def _named_number(
    facts: GraphFacts, axes: Candidate, sizes: Sequence[int], conflict: SizeConflict
) -> int | None:
    """Return the number of rows at which a conflict at the first of `PROBES` is gone, if any."""
    few, many = PROBES
    if not fitting_rows(few, conflict):
        return None
    other = first_conflict(facts, _specs_at(facts, axes, many, sizes))
    if other is None or other.node != conflict.node:
        return None
    return named_rows({few: conflict, many: other})


def _specs_at(facts: GraphFacts, axes: Candidate, rows: int, sizes: Sequence[int]) -> Specs:
    return infer_shapes(facts, probe_shapes(facts.model, axes, None, rows, sizes))


def _is_single_row(model: OnnxModel, specs: Specs) -> bool:
    """Return whether all outputs have one row on axis 0, at specs of one row."""
    shapes = [found.shape for s in model.outputs if (found := specs.get(s.name)) is not None]
    return len(shapes) == len(model.outputs) and all(shape and shape[0] == 1 for shape in shapes)
