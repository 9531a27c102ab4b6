"""Proofs that a candidate batch axis carries independent rows, by the algebra of axes.

A candidate is a set of input axes that have one size in common. It carries rows if every wanted
output depends on it position by position: then cutting the inputs there, and joining the outputs,
gives what one run over all rows gives. Each candidate is examined at two batch sizes, between which
every other open dimension differs too, so that no proof rests on a coincidence of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes, rule_of
from dask_onnx.analysis.batch_facts import BatchFacts, Blocker
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.operands import Specs
from dask_onnx.analysis.row_candidates import Candidate
from dask_onnx.analysis.row_probes import PROBES, has_open, probe_shapes, probe_specs
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.operator_names import public_op_type
from dask_onnx.modelio.weights import with_bodies

_SIZE_FREE_FAMILIES = frozenset(("elementwise", "axis", "reduction", "product", "rows", "layer"))
"""Families of rules whose result does not depend on the sizes of the axes."""


def prove_best(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    candidates: Sequence[Candidate],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    schemas: Schemas | None,
    custom: CustomAxes | None,
    *,
    proven_only: bool = False,
) -> BatchFacts | None:
    """Return the facts of the candidate along which most can be cut.

    The first candidate along which every output can be cut; else the first that nothing blocks;
    else the first, or None with `proven_only`. Parameters are those of `prove`.
    """
    tried: list[BatchFacts] = []
    for candidate in candidates:
        found = prove(facts, outputs, candidate, shapes, schemas, custom)
        if not found.blockers and None not in found.output_axes.values():
            return found
        tried.append(found)
    if proven_only or not tried:
        return None
    return next((found for found in tried if not found.blockers), tried[0])


def prove(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    seeds: Candidate,
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
    custom: CustomAxes | None = None,
) -> BatchFacts:
    """Return what is proven of one candidate, with the blockers of what is not.

    Parameters
    ----------
    facts : GraphFacts
    outputs : tuple of str
        Names of graph outputs or of intermediate values.
    seeds : mapping of input to axis
        The candidate.
    shapes : mapping of input to shape, optional
        Binds axes that carry no rows; declared shapes by default.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX does not know.
    custom : mapping of (domain, op type) to axes, optional
        Axes that the caller's operators declare.
    """
    few, many = probe_specs(facts, seeds, shapes, schemas)
    found = _prove_at(facts, outputs, seeds, (few, many), custom)
    is_opaque = any(blocker.kind == Kind.OPAQUE for blocker in found.blockers)
    if is_opaque and has_open(facts.model, seeds, shapes):
        # Assumed sizes may not fit the graph, where its own symbols do.
        few, many = (
            infer_shapes(facts, probe_shapes(facts.model, seeds, shapes, rows, ()), schemas)
            for rows in PROBES
        )
        symbolic = _prove_at(facts, outputs, seeds, (few, many), custom)
        return symbolic if not symbolic.blockers else found
    return found


def coupled_nodes(facts: GraphFacts, outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the nodes that quantize by a statistic over all rows of a run."""
    return tuple(
        facts.nodes[index].name
        for index in facts.ancestors(outputs)
        if any(
            public_op_type(inner).startswith("DynamicQuantize")
            for inner in with_bodies(facts.proto.graph.node[index])
        )
    )


def _prove_at(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    seeds: Candidate,
    specs: tuple[Specs, Specs],
    custom: CustomAxes | None,
) -> BatchFacts:
    """Return what is proven with these specs, of few rows and of many."""
    few = propagate(facts, specs[0], seeds, custom)
    first = [few.get(name, FREE).of_whole_positions() for name in outputs]
    blockers = [_blocker(facts, seeds, name, dep) for name, dep in zip(outputs, first, strict=True)]
    if not any(blockers) and _depends_on_sizes(facts):
        many = propagate(facts, specs[1], seeds, custom)
        second = [many.get(name, FREE).of_whole_positions() for name in outputs]
        blockers = [
            _blocker(facts, seeds, name, dep if dep.axis == before.axis else _moved(dep))
            for name, dep, before in zip(outputs, second, first, strict=True)
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
            name: _row_sizes(specs[0].get(name), specs[1].get(name), axes[name], dep.is_independent)
            for name, dep in zip(outputs, first, strict=True)
        },
        blockers=tuple(filter(None, blockers)),
        coupled=coupled_nodes(facts, outputs) if any(dep.coupled for dep in first) else (),
    )


def _depends_on_sizes(facts: GraphFacts) -> bool:
    """Return whether an operator moves elements by sizes: another size may move them elsewhere."""
    return any(
        rule_of(node.domain, node.op_type, {}).family not in _SIZE_FREE_FAMILIES
        for node in facts.nodes
    )


def _moved(dep: Dependence) -> Dependence:
    """Return the broken dependence of an output whose batch axis differs between two sizes."""
    return dep.broken(Kind.FACTORED, "", "another axis at another size")


def _blocker(facts: GraphFacts, seeds: Candidate, name: str, dep: Dependence) -> Blocker | None:
    """Return what prevents cutting an output; None if nothing does."""
    if dep.kind <= Kind.INDEPENDENT and (dep.axis is not None or dep.kind == Kind.FREE):
        return None
    kind, node = dep.kind, dep.node
    if kind == Kind.INDEPENDENT:  # a quantization range, one number for all rows
        kind, node = Kind.REDUCED, dep.coupled
    if not node and (producer := facts.producer.get(name)) is not None:
        node = facts.nodes[producer].name
    op_type = next((each.op_type for each in facts.nodes if each.name == node), "")
    return Blocker(name, next(iter(seeds.items())), node, op_type, kind, dep.how)


def _row_axis(dep: Dependence, few: TensorSpec | None, many: TensorSpec | None) -> int | None:
    """Return the batch axis of an output; None if it has none.

    The proven axis; else the one whose size equals the number of rows at both sizes; else axis 0
    where inference left its size open.
    """
    if few is None:
        return None
    if few.dtype is None:
        # Sequences of tensors that all have the rows on one axis are cut and joined item by item.
        is_own = dep.is_independent and (dep.outer, dep.inner) == (1, 1)
        return dep.axis if is_own and (few.kind or "").startswith("seq(tensor(") else None
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
    """Return an output's shape for one row, NaN where sizes differ; None for an unknown rank."""
    if few is None or many is None or few.shape is None or many.shape is None:
        return None
    if len(few.shape) != len(many.shape):
        return None
    return tuple(
        1
        if i == axis and (a == PROBES[0] or (is_own and not isinstance(a, int)))
        else (a if isinstance(a, int) and a == b else math.nan)
        for i, (a, b) in enumerate(zip(few.shape, many.shape, strict=True))
    )
