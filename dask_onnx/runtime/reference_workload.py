"""A small piece of work, run over and over: how fast tasks are beside others, and elsewhere."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.cores import cpu_identity
from dask_onnx.runtime.session import Session, build_session
from dask_onnx.store.weight_store import Store

_ROWS, _WIDTH = 2048, 512
"""Values of 4 MiB, as common models have: less would stay in the caches of one core, and then
neighbours do not slow each other down."""


@dataclass(frozen=True, slots=True)
class Laps:
    """What the piece took where it ran."""

    cpu: str
    """Which CPU that is, as `cpu_identity` says."""
    seconds: tuple[float, ...]
    """One number a run."""


def run_laps(count: int) -> Laps:
    """Run it so often, on one thread: a dense layer, an activation as transformers have it behind
    one, and a second layer; some hundredths of a second."""
    session, x = _session(), np.ones((_ROWS, _WIDTH), np.float32)
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        session.run([x])
        taken.append(time.perf_counter() - began)
    return Laps(cpu_identity(), tuple(taken))


@functools.cache
def _session() -> Session:
    weight = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["y"]),
    ]
    return session_of(nodes, {"w": weight}, "treadmill")


def session_of(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, np.ndarray], label: str
) -> Session:
    """Of nodes that make a float y of a float x, on one thread."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(list(nodes), label, ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return build_session(
        proto.SerializeToString(),
        Store().blobs,
        SessionSpec(intra_op_num_threads=1),
        weight_bytes=sum(weight.nbytes for weight in weights.values()),
        label=label,
    )
