"""Sharding specs as cuts along axes of a mesh of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dask_onnx.core.errors import PlanError
from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.spec_protos import AxisSharding, TensorSharding
from dask_onnx.sharding.weight_slices import Piece


@dataclass(frozen=True, slots=True)
class Spread:
    """An axis of a mesh of devices: which of so many shards each device has."""

    devices: tuple[int, ...]
    """Ascending."""
    shard_of: tuple[int, ...]
    """For each of `devices`."""
    shards: int


class Cut(NamedTuple):
    """An axis of a value divided along a mesh axis."""

    spread: Spread
    layout: Layout

    def piece(self, coordinates: dict[Spread, int]) -> Piece:
        """Return the shard at some coordinates in the mesh."""
        return Piece(self.layout, coordinates[self.spread], self.spread.shards)


Form = tuple[Cut, ...]
"""How a value lies on devices; empty for one that each has whole."""

WHOLE: Form = ()


def form_of(spec: TensorSharding, shape: Sequence[int | None] | None, where: str) -> Form:
    """Return the cuts that a spec stands for.

    Parameters
    ----------
    shape : sizes of the tensor
    where : str
        Node and tensor, for messages.

    Raises
    ------
    PlanError
        A size that is not known, or that its shards do not divide; an axis that is divided in two
        of its factors; a device with two different shards.
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
            raise PlanError(
                f"{where}: axis {each.axis} is sharded in {len(sharded)} of its factors",
                "shard one factor of an axis, or reshape the tensor after it",
            )
        for number, factor in enumerate(each.factors):
            if factor.shards > 1:
                layout = _layout(each, number, shape, where)
                spread = _spread(spec, numbers[place], factor.shards, where)
                cuts.append(Cut(spread, layout))
            place += 1
    return tuple(sorted(cuts, key=lambda cut: cut.layout.axis))


def _layout(
    sharding: AxisSharding, number: int, shape: Sequence[int | None] | None, where: str
) -> Layout:
    """Where the shards of one factor lie on its axis."""
    axis = sharding.axis if shape is None else sharding.axis % len(shape)
    size = None if shape is None else shape[axis]
    if size is None:
        raise PlanError(f"{where}: the size of axis {axis} is not known", "give shapes= to plan")
    sizes = [f.size if isinstance(f.size, int) else None for f in sharding.factors]
    known = math.prod(s for s in sizes if s is not None)
    if sizes.count(None) == 1 and known and not size % known:
        sizes[sizes.index(None)] = size // known
    if None in sizes or math.prod(s or 0 for s in sizes) != size:
        written = " x ".join("?" if s is None else str(s) for s in sizes)
        raise PlanError(
            f"{where}: axis {axis} has size {size}, and the spec says {written}",
            "correct dim_value of its simple_sharding",
        )
    own, shards = sizes[number] or 1, sharding.factors[number].shards
    if own % shards:
        raise PlanError(
            f"{where}: axis {axis} of size {own} is not {shards} equal shards",
            "choose a num_shards that divides it",
        )
    behind = math.prod(s or 1 for s in sizes[number + 1 :])
    return Layout(axis, math.prod(s or 1 for s in sizes[:number]), own // shards * behind)


def _spread(spec: TensorSharding, numbers: Sequence[int], shards: int, where: str) -> Spread:
    """Which shard along one axis each device has."""
    found: dict[int, int] = {}
    for held, number in zip(spec.holders, numbers, strict=True):
        for device in held:
            if found.setdefault(device, number) != number:
                raise PlanError(
                    f"{where}: device {device} has shards {found[device]} and {number}",
                    "list each device once",
                )
    devices = tuple(sorted(found))
    return Spread(devices, tuple(found[device] for device in devices), shards)


def meeting(form: Form, spread: Spread) -> Layout | None:
    """Return where a value is cut along a mesh axis; None if it is not."""
    return next((cut.layout for cut in form if cut.spread == spread), None)


def jobs_of(spreads: Sequence[Spread]) -> list[dict[Spread, int]]:
    """Return the different coordinates that devices have in a mesh, in the order of the devices.

    Devices that have the same shards of everything do the same work, which is done once.
    """
    if not spreads:
        return [{}]
    found: dict[tuple[int, ...], dict[Spread, int]] = {}
    for place in range(len(spreads[0].devices)):
        coordinates = {spread: spread.shard_of[place] for spread in spreads}
        found.setdefault(tuple(coordinates.values()), coordinates)
    return list(found.values())
