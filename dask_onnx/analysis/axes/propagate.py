"""The composition: how every value of a graph depends on one axis of its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dask_onnx.analysis.axes.control_rules import CONTROL, body_outputs
from dask_onnx.analysis.axes.dependence import FREE, OWN_INDEX, Dependence, Kind
from dask_onnx.analysis.axes.index_rules import index_of
from dask_onnx.analysis.axes.shape_values import MOST_ELEMENTS, folded, length_of, shape_value
from dask_onnx.analysis.axes.table import KEEPS_POSITIONS, NAMES_SHAPES, CustomAxes, Entry, rule_of
from dask_onnx.analysis.axes.view import Known, NodeView, Shape, at_least
from dask_onnx.analysis.bodies import body_graphs
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external

Specs = Mapping[str, TensorSpec]


def propagate(
    facts: GraphFacts,
    specs: Specs,
    seeds: Mapping[str, int],
    custom: CustomAxes | None = None,
) -> dict[str, Dependence]:
    """Return how each value depends on the source axis; values that do not are left out.

    Parameters
    ----------
    facts : GraphFacts
    specs : mapping of value to TensorSpec
        At definite sizes of the inputs, such as `infer_shapes` gives. What is found is exact for
        these sizes.
    seeds : mapping of input to axis
        One source axis, which several inputs may share (the batch of all of them). Their sizes on
        it must be equal.
    own : mapping of (domain, op type) to axes, optional
        What the caller's own operators declare of themselves; without, they are opaque.
    """
    sizes = {
        size
        for name, axis in seeds.items()
        if (spec := specs.get(name)) is not None and spec.shape and axis < len(spec.shape)
        for size in [spec.shape[axis]]
    }
    positions = next((size for size in sizes if isinstance(size, int)), 1) if len(sizes) == 1 else 1
    given = {name: Dependence(Kind.INDEPENDENT, axis) for name, axis in seeds.items()}
    walk = Walk(facts, specs, given, positions, {}, custom or {})
    walk.run()
    return walk.deps


class Walk:
    """One pass over a graph, or over a body in it."""

    def __init__(
        self,
        facts: GraphFacts,
        specs: Specs,
        given: Mapping[str, Dependence],
        positions: int,
        known: Mapping[str, Known],
        custom: CustomAxes,
    ) -> None:
        self.facts, self.specs, self.positions, self.custom = facts, specs, positions, custom
        self.deps: dict[str, Dependence] = dict(given)
        self.known: dict[str, Known] = dict(known)
        self._initializers: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in facts.proto.graph.initializer
        }
        self._opset = facts.model.opsets.get("", 1)
        self._shapes: dict[str, Shape | None] = {}

    def run(self) -> None:
        """Visit the nodes in their order, which is topological."""
        deps = self.deps
        nodes = self.facts.proto.graph.node
        for node in self.facts.nodes:
            if not deps.keys().isdisjoint(node.inputs) or (
                node.captures and not deps.keys().isdisjoint(node.captures)
            ):
                self._visit(node, nodes[node.index])
            elif node.op_type in NAMES_SHAPES:
                self._fold(node, nodes[node.index])
            elif node.op_type == "Constant":
                self._note_constant(nodes[node.index])

    def constant(self, name: str) -> Known | None:
        """The value of a small tensor that is known."""
        if name in self.known:
            return self.known[name]
        tensor = self._initializers.get(name)
        if tensor is None or is_external(tensor) or math.prod(tensor.dims) > MOST_ELEMENTS:
            return None
        self.known[name] = Known(numpy_helper.to_array(tensor))
        return self.known[name]

    def _note_constant(self, proto: NodeProto) -> None:
        """Constants in bodies, which are not made initializers when a model is loaded."""
        attribute = proto.attribute[0]
        if attribute.name == "value" and math.prod(attribute.t.dims) <= MOST_ELEMENTS:
            if not is_external(attribute.t):
                self.known[proto.output[0]] = Known(numpy_helper.to_array(attribute.t))
        elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            self.known[proto.output[0]] = Known(np.array(helper.get_attribute_value(attribute)))

    def _view(self, node: NodeFacts, proto: NodeProto) -> NodeView:
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
        """Sizes of a value, None for one that is not known; looked up once."""
        if name not in self._shapes:
            spec = self.specs.get(name)
            self._shapes[name] = (
                None
                if spec is None or spec.shape is None
                else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)
            )
        return self._shapes[name]

    def _fold(self, node: NodeFacts, proto: NodeProto) -> list[Dependence] | None:
        """Work out shape arithmetic; None where a node is none."""
        view = self._view(node, proto)
        if node.op_type in ("Shape", "Size") and not node.domain:
            value = shape_value(view)
            if value is None:
                is_free = view.dep(0).kind == Kind.FREE
                return [FREE if is_free else view.broken(Kind.LENGTH, "unknown shape")]
            values: list[Known] | None = [value]
        else:
            values = folded(view)
        if values is None:
            return None
        self.known.update(zip(proto.output, values, strict=False))
        return length_of(values)

    def _visit(self, node: NodeFacts, proto: NodeProto) -> None:
        view = self._view(node, proto)
        if node.op_type in NAMES_SHAPES and _may_be_known(view):
            found = self._fold(node, proto)
            if found is not None:
                self._note(proto, found)
                return
        if node.op_type in CONTROL and not node.domain:
            self._note(proto, self._control(node, view))
            return
        entry = rule_of(node.domain, node.op_type, self.custom)
        outputs = entry.rule(view)
        self._note(
            proto,
            [self._finished(view, dep, i, entry) for i, dep in enumerate(outputs)],
        )

    def _note(self, proto: NodeProto, outputs: Sequence[Dependence]) -> None:
        for name, dep in zip(proto.output, outputs, strict=False):
            if name and dep.kind != Kind.FREE:
                self.deps[name] = dep

    def _finished(self, v: NodeView, dep: Dependence, output: int, entry: Entry) -> Dependence:
        """What a rule found, with what its inputs lack already, held against the inferred shape."""
        for index, other in enumerate(v.ins):
            if other is dep or other.kind == Kind.FREE or index in entry.joined:
                continue
            if index not in entry.operands or v.known(index) is None:
                dep = at_least(dep, other)
        if dep.kind == Kind.FREE:
            return dep
        if v.op not in KEEPS_POSITIONS:
            made = index_of(v, output)
            if made != dep.index or dep.how == OWN_INDEX:
                dep = replace(dep.without_index(), index=made)
        shape = v.out_shape(output)
        if dep.axis is not None and shape is not None and dep.axis >= len(shape):
            return v.lost(dep, Kind.OPAQUE, f"rank {len(shape)}")
        if dep.kind == Kind.INDEPENDENT:
            if dep.axis is None:
                # Own values on no axis: only a quantisation statistic is that.
                return dep if dep.coupled else dep.broken(Kind.OPAQUE, v.name, "lost axis")
            if shape is not None and (size := shape[dep.axis]) is not None:
                expected = self.positions * dep.outer * dep.inner
                if size != expected and self.positions > 1:
                    return dep.resized(v.name, f"size {size} instead of {expected}", Kind.OPAQUE)
        return dep

    def _control(self, node: NodeFacts, v: NodeView) -> list[Dependence]:
        """If, Loop and Scan: by way of their bodies."""
        bodies = []
        for facts, specs in body_graphs(self.facts, node, self.specs):
            captured = {n: self.deps[n] for n in node.captures if n in self.deps}
            known = {n: k for n in node.captures if (k := self.constant(n)) is not None}
            bodies.append((facts, specs, captured, known))

        def run(index: int, given: Mapping[str, Dependence]) -> list[Dependence]:
            facts, specs, captured, known = bodies[index]
            walk = Walk(facts, specs, {**captured, **given}, self.positions, known, self.custom)
            walk.run()
            return [walk.deps.get(name, FREE) for name in facts.outputs]

        graphs = [a.name for a in v.proto.attribute if a.HasField("g")]
        if len(bodies) != len(graphs):
            return list(v.opaque("body of unknown types"))
        condition = v.constant(0) if v.op == "If" else None
        if condition is not None:
            taken = "then_branch" if condition.any() else "else_branch"
            return run(graphs.index(taken), {})
        is_capturing = any(captured for _, _, captured, _ in bodies)
        return body_outputs(v, [facts for facts, *_ in bodies], is_capturing, run)


def _may_be_known(v: NodeView) -> bool:
    """Whether all inputs can be shapes, so that the node may be shape arithmetic."""
    if v.op in ("Shape", "Size"):
        return True
    return all(dep.axis is None and dep.kind in (Kind.FREE, Kind.LENGTH) for dep in v.ins)
