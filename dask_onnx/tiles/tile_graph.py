"""A tile plan as Dask tasks: one for each tile and pass, and what carries values between them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.stage_tasks import StageTask, digest
from dask_onnx.tiles.groups import Component, Feed, Group, Once
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.part_request import part_here
from dask_onnx.tiles.pieces import (
    Arguments,
    Cuts,
    Gathering,
    Index,
    Piece,
    Source,
    borders_of_chunks,
)
from dask_onnx.tiles.tile_calls import (
    keeps_of,
    label_of_tiles,
    length,
    region_of,
    spans_of,
    statistic_of,
    told_of,
)
from dask_onnx.tiles.tile_plan import TilePlan
from dask_onnx.tiles.tile_tasks import (
    OnceCall,
    PartCall,
    TileCall,
    finish_statistic,
    gather_whole,
    merge_statistics,
    run_once,
    run_tile,
    take_value,
)

_FAN_IN = 16
"""Partial statistics that one task puts together."""
_LABEL_LENGTH = 40


@dataclass(frozen=True, slots=True)
class _Runnable:
    """A component as tasks run it."""

    component: Component
    inline: InlineGraph | None
    inputs: frozenset[str]
    feeds: tuple[Feed, ...]
    supplies: tuple[TaskRef, ...]


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
        borders = borders_of_chunks(image.chunks)
        self.sources[self.plan.flow.source] = Source(image.name, borders)
        onces = {once.level: once for once in self.plan.onces}
        last = max([*onces, *(group.level for group in self.plan.groups)], default=0)
        for level in range(last + 1):
            if level in onces:
                self._add_once(onces[level])
            for group in self.plan.groups:
                if group.level == level:
                    self._add_group(group)

    def name(self, label: str, *parts: object) -> str:
        """The first part of a key: what is done, to what, and a digest."""
        verb, _, rest = label.partition("_")
        readable = re.sub(r"[^0-9A-Za-z_.]", "_", rest)[-_LABEL_LENGTH:]
        return f"{verb}_{readable}-{digest(self.token, label, *parts)}"

    # Whole values.

    def _add_once(self, once: Once) -> None:
        part = self.parts.of_once(once)
        inline, supplies, layers = part_here(part, once.wanted)
        self.supplies |= layers
        inputs = {spec.name for spec in part.inputs}
        feeds = [feed for feed in once.feeds if feed.name in inputs]
        call = OnceCall(inline, tuple(feed.name for feed in feeds), once.wanted)
        arguments = [TaskRef(self._whole(feed.value)) for feed in feeds]
        key = self.name(f"once{once.level}_{inline.label}")
        self.tasks[key] = StageTask(key, run_once, call, *arguments, *supplies)
        for position, value in enumerate(once.wanted):
            self._take(value, key, position if len(once.wanted) > 1 else None)

    def _take(self, value: str, key: Any, position: int | None) -> None:
        """Make one piece of a whole value, its tiled axes apart."""
        shape = self.plan.layout(value).apart(self.plan.full(value))
        name = self.name(f"take_{value}")
        own: Any = (name, *(0 for _ in shape))
        self.tasks[own] = Task(own, take_value, TaskRef(key), position, shape)
        self.sources[value] = Source(name, tuple((0, size) for size in shape))

    def source(self, value: str) -> Source:
        """Where a value is; one that follows from the size of the picture is written down."""
        if value not in self.sources:
            known = self.plan.flow.known[value]
            shape = self.plan.layout(value).apart(self.plan.full(value))
            name = self.name(f"known_{value}")
            key: Any = (name, *(0 for _ in shape))
            self.tasks[key] = DataNode(key, known.array.reshape(shape))
            self.sources[value] = Source(name, tuple((0, size) for size in shape))
        return self.sources[value]

    def _whole(self, value: str) -> Any:
        """The key of a value in its own shape, in one piece."""
        key = self.name(f"gather_{value}")
        if key not in self.tasks:
            layout, full = self.plan.layout(value), self.plan.full(value)
            grid, pieces = self.source(value).pieces([(0, n) for n in layout.apart(full)])
            arguments = Arguments()
            spec = Gathering(value, grid, layout.joined(full), pieces).spec(arguments)
            self.tasks[key] = Task(key, gather_whole, spec, *arguments.references)
        return key

    # Tiles.

    def _add_group(self, group: Group) -> None:
        name = self.name(f"tile{group.level}_{label_of_tiles(self.plan, group)}", group.axes)
        runnables = [self._runnable(component) for component in group.components]
        supplies = [reference for each in runnables for reference in each.supplies]
        tiles = list(itertools.product(*(self.plan.grids[k].tiles for k in group.axes)))
        regions = {tile: self._regions(group, runnables, tile) for tile in tiles}
        cuts = Cuts(name) if self.cuts_first else None
        for gathering in itertools.chain.from_iterable(itertools.chain(*regions.values())):
            if cuts is not None:
                cuts.note(gathering)
        for tile in tiles:
            arguments = Arguments()
            calls = []
            for each, gatherings in zip(runnables, regions[tile], strict=True):
                gathers = tuple(gathering.spec(arguments, cuts) for gathering in gatherings)
                at = dict(zip(group.axes, tile, strict=True))
                spans = spans_of(self.plan, each.component, at)
                told = told_of(self.plan, self.parts, each.component, spans, each.inputs)
                keeps = keeps_of(self.plan, each.component, spans, at)
                calls.append(PartCall(each.inline, gathers, told, keeps))
            key: Any = (name, *tile)
            self.tasks[key] = StageTask(
                key, run_tile, TileCall(tuple(calls)), *arguments.references, *supplies
            )
        if cuts is not None:
            self.tasks |= cuts.tasks()
        self._note_tiles(group, name)

    def _runnable(self, component: Component) -> _Runnable:
        part = self.parts.of_tiles(component)
        if part is None:
            return _Runnable(component, None, frozenset(), component.feeds, ())
        inline, supplies, layers = part_here(part, [spec.name for spec in part.outputs])
        self.supplies |= layers
        inputs = frozenset(spec.name for spec in part.inputs)
        feeds = [f for f in component.feeds if f.name in inputs or f.name in component.ends]
        return _Runnable(component, inline, inputs, tuple(feeds), tuple(supplies))

    def _regions(
        self, group: Group, runnables: Sequence[_Runnable], tile: Index
    ) -> list[list[Gathering]]:
        """What a tile is given, component by component: pieces of its own and of neighbours."""
        at = dict(zip(group.axes, tile, strict=True))
        found = []
        for each in runnables:
            spans = spans_of(self.plan, each.component, at)
            gatherings = []
            for feed in each.feeds:
                if feed.places:
                    region, shape = region_of(self.plan, feed, spans)
                    grid, pieces = self.source(feed.value).pieces(region)
                else:
                    shape = self.plan.layout(feed.value).joined(self.plan.full(feed.value))
                    grid, pieces = (1,), [Piece(self._whole(feed.value), None, None, 1.0)]
                gatherings.append(Gathering(feed.name, grid, shape, pieces))
            found.append(gatherings)
        return found

    def _note_tiles(self, group: Group, name: str) -> None:
        """Say where the values are that the tiles of a group keep."""
        is_bare = len(group.wanted) + len(group.statistics) == 1
        position = 0
        for component in group.components:
            for value in component.wanted:
                layout = self.plan.layout(value)
                axes = tuple(layout.axis_of(k) for k in group.axes)
                borders = borders_of_chunks(self.plan.chunks(value))
                self.sources[value] = Source(name, borders, None if is_bare else position, axes)
                position += 1
            for index in component.statistics:
                self._add_statistic(group, name, index, None if is_bare else position)
                position += 1

    # Statistics.

    def _add_statistic(self, group: Group, tiles: str, index: int, position: int | None) -> None:
        """Put the partial statistics of tiles together, as a tree."""
        plan, step, kind = self.plan, self.plan.flow.steps[index], statistic_of(self.plan, index)
        value = step.node.outputs[0]
        left = [k for k in group.axes if k not in step.reduced]
        layout, spec = plan.layout(value), plan.flow.specs[value]
        name = self.name(f"combine_{kind}_{value}")
        for kept in itertools.product(*(plan.grids[k].tiles for k in left)):
            at = dict(zip(left, kept, strict=True))
            grid = [[at[k]] if k in at else plan.grids[k].tiles for k in group.axes]
            keys: list[Any] = [(tiles, *tile) for tile in itertools.product(*grid)]
            merged = self._tree(name, kind, position, [TaskRef(key) for key in keys], kept)
            shape = layout.apart({k: length(plan.tile(value, k, at[k])) for k in left})
            key: Any = (name, *(0 if k is None else at[k] for _, k in layout.flat))
            self.tasks[key] = Task(key, finish_statistic, kind, merged, spec.dtype, shape)
        self.sources[value] = Source(name, borders_of_chunks(plan.chunks(value)))

    def _tree(
        self, name: str, kind: str, position: int | None, references: list[TaskRef], kept: Index
    ) -> TaskRef:
        for depth in itertools.count():
            merged = []
            for number, start in enumerate(range(0, len(references), _FAN_IN)):
                key: Any = (f"merge-{name}", depth, number, *kept)
                some = references[start : start + _FAN_IN]
                at = position if depth == 0 else None
                self.tasks[key] = Task(key, merge_statistics, kind, at, *some)
                merged.append(TaskRef(key))
            references = merged
            if len(references) == 1:
                break
        return references[0]
