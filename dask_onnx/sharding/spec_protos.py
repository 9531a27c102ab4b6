"""ONNX's sharding specs (IR 11) as data: read from nodes, checked by themselves, and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.errors import PlanError
from dask_onnx.modelio.devices import write_stages
from dask_onnx.sharding.shard_layout import Layout

_NEXT = "correct the sharding_spec of the node, or choose another strategy"


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the sizes whose product an axis is, and into how many shards it is divided."""

    size: int | str | None
    """None where it is not said; a name for a size that is not fixed."""
    shards: int


@dataclass(frozen=True, slots=True)
class AxisSharding:
    """How one axis of a tensor is sharded."""

    axis: int
    """As written: negative ones count from the end."""
    factors: tuple[Factor, ...]
    """One, or several for an axis that a Reshape has made of several."""


@dataclass(frozen=True, slots=True)
class TensorSharding:
    """How one input or output of a node lies on devices."""

    tensor: str
    devices: tuple[int, ...]
    """For each shard, the first axis slowest, a device or the key of a group."""
    axes: tuple[AxisSharding, ...]
    groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Key to the devices that each have the same shard."""

    @property
    def holders(self) -> list[tuple[int, ...]]:
        """The devices that have each shard."""
        return [self.groups.get(each, (each,)) for each in self.devices]


def even_sharding(tensor: str, layout: Layout, shards: int) -> TensorSharding:
    """Return a tensor with one shard on each of so many devices."""
    factors = [Factor(shards * layout.inner, shards)]
    if layout.outer > 1:
        factors.insert(0, Factor(layout.outer, 1))
    axis = AxisSharding(layout.axis, tuple(factors))
    return TensorSharding(tensor, tuple(range(shards)), (axis,))


def whole_sharding(tensor: str, shards: int) -> TensorSharding:
    """Return a tensor that each of so many devices has whole."""
    return TensorSharding(tensor, (-1,), (), {-1: tuple(range(shards))})


def read_shardings(facts: GraphFacts, configuration: str) -> dict[int, list[TensorSharding]]:
    """Return what the nodes of a graph say of their tensors under one configuration."""
    found: dict[int, list[TensorSharding]] = {}
    for index, node in enumerate(facts.proto.graph.node):
        for entry in node.device_configurations:
            if entry.configuration_id == configuration and entry.sharding_spec:
                found.setdefault(index, []).extend(map(_read, entry.sharding_spec))
    return found


def sharded_configurations(facts: GraphFacts) -> list[str]:
    """Return the names of the configurations that say how tensors are sharded."""
    return list(
        dict.fromkeys(
            entry.configuration_id
            for node in facts.proto.graph.node
            for entry in node.device_configurations
            if entry.sharding_spec
        )
    )


def _read(spec: onnx.ShardingSpecProto) -> TensorSharding:
    axes = []
    for dim in spec.sharded_dim:
        factors = []
        for each in dim.simple_sharding:
            chosen = each.WhichOneof("dim")
            size = None if chosen is None else getattr(each, chosen)
            factors.append(Factor(size, each.num_shards))
        axes.append(AxisSharding(dim.axis, tuple(factors)))
    groups = {entry.key: tuple(entry.value) for entry in spec.index_to_device_group_map}
    return TensorSharding(spec.tensor_name, tuple(spec.device), tuple(axes), groups)


def check_sharding(
    node: NodeFacts, spec: TensorSharding, rank: int | None, devices: int | None
) -> None:
    """Compare a spec with its node and with the number of devices.

    Raises
    ------
    PlanError
        The node has no such tensor; an axis that the tensor does not have, or twice; not one device
        for each shard; a device that the configuration does not have.
    """
    where = f"the sharding_spec of {spec.tensor!r} at node {node.name!r} ({node.op_type})"
    if spec.tensor not in (*node.inputs, *node.outputs):
        raise PlanError(f"{where}: the node neither reads nor makes that tensor", _NEXT)
    if rank is not None:
        for each in spec.axes:
            if not -rank <= each.axis < rank:
                raise PlanError(
                    f"{where} names axis {each.axis} of a tensor with {rank} axes", _NEXT
                )
        named = [each.axis % rank for each in spec.axes]
        if len(set(named)) < len(named):
            raise PlanError(f"{where} names one axis twice: {named}", _NEXT)
    counts = [factor.shards for each in spec.axes for factor in each.factors]
    if any(count < 1 for count in counts) or any(not each.factors for each in spec.axes):
        raise PlanError(f"{where} has an axis without a positive num_shards", _NEXT)
    if spec.axes and math.prod(counts) != len(spec.devices):
        raise PlanError(
            f"{where} lists {len(spec.devices)} devices for {math.prod(counts)} shards "
            f"({' x '.join(map(str, counts))})",
            _NEXT,
        )
    for device in (device for held in spec.holders for device in held):
        if device < 0 or (devices is not None and device >= devices):
            has = "" if devices is None else f"; the configuration has {devices}"
            raise PlanError(f"{where} names device {device}{has}", _NEXT)


def write_shardings(
    model: onnx.ModelProto,
    facts: GraphFacts,
    shardings: Mapping[int, Sequence[TensorSharding]],
    name: str,
    devices: int,
) -> None:
    """Write sharding specs into the nodes of a model, in place, under a configuration that is
    declared anew.

    Parameters
    ----------
    facts : of the model as it was loaded, whose nodes `shardings` are by position
    devices : how many the configuration has

    Raises
    ------
    PlanError
        The model given has no node that reads and makes the same as one that is sharded.
    """
    by_outputs = {tuple(node.output): node for node in model.graph.node}
    found = {}
    for index in shardings:
        proto = facts.proto.graph.node[index]
        node = by_outputs.get(tuple(proto.output))
        if node is None or list(node.input) != list(proto.input) or node.op_type != proto.op_type:
            raise PlanError(
                f"node {facts.nodes[index].name!r} ({proto.op_type}) of the plan is not in the "
                "model given, or stands in a function there",
                "annotate the model as it was loaded: plan.annotate() without a model",
            )
        found[index] = node
    write_stages(model, name, {}, devices)
    for index, specs in shardings.items():
        entry = found[index].device_configurations.add(configuration_id=name)
        for spec in specs:
            _write(entry.sharding_spec.add(), spec)


def _write(proto: onnx.ShardingSpecProto, spec: TensorSharding) -> None:
    proto.tensor_name = spec.tensor
    proto.device.extend(spec.devices)
    for key, group in spec.groups.items():
        proto.index_to_device_group_map.add(key=key, value=group)
    for axis in spec.axes:
        dim = proto.sharded_dim.add(axis=axis.axis)
        for factor in axis.factors:
            simple = dim.simple_sharding.add(num_shards=factor.shards)
            if isinstance(factor.size, int):
                simple.dim_value = factor.size
            elif factor.size is not None:
                simple.dim_param = factor.size
