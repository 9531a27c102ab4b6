"""Stub kernels that sleep instead of computing, and a process of many workers that run them."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import onnx
import pandas as pd
from distributed import Worker
from onnx import TensorProto, helper, numpy_helper

import dask_onnx as dx

PARTS = 4
"""Stages that the stub model can be cut into."""

_SPANS: list[tuple[float, float]] = []
"""Start and end of each sleep of this process, by `time.time`."""


def stall(x: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Sleep, and return the input: stands in for a kernel that takes so long."""
    began = time.time()
    time.sleep(float(seconds[0]))
    _SPANS.append((began, time.time()))
    return x


def keep(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Return the first input: joins two branches, so that the model can be cut there."""
    return x


stall.axes = keep.axes = "independent"  # type: ignore[attr-defined]  # read by dask_onnx.load


def stub_model(seconds: float, folder: Path) -> dx.Model:
    """Return a model x (N, 4) -> y (N, 4) whose parts sleep for `seconds` together.

    It is a file in `folder`, which the workers read: Dask fuses its tasks with those of the input.
    """
    nodes, weights, last = [], [], "x"
    for part in range(PARTS):
        share = np.array([seconds / PARTS], np.float32)
        weights.append(numpy_helper.from_array(share, f"seconds_{part}"))
        result = "y" if part == PARTS - 1 else f"value_{part}"
        nodes += [
            helper.make_node("Mul", [last, f"seconds_{part}"], [f"slept_{part}"]),
            helper.make_node("Add", [f"slept_{part}", last], [result]),
        ]
        last = result
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "stub",
        [value("x", TensorProto.FLOAT, ["N", 4])],
        [value("y", TensorProto.FLOAT, ["N", 4])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"stub_{seconds}.onnx"
    onnx.save(proto, path)
    return dx.load(path, replace={"Mul": stall, "Add": keep}, name="stub")


def make_partition(_: int) -> pd.DataFrame:
    """Return a partition of one row, shape (1, 4)."""
    return pd.DataFrame(np.zeros((1, 4), np.float32), columns=list("abcd"))


def take_spans() -> list[tuple[float, float]]:
    """Return the sleeps of this process since the last call."""
    found = _SPANS[:]
    _SPANS.clear()
    return found


async def run_workers(scheduler: str, count: int) -> None:
    """Run workers of one thread each in this process until the scheduler closes them."""
    workers = [
        Worker(scheduler, nthreads=1, memory_limit=0, dashboard=False, name=f"{time.time_ns()}-{i}")
        for i in range(count)
    ]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))


QUIET: dict[str, Any] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.multiprocessing-method": "spawn",
}
"""Settings of simulated workers: what a process does once per worker counts many times here."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scheduler")
    parser.add_argument("workers", type=int)
    arguments = parser.parse_args()
    with dask.config.set(QUIET):
        asyncio.run(run_workers(arguments.scheduler, arguments.workers))
