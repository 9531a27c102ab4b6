"""Sharding specs as cuts along the axes of a device mesh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_protos import AxisSharding, SpecOrigin, TensorSharding
from dask_onnx.sharding.weight_slices import ShardSlice


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """Axis of a device mesh: the shard that each device holds."""

    devices: tuple[int, ...]
    """Device numbers, ascending."""
    shard_of: tuple[int, ...]
    """Shard of each of `devices`."""
    shards: int
    """Number of shards."""


class Cut(NamedTuple):
    """Division of an axis of a value along a mesh axis."""

    mesh_axis: MeshAxis
    layout: Layout

    def slice_at(self, coordinates: dict[MeshAxis, int]) -> ShardSlice:
        """Return the shard at some coordinates in the mesh."""
        return ShardSlice(self.layout, coordinates[self.mesh_axis], self.mesh_axis.shards)


MeshLayout = tuple[Cut, ...]
"""Cuts of a value; empty if every device holds it whole."""

WHOLE: MeshLayout = ()
"""Layout of a value that every device holds whole."""


def mesh_layout_of(
    spec: TensorSharding, shape: Sequence[int | None] | None, origin: SpecOrigin
) -> MeshLayout:
    """Return the cuts that a spec describes.

    Parameters
    ----------
    shape : sequence of int or None
        Sizes of the tensor; None where unknown.
    origin : SpecOrigin
        Node and tensor, for errors.

    Raises
    ------
    PlanError
        A size is unknown or not divisible by its shards; two factors of an axis are sharded; or a
        device has two different shards.
    """
    counts = [factor.shards for each in spec.axes for factor in each.factors]
    numbers = [
        [index // math.prod(counts[place + 1 :]) % count for index in range(len(spec.devices))]
        for place, count in enumerate(counts)
    ]
    cuts: list[Cut] = []
    place = 0
    for each in spec.axes:
        sharded = [f for f in each.factors if f.shards > 1]
        if len(sharded) > 1:
            raise origin.error(
                f"axis {each.axis} is sharded in {len(sharded)} of its factors",
                "shard one factor of an axis, or reshape the tensor after it",
                axis=each.axis,
                numbers={"sharded_factors": len(sharded)},
            )
        for number, factor in enumerate(each.factors):
            if factor.shards > 1:
                layout = _layout(each, number, shape, origin)
                mesh_axis = _mesh_axis(spec, numbers[place], factor.shards, origin)
                cuts.append(Cut(mesh_axis, layout))
            place += 1
    return tuple(sorted(cuts, key=lambda cut: cut.layout.axis))


def _layout(
    sharding: AxisSharding, number: int, shape: Sequence[int | None] | None, origin: SpecOrigin
) -> Layout:
    """Return the layout of the shards of one factor of an axis."""
    axis = sharding.axis if shape is None else sharding.axis % len(shape)
    size = None if shape is None else shape[axis]
    if size is None:
        raise origin.error(
            f"the size of axis {axis} is unknown",
            "give shapes= to plan",
            axis=axis,
            option="shapes",
        )
    sizes = [f.size if isinstance(f.size, int) else None for f in sharding.factors]
    known = math.prod(s for s in sizes if s is not None)
    if sizes.count(None) == 1 and known and not size % known:
        sizes[sizes.index(None)] = size // known
    if None in sizes or math.prod(s or 0 for s in sizes) != size:
        written = " x ".join("?" if s is None else str(s) for s in sizes)
        raise origin.error(
            f"axis {axis} has size {size}, but the factors are {written}",
            "correct dim_value of its simple_sharding",
            axis=axis,
            numbers={"size": size},
        )
    size_of_factor, shards = sizes[number] or 1, sharding.factors[number].shards
    if size_of_factor % shards:
        raise origin.error(
            f"axis {axis} of size {size_of_factor} cannot be divided into {shards} equal shards",
            "choose a num_shards that divides it",
            axis=axis,
            numbers={"size": size_of_factor, "shards": shards},
        )
    after = math.prod(s or 1 for s in sizes[number + 1 :])
    return Layout(axis, math.prod(s or 1 for s in sizes[:number]), size_of_factor // shards * after)


def _mesh_axis(
    spec: TensorSharding, numbers: Sequence[int], shards: int, origin: SpecOrigin
) -> MeshAxis:
    """Return the mesh axis of one factor: the shard of each device."""
    found: dict[int, int] = {}
    for held, number in zip(spec.holders, numbers, strict=True):
        for device in held:
            if found.setdefault(device, number) != number:
                raise origin.error(
                    f"device {device} has shards {found[device]} and {number}",
                    "list each device once",
                    numbers={"device": device},
                )
    devices = tuple(sorted(found))
    return MeshAxis(devices, tuple(found[device] for device in devices), shards)


def layout_along(form: MeshLayout, mesh_axis: MeshAxis) -> Layout | None:
    """Return the layout of a value along a mesh axis; None if it is not cut there."""
    return next((cut.layout for cut in form if cut.mesh_axis == mesh_axis), None)


def distinct_coordinates(mesh_axes: Sequence[MeshAxis]) -> list[dict[MeshAxis, int]]:
    """Return the distinct coordinates of devices in a mesh, in device order.

    Devices with the same shards of everything do the same work, which is done once.
    """
    if not mesh_axes:
        return [{}]
    found: dict[tuple[int, ...], dict[MeshAxis, int]] = {}
    for place in range(len(mesh_axes[0].devices)):
        coordinates = {mesh_axis: mesh_axis.shard_of[place] for mesh_axis in mesh_axes}
        found.setdefault(tuple(coordinates.values()), coordinates)
    return list(found.values())
