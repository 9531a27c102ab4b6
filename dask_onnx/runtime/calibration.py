"""How fast this host's CPU is on one thread: a fraction of a second of small models, kept in the
store."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.cost import CostTable
from dask_onnx.core.errors import StoreError
from dask_onnx.runtime.cores import host_digest
from dask_onnx.runtime.reference_workload import session_of
from dask_onnx.store.weight_store import Store

_RUNS = 10
"""So many that a neighbour does not slow all of them down: what is found stays."""
_SIDE = 512
_CHANNELS, _PIXELS = 64, 56
_ELEMENTS = 2**22
_NODES = 200
_TREES, _DEPTH, _FEATURES, _ROWS = 100, 6, 32, 256


def noted_calibration() -> CostTable | None:
    """What was measured on this CPU; None if nothing was."""
    try:
        noted = Store().measured(_name())
    except StoreError:
        return None
    return None if noted is None else CostTable(**noted)


def calibrate() -> CostTable:
    """Measure, and keep it. A matrix product and a convolution give operations a second, a sum of
    16 MiB bytes a second, a forest what a step down a tree takes, and a chain of tiny nodes what
    each of them costs besides."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    kernels = rng.standard_normal((_CHANNELS, _CHANNELS, 3, 3), dtype=np.float32)
    product = _seconds([helper.make_node("MatMul", ["x", "w"], ["y"])], square.shape, square)
    convolution = _seconds(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        (1, _CHANNELS, _PIXELS, _PIXELS),
        kernels,
    )
    total = _seconds([helper.make_node("Neg", ["x"], ["y"])], (_ELEMENTS,))
    names = ["x", *(f"v{i}" for i in range(_NODES - 1)), "y"]
    chain = [
        helper.make_node("Tanh", [before], [after]) for before, after in itertools.pairwise(names)
    ]
    table = CostTable(
        flops_per_second=2 * _SIDE**3 / product,
        conv_flops_per_second=2 * kernels.size * _PIXELS**2 / convolution,
        bytes_per_second=2 * 4 * _ELEMENTS / total,
        seconds_per_tree_step=_tree_step_seconds(rng),
        seconds_per_node=_seconds(chain, (8,)) / _NODES,
    )
    Store().note_measured(
        _name(),
        {
            "flops_per_second": table.flops_per_second,
            "conv_flops_per_second": table.conv_flops_per_second,
            "bytes_per_second": table.bytes_per_second,
            "seconds_per_tree_step": table.seconds_per_tree_step,
            "seconds_per_node": table.seconds_per_node,
        },
    )
    return table


def _tree_step_seconds(rng: np.random.Generator) -> float:
    """Of a forest of complete trees on random features, which no cache can guess."""
    inner, leaves = 2**_DEPTH - 1, 2**_DEPTH
    number = np.arange(inner)
    size = inner + leaves
    below = np.zeros((2, size), np.int64)
    below[:, :inner] = 2 * number + 1, 2 * number + 2
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=np.repeat(np.arange(_TREES), size).tolist(),
        nodes_nodeids=np.tile(np.arange(size), _TREES).tolist(),
        nodes_featureids=rng.integers(0, _FEATURES, _TREES * size).tolist(),
        nodes_values=rng.standard_normal(_TREES * size).tolist(),
        nodes_modes=(["BRANCH_LEQ"] * inner + ["LEAF"] * leaves) * _TREES,
        nodes_truenodeids=np.tile(below[0], _TREES).tolist(),
        nodes_falsenodeids=np.tile(below[1], _TREES).tolist(),
        target_treeids=np.repeat(np.arange(_TREES), leaves).tolist(),
        target_nodeids=np.tile(np.arange(inner, size), _TREES).tolist(),
        target_ids=[0] * (_TREES * leaves),
        target_weights=[1.0] * (_TREES * leaves),
    )
    rows = rng.standard_normal((_ROWS, _FEATURES), dtype=np.float32)
    return _seconds([node], rows.shape, x=rows) / (_ROWS * _TREES * _DEPTH)


def _seconds(
    nodes: Sequence[onnx.NodeProto],
    shape: tuple[int, ...],
    weight: np.ndarray | None = None,
    x: np.ndarray | None = None,
) -> float:
    """The fastest of a few runs from x, by default ones, to y."""
    session = session_of(nodes, {} if weight is None else {"w": weight}, "calibration")
    x = np.ones(shape, np.float32) if x is None else x
    taken = []
    for _ in range(_RUNS + 1):  # the first warms up
        began = time.perf_counter()
        session.run([x])
        taken.append(time.perf_counter() - began)
    return max(min(taken[1:]), 1e-9)


def _name() -> str:
    return f"calibration-{host_digest()}"
