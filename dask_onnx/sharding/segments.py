"""The segments of a sharded plan: which nodes run together, in which form, and what is gathered.

A value has up to three forms: *whole*; in *shards* as the nodes before it make them; and in shards
that are *sliced* from the whole. Segments alternate: at each level one part that runs whole, once,
then one that runs on every shard, then values are gathered for the next level. Pure data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dask_onnx.sharding.key_blocks import BlockedAttention, find_blocked
from dask_onnx.sharding.node_ways import Way, Ways
from dask_onnx.sharding.shard_layout import Bounds, Layout
from dask_onnx.sharding.way_search import Chosen

Form = tuple[str, Layout | None]
"""A value, and the layout of its shards; None for the whole."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A node as it runs in a segment."""

    node: int
    """Position in the graph."""
    way: Way | None
    """How it runs on shards; None where it runs whole, once."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that run as one task: once, or on every shard."""

    level: int
    is_sharded: bool
    copies: tuple[Copy, ...]
    """In an order in which they can run."""


@dataclass(frozen=True, slots=True)
class KeyBlocks:
    """Attentions whose keys are taken in blocks."""

    count: int
    """Blocks of keys; 1 for none."""
    attentions: tuple[BlockedAttention, ...] = ()

    def of(self, node: int) -> BlockedAttention | None:
        """Return the attention that a node is in."""
        return next((each for each in self.attentions if node in each.nodes), None)


@dataclass(frozen=True)
class SegmentPlan:
    """How a graph runs on the shards of one axis, at definite sizes."""

    ways: Ways = field(repr=False)
    bounds: Bounds
    segments: tuple[Segment, ...]
    """In an order in which they can run."""
    gathers: tuple[str, ...]
    """Values in shards that are joined because a node needs them whole, in the order of the
    graph."""
    outputs: tuple[Form, ...]
    """The form in which each wanted output comes."""
    chosen: Chosen = field(repr=False)
    blocks: KeyBlocks = KeyBlocks(1)

    @property
    def n(self) -> int:
        """Number of shards."""
        return len(self.bounds.shards)


def plan_segments(
    ways: Ways, chosen: Chosen, bounds: Bounds, outputs: Sequence[str], key_blocks: int = 1
) -> SegmentPlan:
    """Return the segments that run every node in the way that was chosen for it.

    Parameters
    ----------
    key_blocks : blocks that the keys of attentions are taken in
    """
    wanted = tuple((name, chosen.layouts.get(name)) for name in outputs)
    forms = _needed(ways, chosen, wanted, KeyBlocks(1))
    blocks = KeyBlocks(1)
    if key_blocks > 1:
        on_shards = {copy.node: copy.way for copy in forms.copies if copy.way is not None}
        outer = {*outputs, *forms.gathers}
        outer.update(n for c in forms.copies if not c.way for n in ways.facts.nodes[c.node].reads)
        blocks = KeyBlocks(key_blocks, tuple(find_blocked(ways, on_shards, outer)))
        forms = _needed(ways, chosen, wanted, blocks)
    levels = _Levels(ways, chosen, forms)
    grouped: defaultdict[tuple[int, bool], list[Copy]] = defaultdict(list)
    for copy in sorted(forms.copies, key=lambda copy: copy.node):
        level = levels.visit(copy)
        if copy.way is None or blocks.of(copy.node) is None:
            grouped[level, copy.way is not None].append(copy)
    segments = tuple(
        Segment(level, is_sharded, tuple(copies))
        for (level, is_sharded), copies in sorted(grouped.items(), key=lambda item: item[0])
    )
    order = {name: i for i, name in enumerate([*ways.facts.inputs, *ways.facts.producer])}
    gathers = tuple(sorted(forms.gathers, key=lambda name: order.get(name, 0)))
    return SegmentPlan(ways, bounds, segments, gathers, wanted, chosen, blocks)


def _needed(ways: Ways, chosen: Chosen, wanted: Sequence[Form], blocks: KeyBlocks) -> _Forms:
    """The forms that some outputs need."""
    forms = _Forms(ways, chosen, blocks)
    for form in wanted:
        forms.want(form)
    forms.resolve()
    return forms


class _Forms:
    """Which forms of which values are needed, found from the outputs back to the inputs."""

    def __init__(self, ways: Ways, chosen: Chosen, blocks: KeyBlocks) -> None:
        self.ways, self.facts, self.chosen, self.blocks = ways, ways.facts, chosen, blocks
        self.wants: defaultdict[str, set[Layout | None]] = defaultdict(set)
        self.copies: list[Copy] = []
        self.gathers: set[str] = set()
        self.anew = set(chosen.recomputed)

    def native(self, name: str) -> Form:
        """The form in which a value is made."""
        return name, self.chosen.layouts.get(name)

    def want(self, form: Form) -> None:
        """Note that a form is needed, unless it is given."""
        name, layout = form
        if name and not self.ways.is_given(name):
            self.wants[name].add(layout)

    def resolve(self) -> None:
        """Decide the copies of every node."""
        for index, way in reversed(tuple(self.chosen.ways.items())):
            if way is None:
                self._resolve_whole(index)
            else:
                self._resolve_sharded(index, way)

    def _add(self, copy: Copy) -> None:
        self.copies.append(copy)
        if copy.way is None:
            for name in self.facts.nodes[copy.node].reads:
                self.want((name, None))
            return
        for form in self.read_by(copy):
            self.want(form)

    def read_by(self, copy: Copy) -> Iterator[Form]:
        """Yield the forms that a node on shards needs: of keys, those that blocks are made of."""
        attention = self.blocks.of(copy.node)
        keys = None if attention is None else attention.key_takes.get(copy.node)
        names = self.facts.nodes[copy.node].inputs
        cut = dict(zip(names, keys or (), strict=False))
        for name, layout in taken_forms(self.ways, copy):
            is_made_so = layout is None and cut.get(name) == self.chosen.layouts.get(name)
            yield (name, cut[name]) if cut.get(name) and is_made_so else (name, layout)

    def _resolve_whole(self, index: int) -> None:
        """A node that runs whole; on shards all the same where only slices of it are needed."""
        names = self.facts.nodes[index].outputs
        is_needed = any(None in self.wants[name] for name in names)
        for name in names:
            for layout in sorted(filter(None, self.wants[name]), key=lambda each: each.label):
                way = None if is_needed else self.ways.making_way(index, name, layout)
                if way is None:
                    is_needed = True
                else:
                    self._add(Copy(index, way))
        if is_needed:
            self._add(Copy(index, None))

    def _resolve_sharded(self, index: int, way: Way) -> None:
        is_whole = is_sharded = False
        for name in self.facts.nodes[index].outputs:
            own = self.chosen.layouts.get(name)
            others = {layout for layout in self.wants[name] if layout != own}
            if others and name in self.anew:
                is_whole = True
            elif others:
                self.gathers.add(name)
                is_sharded = True
            is_sharded = is_sharded or own in self.wants[name]
        if is_sharded:
            self._add(Copy(index, way))
        if is_whole:
            # All that it is made of is computed anew as well.
            self.anew.update(self.facts.nodes[index].reads)
            self._add(Copy(index, None))


def taken_forms(ways: Ways, copy: Copy) -> Iterator[Form]:
    """Yield the forms that a node on shards reads, without operands that are replaced."""
    assert copy.way is not None
    replaced = {operand.index for operand in copy.way.operands}
    names = ways.facts.proto.graph.node[copy.node].input
    for place, (name, layout) in enumerate(zip(names, copy.way.takes, strict=True)):
        if name and place not in replaced:
            yield name, layout


def given_forms(ways: Ways, copy: Copy) -> Iterator[Form]:
    """Yield the forms that a node in a segment makes."""
    names = ways.facts.proto.graph.node[copy.node].output
    if copy.way is None:
        yield from ((name, None) for name in names if name)
        return
    for name, layout in zip(names, copy.way.gives, strict=True):
        if name and layout is not None:
            yield name, layout


def forms_of(plan: SegmentPlan, copy: Copy) -> Iterator[Form]:
    """Yield all forms that a copy of a node reads and makes."""
    facts = plan.ways.facts
    node = facts.proto.graph.node[copy.node]
    if copy.way is None:
        yield from ((name, None) for name in (*facts.nodes[copy.node].reads, *node.output))
        return
    yield from zip(node.input, copy.way.takes, strict=True)
    yield from zip(node.output, copy.way.gives, strict=True)


class _Levels:
    """How many gathers stand before each form."""

    def __init__(self, ways: Ways, chosen: Chosen, forms: _Forms) -> None:
        self.ways, self.chosen, self.forms = ways, chosen, forms
        self.levels: dict[Form, int] = {}

    def visit(self, copy: Copy) -> int:
        """Return the level of a copy whose predecessors have been visited."""
        if copy.way is None:
            read: list[Form] = [(n, None) for n in self.ways.facts.nodes[copy.node].reads]
        else:
            read = list(self.forms.read_by(copy))
        level = max((self._of(form) for form in read), default=0)
        attention = None if copy.way is None else self.forms.blocks.of(copy.node)
        is_joined = attention is not None and copy.node == attention.mix
        for form in given_forms(self.ways, copy):
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
