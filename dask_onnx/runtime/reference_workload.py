"""Reference workload: a small model whose time compares CPUs, and tasks with and without others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.core.process_caches import cached_in_process
from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime.cores import cpu_identity
from dask_onnx.runtime.session import Session, build_session
from dask_onnx.store.weight_store import Store

_ROWS, _WIDTH = 2048, 512
"""Shape of the values: 4 MiB, as common models have. Smaller ones would stay in the caches of one
core, and then tasks on other cores do not slow each other down."""


@dataclass(frozen=True, slots=True)
class WorkloadTimes:
    """Times of the reference workload in one process."""

    cpu: str
    """CPU that ran it, as `cpu_identity` returns."""
    seconds: tuple[float, ...]
    """Seconds of each run."""


def time_workload(count: int) -> WorkloadTimes:
    """Run the reference workload `count` times on one thread.

    It is a dense layer, the activation that transformers have behind one, and a second layer;
    some hundredths of a second.
    """
    session, x = _workload(), np.ones((_ROWS, _WIDTH), np.float32)
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        session.run([x])
        taken.append(time.perf_counter() - began)
    return WorkloadTimes(cpu_identity(), tuple(taken))


@cached_in_process("reference workload sessions")
def _workload() -> Session:
    weight = np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["y"]),
    ]
    return session_of_nodes(nodes, {"w": weight}, "reference_workload")


def session_of_nodes(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, np.ndarray], label: str
) -> Session:
    """Build a session of nodes that make a float y of a float x, on one thread.

    Parameters
    ----------
    nodes : sequence of NodeProto
        Nodes in topological order.
    weights : mapping of str to ndarray
        Initializers by name.
    label : str
        Name of the model in errors.

    Raises
    ------
    StageError
        ORT cannot run the nodes.
    """
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
