"""Check a prediction on workers that dask-jobqueue starts, without a batch system.

    pip install dask-jobqueue
    python benchmarks/jobqueue.py

dask-jobqueue's own class for tests, `dask_jobqueue.local.LocalCluster`, writes the job scripts that
a batch system would run, and runs them as processes of this host. Workers start with the preload
``dask_onnx.worker``, so that the first task finds its session.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def saved_model(path: Path) -> Path:
    """Write a dense layer, from x to y, float32 (N, 64)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def built() -> int:
    from dask_onnx.runtime.session_cache import SESSION_CACHE

    return SESSION_CACHE.built


def check(folder: Path, jobs: int) -> None:
    import dask.array as da
    from dask_jobqueue.local import LocalCluster
    from distributed import Client

    import dask_onnx as dx

    path = saved_model(folder / "dense.onnx")
    os.environ["DASK_ONNX__STORE__DIRECTORY"] = str(folder / "store")
    # The workers are on one host, whose cores their sessions share.
    preload = ["--preload", "dask_onnx.worker", "--model", str(path), "--host-threads", str(jobs)]
    options: dict[str, Any] = {"cores": 1, "processes": 1, "memory": "2GB"}
    with (
        LocalCluster(
            **options,
            local_directory=str(folder / "scratch"),
            log_directory=str(folder / "logs"),
            worker_extra_args=preload,
            scheduler_options={"dashboard_address": ":0"},
        ) as cluster,
        Client(cluster) as client,
    ):
        print(cluster.job_script().strip())
        cluster.scale(jobs=jobs)
        client.wait_for_workers(jobs, timeout=90)
        before = client.run(built)
        model = dx.load(path)
        x = np.random.default_rng(1).standard_normal((400, 64)).astype(np.float32)
        lazy = model.predict(da.from_array(x, chunks=(20, 64)), batch_size=None)
        found, after = lazy.compute(), client.run(built)
        worst = float(np.abs(found - model(x)).max())
        print(f"{jobs} jobs, {len(before)} workers; largest difference {worst:.1e}")
        print(
            f"sessions before the first task {list(before.values())}, after {list(after.values())}"
        )
        assert worst < 1e-4
        assert min(before.values()) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if importlib.util.find_spec("dask_jobqueue") is None:
        print("dask-jobqueue is not installed")
        sys.exit(1)
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), arguments.jobs)


if __name__ == "__main__":
    main()
