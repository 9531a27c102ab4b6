"""Speed of this host's CPU on one thread, measured by small models and kept in the store."""

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
from dask_onnx.runtime.reference_workload import session_of_nodes
from dask_onnx.store.weight_store import Store

_RUNS = 10
"""Runs of each model, so that other processes do not slow down all of them: the result is kept."""
_SIDE = 512
"""Rows and columns of the matrices."""
_CHANNELS, _PIXELS = 64, 56
"""Channels, height and width of the convolution."""
_ELEMENTS = 2**22
"""Values of the element-wise operator: 16 MiB, more than the caches of one core."""
_NODES = 200
"""Nodes of the chain."""
_TREES, _DEPTH, _FEATURES, _ROWS = 100, 6, 32, 256
"""Size of the forest and of its input."""


def saved_calibration() -> CostTable | None:
    """Return the speeds that were measured on this CPU; None without any."""
    try:
        saved = Store().measurement(_name())
    except StoreError:
        return None
    return None if saved is None else CostTable(**saved)


def calibrate() -> CostTable:
    """Measure the speeds of this CPU, and save them in the store.

    A matrix product and a convolution give FLOPs per second, an element-wise operator on 16 MiB
    gives bytes per second, a forest the seconds of a step down a tree, and a chain of tiny nodes
    the seconds of a node besides its work. Takes a fraction of a second.

    Raises
    ------
    StageError
        ORT cannot run the models.
    StoreError
        The store cannot be written.
    """
    rng = np.random.default_rng(0)
    square = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    kernels = rng.standard_normal((_CHANNELS, _CHANNELS, 3, 3), dtype=np.float32)
    product = _seconds([helper.make_node("MatMul", ["x", "w"], ["y"])], square.shape, square)
    convolution = _seconds(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        (1, _CHANNELS, _PIXELS, _PIXELS),
        kernels,
    )
    elementwise = _seconds([helper.make_node("Neg", ["x"], ["y"])], (_ELEMENTS,))
    names = ["x", *(f"v{i}" for i in range(_NODES - 1)), "y"]
    chain = [
        helper.make_node("Tanh", [before], [after]) for before, after in itertools.pairwise(names)
    ]
    speeds = {
        "flops_per_second": 2 * _SIDE**3 / product,
        "conv_flops_per_second": 2 * kernels.size * _PIXELS**2 / convolution,
        "bytes_per_second": 2 * 4 * _ELEMENTS / elementwise,
        "seconds_per_tree_step": _tree_step_seconds(rng),
        "seconds_per_node": _seconds(chain, (8,)) / _NODES,
    }
    Store().save_measurement(_name(), speeds)
    return CostTable(**speeds)


def _tree_step_seconds(rng: np.random.Generator) -> float:
    """Return the seconds of a step down a complete tree, on features that no cache can predict."""
    inner, leaves = 2**_DEPTH - 1, 2**_DEPTH
    number = np.arange(inner)
    size = inner + leaves
    children = np.zeros((2, size), np.int64)
    children[:, :inner] = 2 * number + 1, 2 * number + 2
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
        nodes_truenodeids=np.tile(children[0], _TREES).tolist(),
        nodes_falsenodeids=np.tile(children[1], _TREES).tolist(),
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
    """Return the seconds of the fastest run from x, ones by default, to y."""
    session = session_of_nodes(nodes, {} if weight is None else {"w": weight}, "calibration")
    x = np.ones(shape, np.float32) if x is None else x
    taken = []
    for _ in range(_RUNS + 1):  # the first warms up
        began = time.perf_counter()
        session.run([x])
        taken.append(time.perf_counter() - began)
    return max(min(taken[1:]), 1e-9)


def _name() -> str:
    return f"calibration-{host_digest()}"
