"""ONNX's multi-device annotations (IR 11): read, written, and preserved by model conversions.

A model declares configurations, each with a name and a number of devices. A node refers to a
configuration and gives its pipeline stage and the sharding of its tensors over the devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from dask_onnx.modelio.operator_names import canonical_domain
from dask_onnx.modelio.weights import graphs_of, with_bodies

FIRST_IR_VERSION = 11
"""First IR version with these annotations."""


@dataclass(frozen=True, slots=True)
class DeviceConfiguration:
    """Annotations of a model under one configuration name."""

    name: str
    """Name of the configuration (``configuration_id``)."""
    devices: int | None
    """Number of devices; None where only nodes name the configuration."""
    stages: Mapping[int, int]
    """Pipeline stage by position of a node in the main graph."""
    sharded: Mapping[int, tuple[str, ...]]
    """Names of the tensors with a ``sharding_spec``, by position of their node."""


def read_configurations(model: onnx.ModelProto) -> dict[str, DeviceConfiguration]:
    """Return the configurations by name: declared ones in order, then those that only nodes name.

    Subgraph bodies run with their node, so annotations of their nodes are ignored.
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
    """Declare a configuration in `model`, in place, and annotate its nodes with pipeline stages.

    Annotations under the same name are removed first; other configurations are kept.

    Parameters
    ----------
    name : str
        Name of the configuration.
    stages : mapping of int to int
        Pipeline stage by position of a node in the main graph.
    devices : int
        Number of devices to declare.
    """
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
"""A call, the functions around it, and the outer names of the values of its function body."""


def annotate_bodies(model: onnx.ModelProto, kept: Collection[tuple[str, str]] = ()) -> None:
    """Copy annotations of calls of model-local functions to the nodes of their bodies, in place.

    ONNX's inliner drops the annotations of a call with the call. Each call gets its own copy of the
    function, as an overload, whose nodes inherit the call's annotations; a node's own annotations
    take precedence.

    Parameters
    ----------
    kept : collection of (str, str)
        Domain and name of functions that will not be inlined.
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
            continue  # an operator, a recursive call, or a call that stays
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
    return canonical_domain(domain), name, overload


def _inherit(node: onnx.NodeProto, call: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Add a call's annotations to a node of its body, except where the node has its own."""
    own = {entry.configuration_id: entry for entry in node.device_configurations}
    values = {names.get(name, name) for name in (*node.input, *node.output)}
    for given in call.device_configurations:
        name = given.configuration_id
        entry = own.get(name) or node.device_configurations.add(configuration_id=name)
        if given.HasField("pipeline_stage") and not entry.HasField("pipeline_stage"):
            entry.pipeline_stage = given.pipeline_stage
        entry.sharding_spec.extend(s for s in given.sharding_spec if s.tensor_name in values)


def copy_annotations(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Copy a model's annotations to a converted form of it, in place.

    ONNX's version converter drops them. Nodes correspond where they produce the same value.
    """
    annotated = {name: node for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        source = next((annotated[name] for name in node.output if name in annotated), None)
        if source is not None:
            del node.device_configurations[:]
            node.device_configurations.extend(source.device_configurations)
    del after.configuration[:]
    after.configuration.extend(before.configuration)
