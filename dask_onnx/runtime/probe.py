"""Choice of the kernel that runs a node, by building the node when a plan is made.

A node runs on the caller's kernel wherever there is one. Otherwise it runs on ONNX Runtime (ORT)
if ORT builds a session of it at its input types, can be given its values, and has no known bad
kernel of it; and on ONNX's reference evaluator if not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import TensorProto

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.core.errors import ModelError, StageError, Suggestion
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import (
    CPU_PROVIDER,
    Dim,
    NodeKernel,
    Provider,
    SessionSpec,
    TensorSpec,
)
from dask_onnx.modelio.normalise import OLDEST_OPSET
from dask_onnx.modelio.onnx_model import called_functions
from dask_onnx.modelio.operator_names import (
    onnx_has,
    operator_name,
    operator_text,
    standard_op_type,
)
from dask_onnx.modelio.value_types import kind_of, parse_type, value_info
from dask_onnx.modelio.weights import graphs_of, is_external, subgraphs_of, with_bodies
from dask_onnx.runtime.corrected_operators import CORRECTED_OPERATORS, locale_remedy
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.known_bad_kernels import known_bad_kernel
from dask_onnx.runtime.known_bad_reference import known_bad_reference
from dask_onnx.runtime.onnxruntime_internals import has_kernel
from dask_onnx.runtime.reference import make_evaluator
from dask_onnx.runtime.session import has_onnxruntime, session_build_error

Specs = Mapping[str, TensorSpec]

_PLAIN = (
    "float double float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string"
).split()
_EXTENDED = "bfloat16 float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz".split()
_MAPS = (
    "map(string,tensor(int64)) map(string,tensor(float)) map(string,tensor(double)) "
    "map(int64,tensor(string)) map(int64,tensor(float)) map(int64,tensor(double))"
).split()
EXCHANGEABLE_TYPES = frozenset(
    [f"tensor({name})" for name in (*_PLAIN, *_EXTENDED)]
    + [f"seq(tensor({name}))" for name in _PLAIN]
    + _MAPS
    + ["seq(map(string,tensor(float)))", "seq(map(int64,tensor(float)))"]
    + [f"optional(tensor({name}))" for name in _PLAIN]
    + [f"optional(seq(tensor({name})))" for name in _PLAIN]
)
"""Types of values that ORT's Python interface takes and returns."""

_LARGE_BYTES = 4 * 2**20
"""Bytes of a node (a forest's attributes) from which it is looked up, since building it would take
seconds."""
_MAX_KEY_BYTES = 1024
"""Bytes of a node from which its digest stands for it in a cache key."""

_ENGINE_BUILDERS = frozenset(
    ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "MIGraphXExecutionProvider"]
)
"""Execution providers that compile an engine for each session, in seconds or minutes."""

_Question = tuple[Any, ...]
"""All facts that decide whether a kernel can run a node."""
_answers: BoundedCache[_Question, str | None] = BoundedCache("kernel probe answers", 20_000)
"""Reason why a kernel cannot run a node, None if it can; most nodes of a model are like others."""


@dataclass(frozen=True)
class Probe:
    """Facts of a model, and the caller's kernels, that kernels are chosen by."""

    facts: GraphFacts
    """The model's graph."""
    specs: Specs
    """Specs of all values, as far as their types are known."""
    custom: CustomKernels | None = None
    """The caller's kernels."""
    libraries: tuple[str, ...] = ()
    """Paths of ORT custom-operator libraries."""
    providers: tuple[Provider, ...] = (CPU_PROVIDER,)
    """Execution providers of the sessions, which this process's ORT has."""

    # Each is computed once for all nodes: the nodes of one graph may read half a million values.

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        """Initializers of the graph, by name."""
        return {tensor.name: tensor for tensor in self.facts.proto.graph.initializer}

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """Types of values in ONNX's notation, as far as they are known."""
        kinds = ((name, kind_of(spec)) for name, spec in self.specs.items())
        return {name: kind for name, kind in kinds if kind is not None}

    @cached_property
    def not_exchangeable(self) -> frozenset[str]:
        """Values that ORT cannot be given or cannot return."""
        return frozenset(
            name
            for name, kind in self.kinds.items()
            if kind not in EXCHANGEABLE_TYPES and name not in self.initializers
        )

    def shape_of(self, name: str) -> tuple[Dim, ...] | None:
        """Return the shape of a tensor as far as it is known; None without a rank."""
        spec = self.specs.get(name)
        return None if spec is None or spec.dtype is None else spec.shape

    @cached_property
    def context(self) -> _Question:
        """Facts that decide about the kernels of all nodes alike."""
        opsets = tuple(sorted(self.facts.model.opsets.items()))
        functions = tuple(_short(each.SerializeToString()) for each in self.facts.proto.functions)
        custom = None if self.custom is None else self.custom.token
        return opsets, functions, custom, self.libraries, self.providers

    @property
    def provider_names(self) -> tuple[str, ...]:
        """Names of the execution providers, with that of the CPU, which runs what others do not."""
        names = SessionSpec(self.providers).provider_options
        return (*names, CPU_PROVIDER)


_ON_ONNXRUNTIME = NodeKernel("onnxruntime", "")
"""Answer for most nodes; shared, since a graph may have tens of thousands of them."""


def find_kernels(probe: Probe) -> tuple[NodeKernel, ...]:
    """Return the kernel of every node, in the order of the graph.

    Raises
    ------
    ModelError
        A node that is needed has no kernel; the first is named.
    """
    protos = probe.facts.proto.graph.node
    return tuple(_kernel_of(probe, node, protos[node.index]) for node in probe.facts.nodes)


def _kernel_of(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> NodeKernel:
    inner = list(with_bodies(proto))
    custom = set() if probe.custom is None else set(probe.custom.names)
    for each in inner:
        if operator_name(each) in custom:
            # The evaluator runs the rest of a body, in which it must not be wrong either.
            _check_known(
                probe, node, [other for other in inner if operator_name(other) not in custom]
            )
            return NodeKernel("custom", f"your own kernel for {operator_text(each)}")
    reason = _ort_reason(probe, node, proto, inner)
    if reason is None:
        return _ON_ONNXRUNTIME
    reference_reason = _known_bad_reference(probe, inner) or _answers.get_or_make(
        ("reference", *_question(probe, node, proto)),
        lambda: _reference_error(probe, node, proto),
    )
    if reference_reason is None:
        own = operator_name(proto) in CORRECTED_OPERATORS
        return NodeKernel(
            "reference", f"{reason}; dask_onnx's own kernel runs it" if own else reason
        )
    if node.index not in probe.facts.live:
        return _ON_ONNXRUNTIME  # not needed, unless an output is asked for by name
    raise _no_kernel(node, proto, f"{reason}; {reference_reason}")


def _no_kernel(node: NodeFacts, proto: onnx.NodeProto, reasons: str) -> ModelError:
    return ModelError(
        f"nobody has a kernel for node {node.name!r} ({operator_text(proto)}): {reasons}",
        locale_remedy(proto)
        or "bring one: dx.load(..., custom_ops=[...]) or dx.load(..., custom_op_libraries=[...])",
        node=node.name,
        reason=reasons,
        suggestions=[Suggestion("custom_ops"), Suggestion("custom_op_libraries")],
    )


def _known_bad_reference(probe: Probe, nodes: Sequence[onnx.NodeProto]) -> str | None:
    """Return the reason why the reference evaluator must not run some nodes; None if it may."""
    opsets = probe.facts.model.opsets
    found = (known_bad_reference(n, probe.specs, probe.initializers, opsets) for n in nodes)
    return next((reason for reason in found if reason is not None), None)


def _check_known(probe: Probe, node: NodeFacts, nodes: Sequence[onnx.NodeProto]) -> None:
    """Raise ModelError if the evaluator would run a known bad kernel beside the caller's own."""
    for each in nodes:
        reason = _known_bad_reference(probe, [each])
        if reason is not None and node.index in probe.facts.live:
            raise _no_kernel(node, each, f"{reason}, beside a kernel of your own")


def _ort_reason(
    probe: Probe,
    node: NodeFacts,
    proto: onnx.NodeProto,
    inner: Sequence[onnx.NodeProto],
) -> str | None:
    """Return the reason why a node does not run on ORT; None if it does."""
    if probe.not_exchangeable:
        for name in (*node.reads, *node.outputs):
            if name in probe.not_exchangeable:
                return f"onnxruntime cannot be given {probe.kinds[name]}"
    for each in inner:
        known_bad = known_bad_kernel(
            each, probe.specs, probe.initializers, probe.facts.model.opsets
        )
        if known_bad is not None:
            return known_bad
    if not all(map(probe.kinds.__contains__, node.reads)):
        return None  # cannot be built without types; a worker that cannot run it raises
    if not has_onnxruntime():
        return None  # a client may not have it; a worker that cannot run the node raises
    if proto.ByteSize() > _LARGE_BYTES:
        version = probe.facts.model.opsets.get(node.domain, 1)
        listed = has_kernel(node.domain, node.op_type, version, probe.provider_names)
        return None if listed else f"onnxruntime has no kernel for {operator_text(proto)}"
    question = _question(probe, node, proto)
    reason = _answers.get_or_make(
        ("onnxruntime", *question), lambda: _ort_build_error(probe, node, proto)
    )
    if reason is None:
        return None
    shapes = tuple(probe.shape_of(name) for name in node.reads)
    return _answers.get_or_make(
        ("onnxruntime with shapes", shapes, *question),
        lambda: _build_error_with_shapes(probe, node, proto, reason),
    )


def _question(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> _Question:
    """Return all facts that decide about a kernel: neither names nor values of constants."""
    kinds = tuple(map(probe.kinds.get, node.reads))
    if subgraphs_of(proto):
        nameless = onnx.NodeProto()
        nameless.CopyFrom(proto)
        nameless.name = ""
        nameless.ClearField("device_configurations")
        written: _Question = (_short(nameless.SerializeToString()),)
    else:
        # Without a copy of the node, which may be large.
        numbers: dict[str, int] = {"": -1}
        numbered = [
            tuple([numbers.setdefault(name, len(numbers)) for name in names])
            for names in (proto.input, proto.output)
        ]
        attributes = [_short(each.SerializeToString()) for each in proto.attribute]
        operator = (proto.domain, proto.op_type, proto.overload)
        # Lengths keep the bounds of the attributes, which protobuf does not write.
        lengths = tuple(map(len, attributes))
        written = (operator, *numbered, lengths, _short(b"".join(attributes)))
    return (written, kinds, *probe.context)


def _short(data: bytes) -> bytes:
    return data if len(data) <= _MAX_KEY_BYTES else hashlib.sha256(data).digest()


def single_node_model(
    probe: Probe,
    node: NodeFacts,
    proto: onnx.NodeProto,
    constants: Mapping[str, TensorProto],
    *,
    has_shapes: bool = False,
) -> onnx.ModelProto:
    """Return a model of the node alone.

    The values that it reads are inputs, except for `constants`.
    """
    model = onnx.ModelProto(ir_version=probe.facts.proto.ir_version)
    model.opset_import.extend(probe.facts.proto.opset_import)
    model.functions.extend(called_functions(probe.facts.proto, [proto]))
    model.graph.name = "probe"
    model.graph.node.add().CopyFrom(proto)
    names = dict.fromkeys(node.reads)
    kinds = {name: probe.kinds[name] for name in names if name in probe.kinds}
    # Large initializers of a subgraph are not loaded: as inputs of the model they have their type.
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
        if has_shapes and probe.shape_of(name) is not None:
            value.CopyFrom(value_info(probe.specs[name]))
        elif kind is not None:
            value.type.CopyFrom(parse_type(kind))
    for name in node.outputs:
        spec = probe.specs.get(name)
        model.graph.output.add().CopyFrom(
            onnx.ValueInfoProto(name=name)
            if spec is None
            else value_info(TensorSpec(name, spec.dtype, None, spec.kind))
        )
    return model


def _ort_build_error(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> str | None:
    """Return ORT's reason for not building a node; None if it does."""
    reason = _session_error(probe, single_node_model(probe, node, proto, {}))
    if reason is None:
        return None
    # Some kernels need the value of a constant when they are built.
    constants = _constants_of(probe, node)
    if constants:
        reason = _session_error(probe, single_node_model(probe, node, proto, constants))
    return None if reason is None else f"onnxruntime: {reason}"


def _build_error_with_shapes(
    probe: Probe, node: NodeFacts, proto: onnx.NodeProto, reason: str
) -> str | None:
    """Return ORT's `reason` for not building a node, unless it does once it knows shapes.

    Some operators are functions, whose bodies depend on the ranks of their inputs.
    """
    model = single_node_model(probe, node, proto, _constants_of(probe, node), has_shapes=True)
    return None if _session_error(probe, model) is None else reason


def _session_error(probe: Probe, model: onnx.ModelProto) -> str | None:
    """Return why ORT builds no session of a model with the probe's providers; None if it does.

    A provider that builds an engine takes seconds for a node, so that the CPU's, which run what the
    provider does not, are asked first.
    """
    names = probe.provider_names
    if any(name in _ENGINE_BUILDERS for name in names):
        reason = session_build_error(model, probe.libraries)
        if reason is None:
            return None
    return session_build_error(model, probe.libraries, probe.providers)


def _constants_of(probe: Probe, node: NodeFacts) -> dict[str, TensorProto]:
    """Return the initializers that a node reads and that are stored in the proto itself."""
    found = {name: probe.initializers.get(name) for name in node.reads}
    return {name: t for name, t in found.items() if t is not None and not is_external(t)}


def _reference_error(probe: Probe, node: NodeFacts, proto: onnx.NodeProto) -> str | None:
    """Return the reference evaluator's reason for not building a node; None if it does."""
    version = probe.facts.model.opsets.get("", OLDEST_OPSET)
    op_type = standard_op_type(proto)
    if op_type is not None and not onnx_has(proto, probe.facts.model.opsets):
        return f"onnx.reference does not know {op_type} of opset {version}"
    if op_type is not None and version < OLDEST_OPSET:
        now, then = (
            onnx.defs.get_schema(op_type, opset).since_version for opset in (OLDEST_OPSET, version)
        )
        if now != then:
            return f"onnx.reference knows {op_type} from opset {now} on, not as of {version}"
    operators = () if probe.custom is None else probe.custom.operators()
    try:
        make_evaluator(single_node_model(probe, node, proto, {}), operators, node.name)
    except StageError as error:
        return error.reason or error.cause
    return None
