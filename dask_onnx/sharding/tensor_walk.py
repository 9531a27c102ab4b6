"""Propagation of weight shards through a graph (tensor parallelism).

It starts at products whose weights are cut by columns and ends where partial sums have to be
added, or shards have to be concatenated (Shoeybi et al., "Megatron-LM", 2019).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW
from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.propagate import Specs, Walk
from dask_onnx.analysis.axes.table import CustomAxes, operator_families
from dask_onnx.analysis.axes.view import Known, NodeView
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.sharding.attention_cuts import packed_start
from dask_onnx.sharding.axis_queries import fold_sizes, forget_values, record_outputs, view_of
from dask_onnx.sharding.constant_cuts import ConstantCuts
from dask_onnx.sharding.node_cuts import Step, column_step, layout_of, stop, weights_of
from dask_onnx.sharding.packed_weight_cuts import is_packed, packed_columns
from dask_onnx.sharding.pass_cuts import pass_step
from dask_onnx.sharding.shard_layout import Layout


@dataclass(frozen=True)
class TensorGraph:
    """Graph at fixed sizes whose weights are to be cut into equal shards."""

    facts: GraphFacts
    specs: Specs
    """Every value, at sizes at which the axis analysis can tell axes apart."""
    shards: int
    """Number of shards."""
    custom: CustomAxes
    """Axis rules of custom operators."""
    declared: Specs
    """Every value as the model declares it, with open axes by name."""
    live: frozenset[int]
    """Nodes that the wanted outputs need and that do not follow from weights alone."""
    outputs: frozenset[str]
    """Wanted values."""
    constants: frozenset[str]
    """Initializers, and values that follow from them alone."""
    known: Mapping[str, Known] = field(repr=False)
    """Small arrays that follow from shapes."""
    constant_cuts: ConstantCuts = field(repr=False)
    """Cuts of `constants`."""

    def walk(self) -> Walk:
        """Return an axis analysis of the graph in which nothing is cut yet."""
        return Walk(self.facts, self.specs, {}, self.shards, self.known, self.custom)

    def is_movable(self, name: str, layout: Layout) -> bool:
        """Return whether shards of a value can be sliced and joined at any input size."""
        spec = self.declared.get(name)
        shape = None if spec is None else spec.shape
        is_fixed = shape is not None and isinstance(shape[layout.axis], int)
        return layout.outer == 1 or name in self.constants or is_fixed

    def with_shards(self, shards: int) -> TensorGraph:
        """Return the same graph for another number of shards."""
        return tensor_graph(
            self.facts, self.specs, shards, self.custom, self.outputs, self.declared
        )


def tensor_graph(
    facts: GraphFacts,
    specs: Specs,
    shards: int,
    custom: CustomAxes,
    outputs: Collection[str],
    declared: Specs,
) -> TensorGraph:
    """Return a graph with what all walks over it share."""
    walk = Walk(facts, specs, {}, shards, {}, custom)
    walk.run()
    made = {name for i in facts.constant_nodes for name in facts.nodes[i].outputs}
    live = frozenset(facts.ancestors(outputs)) - facts.constant_nodes
    constants = frozenset(made | facts.initializers)
    cuts = ConstantCuts(facts, walk)
    return TensorGraph(
        facts,
        specs,
        shards,
        custom,
        declared,
        live,
        frozenset(outputs),
        constants,
        walk.known,
        cuts,
    )


class Variant(NamedTuple):
    """One way to cut the columns of a product's weights."""

    outer: int = 1
    """Blocks that are cut separately: 3 for queries, keys and values side by side."""
    choice: int = 0
    """Index among the axes of the weights that may be columns (letters of an Einsum)."""


VARIANTS = (Variant(), Variant(3), Variant(2), Variant(1, 1), Variant(1, 2))
"""Variants to try, in this order."""


@dataclass(frozen=True)
class WalkResult:
    """Nodes and values that cut weights lead to."""

    starts: Mapping[int, Variant]
    """Products whose columns are cut, to the variant."""
    steps: Mapping[int, Step]
    """Effects of the nodes that run on shards."""
    stops: Mapping[int, Step]
    """Reasons of the nodes that need values whole which are in shards."""
    layouts: Mapping[str, Layout]
    """Layouts of the values in shards."""
    replicated: frozenset[str]
    """Values that every shard computes alike."""
    lengths: frozenset[str]
    """Values computed from sizes, which differ between the whole and a shard."""
    sums: frozenset[str]
    """Values that are the sum of the shards' results."""

    def readers_outside(self, facts: GraphFacts, name: str) -> list[int]:
        """Return the consumers of a value that do not run on shards."""
        return [i for i in facts.consumers.get(name, ()) if i not in self.steps]


def follow_shards(
    graph: TensorGraph, starts: Mapping[int, Variant], excluded: Collection[int] = ()
) -> WalkResult:
    """Follow the shards of some products as far as each shard depends on one shard only.

    Parameters
    ----------
    starts : mapping of node to Variant
        Products, and how the columns of their weights are cut.
    excluded : collection of int
        Nodes that must not run on shards.
    """
    facts, walk = graph.facts, graph.walk()
    steps: dict[int, Step] = {}
    stops: dict[int, Step] = {}
    sums: set[str] = set()
    made: set[str] = set()
    pending, seen = sorted(starts), set(starts)
    while pending:
        index = heapq.heappop(pending)
        node = facts.nodes[index]
        step = _step_at(graph, walk, index, starts, excluded)
        if step.how == "stop":
            stops[index] = step
            continue
        steps[index] = step
        if step.how == "sum":
            sums.update(node.outputs)
            continue
        made.update(node.outputs)
        record_outputs(walk, index, step.outputs)
        cut = [name for name in node.outputs if name in walk.deps]
        found = {i for name in cut for i in facts.consumers.get(name, ()) if i in graph.live}
        for reader in found - seen:
            heapq.heappush(pending, reader)
        seen |= found
    layouts = {
        n: layout_of(walk.deps[n]) for n in made if n in walk.deps and walk.deps[n].is_independent
    }
    return WalkResult(
        dict(starts),
        steps,
        stops,
        layouts,
        frozenset(n for n in made if n not in walk.deps),
        frozenset(n for n in made if n in walk.deps and n not in layouts),
        frozenset(sums),
    )


def _step_at(
    graph: TensorGraph,
    walk: Walk,
    index: int,
    starts: Mapping[int, Variant],
    excluded: Collection[int],
) -> Step:
    """Return the effect of a node: a product whose columns are cut, or a consumer of shards."""
    view = view_of(walk, index)
    if index in excluded:
        return stop(Kind.OPAQUE, "needs a result of all shards together")
    if index in starts and not view.carriers:
        step = seed_step(view, starts[index], graph.constants)
    else:
        step = _next_step(walk, graph, index, view)
    if uncut := _uncut_operand(graph, graph.facts.nodes[index].inputs, step):
        return stop(Kind.OPAQUE, f"{uncut!r} cannot be cut")
    return step


def seed_step(view: NodeView, variant: Variant, constants: Collection[str]) -> Step:
    """Return the step of a product whose weights are cut by columns."""
    packed = packed_start(view)
    if packed is not None and variant == Variant():
        return packed
    if is_packed(view) and view.proto.input[1] in constants and not variant.choice:
        return packed_columns(view, variant.outer)
    found = [w for w in weights_of(view) if view.proto.input[w.weight] in constants]
    columns = list(dict.fromkeys((w.weight, w.columns) for w in found))
    if variant.choice >= len(columns):
        return stop(Kind.OPAQUE, "its weights have no such columns")
    chosen = columns[variant.choice]
    weight = next(w for w in found if (w.weight, w.columns) == chosen)
    return column_step(view, weight, variant.outer)


def _uncut_operand(graph: TensorGraph, names: Sequence[str], step: Step) -> str:
    """Return an operand that has to be cut and cannot be; empty if there is none."""
    for place, layout in step.cuts.items():
        name = names[place]
        is_constant = name in graph.constants
        if not graph.is_movable(name, layout):
            return name
        if is_constant and not graph.constant_cuts.can_cut(name, layout):
            return name
    return ""


_WITH_WEIGHTS = ("Attention", "QAttention", "MatMulNBits")
"""Operators of com.microsoft whose second input is the weights."""


def is_start(graph: TensorGraph, walk: Walk, index: int) -> bool:
    """Return whether a node is a product of a value with weights."""
    node = graph.facts.nodes[index]
    view = view_of(walk, index)
    if node.domain == "com.microsoft" and node.op_type in _WITH_WEIGHTS:
        return node.inputs[1] in graph.constants
    return any(view.proto.input[w.weight] in graph.constants for w in weights_of(view))


def _next_step(walk: Walk, graph: TensorGraph, index: int, view: NodeView) -> Step:
    """Return the effect of a node that reads shards."""
    node = graph.facts.nodes[index]
    family = operator_families().get((node.domain, node.op_type))
    if standard_op_type(node) in CONTROL_FLOW or node.captures:
        return stop(Kind.OPAQUE, "has subgraphs, which run whole")
    if family == "random":
        return stop(Kind.OPAQUE, "draws random numbers")
    found = fold_sizes(walk, index)
    if found is not None:
        return Step("through", found)
    forget_values(walk, index)
    return pass_step(walk, view, graph.constants.__contains__)
