"""ONNX's multi-device annotations (IR 11): read from a proto, written into one, and kept where a
model is brought into another form.

A model declares configurations, each with a name and a number of devices. A node says under such a
name in which pipeline stage it runs, and how its tensors are spread over devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from dask_onnx.modelio.normalise import plain_domain
from dask_onnx.modelio.weights import graphs_of, with_bodies

FIRST_IR_VERSION = 11
"""The first that has these annotations."""


@dataclass(frozen=True, slots=True)
class DeviceConfiguration:
    """What a model says under one name."""

    name: str
    devices: int | None
    """None where only nodes name the configuration."""
    stages: Mapping[int, int]
    """Position of a node of the main graph to its `pipeline_stage`."""
    sharded: Mapping[int, tuple[str, ...]]
    """Position of a node to the tensors that a `sharding_spec` of it names."""


def read_configurations(model: onnx.ModelProto) -> dict[str, DeviceConfiguration]:
    """All configurations by name: those declared, in order, then those that only nodes name.

    Bodies of control flow run with their node: what their nodes say is not looked at.
    """
    devices: dict[str, int | None] = {c.name: c.num_devices for c in model.configuration}
    stages: dict[str, dict[int, int]] = {}
    sharded: dict[str, dict[int, tuple[str, ...]]] = {}
    for index, node in enumerate(model.graph.node):
        for entry in node.device_configurations:
            devices.setdefault(entry.configuration_id, None)
            if entry.HasField("pipeline_stage"):
                stages.setdefault(entry.configuration_id, {})[index] = entry.pipeline_stage
            if entry.sharding_spec:
                tensors = tuple(spec.tensor_name for spec in entry.sharding_spec)
                sharded.setdefault(entry.configuration_id, {})[index] = tensors
    return {
        name: DeviceConfiguration(name, count, stages.get(name, {}), sharded.get(name, {}))
        for name, count in devices.items()
    }


def write_stages(
    model: onnx.ModelProto, name: str, stages: Mapping[int, int], devices: int
) -> None:
    """Declare a configuration in `model` and write `stages` (position of a node to its stage) into
    its nodes. What stood under this name goes; other configurations stay."""
    nodes = [node for graph in graphs_of(model) for node in graph.node]
    nodes += [inner for f in model.functions for node in f.node for inner in with_bodies(node)]
    for node in nodes:
        for entry in [e for e in node.device_configurations if e.configuration_id == name]:
            node.device_configurations.remove(entry)
    for declared in [c for c in model.configuration if c.name == name]:
        model.configuration.remove(declared)
    model.ir_version = max(model.ir_version, FIRST_IR_VERSION)
    names = [f"worker_{number}" for number in range(devices)]
    model.configuration.add(name=name, num_devices=devices, device=names)
    for index, stage in stages.items():
        model.graph.node[index].device_configurations.add(
            configuration_id=name, pipeline_stage=stage
        )


_Call = tuple[onnx.NodeProto, frozenset[tuple[str, str, str]], Mapping[str, str]]
"""A node, the functions that it is in, and what its values are called outside of them."""


def annotate_bodies(model: onnx.ModelProto, kept: Collection[tuple[str, str]] = ()) -> None:
    """Hand what calls of model-local functions say on to the nodes of the bodies, in place, for
    the inliner drops it with the call.

    Each call gets a copy of its function, an overload, whose nodes say what the call says; what a
    node of a body says itself stays.

    Parameters
    ----------
    kept : (domain, name) of functions that will not be inlined
    """
    bodies = (f.node for f in model.functions)
    if not any(n.device_configurations for nodes in (model.graph.node, *bodies) for n in nodes):
        return
    functions = {_key(f.domain, f.name, f.overload): f for f in model.functions}
    calls: list[_Call] = [(n, frozenset(), {}) for n in model.graph.node]
    while calls:
        call, callers, outer = calls.pop()
        key = _key(call.domain, call.op_type, call.overload)
        function = functions.get(key)
        if function is None or key in callers or key[:2] in kept:
            continue
        body = model.functions.add()
        body.CopyFrom(function)
        body.overload = f"{function.overload}#{len(model.functions)}"
        call.overload = body.overload
        formal = [*function.input, *function.output]
        actual = [*call.input, *call.output]
        names = {f: outer.get(a, a) for f, a in zip(formal, actual, strict=False)}
        for node in body.node:
            _inherit(node, call, names)
            calls.append((node, callers | {key}, names))


def _key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return plain_domain(domain), name, overload


def _inherit(node: onnx.NodeProto, call: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let a node of a body say what the call says, as far as it says nothing itself."""
    own = {entry.configuration_id: entry for entry in node.device_configurations}
    values = {names.get(name, name) for name in (*node.input, *node.output)}
    for given in call.device_configurations:
        name = given.configuration_id
        entry = own.get(name) or node.device_configurations.add(configuration_id=name)
        if given.HasField("pipeline_stage") and not entry.HasField("pipeline_stage"):
            entry.pipeline_stage = given.pipeline_stage
        entry.sharding_spec.extend(s for s in given.sharding_spec if s.tensor_name in values)


def carry_over(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Write the annotations of one form of a model into another, in place, to the nodes that make
    the same values. For ONNX's version converter, which drops them."""
    said = {name: node for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        source = next((said[name] for name in node.output if name in said), None)
        if source is not None:
            del node.device_configurations[:]
            node.device_configurations.extend(source.device_configurations)
    del after.configuration[:]
    after.configuration.extend(before.configuration)
