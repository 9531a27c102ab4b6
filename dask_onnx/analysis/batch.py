"""Which axis of which value carries the rows of a batch, as far as the algebra of axes proves it.

A *candidate* is a set of input axes that have one size in common. It carries rows if every wanted
output depends on it position by position: then cutting the inputs there, and joining the outputs,
gives what the whole gives. Each candidate is asked at two sizes, which differ in every open
dimension, so that nothing rests on a coincidence of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes, rule_of
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
from dask_onnx.analysis.row_probes import (
    PROBES,
    Specs,
    has_open,
    probe_shapes,
    probe_specs,
    shape_of,
)
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import with_bodies


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why an output cannot be cut along a candidate."""

    output: str
    axis: tuple[str, int]
    """The first input of the candidate, and its axis."""
    node: str
    """Name of the node that decides."""
    op_type: str
    kind: Kind
    how: str

    def __str__(self) -> str:
        name, axis = self.axis
        operator = f" ({self.op_type})" if self.op_type else ""
        detail = f", {self.how}" if self.how else ""
        return (
            f"axis {axis} of input {name!r} is {self.kind.label} at node {self.node!r}{operator}"
            f"{detail}"
        )


@dataclass(frozen=True, slots=True)
class ExportedRows:
    """The size of axis 0 that all outputs of a graph without open axes agree on, and whether it is
    a number of rows."""

    rows: int
    mixing: tuple[str, ...] = ()
    """Names of the nodes that would mix rows, if rows they are."""
    opaque: tuple[str, ...] = ()
    """Names of the nodes behind which nothing is known of the rows."""
    lost: tuple[str, ...] = ()
    """Outputs that do not grow with the rows."""

    @property
    def is_proven(self) -> bool:
        """Each row goes in and comes out whatever their number, and by itself."""
        return not (self.mixing or self.opaque or self.lost)


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """How a model treats its batch."""

    input_axes: Mapping[str, int | None]
    """Input to the axis that carries rows; None for an input that is given once."""
    fixed_rows: int | None
    """The batch size that the graph was exported with, where it is fixed; else None."""
    output_axes: Mapping[str, int | None]
    """Output to the axis that carries rows; None where it has none."""
    sizes: Mapping[str, tuple[int | float, ...] | None]
    """Output to its shape for one row; NaN on an axis whose size depends on data."""
    random: tuple[str, ...] = ()
    """Names of the nodes that draw random numbers."""
    unseeded: tuple[str, ...] = ()
    """Those of them without a seed, or whose kernel goes on drawing from run to run: a task that
    is repeated gives other numbers."""
    blockers: tuple[Blocker, ...] = ()
    """Why rows are not proven to be independent, one for each output; empty if they are."""
    coupled: tuple[str, ...] = ()
    """Names of nodes that quantise by a statistic over all rows of a run."""
    exported: ExportedRows | None = None
    """Where no axis is open; `fixed_rows` is set if these rows are proven."""
    likely_axes: Mapping[str, int | None] = field(default_factory=dict)
    """Input to the axis that is open and first, or of the same symbol, proven or not."""
    is_declared: bool = False
    """The caller has said that rows are independent; `blockers` says what the graph proves."""

    @property
    def is_proven(self) -> bool:
        """Whether rows may be cut apart: it is proven, or the caller has said so."""
        return self.is_declared or not self.blockers

    @property
    def dependent(self) -> tuple[str, ...]:
        """Names of the nodes whose result for one row depends, or may depend, on others."""
        known = (b.node for b in self.blockers if b.kind != Kind.OPAQUE)
        return tuple(dict.fromkeys([*known, *self.coupled]))

    @property
    def opaque(self) -> tuple[str, ...]:
        """Names of the nodes behind which nothing is known of the rows."""
        return tuple(dict.fromkeys(b.node for b in self.blockers if b.kind == Kind.OPAQUE))

    def whole(self, sizes: Mapping[str, tuple[int | float, ...] | None]) -> BatchFacts:
        """Return the same with every input given once, and outputs of these sizes."""
        return replace(
            self,
            input_axes=dict.fromkeys(self.input_axes),
            output_axes=dict.fromkeys(self.output_axes),
            sizes=sizes,
        )


def input_axes(model: OnnxModel) -> tuple[dict[str, int | None], int | None]:
    """Return the axis of each input that most likely carries rows, and their number if it is fixed.

    Nothing is proven here: costs are predicted for one row of this. Open first axes do, and axes of
    the same symbol in other inputs; what the caller has declared prevails. A graph without an open
    first axis that takes and gives one row is run row by row; one that takes and gives k of them is
    run k rows at a time, if the algebra proves that it could be any number.
    """
    inputs = model.inputs
    declared = declared_rows(model)
    if declared is not None:
        return {spec.name: declared.get(spec.name) for spec in inputs}, None
    if not open_first(model):
        exported = exported_rows(model)
        if exported is None or not exported.is_proven:
            return dict.fromkeys(spec.name for spec in inputs), None
        return _axes_of(model, exported.rows), exported.rows
    likely = next(iter(first_axis_candidates(model, None)))
    return {spec.name: likely.get(spec.name) for spec in inputs}, None


def exported_rows(model: OnnxModel) -> ExportedRows | None:
    """What is known of the rows of a graph that was exported with a fixed number of them; None
    where an axis is open, or inputs and outputs have no size in common."""
    if open_first(model):
        return None
    counts = {_first_size(spec) for spec in _told_outputs(model)}
    rows = counts.pop() if len(counts) == 1 else None
    if not rows:
        return None
    axes = _axes_of(model, rows)
    if not any(axis == 0 for axis in axes.values()):
        return None
    # A single row meets no other.
    return ExportedRows(rows) if rows == 1 else _opened_rows(model, axes, rows)


def _told_outputs(model: OnnxModel) -> Sequence[TensorSpec]:
    """Outputs of a graph without open first axes; inferred where the graph names a size that
    follows from the others."""
    if all(
        spec.shape is None or not spec.shape or isinstance(spec.shape[0], int)
        for spec in model.outputs
    ):
        return model.outputs
    if model.token not in _told:
        specs = infer_shapes(GraphFacts(model))
        _told[model.token] = tuple(specs.get(spec.name, spec) for spec in model.outputs)
    return _told[model.token]


def _axes_of(model: OnnxModel, rows: int) -> dict[str, int | None]:
    return {spec.name: 0 if _first_size(spec) == rows else None for spec in model.inputs}


def _first_size(spec: TensorSpec) -> int | None:
    """Size of axis 0, where it is fixed; of a vector of one it is not taken for rows."""
    size = spec.shape[0] if spec.shape else None
    return size if isinstance(size, int) and (size > 1 or len(spec.shape or ()) > 1) else None


_told: dict[str, tuple[TensorSpec, ...]] = {}
"""By model's token: what its outputs are."""
_asked: dict[tuple[str, int], ExportedRows] = {}
"""By model's token and rows: inference need be asked once."""


def _opened_rows(model: OnnxModel, axes: Mapping[str, int | None], rows: int) -> ExportedRows:
    """Whether the graph gives each of its rows a row whatever their number."""
    if (model.token, rows) not in _asked:
        seeds = {name: axis for name, axis in axes.items() if axis is not None}
        opened = open_batch(model, seeds)
        names = tuple(spec.name for spec in model.outputs)
        if isinstance(opened, Blocked):
            _asked[model.token, rows] = _blocked_rows(opened, rows, names)
        else:
            found = find_batch(GraphFacts(opened.model), names)
            lost = tuple(name for name, axis in found.output_axes.items() if axis != 0)
            _asked[model.token, rows] = ExportedRows(rows, found.dependent, found.opaque, lost)
    return _asked[model.token, rows]


def _blocked_rows(blocked: Blocked, rows: int, outputs: Sequence[str]) -> ExportedRows:
    """What is said of rows whose number cannot be opened."""
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
    """Return the axes of inputs and outputs that carry rows, and what is in the way if none does.

    Parameters
    ----------
    outputs : names of graph outputs or of intermediate values
    shapes : mapping of input name to shape
        Binds the other axes, and tells apart inputs that cannot have as many rows as others; the
        number of rows in it is ignored otherwise. Declared shapes by default.
    own : mapping of (domain, op type) to axes
        What the caller's operators declare of themselves.
    first_axis_only : bool
        Rows are on axis 0 of the inputs, as in tables and bags.
    """
    model = facts.model
    random, unseeded = random_nodes(facts, outputs)
    likely, fixed = input_axes(model)
    if fixed is not None or not any(axis is not None for axis in likely.values()):
        given_once = _given_once(facts, outputs, shapes, schemas, likely, fixed)
        open_axes = (
            [] if fixed is not None or model.rows == "none" else open_groups(model, first=False)
        )
        found = _prove_best(facts, outputs, open_axes, shapes, schemas, custom, proven_only=True)
        facts_of_rows = found if found is not None and not first_axis_only else given_once
        return replace(facts_of_rows, random=random, unseeded=unseeded)
    declared = declared_rows(model)
    candidates: Iterator[Candidate] | list[Candidate]
    candidates = [declared] if declared else first_axis_candidates(model, shapes)
    found = _prove_best(facts, outputs, list(candidates), shapes, schemas, custom)
    assert found is not None
    if found.blockers and not declared and not first_axis_only and model.rows is None:
        others = open_groups(model, first=False)
        found = (
            _prove_best(facts, outputs, others, shapes, schemas, custom, proven_only=True) or found
        )
    if shapes is not None and found.blockers and all(b.kind == Kind.OPAQUE for b in found.blockers):
        # A branch that does not fit these sizes, and is not taken, hides what holds at others.
        general = find_batch(facts, outputs, None, schemas, custom, first_axis_only=first_axis_only)
        if not general.blockers:
            found = general
    return replace(
        found,
        random=random,
        unseeded=unseeded,
        likely_axes=likely,
        is_declared=model.rows is not None,
    )


def _given_once(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    axes: Mapping[str, int | None],
    fixed: int | None,
) -> BatchFacts:
    """Facts of a graph without rows, or with a fixed number of them."""
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
        coupled=_coupled(facts, outputs) if fixed != 1 else (),
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


def _prove_best(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    candidates: Sequence[Candidate],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
    *,
    proven_only: bool = False,
) -> BatchFacts | None:
    """Facts of the first candidate along which every output can be cut; else of the first one that
    nothing blocks; else of the first, or None with `proven_only`."""
    tried: list[BatchFacts] = []
    for candidate in candidates:
        found = _prove(facts, outputs, candidate, shapes, schemas, custom)
        if not found.blockers and None not in found.output_axes.values():
            return found
        tried.append(found)
    if proven_only or not tried:
        return None
    return next((found for found in tried if not found.blockers), tried[0])


def _prove(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
) -> BatchFacts:
    """Ask at both sizes; what is opaque with sizes made up may be clear with symbols."""
    few, many = probe_specs(facts, seeds, shapes, schemas)
    found = _ask(facts, outputs, seeds, (few, many), custom)
    if any(b.kind == Kind.OPAQUE for b in found.blockers) and has_open(facts.model, seeds, shapes):
        few, many = (
            infer_shapes(facts, probe_shapes(facts.model, seeds, shapes, rows, ()), schemas)
            for rows in PROBES
        )
        again = _ask(facts, outputs, seeds, (few, many), custom)
        return again if not again.blockers else found
    return found


def _ask(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    seeds: Candidate,
    specs: tuple[Specs, Specs],
    custom: CustomAxes | None,
) -> BatchFacts:
    few = propagate(facts, specs[0], seeds, custom)
    first = [_result(few.get(name, FREE)) for name in outputs]
    blockers = [_blocker(facts, seeds, name, dep) for name, dep in zip(outputs, first, strict=True)]
    if not any(blockers) and _goes_by_sizes(facts):
        many = propagate(facts, specs[1], seeds, custom)
        again = [_result(many.get(name, FREE)) for name in outputs]
        blockers = [
            _blocker(facts, seeds, name, dep if dep.axis == before.axis else _unlike(dep))
            for name, dep, before in zip(outputs, again, first, strict=True)
        ]
    axes = {
        name: _row_axis(dep, specs[0].get(name), specs[1].get(name))
        for name, dep in zip(outputs, first, strict=True)
    }
    return BatchFacts(
        input_axes={spec.name: seeds.get(spec.name) for spec in facts.model.inputs},
        fixed_rows=None,
        output_axes=axes,
        sizes={
            name: _row_sizes(specs[0].get(name), specs[1].get(name), axes[name], dep.is_own)
            for name, dep in zip(outputs, first, strict=True)
        },
        blockers=tuple(filter(None, blockers)),
        coupled=_coupled(facts, outputs) if any(dep.coupled for dep in first) else (),
    )


def _goes_by_sizes(facts: GraphFacts) -> bool:
    """Whether an operator moves elements by sizes, so that another size may be another way."""
    return any(
        rule_of(node.domain, node.op_type, {}).family not in _SIZE_FREE_FAMILIES
        for node in facts.nodes
    )


_SIZE_FREE_FAMILIES = frozenset(("elementwise", "axis", "reduction", "product", "rows", "layer"))


def _result(dep: Dependence) -> Dependence:
    """An output's dependence: positions that lie in blocks are no rows of it."""
    if dep.is_own and (dep.outer, dep.inner) != (1, 1):
        return dep.broken(Kind.FACTORED, "", "joined with another axis")
    return dep


def _unlike(dep: Dependence) -> Dependence:
    return dep.broken(Kind.FACTORED, "", "another axis at another size")


def _blocker(facts: GraphFacts, seeds: Candidate, name: str, dep: Dependence) -> Blocker | None:
    if dep.kind <= Kind.INDEPENDENT and (dep.axis is not None or dep.kind == Kind.FREE):
        return None
    kind, node = dep.kind, dep.node
    if kind == Kind.INDEPENDENT:  # a quantisation statistic
        kind, node = Kind.REDUCED, dep.coupled
    if not node and (made := facts.producer.get(name)) is not None:
        node = facts.nodes[made].name
    op_type = next((each.op_type for each in facts.nodes if each.name == node), "")
    return Blocker(name, next(iter(seeds.items())), node, op_type, kind, dep.how)


def _row_axis(dep: Dependence, few: TensorSpec | None, many: TensorSpec | None) -> int | None:
    """The axis of an output that rows come out on: as proven, else by what grows with their number,
    else the first one where inference fell silent."""
    if few is None or few.dtype is None:
        return None  # a sequence or a map: nothing to cut or join
    if dep.kind == Kind.FREE:
        return None
    if dep.axis is not None and (dep.outer, dep.inner) == (1, 1):
        if few.shape is None or dep.axis >= len(few.shape):
            return dep.axis
        if not isinstance(few.shape[dep.axis], int) or few.shape[dep.axis] == PROBES[0]:
            return dep.axis
    if few.shape is None or many is None or many.shape is None:
        return 0
    grown = [
        axis
        for axis, sizes in enumerate(zip(few.shape, many.shape, strict=False))
        if sizes == PROBES
    ]
    if len(grown) == 1:
        return grown[0]
    return 0 if not grown and few.shape and not isinstance(few.shape[0], int) else None


def _row_sizes(
    few: TensorSpec | None, many: TensorSpec | None, axis: int | None, is_own: bool
) -> tuple[int | float, ...] | None:
    if few is None or many is None or few.shape is None or many.shape is None:
        return None
    if len(few.shape) != len(many.shape):
        return None
    return tuple(
        1
        if i == axis and (a == PROBES[0] or (is_own and not isinstance(a, int)))
        else (a if isinstance(a, int) and a == b else float("nan"))
        for i, (a, b) in enumerate(zip(few.shape, many.shape, strict=True))
    )


def _fixed_shapes(
    model: OnnxModel,
    axes: Mapping[str, int | None],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    rows: int | None,
) -> dict[str, tuple[Dim, ...]]:
    """Input shapes with a fixed number of rows on every batch axis."""
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
    """Axis 0, unless inference says that it has another size than the rows."""
    if rows is None or (sizes is not None and not sizes):
        return None
    return 0 if sizes is None or math.isnan(sizes[0]) or sizes[0] == rows else None


def _sizes(spec: TensorSpec | None) -> tuple[int | float, ...] | None:
    if spec is None or spec.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else float("nan") for dim in spec.shape)


def _coupled(facts: GraphFacts, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the nodes that quantise by a statistic over everything that they are given."""
    return tuple(
        facts.nodes[index].name
        for index in facts.ancestors(outputs)
        if any(
            inner.op_type.startswith("DynamicQuantize")
            for inner in with_bodies(facts.proto.graph.node[index])
        )
    )
