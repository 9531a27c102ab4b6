"""ONNX sharding specs (IR version 11) as data: reading, checking and writing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.errors import PlanError
from dask_onnx.modelio.devices import write_stages
from dask_onnx.sharding.shard_layout import Layout

_NEXT = "correct the sharding_spec of the node, or choose another strategy"
"""Next step of errors about a spec."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the sizes whose product is the size of an axis, and its number of shards."""

    size: int | str | None
    """Size; None if not given, a name if symbolic."""
    shards: int
    """Number of shards."""


@dataclass(frozen=True, slots=True)
class AxisSharding:
    """Sharding of one axis of a tensor."""

    axis: int
    """Axis as written: negative ones count from the end."""
    factors: tuple[Factor, ...]
    """One factor, or several for an axis that a Reshape merged from several."""


@dataclass(frozen=True, slots=True)
class TensorSharding:
    """Placement of one input or output of a node on devices."""

    tensor: str
    """Name of the tensor."""
    devices: tuple[int, ...]
    """Device of each shard, or the key of a group; shards along the first axis vary slowest."""
    axes: tuple[AxisSharding, ...]
    """Shardings of the axes that are cut."""
    groups: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Key to the devices that hold the same shard."""

    @property
    def holders(self) -> list[tuple[int, ...]]:
        """Devices that hold each shard."""
        return [self.groups.get(each, (each,)) for each in self.devices]


@dataclass(frozen=True, slots=True)
class SpecOrigin:
    """Node and tensor of a sharding spec, for errors."""

    node: str
    op_type: str
    tensor: str

    def error(self, problem: str, next_step: str = _NEXT, **fields: Any) -> PlanError:
        """Return an error that names node and tensor.

        Parameters
        ----------
        **fields
            Further fields of the error, such as `axis` and `numbers`.
        """
        return PlanError(
            f"the sharding_spec of {self.tensor!r} at node {self.node!r} ({self.op_type}): "
            f"{problem}",
            next_step,
            node=self.node,
            input=self.tensor,
            **fields,
        )


def even_sharding(tensor: str, layout: Layout, shards: int) -> TensorSharding:
    """Return the sharding of a tensor with one shard on each device."""
    factors = [Factor(shards * layout.inner, shards)]
    if layout.outer > 1:
        factors.insert(0, Factor(layout.outer, 1))
    axis = AxisSharding(layout.axis, tuple(factors))
    return TensorSharding(tensor, tuple(range(shards)), (axis,))


def whole_sharding(tensor: str, shards: int) -> TensorSharding:
    """Return the sharding of a tensor that every device holds whole."""
    return TensorSharding(tensor, (-1,), (), {-1: tuple(range(shards))})


def read_shardings(facts: GraphFacts, configuration: str) -> dict[int, list[TensorSharding]]:
    """Return the shardings that the nodes of a graph declare under one configuration."""
    found: dict[int, list[TensorSharding]] = {}
    for index, node in enumerate(facts.proto.graph.node):
        for entry in node.device_configurations:
            if entry.configuration_id == configuration and entry.sharding_spec:
                found.setdefault(index, []).extend(map(_read, entry.sharding_spec))
    return found


def sharded_configurations(facts: GraphFacts) -> list[str]:
    """Return the names of the configurations that declare shardings."""
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
    """Check a spec against its node and the number of devices.

    Raises
    ------
    PlanError
        The node has no such tensor; an axis is out of range or named twice; the number of devices
        is not that of the shards; or the configuration lacks a device.
    """
    origin = SpecOrigin(node.name, node.op_type, spec.tensor)
    if spec.tensor not in (*node.inputs, *node.outputs):
        raise origin.error("the node neither reads nor writes that tensor")
    if rank is not None:
        for each in spec.axes:
            if not -rank <= each.axis < rank:
                raise origin.error(
                    f"axis {each.axis} is out of range: the tensor has {rank} axes",
                    axis=each.axis,
                    numbers={"rank": rank},
                )
        named = [each.axis % rank for each in spec.axes]
        if len(set(named)) < len(named):
            raise origin.error(f"an axis is named twice: {named}", axis=max(named, key=named.count))
    counts = [factor.shards for each in spec.axes for factor in each.factors]
    if any(count < 1 for count in counts) or any(not each.factors for each in spec.axes):
        raise origin.error("an axis has no positive num_shards")
    if spec.axes and math.prod(counts) != len(spec.devices):
        raise origin.error(
            f"{len(spec.devices)} devices are listed for {math.prod(counts)} shards "
            f"({' x '.join(map(str, counts))})",
            numbers={"devices": len(spec.devices), "shards": math.prod(counts)},
        )
    for device in (device for held in spec.holders for device in held):
        if device < 0 or (devices is not None and device >= devices):
            has = "" if devices is None else f"; the configuration has {devices} devices"
            raise origin.error(f"there is no device {device}{has}", numbers={"device": device})


def write_shardings(
    model: onnx.ModelProto,
    facts: GraphFacts,
    shardings: Mapping[int, Sequence[TensorSharding]],
    name: str,
    devices: int,
) -> None:
    """Write sharding specs into the nodes of a model, in place, under a new configuration.

    Parameters
    ----------
    facts : GraphFacts
        Graph of the model as it was loaded; `shardings` has its nodes by position.
    name : str
        Name of the configuration.
    devices : int
        Number of devices of the configuration.

    Raises
    ------
    PlanError
        The given model lacks a node with the inputs and outputs of a sharded node.
    """
    by_outputs = {tuple(node.output): node for node in model.graph.node}
    found = {}
    for index in shardings:
        proto = facts.proto.graph.node[index]
        node = by_outputs.get(tuple(proto.output))
        if node is None or list(node.input) != list(proto.input) or node.op_type != proto.op_type:
            raise PlanError(
                f"node {facts.nodes[index].name!r} ({proto.op_type}) of the plan is not in the "
                "given model, or is part of a function there",
                "annotate the model as it was loaded: plan.annotate() without a model",
                option="model",
                node=facts.nodes[index].name,
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
