"""Propagation of dependences: the rules of all nodes applied in topological order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW, body_outputs
from dask_onnx.analysis.axes.dependence import FREE, POSITION_VECTORS, SAME, Dependence, Kind
from dask_onnx.analysis.axes.index_rules import index_of, keeps_index
from dask_onnx.analysis.axes.shape_values import (
    MAX_FOLDED_ELEMENTS,
    fold_node,
    folded_dependences,
    shape_value,
)
from dask_onnx.analysis.axes.table import (
    SHAPE_OPERATORS,
    CustomAxes,
    Entry,
    rule_of,
)
from dask_onnx.analysis.axes.view import Known, NodeView, Shape, with_kind_of
from dask_onnx.analysis.bodies import body_graphs
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import operator_name, standard_op_type
from dask_onnx.modelio.weights import is_external

Specs = Mapping[str, TensorSpec]


def propagate(
    facts: GraphFacts,
    specs: Specs,
    seeds: Mapping[str, int],
    custom: CustomAxes | None = None,
    *,
    ignores_statistics: bool = False,
) -> dict[str, Dependence]:
    """Return the dependence of each value on the source axis; FREE values are left out.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
        Specs at definite sizes of the inputs, as `infer_shapes` returns them. The result holds for
        these sizes.
    seeds : mapping of input to axis
        The source axis; several inputs may share it, as they share a batch. All must have the same
        size on it.
    custom : mapping of (domain, op type) to axes, optional
        Axes that custom operators declare, see `CustomAxes`; undeclared operators are opaque.
    ignores_statistics : bool
        True to leave out what elements read through statistics over all positions, such as a mean
        that scales an image. The result then says where the positions lie, not what may be cut.
    """
    sizes = {
        size
        for name, axis in seeds.items()
        if (spec := specs.get(name)) is not None and spec.shape and axis < len(spec.shape)
        for size in [spec.shape[axis]]
    }
    positions = next((size for size in sizes if isinstance(size, int)), 1) if len(sizes) == 1 else 1
    given = {name: Dependence(Kind.INDEPENDENT, axis) for name, axis in seeds.items()}
    walk = Walk(facts, specs, given, positions, {}, custom or {}, ignores_statistics)
    walk.run()
    return walk.deps


class Walk:
    """One pass over a graph, or over the body of a control-flow node.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
        Specs at definite sizes of the inputs.
    given : mapping of value to Dependence
        Dependences of inputs, and of values captured from the enclosing graph.
    positions : int
        Size of the source axis.
    known : mapping of value to Known
        Values of small tensors captured from the enclosing graph.
    custom : mapping of (domain, op type) to axes
    ignores_statistics : bool
        As for `propagate`.
    """

    def __init__(
        self,
        facts: GraphFacts,
        specs: Specs,
        given: Mapping[str, Dependence],
        positions: int,
        known: Mapping[str, Known],
        custom: CustomAxes,
        ignores_statistics: bool = False,
    ) -> None:
        self._ignores_statistics = ignores_statistics
        self.facts, self.specs, self.positions, self.custom = facts, specs, positions, custom
        self.deps: dict[str, Dependence] = dict(given)
        """Dependences found so far; FREE values are left out."""
        self.known: dict[str, Known] = dict(known)
        """Values of small tensors found so far."""
        self._initializers: Mapping[str, TensorProto] = facts.tensors
        self._opset = facts.model.opsets.get("", 1)
        self._shapes: dict[str, Shape | None] = {}

    def run(self) -> None:
        """Visit all nodes in the order of the file, which ONNX requires to be topological."""
        deps = self.deps
        nodes = self.facts.proto.graph.node
        for node in self.facts.nodes:
            if not deps.keys().isdisjoint(node.inputs) or (
                node.captures and not deps.keys().isdisjoint(node.captures)
            ):
                self.visit(node, nodes[node.index])
            elif standard_op_type(node) in SHAPE_OPERATORS:
                self.fold(node, nodes[node.index])
            elif standard_op_type(node) == "Constant":
                self._note_constant(nodes[node.index])

    def constant(self, name: str) -> Known | None:
        """Return the value of a small tensor, or None if it is not known.

        Reads initializers of at most `MAX_FOLDED_ELEMENTS` elements that are stored in the file
        itself.
        """
        if name in self.known:
            return self.known[name]
        tensor = self._initializers.get(name)
        if tensor is None or is_external(tensor) or math.prod(tensor.dims) > MAX_FOLDED_ELEMENTS:
            return None
        self.known[name] = Known(numpy_helper.to_array(tensor))
        return self.known[name]

    def _note_constant(self, proto: NodeProto) -> None:
        """Record a Constant of a body; those of the main graph became initializers on loading."""
        attribute = proto.attribute[0]
        if attribute.name == "value" and math.prod(attribute.t.dims) <= MAX_FOLDED_ELEMENTS:
            if not is_external(attribute.t):
                self.known[proto.output[0]] = Known(numpy_helper.to_array(attribute.t))
        elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            self.known[proto.output[0]] = Known(np.array(helper.get_attribute_value(attribute)))

    def view(self, node: NodeFacts, proto: NodeProto) -> NodeView:
        """Return a node as the rules see it, with the dependences found so far."""
        deps = self.deps
        ins = [deps.get(name, FREE) for name in node.inputs]
        return NodeView(
            proto,
            node.name,
            node.inputs,
            ins,
            self._shape,
            self.constant,
            self._opset,
            self.positions,
        )

    def _shape(self, name: str) -> Shape | None:
        """Return the sizes of a value, looked up in `specs` once."""
        if name not in self._shapes:
            spec = self.specs.get(name)
            self._shapes[name] = (
                None
                if spec is None or spec.shape is None
                else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
            )
        return self._shapes[name]

    def forget_shape(self, name: str) -> None:
        """Discard the cached shape of a value after its entry in `specs` changed."""
        self._shapes.pop(name, None)

    def fold(self, node: NodeFacts, proto: NodeProto) -> list[Dependence] | None:
        """Evaluate a node of shape arithmetic, record its values and return their dependences.

        Returns None if an input is not known or the operator is not evaluated here, as where the
        caller has a kernel for it.
        """
        if operator_name(node) in self.custom:
            return None
        view = self.view(node, proto)
        if standard_op_type(node) in ("Shape", "Size"):
            value = shape_value(view)
            if value is None:
                is_free = view.dep(0).kind == Kind.FREE
                return [FREE if is_free else view.broken(Kind.LENGTH, "unknown shape")]
            values: list[Known] | None = [value]
        else:
            values = fold_node(view)
        if values is None:
            return None
        self.known.update(zip(proto.output, values, strict=False))
        return folded_dependences(values)

    def visit(self, node: NodeFacts, proto: NodeProto) -> None:
        """Record the dependences of a node's outputs."""
        view = self.view(node, proto)
        if standard_op_type(node) in SHAPE_OPERATORS and _may_be_known(view):
            found = self.fold(node, proto)
            if found is not None:
                self.note(proto, found)
                return
        if standard_op_type(node) in CONTROL_FLOW and operator_name(node) not in self.custom:
            self.note(proto, self._control_flow(node, view))
            return
        entry = rule_of(node.domain, node.op_type, self.custom)
        outputs = entry.rule(view)
        self.note(proto, [self.finished(view, dep, i, entry) for i, dep in enumerate(outputs)])

    def note(self, proto: NodeProto, outputs: Sequence[Dependence]) -> None:
        """Record the dependences of a node's outputs, given in their order."""
        for name, given in zip(proto.output, outputs, strict=False):
            dep = _without_statistics(given) if self._ignores_statistics else given
            if name and dep.kind != Kind.FREE:
                self.deps[name] = dep

    def finished(self, v: NodeView, dep: Dependence, output: int, entry: Entry) -> Dependence:
        """Return a rule's result joined with the inputs' kinds and checked against the shape.

        Parameters
        ----------
        v : NodeView
        dep : Dependence
            Result of the rule for one output.
        output : int
            Index of that output.
        entry : Entry
            Table entry that has the rule.

        Returns
        -------
        Dependence
            OPAQUE if `dep` contradicts the inferred rank, or the size of the positions' axis.
        """
        for index, other in enumerate(v.ins):
            if other is dep or other.kind == Kind.FREE or index in entry.joined:
                continue
            if index not in entry.operands or v.known(index) is None:
                dep = with_kind_of(dep, other)
        if dep.kind == Kind.FREE:
            return dep
        if not keeps_index(v):
            made = index_of(v, output)
            if made != dep.index or dep.how == POSITION_VECTORS:
                dep = replace(dep.without_index(), index=made)
        shape = v.out_shape(output)
        if dep.axis is not None and shape is not None and dep.axis >= len(shape):
            return v.lost(dep, Kind.OPAQUE, f"rank {len(shape)}")
        if dep.kind == Kind.INDEPENDENT:
            if dep.axis is None:
                # Independent but on no axis: only quantisation parameters may be so.
                return dep if dep.coupled else dep.broken(Kind.OPAQUE, v.name, "axis lost")
            if shape is not None and (size := shape[dep.axis]) is not None:
                expected = self.positions * dep.outer * dep.inner
                if size != expected and self.positions > 1:
                    return dep.resized(v.name, f"size {size} instead of {expected}", Kind.OPAQUE)
        return dep

    def _control_flow(self, node: NodeFacts, v: NodeView) -> list[Dependence]:
        """Return the outputs' dependences of If, Loop or Scan, by a walk over each body."""
        bodies = []
        for facts, specs in body_graphs(self.facts, node, self.specs):
            captured = {n: self.deps[n] for n in node.captures if n in self.deps}
            known = {n: k for n in node.captures if (k := self.constant(n)) is not None}
            bodies.append((facts, specs, captured, known))

        def run(index: int, given: Mapping[str, Dependence]) -> list[Dependence]:
            facts, specs, captured, known = bodies[index]
            walk = Walk(
                facts,
                specs,
                {**captured, **given},
                self.positions,
                known,
                self.custom,
                self._ignores_statistics,
            )
            walk.run()
            return [walk.deps.get(name, FREE) for name in facts.outputs]

        graphs = [a.name for a in v.proto.attribute if a.HasField("g")]
        if len(bodies) != len(graphs):
            return list(v.opaque("body with unknown types"))
        condition = v.constant(0) if v.op == "If" else None
        if condition is not None:
            taken = "then_branch" if condition.any() else "else_branch"
            return run(graphs.index(taken), {})
        is_capturing = any(captured for _, _, captured, _ in bodies)
        return body_outputs(v, [facts for facts, *_ in bodies], is_capturing, run)


def _without_statistics(dep: Dependence) -> Dependence:
    """Return a dependence on a statistic over all positions as one on the element's place only."""
    if dep.kind == Kind.CONTRACTED and dep.axis is None:
        return FREE
    if dep.kind != Kind.REDUCED:
        return dep
    if dep.axis is None:
        return FREE
    kind = Kind.INDEPENDENT if dep.window == SAME else Kind.WINDOW
    return replace(dep, kind=kind, node="", how="")


def _may_be_known(v: NodeView) -> bool:
    """Return whether the node may be shape arithmetic: no input carries the positions."""
    if v.op in ("Shape", "Size"):
        return True
    return all(dep.axis is None and dep.kind in (Kind.FREE, Kind.LENGTH) for dep in v.ins)
