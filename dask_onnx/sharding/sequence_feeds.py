"""Inputs of a sequence request: checked, and as references to whole arrays and shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
from dask.base import tokenize
from dask.delayed import Delayed
from dask.task_spec import DataNode, TaskRef

from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Key, StageTask, digest
from dask_onnx.runtime.input_values import as_input
from dask_onnx.sharding.shard_layout import Bounds, Layout, take_shard

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class SequenceFeeds:
    """Inputs of one request, sliced along the sharded axis where a task reads a shard."""

    arrays: Mapping[str, Any]
    """numpy arrays, dask arrays or Delayed, by input."""
    specs: Mapping[str, TensorSpec]
    """Every value, at the sizes of the plan."""
    bounds: Bounds
    tasks: dict[Key, Any] = field(default_factory=dict)
    """Tasks that hold or check the inputs."""
    used: dict[str, Any] = field(default_factory=dict)
    """Lazy collections that tasks refer to, by a name for each chunking."""

    def __post_init__(self) -> None:
        self.token = digest({name: _name(value) for name, value in self.arrays.items()})

    def whole(self, name: str) -> TaskRef:
        """Return a reference to a whole input; adds the task that makes it."""
        value = self.arrays[name]
        if isinstance(value, Delayed):
            self.used[name] = value
            key = f"input-{digest(self.token, name)}"
            self.tasks[key] = StageTask(
                key, planned_input, TaskRef(value.key), name, self.specs[name]
            )
            return TaskRef(key)
        if isinstance(value, da.Array):
            joined = value.rechunk(-1)
            self.used[f"{name} whole"] = joined
            return TaskRef((joined.name, *(0,) * joined.ndim))
        key = f"input-{digest(self.token, name)}"
        self.tasks[key] = DataNode(key, value)
        return TaskRef(key)

    def shard(self, name: str, layout: Layout, shard: int) -> TaskRef | None:
        """Return a reference to a shard of an input; None if a task has to slice the whole."""
        value = self.arrays[name]
        if isinstance(value, Delayed) or layout.blocks != 1:
            return None
        if isinstance(value, da.Array):
            sizes = {axis: (size,) for axis, size in enumerate(value.shape)}
            cut = value.rechunk({**sizes, layout.axis: self.bounds.sizes})
            self.used[f"{name} {layout.label}"] = cut
            place = (shard if axis == layout.axis else 0 for axis in range(cut.ndim))
            return TaskRef((cut.name, *place))
        key = (f"input-{digest(self.token, name, layout)}", shard)
        if key not in self.tasks:
            start, stop = self.bounds.offsets[shard : shard + 2]
            piece = take_shard(value, layout, self.bounds.positions, start, stop)
            self.tasks[key] = DataNode(key, piece)
        return TaskRef(key)


def _name(value: Any) -> str:
    if isinstance(value, da.Array):
        return str(value.name)
    return str(value.key if isinstance(value, Delayed) else tokenize(value))


def planned_input(value: Any, name: str, spec: TensorSpec) -> Any:
    """Return a Delayed input as the model takes it, of the planned shape. Runs on a worker.

    Parameters
    ----------
    value : array_like
        Result of the Delayed.
    name : str
        Name of the input in the model.
    spec : TensorSpec
        Input at the sizes of the plan.

    Raises
    ------
    InputError
        The shape is not the one that the plan was made for, or values are not taken by the table
        of conversions.
    """
    array, shape = as_input(value, replace(spec, name=name)), spec.shape
    if shape is not None and array.shape != tuple(shape):
        raise InputError(
            f"input {name!r} has shape {array.shape}; the plan was made for {tuple(shape)}",
            f"plan for its shape: model.plan(dx.Sharded(...), shapes={{{name!r}: {array.shape}}})",
            input=name,
            option="shapes",
            suggestions=[Suggestion("shapes", {name: array.shape})],
        )
    return array


def check_chunks(name: str, value: Any, axis: int | None) -> None:
    """Check that an input has one chunk, except along the sharded axis.

    Raises
    ------
    InputError
        There are several chunks along an axis other than `axis`, or chunk sizes are unknown.
    """
    if not isinstance(value, da.Array):
        return
    if any(size != size for size in value.shape):
        raise InputError(
            f"input {name!r} has chunks of unknown size (NaN)",
            "call compute_chunk_sizes() on it first",
            input=name,
        )
    for place, chunks in enumerate(value.chunks):
        if place != axis and len(chunks) > 1:
            raise InputError(
                f"input {name!r} has {len(chunks)} chunks along axis {place}; a sharded plan "
                "runs one request, split along its sequence only",
                f"rechunk it: .rechunk({{{place}: -1}}), or predict each chunk separately",
                input=name,
                axis=place,
                numbers={"chunks": len(chunks)},
            )


def known_shapes(arrays: Mapping[str, Any], planned: Shapes | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input; for Delayed the planned one.

    Raises
    ------
    InputError
        The plan has no shape for a Delayed input.
    """
    shapes = {}
    for name, value in arrays.items():
        if not isinstance(value, Delayed):
            shapes[name] = tuple(int(size) for size in value.shape)
        elif planned is None or name not in planned:
            raise InputError(
                f"input {name!r} is a Delayed, whose shape is unknown before it runs",
                f"plan for its shape: model.plan(dx.Sharded(...), shapes={{{name!r}: (...)}})",
                input=name,
                option="shapes",
                suggestions=[Suggestion("shapes")],
            )
        else:
            shapes[name] = tuple(planned[name])
    return shapes


def as_arrays(feeds: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Return inputs as numpy arrays, dask arrays or Delayed.

    Raises
    ------
    InputError
        An input is not a tensor.
    """
    arrays = {}
    for name, value in feeds.items():
        if specs[name].kind is not None:
            raise InputError(
                f"input {name!r} is a {specs[name].kind}, which cannot be sharded",
                "use another plan, such as model.plan('whole')",
                input=name,
            )
        lazy = isinstance(value, da.Array | Delayed)
        arrays[name] = value if lazy else as_input(value, specs[name])
    return arrays
