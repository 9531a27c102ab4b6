"""Which kernel runs a node: found out when a plan is made, by asking those who have to run it.

A node runs on ONNX Runtime (ORT) if ORT builds a session of it at the types that it gets, if its
values can be handed over, and if it is not known to give wrong values; on ONNX's reference
evaluator otherwise; and on the caller's own kernel wherever there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import TensorProto

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.errors import ModelError, StageError
from dask_onnx.core.specs import NodeKernel, TensorSpec
from dask_onnx.modelio.normalise import OLDEST_OPSET
from dask_onnx.modelio.value_types import kind_of, parse_type, value_info
from dask_onnx.modelio.weights import graphs_of, is_external, subgraphs_of, with_bodies
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.known_bad_kernels import known_bad_kernel
from dask_onnx.runtime.reference import make_evaluator
from dask_onnx.runtime.session import has_kernel, has_onnxruntime, why_not_built

Specs = Mapping[str, TensorSpec]

_PLAIN = (
    "float double float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string"
).split()
_VIEWED = "bfloat16 float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz".split()
_LARGE_BYTES = 4 * 2**20
"""A node with so much in its attributes (a forest) is looked up, not built: that takes seconds."""
_MAPS = (
    "map(string,tensor(int64)) map(string,tensor(float)) map(string,tensor(double)) "
    "map(int64,tensor(string)) map(int64,tensor(float)) map(int64,tensor(double))"
).split()
HANDED_OVER = frozenset(
    [f"tensor({name})" for name in (*_PLAIN, *_VIEWED)]
    + [f"seq(tensor({name}))" for name in _PLAIN]
    + _MAPS
    + ["seq(map(string,tensor(float)))", "seq(map(int64,tensor(float)))"]
    + [f"optional(tensor({name}))" for name in _PLAIN]
    + [f"optional(seq(tensor({name})))" for name in _PLAIN]
)
"""Types of values that ORT takes from Python and gives to it."""


@dataclass(frozen=True)
class Probe:
    """What is asked: a model, and what the caller brings to it."""

    facts: GraphFacts
    specs: Specs
    """Every value, as far as its type is known."""
    custom: CustomKernels | None = None
    libraries: tuple[str, ...] = ()
    """Paths of ORT custom-operator libraries."""

    # Each once for all nodes: those of one graph may read half a million values.

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.facts.proto.graph.initializer}

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """The types of values, as far as they are known."""
        kinds = ((name, kind_of(spec)) for name, spec in self.specs.items())
        return {name: kind for name, kind in kinds if kind is not None}

    @cached_property
    def kept_back(self) -> frozenset[str]:
        """Values that cannot be handed over to ORT."""
        return frozenset(
            name
            for name, kind in self.kinds.items()
            if kind not in HANDED_OVER and name not in self.initializers
        )

    @cached_property
    def surroundings(self) -> tuple[Any, ...]:
        """What decides for all nodes alike whether there is a kernel."""
        opsets = tuple(sorted(self.facts.model.opsets.items()))
        functions = tuple(each.SerializeToString() for each in self.facts.proto.functions)
        return opsets, functions, None if self.custom is None else self.custom.token, self.libraries


def find_kernels(probe: Probe) -> tuple[NodeKernel, ...]:
    """The kernel of every node, in the order of the graph.

    Raises
    ------
    ModelError
        Nobody has a kernel for some nodes; the first is named.
    """
    protos = probe.facts.proto.graph.node
    return tuple(_kernel_of(probe, node, protos[node.index]) for node in probe.facts.nodes)


def _kernel_of(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> NodeKernel:
    inner = list(with_bodies(proto))
    custom = set() if probe.custom is None else set(probe.custom.names)
    for each in inner:
        if (each.domain, each.op_type) in custom:
            return NodeKernel("custom", f"your own kernel for {each.op_type}")
    reason = _not_on_ort(probe, node, proto, inner)
    if reason is None:
        return NodeKernel("onnxruntime", "")
    lacking = _asked(
        ("reference", *_signature(probe, node, proto)),
        lambda: _why_not_reference(probe, node, proto),
    )
    if lacking is None:
        return NodeKernel("reference", reason)
    if node.index not in probe.facts.live:
        return NodeKernel("onnxruntime", "")  # nobody wants it, unless it is asked for by name
    raise ModelError(
        f"nobody has a kernel for node {node.name!r} ({_operator(proto)}): {reason}; {lacking}",
        "bring one: dx.load(..., custom_ops=[...]) or dx.load(..., custom_op_libraries=[...])",
    )


def _not_on_ort(
    probe: Probe,
    node: NodeFacts,
    proto: onnx.NodeProto,
    inner: Sequence[onnx.NodeProto],
) -> str | None:
    """Why a node does not run on ORT; None if it does."""
    if probe.kept_back:
        for name in (*node.reads, *node.outputs):
            if name in probe.kept_back:
                return f"onnxruntime cannot be given {probe.kinds[name]}"
    for each in inner:
        wrong = known_bad_kernel(each, probe.specs, probe.initializers)
        if wrong is not None:
            return wrong
    if not all(map(probe.kinds.__contains__, node.reads)):
        return None  # cannot be asked without types; a worker that cannot run it will say so
    if not has_onnxruntime():
        return None  # a client may do without: the workers, which have it, will say so
    if proto.ByteSize() > _LARGE_BYTES:
        version = probe.facts.model.opsets.get(node.domain, 1)
        listed = has_kernel(node.domain, node.op_type, version)
        return None if listed else f"onnxruntime has no kernel for {_operator(proto)}"
    return _asked(
        ("onnxruntime", *_signature(probe, node, proto)),
        lambda: _why_not_ort(probe, node, proto),
    )


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


_answers: dict[tuple[Any, ...], str | None] = {}
"""What was asked before in this process: most nodes of a model are like others."""


def _asked(question: tuple[Any, ...], ask: Callable[[], str | None]) -> str | None:
    if question not in _answers:
        _answers[question] = ask()
    return _answers[question]


def _signature(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> tuple[Any, ...]:
    """All that decides whether there is a kernel: not names, and not the values of constants."""
    kinds = tuple(map(probe.kinds.get, node.reads))
    if subgraphs_of(proto):
        nameless = onnx.NodeProto()
        nameless.CopyFrom(proto)
        nameless.name = ""
        nameless.ClearField("device_configurations")
        written: tuple[Any, ...] = (nameless.SerializeToString(),)
    else:
        numbers: dict[str, int] = {"": -1}  # copying all that is large takes its time
        numbered = [
            tuple([numbers.setdefault(name, len(numbers)) for name in names])
            for names in (proto.input, proto.output)
        ]
        attributes = tuple(each.SerializeToString() for each in proto.attribute)
        operator = (proto.domain, proto.op_type, proto.overload)
        written = (operator, *numbered, attributes)
    return (written, kinds, *probe.surroundings)


def _single(
    probe: Probe, node: NodeFacts, proto: onnx.NodeProto, constants: Mapping[str, TensorProto]
) -> onnx.ModelProto:
    """A model of the node alone; what it reads are inputs without shapes, but for `constants`."""
    model = onnx.ModelProto(ir_version=probe.facts.proto.ir_version)
    model.opset_import.extend(probe.facts.proto.opset_import)
    model.functions.extend(probe.facts.proto.functions)
    model.graph.name = "probe"
    model.graph.node.add().CopyFrom(proto)
    names = dict.fromkeys(node.reads)
    kinds = {name: probe.kinds[name] for name in names if name in probe.kinds}
    # Large initializers of a body are not at hand: as inputs of the whole they have the same type.
    for graph in graphs_of(model):
        for tensor in [t for t in graph.initializer if is_external(t)]:
            kinds[tensor.name] = f"tensor({TensorProto.DataType.Name(tensor.data_type).lower()})"
            names[tensor.name] = None
            graph.initializer.remove(tensor)
    for name in names:
        if name in constants:
            model.graph.initializer.add().CopyFrom(constants[name])
            continue
        value = model.graph.input.add(name=name)
        kind = kinds.get(name)
        if kind is not None:
            value.type.CopyFrom(parse_type(kind))
    for name in node.outputs:
        spec = probe.specs.get(name)
        model.graph.output.add().CopyFrom(
            onnx.ValueInfoProto(name=name)
            if spec is None
            else value_info(TensorSpec(name, spec.dtype, None, spec.kind))
        )
    return model


def _why_not_ort(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> str | None:
    reason = why_not_built(_single(probe, node, proto, {}), probe.libraries)
    if reason is None:
        return None
    # Some kernels want to see a constant when they are built.
    constants = {
        name: probe.initializers[name]
        for name in node.reads
        if name in probe.initializers and not is_external(probe.initializers[name])
    }
    if constants:
        reason = why_not_built(_single(probe, node, proto, constants), probe.libraries)
    return None if reason is None else f"onnxruntime: {reason}"


def _why_not_reference(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> str | None:
    version = probe.facts.model.opsets.get("", OLDEST_OPSET)
    if not proto.domain and version < OLDEST_OPSET:
        now, then = (
            onnx.defs.get_schema(proto.op_type, opset).since_version
            for opset in (OLDEST_OPSET, version)
        )
        if now != then:
            return f"onnx.reference knows {proto.op_type} from opset {now} on, not as of {version}"
    operators = () if probe.custom is None else probe.custom.operators()
    try:
        make_evaluator(_single(probe, node, proto, {}), operators, node.name)
    except StageError as error:
        return error.cause.partition(": ")[2]
    return None
