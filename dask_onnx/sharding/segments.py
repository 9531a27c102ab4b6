"""Segments of a sequence plan: nodes that run together, on whole values or on every shard.

A value has up to three forms: whole; in shards, in the layout in which the nodes before it write
it (its native form); and in shards that are sliced from the whole. Levels alternate: at each
level the nodes that run once on whole values, then the nodes that run on every shard, then values
are gathered for the next level. Pure data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dask_onnx.sharding.key_blocks import BlockedAttention, find_blocked
from dask_onnx.sharding.layout_candidates import LayoutCandidate, LayoutCandidates
from dask_onnx.sharding.layout_search import LayoutAssignment
from dask_onnx.sharding.shard_layout import Bounds, Layout

Form = tuple[str, Layout | None]
"""Value by name, and the layout of its shards; None for the whole value."""


@dataclass(frozen=True, slots=True)
class NodeInstance:
    """Node as it runs in one segment; a node may run whole in one and on shards in another."""

    node: int
    """Position of the node in the graph."""
    candidate: LayoutCandidate | None
    """Layouts on every shard; None where the node runs once on whole values."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that run as one task: once, or on every shard."""

    level: int
    """Number of gathers before it."""
    is_sharded: bool
    """True if it runs on every shard."""
    instances: tuple[NodeInstance, ...]
    """Nodes in execution order."""


@dataclass(frozen=True, slots=True)
class KeyBlocks:
    """Attentions whose keys are read in blocks."""

    count: int
    """Blocks of keys; 1 if keys are read at once."""
    attentions: tuple[BlockedAttention, ...] = ()

    def of(self, node: int) -> BlockedAttention | None:
        """Return the attention that a node belongs to; None if it is in none."""
        return next((each for each in self.attentions if node in each.nodes), None)


@dataclass(frozen=True)
class SegmentPlan:
    """Segments of a graph for one sharded axis, at fixed sizes."""

    candidates: LayoutCandidates = field(repr=False)
    bounds: Bounds
    segments: tuple[Segment, ...]
    """Segments in execution order."""
    gathers: tuple[str, ...]
    """Values in shards that are gathered because a node reads them whole, in graph order."""
    outputs: tuple[Form, ...]
    """Form of each wanted output."""
    chosen: LayoutAssignment = field(repr=False)
    blocks: KeyBlocks = KeyBlocks(1)

    @property
    def n(self) -> int:
        """Number of shards."""
        return len(self.bounds.shards)


def plan_segments(
    candidates: LayoutCandidates,
    chosen: LayoutAssignment,
    bounds: Bounds,
    outputs: Sequence[str],
    key_blocks: int = 1,
) -> SegmentPlan:
    """Return the segments that run every node with the layouts chosen for it.

    Parameters
    ----------
    outputs : sequence of str
        Wanted values.
    key_blocks : int
        Blocks that the keys of attentions are read in.
    """
    # Partial results mean nothing to the caller.
    layouts = {name: chosen.layouts.get(name) for name in outputs}
    wanted = tuple(
        (name, None if layout is None or layout.combine else layout)
        for name, layout in layouts.items()
    )
    forms = _needed(candidates, chosen, wanted, KeyBlocks(1))
    blocks = KeyBlocks(1)
    if key_blocks > 1:
        on_shards = {
            instance.node: instance.candidate
            for instance in forms.instances
            if instance.candidate is not None
        }
        outer = {*outputs, *forms.gathers}
        outer.update(
            n
            for c in forms.instances
            if not c.candidate
            for n in candidates.facts.nodes[c.node].reads
        )
        blocks = KeyBlocks(key_blocks, tuple(find_blocked(candidates, on_shards, outer)))
        forms = _needed(candidates, chosen, wanted, blocks)
    levels = _Levels(candidates, chosen, forms)
    grouped: defaultdict[tuple[int, bool], list[NodeInstance]] = defaultdict(list)
    for instance in sorted(forms.instances, key=lambda instance: instance.node):
        level = levels.visit(instance)
        if instance.candidate is None or blocks.of(instance.node) is None:
            grouped[level, instance.candidate is not None].append(instance)
    segments = tuple(
        Segment(level, is_sharded, tuple(instances))
        for (level, is_sharded), instances in sorted(grouped.items(), key=lambda item: item[0])
    )
    order = {
        name: i for i, name in enumerate([*candidates.facts.inputs, *candidates.facts.producer])
    }
    gathers = tuple(sorted(forms.gathers, key=lambda name: order.get(name, 0)))
    return SegmentPlan(candidates, bounds, segments, gathers, wanted, chosen, blocks)


def _needed(
    candidates: LayoutCandidates,
    chosen: LayoutAssignment,
    wanted: Sequence[Form],
    blocks: KeyBlocks,
) -> _Forms:
    """Return the forms that some outputs need."""
    forms = _Forms(candidates, chosen, blocks)
    for form in wanted:
        forms.require(form)
    forms.resolve()
    return forms


class _Forms:
    """Forms that are needed of each value, found from the outputs back to the inputs."""

    def __init__(
        self, candidates: LayoutCandidates, chosen: LayoutAssignment, blocks: KeyBlocks
    ) -> None:
        self.candidates, self.facts, self.chosen, self.blocks = (
            candidates,
            candidates.facts,
            chosen,
            blocks,
        )
        self.needed_layouts: defaultdict[str, set[Layout | None]] = defaultdict(set)
        self.instances: list[NodeInstance] = []
        self.gathers: set[str] = set()
        self.recomputed = set(chosen.recomputed)

    def native(self, name: str) -> Form:
        """Return the form in which a value is written."""
        return name, self.chosen.layouts.get(name)

    def require(self, form: Form) -> None:
        """Record that a form is needed, unless it follows from weights or shapes alone."""
        name, layout = form
        if name and not self.candidates.is_given(name):
            self.needed_layouts[name].add(layout)

    def resolve(self) -> None:
        """Decide in which forms every node runs."""
        for index, candidate in reversed(tuple(self.chosen.candidates.items())):
            if candidate is None:
                self._resolve_whole(index)
            else:
                self._resolve_sharded(index, candidate)

    def _add(self, instance: NodeInstance) -> None:
        self.instances.append(instance)
        if instance.candidate is None:
            for name in self.facts.nodes[instance.node].reads:
                self.require((name, None))
            return
        for form in self.read_by(instance):
            self.require(form)

    def read_by(self, instance: NodeInstance) -> Iterator[Form]:
        """Yield the forms that a node on shards needs.

        For keys that are read in blocks these are the shards that blocks are joined from.
        """
        attention = self.blocks.of(instance.node)
        keys = None if attention is None else attention.key_layouts.get(instance.node)
        names = self.facts.nodes[instance.node].inputs
        cut = dict(zip(names, keys or (), strict=False))
        for name, layout in forms_read(self.candidates, instance):
            is_made_so = layout is None and cut.get(name) == self.chosen.layouts.get(name)
            yield (name, cut[name]) if cut.get(name) and is_made_so else (name, layout)

    def _resolve_whole(self, index: int) -> None:
        """Add a node that runs whole.

        It runs on shards all the same where only slices of its outputs are needed and it can make
        them.
        """
        names = self.facts.nodes[index].outputs
        is_needed = any(None in self.needed_layouts[name] for name in names)
        for name in names:
            for layout in sorted(
                filter(None, self.needed_layouts[name]), key=lambda each: each.label
            ):
                candidate = (
                    None if is_needed else self.candidates.output_candidate(index, name, layout)
                )
                if candidate is None:
                    is_needed = True
                else:
                    self._add(NodeInstance(index, candidate))
        if is_needed:
            self._add(NodeInstance(index, None))

    def _resolve_sharded(self, index: int, candidate: LayoutCandidate) -> None:
        """Add a node on shards, whole as well if its output is to be recomputed."""
        is_whole = is_sharded = False
        for name in self.facts.nodes[index].outputs:
            native = self.chosen.layouts.get(name)
            others = {layout for layout in self.needed_layouts[name] if layout != native}
            if others and name in self.recomputed:
                is_whole = True
            elif others:
                self.gathers.add(name)
                is_sharded = True
            is_sharded = is_sharded or native in self.needed_layouts[name]
        if is_sharded:
            self._add(NodeInstance(index, candidate))
        if is_whole:
            # Its inputs are recomputed whole as well.
            self.recomputed.update(self.facts.nodes[index].reads)
            self._add(NodeInstance(index, None))


def forms_read(candidates: LayoutCandidates, instance: NodeInstance) -> Iterator[Form]:
    """Yield the forms that a node on shards reads, except operands that are replaced."""
    assert instance.candidate is not None
    replaced = {operand.index for operand in instance.candidate.operands}
    names = candidates.facts.proto.graph.node[instance.node].input
    for place, (name, layout) in enumerate(
        zip(names, instance.candidate.input_layouts, strict=True)
    ):
        if name and place not in replaced:
            yield name, layout


def forms_written(candidates: LayoutCandidates, instance: NodeInstance) -> Iterator[Form]:
    """Yield the forms that a node in a segment writes."""
    names = candidates.facts.proto.graph.node[instance.node].output
    if instance.candidate is None:
        yield from ((name, None) for name in names if name)
        return
    for name, layout in zip(names, instance.candidate.output_layouts, strict=True):
        if name and layout is not None:
            yield name, layout


def forms_of(plan: SegmentPlan, instance: NodeInstance) -> Iterator[Form]:
    """Yield all forms that a node reads and writes."""
    facts = plan.candidates.facts
    node = facts.proto.graph.node[instance.node]
    if instance.candidate is None:
        yield from ((name, None) for name in (*facts.nodes[instance.node].reads, *node.output))
        return
    yield from zip(node.input, instance.candidate.input_layouts, strict=True)
    yield from zip(node.output, instance.candidate.output_layouts, strict=True)


class _Levels:
    """Number of gathers before each form."""

    def __init__(
        self, candidates: LayoutCandidates, chosen: LayoutAssignment, forms: _Forms
    ) -> None:
        self.candidates, self.chosen, self.forms = candidates, chosen, forms
        self.levels: dict[Form, int] = {}

    def visit(self, instance: NodeInstance) -> int:
        """Return the level of a node whose predecessors have been visited."""
        if instance.candidate is None:
            read: list[Form] = [(n, None) for n in self.candidates.facts.nodes[instance.node].reads]
        else:
            read = list(self.forms.read_by(instance))
        level = max((self._of(form) for form in read), default=0)
        attention = None if instance.candidate is None else self.forms.blocks.of(instance.node)
        is_joined = attention is not None and instance.node == attention.mix
        for form in forms_written(self.candidates, instance):
            self.levels[form] = level + is_joined
        return level

    def _of(self, form: Form) -> int:
        if form in self.levels:
            return self.levels[form]
        name, layout = form
        if layout is not None:
            return self._of((name, None))
        if name in self.forms.gathers:
            return self.levels[self.forms.native(name)] + 1
        return 0
