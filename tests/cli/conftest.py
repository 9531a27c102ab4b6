from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from onnx import TensorProto, helper, numpy_helper

from dask_onnx.cli import main

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="session")
def scheduler():
    """Address of a cluster of two processes, whose workers can import `steps`."""
    sys.path.insert(0, HERE)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address
    sys.path.remove(HERE)


@pytest.fixture
def run():
    """Run a command in this process; return its exit code and what it printed."""

    def run(*arguments: object, input: str | None = None) -> SimpleNamespace:  # noqa: A002 - as click names it
        texts = [str(argument) for argument in arguments]
        result = CliRunner().invoke(main, texts, input=input, prog_name="dask-onnx")
        return SimpleNamespace(
            code=result.exit_code,
            out=result.stdout,
            err=result.stderr,
            json=lambda: json.loads(result.stdout),
            error=lambda: json.loads(result.stdout)["error"],
        )

    return run


@pytest.fixture
def model(tmp_path) -> Path:
    """x float32 (N, 4) -> y = relu(x W) (N, 3), with s = sum over columns (N, 1)."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["m"], name="project"),
            helper.make_node("Relu", ["m"], ["y"], name="activate"),
            helper.make_node("ReduceSum", ["y"], ["s"], name="total", keepdims=1, axes=[1]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 1]),
        ],
        [numpy_helper.from_array(weights, "W")],
    )
    path = tmp_path / "tiny.onnx"
    opset = [helper.make_opsetid("", 11)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(25 * 4, dtype=np.float32).reshape(25, 4))
    return path
