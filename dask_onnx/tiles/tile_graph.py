"""A tile plan as Dask tasks: one for each tile and pass, and what carries values between them."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.collections.here import HereGraph
from dask_onnx.model import Model
from dask_onnx.placement import effective_retries
from dask_onnx.tasks import StageTask, digest
from dask_onnx.tiles.local_shapes import told_values
from dask_onnx.tiles.part_request import part_here
from dask_onnx.tiles.parts import Parts
from dask_onnx.tiles.places import Interval
from dask_onnx.tiles.plan import Feed, Group, Once, Span, TilePlan
from dask_onnx.tiles.reduce import KIND_OF
from dask_onnx.tiles.tile_tasks import (
    GatherSpec,
    KeepSpec,
    OnceCall,
    Pick,
    Slices,
    TileCall,
    cut_pieces,
    finish_statistic,
    gather_whole,
    merge_statistics,
    run_once,
    run_tile,
    take_value,
)

_FAN_IN = 16
"""Partial statistics that one task puts together."""

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A value in pieces, each in the result of a task."""

    name: str
    """First part of the tasks' keys."""
    borders: tuple[tuple[int, ...], ...]
    """Of the pieces, for each axis, from 0 on."""
    position: int | None = None
    """Of the value in the tasks' results; None if that is all they are."""
    key_axes: tuple[int, ...] | None = None
    """Axes whose piece number is part of the keys; None for all."""

    def key(self, place: Index) -> Any:
        """The key of the task with a piece."""
        axes = range(len(place)) if self.key_axes is None else self.key_axes
        return (self.name, *(place[axis] for axis in axes))

    def pieces(self, region: Sequence[Interval]) -> tuple[tuple[int, ...], list[Piece]]:
        """Return the number of pieces along each axis that a region takes, and these pieces."""
        each_axis = []
        for borders, (start, stop) in zip(self.borders, region, strict=True):
            first = bisect.bisect_right(borders, start) - 1
            last = bisect.bisect_left(borders, stop)
            each_axis.append(
                [
                    (i, slice(max(start - borders[i], 0), min(stop, borders[i + 1]) - borders[i]))
                    for i in range(first, last)
                ]
            )
        found = []
        for combination in itertools.product(*each_axis):
            place = tuple(i for i, _ in combination)
            is_all = all(
                s.start == 0 and s.stop == b[i + 1] - b[i]
                for b, (i, s) in zip(self.borders, combination, strict=True)
            )
            slices = None if is_all else tuple(s for _, s in combination)
            found.append(Piece(self.key(place), self.position, slices))
        return tuple(map(len, each_axis)), found


class Piece(NamedTuple):
    """A part of a value in the result of a task."""

    key: Any
    position: int | None
    slices: Slices | None


class _Arguments:
    """The arguments of one task, each result once."""

    def __init__(self) -> None:
        self.keys: dict[Any, int] = {}

    def add(self, key: Any) -> int:
        """Return the place of a result among the arguments."""
        return self.keys.setdefault(key, len(self.keys))

    @property
    def references(self) -> list[TaskRef]:
        return [TaskRef(key) for key in self.keys]


@dataclass
class TileGraph:
    """The tasks of a plan, and where each value is among them."""

    plan: TilePlan
    parts: Parts
    token: str
    cuts_first: bool = False
    """Cut what a tile needs of its neighbours where they are, since workers do not share memory."""
    tasks: dict[Any, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    supplies: dict[str, dict[Any, Any]] = field(default_factory=dict)
    """Tasks that bring the model to workers that cannot get it themselves."""

    def build(self, image: da.Array) -> None:
        """Add the tasks of all passes."""
        self.sources[self.plan.flow.source] = Source(image.name, _borders(image.chunks))
        onces = {once.level: once for once in self.plan.onces}
        groups = list(enumerate(self.plan.groups))
        for level in range(1 + max([*onces, *(g.level for _, g in groups)], default=0)):
            if level in onces:
                self._add_once(onces[level])
            for number, group in groups:
                if group.level == level:
                    self._add_group(number, group)

    # Keys.

    def _name(self, label: str, *parts: object) -> str:
        verb, _, rest = label.partition("_")
        readable = re.sub(r"[^0-9A-Za-z_.]", "_", rest)[-40:]
        return f"{verb}_{readable}-{digest(self.token, label, *parts)}"

    def _here(self, part: Model, wanted: Sequence[str]) -> tuple[HereGraph, list[TaskRef]]:
        """A part as what a task runs, and the arguments that bring it there."""
        graph, arguments, layers = part_here(part, wanted)
        self.supplies |= layers
        return graph, arguments

    # Whole values.

    def _add_once(self, once: Once) -> None:
        names = [name for name in once.wanted if name not in self.sources]
        if not names:
            return
        part = self.parts.of_once(once)
        here, supplies = self._here(part, once.wanted)
        inputs = {spec.name for spec in part.inputs}
        feeds = [feed for feed in once.feeds if feed.name in inputs]
        call = OnceCall(here, tuple(feed.name for feed in feeds), once.wanted)
        arguments = [TaskRef(self._whole(feed.value)) for feed in feeds]
        key = self._name(f"once{once.level}_{here.label}")
        self.tasks[key] = StageTask(key, run_once, call, *arguments, *supplies)
        for position, value in enumerate(once.wanted):
            self._take(value, key, position if len(once.wanted) > 1 else None)

    def _take(self, value: str, key: Any, position: int | None) -> None:
        """Make one piece of a whole value, its tiled axes apart."""
        shape = self.plan.layout(value).apart(self._full(value))
        name = self._name(f"take_{value}", "whole")
        own = (name, *(0 for _ in shape))
        self.tasks[own] = Task(own, take_value, TaskRef(key), position, shape)
        self.sources[value] = Source(name, tuple((0, size) for size in shape))

    def _full(self, value: str) -> dict[int, int]:
        return {k: place.size for k, place in self.plan.places(value).items()}

    def _whole(self, value: str) -> Any:
        """The key of a value in its own shape, in one piece."""
        key = self._name(f"gather_{value}")
        if key not in self.tasks:
            layout, full = self.plan.layout(value), self._full(value)
            region = [(0, size) for size in layout.apart(full)]
            arguments = _Arguments()
            spec = self._gather(value, value, region, layout.joined(full), arguments)
            self.tasks[key] = Task(key, gather_whole, spec, *arguments.references)
        return key

    def _gather(
        self,
        name: str,
        value: str,
        region: Sequence[Interval],
        shape: tuple[int, ...],
        arguments: _Arguments,
        cuts: dict[Any, list[Piece]] | None = None,
    ) -> GatherSpec:
        """How a region of a value is put together.

        Parameters
        ----------
        cuts : mapping, optional
            Takes for each result the parts of it that are cut out before they travel.
        """
        grid, pieces = self.sources[value].pieces(region)
        picks = []
        for piece in pieces:
            if cuts is None or piece.slices is None:
                picks.append(Pick(arguments.add(piece.key), piece.position, piece.slices))
            else:
                parts = cuts.setdefault(piece.key, [])
                parts.append(piece)
                picks.append(Pick(arguments.add(("cut", piece.key)), len(parts) - 1, None))
        return GatherSpec(name, tuple(picks), grid, shape)

    # Tiles.

    def _add_group(self, number: int, group: Group) -> None:
        part = self.parts.of_group(group)
        ends = group.ends(self.plan.flow)
        here, supplies, inputs = None, list[TaskRef](), {feed.name for feed in group.feeds}
        if part is not None:
            here, supplies = self._here(part, [spec.name for spec in part.outputs])
            inputs = {spec.name for spec in part.inputs}
        given = {feed.name for feed in group.feeds if feed.name in ends}
        feeds = [feed for feed in group.feeds if feed.name in inputs | given]
        name = self._name(f"tile{group.level}_{self._label(group)}", group.axes)
        grid = [self.plan.grids[k].tiles for k in group.axes]
        for tile in itertools.product(*grid):
            key: tuple[Any, ...] = (name, *tile)
            spans = {k: self.plan.span(number, k, i) for k, i in zip(group.axes, tile, strict=True)}
            call, arguments = self._call(group, here, feeds, inputs, key, spans)
            self.tasks[key] = StageTask(key, run_tile, call, *arguments, *supplies)
        self._note_tiles(group, name)

    def _label(self, group: Group) -> str:
        """What the dashboard calls the tiles of a group: by its nodes."""
        nodes = self.plan.flow.facts.nodes
        names = [nodes[index].name for index in group.nodes] or list(group.ends(self.plan.flow))
        return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"

    def _note_tiles(self, group: Group, name: str) -> None:
        """Say where the values are that the tiles of a group keep."""
        is_bare = len(group.wanted) + len(group.statistics) == 1
        for position, value in enumerate(group.wanted):
            flat = self.plan.layout(value).flat
            axes = tuple(next(i for i, (_, own) in enumerate(flat) if own == k) for k in group.axes)
            borders = _borders(self.plan.chunks(value))
            self.sources[value] = Source(name, borders, None if is_bare else position, axes)
        for position, index in enumerate(group.statistics, len(group.wanted)):
            self._add_statistic(group, name, index, None if is_bare else position)

    def _call(
        self,
        group: Group,
        here: HereGraph | None,
        feeds: Sequence[Feed],
        inputs: set[str],
        key: tuple[Any, ...],
        spans: Mapping[int, Span],
    ) -> tuple[TileCall, list[TaskRef]]:
        """What a tile's task calls, and with what."""
        sizes = _LocalSizes(self.plan, spans)
        arguments = _Arguments()
        cuts: dict[Any, list[Piece]] | None = {} if self.cuts_first else None
        gathers = [self._feed(feed, spans, arguments, cuts) for feed in feeds]
        told = {
            name: tuple(values.tolist())
            for index in group.nodes
            if self.parts.told.get(index)
            for name, values in told_values(self.plan, self.plan.flow.steps[index], sizes).items()
            if name in inputs
        }
        at = dict(zip(group.axes, key[1:], strict=True))
        keeps = [self._keep(value, spans, at) for value in group.wanted]
        keeps += [self._measure(index, spans, at) for index in group.statistics]
        call = TileCall(here, tuple(gathers), tuple(told.items()), tuple(keeps))
        return call, self._references(arguments, cuts or {}, key)

    def _references(
        self, arguments: _Arguments, cuts: Mapping[Any, Sequence[Piece]], key: tuple[Any, ...]
    ) -> list[TaskRef]:
        """The arguments, with a task for each neighbour that cuts what is needed of it."""
        references = []
        for number, wanted in enumerate(arguments.keys):
            if not (isinstance(wanted, tuple) and wanted[0] == "cut" and wanted[1] in cuts):
                references.append(TaskRef(wanted))
                continue
            own = (f"cut_{key[0]}", *key[1:], number)
            picks = [Pick(0, piece.position, piece.slices) for piece in cuts[wanted[1]]]
            self.tasks[own] = Task(own, cut_pieces, picks, TaskRef(wanted[1]))
            references.append(TaskRef(own))
        return references

    def _feed(
        self,
        feed: Feed,
        spans: Mapping[int, Span],
        arguments: _Arguments,
        cuts: dict[Any, list[Piece]] | None,
    ) -> GatherSpec:
        """What a tile is given of a value: pieces of its own tile and of its neighbours'."""
        value, plan = feed.value, self.plan
        layout = plan.layout(value)
        if not feed.places:
            pick = Pick(arguments.add(self._whole(value)), None, None)
            return GatherSpec(feed.name, (pick,), (1,), layout.joined(self._full(value)))
        at = {k: plan.local(value, k, spans[k]) for k in feed.places}
        region = [(0, size) if k is None else at[k] for size, k in layout.flat]
        shape = layout.joined({k: _length(interval) for k, interval in at.items()})
        return self._gather(feed.name, value, region, shape, arguments, cuts)

    def _keep(self, value: str, spans: Mapping[int, Span], at: Mapping[int, int]) -> KeepSpec:
        plan, layout = self.plan, self.plan.layout(value)
        here = {k: plan.local(value, k, spans[k]) for k in plan.places(value)}
        sizes = {k: _length(interval) for k, interval in here.items()}
        slices = []
        for _, k in layout.flat:
            if k is None:
                slices.append(slice(None))
                continue
            start, stop = plan.tile(value, k, at[k])
            slices.append(slice(start - here[k][0], stop - here[k][0]))
        return KeepSpec(value, layout.joined(sizes), layout.apart(sizes), tuple(slices))

    # Statistics.

    def _measure(self, index: int, spans: Mapping[int, Span], at: Mapping[int, int]) -> KeepSpec:
        step = self.plan.flow.steps[index]
        keep = self._keep(step.edges[0].value, spans, at)
        axes = self._reduced_axes(index)
        factors = self.plan.layout(step.edges[0].value).factors
        owner = [axis for axis, parts in enumerate(factors) for _ in parts]
        return KeepSpec(
            keep.name,
            keep.joined,
            keep.apart,
            keep.slices,
            self._kind(index),
            tuple(i for i, axis in enumerate(owner) if axis in axes),
        )

    def _kind(self, index: int) -> str:
        node = self.plan.flow.steps[index].node
        is_variance = node.outputs[0] in self.plan.flow.variances
        return "variance" if is_variance else KIND_OF[node.op_type]

    def _reduced_axes(self, index: int) -> set[int]:
        """The axes that a node's statistic reduces, of its input."""
        flow = self.plan.flow
        node, proto = flow.steps[index].node, flow.facts.proto.graph.node[index]
        rank = len(flow.shape(node.inputs[0]))
        if node.op_type.startswith("Global"):
            return set(range(2, rank))
        named: Iterable[int] = next((a.ints for a in proto.attribute if a.name == "axes"), ())
        if len(node.inputs) > 1 and node.inputs[1]:
            known = flow.constant(node.inputs[1])
            named = () if known is None else [int(a) for a in known.array.reshape(-1)]
        return {a % rank for a in named} or set(range(rank))

    def _add_statistic(self, group: Group, tiles: str, index: int, position: int | None) -> None:
        """Put the partial statistics of tiles together, as a tree."""
        plan, step, kind = self.plan, self.plan.flow.steps[index], self._kind(index)
        value = step.node.outputs[0]
        left = [k for k in group.axes if k not in step.reduced]
        layout, spec = plan.layout(value), plan.flow.specs[value]
        name = self._name(f"combine_{kind}_{value}")
        for kept in itertools.product(*(plan.grids[k].tiles for k in left)):
            at = dict(zip(left, kept, strict=True))
            grid = [[at[k]] if k in at else plan.grids[k].tiles for k in group.axes]
            keys: list[Any] = [(tiles, *tile) for tile in itertools.product(*grid)]
            references = list(map(TaskRef, keys))
            if len(group.wanted) + len(group.statistics) == 1:
                position = None
            merged = self._tree(name, kind, position, references, kept)
            sizes = {k: _length(plan.tile(value, k, at[k])) for k in left}
            key = (name, *(0 if k is None else at[k] for _, k in layout.flat))
            shape = layout.apart(sizes)
            self.tasks[key] = Task(key, finish_statistic, kind, merged, spec.dtype, shape)
        self.sources[value] = Source(name, _borders(plan.chunks(value)))

    def _tree(
        self, name: str, kind: str, position: int | None, references: list[TaskRef], kept: Index
    ) -> TaskRef:
        for depth in itertools.count():
            merged = []
            for number, start in enumerate(range(0, len(references), _FAN_IN)):
                key: Any = (f"merge-{name}", depth, number, *kept)
                some = references[start : start + _FAN_IN]
                self.tasks[key] = Task(
                    key, merge_statistics, kind, position if depth == 0 else None, *some
                )
                merged.append(TaskRef(key))
            references = merged
            if len(references) == 1:
                return references[0]
        raise AssertionError("unreachable")


def _borders(chunks: Sequence[Sequence[float]]) -> tuple[tuple[int, ...], ...]:
    """From sizes of pieces to their borders."""
    return tuple(tuple(np.cumsum((0, *map(int, sizes))).tolist()) for sizes in chunks)


def _length(interval: tuple[int, int]) -> int:
    return interval[1] - interval[0]


class _LocalSizes(Mapping[str, Mapping[int, int]]):
    """Positions that values have on a crop, worked out when they are asked for."""

    def __init__(self, plan: TilePlan, spans: Mapping[int, Span]) -> None:
        self.plan, self.spans = plan, spans

    def __getitem__(self, value: str) -> dict[int, int]:
        return {
            k: _length(self.plan.local(value, k, self.spans[k])) for k in self.plan.places(value)
        }

    def __iter__(self) -> Any:
        return iter(self.plan.flow.values)

    def __len__(self) -> int:
        return len(self.plan.flow.values)


def as_arrays(graph: TileGraph, image: da.Array, outputs: Sequence[str]) -> dict[str, da.Array]:
    """Return a lazy array for each output, in its own shape.

    Outputs whose rows and columns share an axis have a chunk for each row of tiles.
    """
    given: Any = image.__dask_graph__()
    layers: dict[str, Any] = dict(given.layers)
    dependencies = {name: set(deps) for name, deps in given.dependencies.items()}
    for key, tasks in graph.supplies.items():
        layers[key], dependencies[key] = MaterializedLayer(tasks), set()
    base = f"tiles-{graph.token}"
    roots = {image.name, *graph.supplies}
    annotations = {"retries": effective_retries(None)}
    layers[base] = MaterializedLayer(graph.tasks, annotations=annotations)
    dependencies[base] = roots
    found = {}
    for value in outputs:
        name, chunks = _output_layer(graph, value, base, layers, dependencies)
        dtype = graph.plan.flow.specs[value].dtype
        apart = da.Array(
            HighLevelGraph(layers, dependencies),
            name,
            chunks,
            dtype=dtype,
            meta=np.empty((0,) * len(chunks), dtype),
        )
        found[value] = _joined(graph, value, apart)
    return found


def _output_layer(
    graph: TileGraph,
    value: str,
    base: str,
    layers: dict[str, Any],
    dependencies: dict[str, set[str]],
) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Name an output's pieces, which are among the tasks under another name."""
    name = graph._name(f"tiled_{value}")
    known = graph.plan.flow.known.get(value)
    if value not in graph.sources and known is not None:
        chunks = tuple((size,) for size in known.array.shape)
        key = (name, *(0 for _ in chunks))
        layers[name], dependencies[name] = (
            MaterializedLayer({key: DataNode(key, known.array)}),
            set(),
        )
        return name, chunks
    source = graph.sources[value]
    counts = [range(len(borders) - 1) for borders in source.borders]
    tasks = {
        (name, *place): Task(
            (name, *place), take_value, TaskRef(source.key(place)), source.position
        )
        for place in itertools.product(*counts)
    }
    layers[name], dependencies[name] = MaterializedLayer(tasks), {base}
    return name, tuple(tuple(np.diff(borders).tolist()) for borders in source.borders)


def _joined(graph: TileGraph, value: str, array: da.Array) -> da.Array:
    if value not in graph.plan.flow.values:
        return array
    layout = graph.plan.layout(value)
    if layout.is_apart and array.ndim == len(layout.factors):
        return array
    # Rows stay apart where they lead their axis; what follows them is joined first.
    tiled = [i for i, (_, k) in enumerate(layout.flat) if k is not None]
    array = array.rechunk(dict.fromkeys(tiled[1:], -1))
    joined: da.Array = array.reshape(layout.joined(graph._full(value)))
    return joined
