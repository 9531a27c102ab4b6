"""Dask tasks of a tile plan: one for each tile and pass, and those that pass values between them.

Keys start with a verb, by which the dashboard groups tasks: ``tile0_...`` tiles of
the first pass, ``untiled1_...`` nodes on untiled values, ``gather_...`` a value assembled from its
tiles, ``merge-combine_...`` and ``combine_...`` a statistic of all tiles, ``take_...`` one value of
several, ``known_...`` a value that follows from the size of the image, ``cut_...`` parts of a tile
that its neighbours need.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.collections.inline import InlineGraph
from dask_onnx.core.stage_tasks import StageTask, digest
from dask_onnx.tiles.groups import Component, Feed, Group, UntiledTask
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.part_request import inline_part
from dask_onnx.tiles.pieces import (
    Arguments,
    CutTasks,
    Gathering,
    Index,
    Piece,
    Source,
    borders_of_chunks,
)
from dask_onnx.tiles.tile_calls import (
    label_of_tiles,
    length,
    region_of,
    shape_inputs_of,
    spans_of,
    statistic_of,
    tile_outputs,
)
from dask_onnx.tiles.tile_plan import TilePlan
from dask_onnx.tiles.tile_tasks import (
    PartCall,
    TileCall,
    UntiledCall,
    finish_statistic,
    gather_value,
    merge_statistics,
    run_tile,
    run_untiled,
    take_value,
)

_FAN_IN = 16
"""Partial statistics that one task merges."""
_LABEL_LENGTH = 40
"""Characters of a node's or value's name in a key, from its end."""


@dataclass(frozen=True, slots=True)
class _Runnable:
    """A component with the part of the model that its tasks run."""

    component: Component
    inline: InlineGraph | None
    """The part of the model; None where everything that is returned is a feed."""
    inputs: frozenset[str]
    """Names of the part's inputs."""
    feeds: tuple[Feed, ...]
    """Feeds that the part reads or the tiles return."""
    supplies: tuple[TaskRef, ...]
    """Tasks that bring the part to the worker."""


@dataclass
class TileGraph:
    """Tasks of a plan, and the location of each value among their results."""

    plan: TilePlan
    parts: Parts
    token: str
    """Digest of everything that the results depend on."""
    cuts_first: bool = False
    """True if tasks cut what neighbours need before it is transferred: workers share no memory."""
    tasks: dict[Any, Any] = field(default_factory=dict)
    """Tasks by key."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Values to the tasks that have their pieces."""
    supplies: dict[str, dict[Any, Any]] = field(default_factory=dict)
    """Layers of tasks that bring the model to workers that cannot read it themselves."""

    def build(self, images: Sequence[Mapping[str, da.Array]]) -> None:
        """Add the tasks of all passes.

        Parameters
        ----------
        images : sequence of mapping of str to dask.array
            Inputs that are cut into tiles, of the model's rank, in any chunks. The first mapping is
            for the first pass, and so on; the last is for all further passes.
        """
        untiled = {task.level: task for task in self.plan.untiled_tasks}
        last = max([*untiled, *(group.level for group in self.plan.groups)], default=0)
        for level in range(last + 1):
            for name, image in images[min(level, len(images) - 1)].items():
                self.sources[name] = Source(image.name, borders_of_chunks(image.chunks))
            if level in untiled:
                self._add_untiled(untiled[level])
            for group in self.plan.groups:
                if group.level == level:
                    self._add_group(group)

    def name(self, label: str, *parts: object) -> str:
        """Return the first element of a key.

        Parameters
        ----------
        label : str
            Verb, underscore, and the name of a node or value.
        *parts
            Further content of the digest that makes the key unique.
        """
        verb, _, rest = label.partition("_")
        readable = re.sub(r"[^0-9A-Za-z_.]", "_", rest)[-_LABEL_LENGTH:]
        return f"{verb}_{readable}-{digest(self.token, label, *parts)}"

    # Untiled values.

    def _add_untiled(self, task: UntiledTask) -> None:
        part = self.parts.of_untiled(task)
        inline, supplies, layers = inline_part(part, task.wanted)
        self.supplies |= layers
        inputs = {spec.name for spec in part.inputs}
        feeds = [feed for feed in task.feeds if feed.name in inputs]
        call = UntiledCall(inline, tuple(feed.name for feed in feeds), task.wanted)
        arguments = [TaskRef(self._gathered(feed.value)) for feed in feeds]
        key = self.name(f"untiled{task.level}_{inline.label}")
        self.tasks[key] = StageTask(key, run_untiled, call, *arguments, *supplies)
        for position, value in enumerate(task.wanted):
            self._add_take(value, key, position if len(task.wanted) > 1 else None)

    def _add_take(self, value: str, key: Any, position: int | None) -> None:
        """Add a task that takes an untiled value from a result, with its tiled axes split."""
        name = self.name(f"take_{value}")
        dims = self.plan.flow.dims(value)
        if dims is None or None in dims:
            # The size follows from values, as behind a NonMaxSuppression: there is one piece.
            whole: Any = (name, *(0 for _ in dims or ()))
            self.tasks[whole] = Task(whole, take_value, TaskRef(key), position)
            borders = tuple((0, math.nan if dim is None else dim) for dim in dims or ())
            self.sources[value] = Source(name, borders)
            return
        shape = self.plan.layout(value).split_shape(self.plan.full(value))
        piece: Any = (name, *(0 for _ in shape))
        self.tasks[piece] = Task(piece, take_value, TaskRef(key), position, shape)
        self.sources[value] = Source(name, tuple((0, size) for size in shape))

    def source(self, value: str) -> Source:
        """Return the tasks that have the pieces of a value.

        A value that follows from the size of the image becomes a literal in the graph.
        """
        if value not in self.sources:
            known = self.plan.flow.known[value]
            shape = self.plan.layout(value).split_shape(self.plan.full(value))
            name = self.name(f"known_{value}")
            key: Any = (name, *(0 for _ in shape))
            self.tasks[key] = DataNode(key, known.array.reshape(shape))
            self.sources[value] = Source(name, tuple((0, size) for size in shape))
        return self.sources[value]

    def _gathered(self, value: str) -> Any:
        """Return the key of a whole value in its own shape, and add its task if need be."""
        key = self.name(f"gather_{value}")
        source = self.source(value)
        if source.is_of_unknown_size:
            return source.key((0,) * len(source.borders))
        if key not in self.tasks:
            layout, full = self.plan.layout(value), self.plan.full(value)
            region = [(0, size) for size in layout.split_shape(full)]
            grid, pieces = self.source(value).pieces(region)
            arguments = Arguments()
            spec = Gathering(value, grid, layout.joined_shape(full), pieces).spec(arguments)
            self.tasks[key] = Task(key, gather_value, spec, *arguments.references)
        return key

    # Tiles.

    def _add_group(self, group: Group) -> None:
        name = self.name(f"tile{group.level}_{label_of_tiles(self.plan, group)}", group.axes)
        runnables = [self._runnable(component) for component in group.components]
        supplies = [reference for each in runnables for reference in each.supplies]
        tiles = list(itertools.product(*(self.plan.grids[k].tiles for k in group.axes)))
        regions = {tile: self._regions(group, runnables, tile) for tile in tiles}
        cuts = CutTasks(name) if self.cuts_first else None
        if cuts is not None:
            for gathering in itertools.chain.from_iterable(itertools.chain(*regions.values())):
                cuts.add(gathering)
        for tile in tiles:
            arguments = Arguments()
            call = self._tile_call(group, runnables, tile, regions[tile], arguments, cuts)
            key: Any = (name, *tile)
            self.tasks[key] = StageTask(key, run_tile, call, *arguments.references, *supplies)
        if cuts is not None:
            self.tasks |= cuts.tasks()
        self._add_sources(group, name)

    def _tile_call(
        self,
        group: Group,
        runnables: Sequence[_Runnable],
        tile: Index,
        regions: Sequence[Sequence[Gathering]],
        arguments: Arguments,
        cuts: CutTasks | None,
    ) -> TileCall:
        """Return what the task of one tile runs, and add the results it reads to `arguments`."""
        at = dict(zip(group.axes, tile, strict=True))
        calls = []
        for each, gatherings in zip(runnables, regions, strict=True):
            gathers = tuple(gathering.spec(arguments, cuts) for gathering in gatherings)
            spans = spans_of(self.plan, each.component, at)
            shapes = shape_inputs_of(self.plan, self.parts, each.component, spans, each.inputs)
            outputs = tile_outputs(self.plan, each.component, spans, at)
            calls.append(PartCall(each.inline, gathers, shapes, outputs))
        return TileCall(tuple(calls))

    def _runnable(self, component: Component) -> _Runnable:
        part = self.parts.of_tiles(component)
        if part is None:
            return _Runnable(component, None, frozenset(), component.feeds, ())
        inline, supplies, layers = inline_part(part, [spec.name for spec in part.outputs])
        self.supplies |= layers
        inputs = frozenset(spec.name for spec in part.inputs)
        feeds = [f for f in component.feeds if f.name in inputs or f.name in component.targets]
        return _Runnable(component, inline, inputs, tuple(feeds), tuple(supplies))

    def _regions(
        self, group: Group, runnables: Sequence[_Runnable], tile: Index
    ) -> list[list[Gathering]]:
        """Return the feeds of a tile for each component: pieces of the tile and its neighbours."""
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
                    full = self.plan.full(feed.value)
                    shape = self.plan.layout(feed.value).joined_shape(full)
                    grid, pieces = (1,), [Piece(self._gathered(feed.value), None, None, 1.0)]
                gatherings.append(Gathering(feed.name, grid, shape, pieces))
            found.append(gatherings)
        return found

    def _add_sources(self, group: Group, name: str) -> None:
        """Record where the values are that the tiles of a group return, and add statistics."""
        is_single = len(group.wanted) + len(group.statistics) == 1
        position = 0
        for component in group.components:
            for value in component.wanted:
                layout = self.plan.layout(value)
                axes = tuple(layout.axis_of(k) for k in group.axes)
                borders = borders_of_chunks(self.plan.chunks(value))
                self.sources[value] = Source(name, borders, None if is_single else position, axes)
                position += 1
            for index in component.statistics:
                self._add_statistic(group, name, index, None if is_single else position)
                position += 1

    # Statistics.

    def _add_statistic(self, group: Group, tiles: str, index: int, position: int | None) -> None:
        """Add the tasks that merge the partial statistics of tiles.

        Parameters
        ----------
        group : Group
        tiles : str
            First element of the tiles' keys.
        index : int
            Index of the node that computes the statistic.
        position : int or None
            Position of the partial statistic in the tiles' results; None if it is all of them.
        """
        plan, step, kind = self.plan, self.plan.flow.steps[index], statistic_of(self.plan, index)
        value = step.node.outputs[0]
        remaining = [k for k in group.axes if k not in step.reduced]
        layout, spec = plan.layout(value), plan.flow.specs[value]
        name = self.name(f"combine_{kind}_{value}")
        for numbers in itertools.product(*(plan.grids[k].tiles for k in remaining)):
            at = dict(zip(remaining, numbers, strict=True))
            grid = [[at[k]] if k in at else plan.grids[k].tiles for k in group.axes]
            keys: list[Any] = [(tiles, *tile) for tile in itertools.product(*grid)]
            merged = self._tree(name, kind, position, [TaskRef(key) for key in keys], numbers)
            shape = layout.split_shape({k: length(plan.tile(value, k, at[k])) for k in remaining})
            key: Any = (name, *(0 if k is None else at[k] for _, k in layout.flat))
            self.tasks[key] = Task(key, finish_statistic, kind, merged, spec.dtype, shape)
        self.sources[value] = Source(name, borders_of_chunks(plan.chunks(value)))

    def _tree(
        self, name: str, kind: str, position: int | None, references: list[TaskRef], numbers: Index
    ) -> TaskRef:
        """Add a tree of tasks that merge partial statistics; return its root."""
        for depth in itertools.count():
            merged = []
            for number, start in enumerate(range(0, len(references), _FAN_IN)):
                key: Any = (f"merge-{name}", depth, number, *numbers)
                children = references[start : start + _FAN_IN]
                # Only the leaves read tuples: the results of tiles.
                at = position if depth == 0 else None
                self.tasks[key] = Task(key, merge_statistics, kind, at, *children)
                merged.append(TaskRef(key))
            references = merged
            if len(references) == 1:
                break
        return references[0]
