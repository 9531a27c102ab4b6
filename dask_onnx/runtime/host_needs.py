"""Needs of a plan beyond ONNX Runtime's own kernels, and the check that a host meets them.

Needs are found where the plan is made and checked on each worker, before any task runs there. Most
models have none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.specs import NodeKernel, Provider, SessionSpec
from dask_onnx.modelio.operator_names import (
    OperatorName,
    is_onnx_domain,
    is_runtime_domain,
    operator_name,
    operator_text,
)
from dask_onnx.modelio.weights import with_bodies
from dask_onnx.runtime.corrected_operators import locale_remedy
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.probe import Probe, single_node_model
from dask_onnx.runtime.session import build_session, has_onnxruntime, session_build_error
from dask_onnx.runtime.session_runs import run_session

_TEXTS = "I\u0131 i\u0130 éÀ ßẞ ǅ Σς ŸÿᾳΩ ж Я Թ ა".split()
"""Texts whose upper or lower case differs between locales."""
_STRING_NORMALIZER: OperatorName = ("", "StringNormalizer")
_MODULES = {("", "ImageDecoder"): "PIL"}
"""Modules that kernels of the reference evaluator import when they run, by operator."""


@dataclass(frozen=True, slots=True)
class HostNeed:
    """One thing that must be the same on every host that runs a plan."""

    node: str
    """Name of the node that needs it; empty for an option of the request."""
    text: str
    """The node's operator, or the option, for messages."""
    remedy: str
    """Next step for a host that lacks it."""
    proto: bytes = b""
    """Serialized model that ONNX Runtime must build."""
    takes_texts: bool = False
    """True if the model maps texts, so that its results depend on the locale that it runs in."""
    spec: SessionSpec = field(default_factory=lambda: SessionSpec(intra_op_num_threads=1))
    """Options of its session: custom-operator libraries, execution providers."""
    module: str = ""
    """Python module that must be installed."""
    kernels: CustomKernels | None = None
    """The caller's kernels, which must be importable."""


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """Answer of one host to one need."""

    lacks: str
    """Reason why the host cannot do it; empty if it can."""
    shows: tuple[str, ...] = ()
    """Results that must be equal on all hosts."""


def find_needs(
    probe: Probe, kernels: Sequence[NodeKernel], providers: Sequence[Provider]
) -> tuple[HostNeed, ...]:
    """Return what a model needs of the hosts that run it; empty for most models.

    Parameters
    ----------
    probe : Probe
        Facts of the model.
    kernels : sequence of NodeKernel
        Kernel of each node, in the order of the graph.
    providers : sequence of Provider
        Execution providers that the plan asks for.
    """
    found: dict[object, HostNeed] = {}
    spec = SessionSpec(intra_op_num_threads=1, providers=providers)
    if not spec.is_on_cpu:
        remedy = "install the onnxruntime build that has the provider on every worker"
        found["providers"] = HostNeed("", "providers", remedy, _identity(probe), spec=spec)
    if probe.custom is not None:
        remedy = (
            "install its module on every worker, send it with client.upload_file, or have "
            "cloudpickle.register_pickle_by_value(module) take it along"
        )
        found["kernels"] = HostNeed("", "custom_ops", remedy, kernels=probe.custom)
    for index, kernel in enumerate(kernels):
        if index in probe.facts.live:
            for key, need in _needs_of_node(probe, index, kernel):
                found.setdefault(key, need)
    return tuple(found.values())


def _needs_of_node(
    probe: Probe, index: int, kernel: NodeKernel
) -> Iterator[tuple[object, HostNeed]]:
    node, proto = probe.facts.nodes[index], probe.facts.proto.graph.node[index]
    for each in with_bodies(proto):
        name = operator_name(each)
        if kernel.kernel == "reference" and name in _MODULES:
            module = _MODULES[name]
            remedy = f"install the package of {module} on every worker"
            yield name, HostNeed(node.name, operator_text(each), remedy, module=module)
        if kernel.kernel != "onnxruntime":
            continue
        if name == _STRING_NORMALIZER:
            remedy = locale_remedy(each)
            # Alone, with the attributes of its own, it is built even inside a body.
            alone = onnx.NodeProto(op_type=each.op_type, input=["x"], output=["y"])
            alone.attribute.extend(each.attribute)
            yield (
                (name, alone.SerializeToString()),
                HostNeed(
                    node.name, each.op_type, remedy, _text_model(probe, alone), takes_texts=True
                ),
            )
        elif probe.libraries and not (is_onnx_domain(name[0]) or is_runtime_domain(name[0])):
            remedy = "put the library at the same path on every worker, built for its onnxruntime"
            yield (
                name,
                HostNeed(
                    node.name,
                    operator_text(each),
                    remedy,
                    _library_model(probe, index),
                    spec=SessionSpec(intra_op_num_threads=1, custom_op_libraries=probe.libraries),
                ),
            )


def _text_model(probe: Probe, node: onnx.NodeProto) -> bytes:
    """Return a model of one node that maps texts of shape (texts,)."""
    model = onnx.ModelProto(ir_version=probe.facts.proto.ir_version)
    model.opset_import.extend(probe.facts.proto.opset_import)
    model.graph.name = "need"
    model.graph.node.add().CopyFrom(node)
    for names, values in ((node.input, model.graph.input), (node.output, model.graph.output)):
        values.append(onnx.helper.make_tensor_value_info(names[0], onnx.TensorProto.STRING, [None]))
    return bytes(model.SerializeToString())


def _library_model(probe: Probe, index: int) -> bytes:
    """Return a model of a library's node; of another one if the types around it are not known."""
    node, proto = probe.facts.nodes[index], probe.facts.proto.graph.node[index]
    model = single_node_model(probe, node, proto, {})
    is_built = (
        has_onnxruntime() and session_build_error(model, probe.libraries, probe.providers) is None
    )
    return model.SerializeToString() if is_built else _identity(probe)


def _identity(probe: Probe) -> bytes:
    return _text_model(probe, onnx.NodeProto(op_type="Identity", input=["x"], output=["y"]))


def ask_host(needs: tuple[HostNeed, ...]) -> tuple[HostAnswer, ...]:
    """Return what this process says of each need. Runs on workers."""
    return tuple(map(_answer, needs))


def _answer(need: HostNeed) -> HostAnswer:
    try:
        return _tried(need)
    except DaskOnnxError as error:
        return HostAnswer(error.reason or error.cause)


def _tried(need: HostNeed) -> HostAnswer:
    if need.module and importlib.util.find_spec(need.module) is None:
        return HostAnswer(f"the module {need.module} is not installed")
    if need.kernels is not None:
        need.kernels.operators()
    if not need.proto:
        return HostAnswer("")
    if not has_onnxruntime():
        return HostAnswer("onnxruntime is not installed")
    session = build_session(need.proto, Path(), need.spec, weight_bytes=0, label=need.text)
    if not need.takes_texts:
        return HostAnswer("")
    texts = run_session(session, [np.array(_TEXTS, object)], need.text, ["x"])[0]
    return HostAnswer("", tuple(map(str, texts.tolist())))
