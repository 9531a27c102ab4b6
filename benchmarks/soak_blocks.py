"""Memory of client, scheduler and workers while one job computes very many blocks.

    python benchmarks/soak_blocks.py [--blocks 1000 10000 100000]

For each number of blocks, a job of `predict_files` with one row in each block runs on two workers;
the table has the peak of the resident memory of each process, in MiB, and blocks per second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
from distributed import Client, LocalCluster
from onnx import TensorProto, helper

import dask_onnx as dx

_MIB = 2**20
_SAMPLE_SECONDS = 0.5


class PeakMemory(threading.Thread):
    """Samples of the resident memory of processes, of which the peak of each is kept."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        super().__init__(daemon=True)
        self.processes, self.peaks = processes, dict.fromkeys(processes, 0.0)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_SAMPLE_SECONDS):
            for name, process in self.processes.items():
                self.peaks[name] = max(self.peaks[name], process.memory_info().rss / _MIB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1000, 10_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model.onnx")
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            workers = client.run(os.getpid)
            for count in options.blocks:
                report(folder, client, list(workers.values()), count)


def save_model(path: Path) -> None:
    """Write x (N, 4) -> y (N, 4) = relu x."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "soak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def report(folder: Path, client: Client, workers: list[int], count: int) -> None:
    """Run a job of so many blocks and print its row of the table."""
    np.save(folder / "x.npy", np.zeros((count, 4), np.float32))
    processes = {"client and scheduler": psutil.Process()}
    processes |= {f"worker {i}": psutil.Process(pid) for i, pid in enumerate(workers)}
    memory = PeakMemory(processes)
    memory.start()
    began = time.perf_counter()
    found = dx.predict_files(
        *(folder / "model.onnx", folder / "x.npy", folder / "y.npy"),
        scheduler=client,
        block_rows=1,
        batch_size=1,
        overwrite=True,
    )
    memory.ended.set()
    memory.join()
    peaks = ", ".join(f"{name} {peak:,.0f} MiB" for name, peak in memory.peaks.items())
    rate = found.blocks / (time.perf_counter() - began)
    print(f"{found.blocks:>9,} blocks, {rate:,.0f} blocks/s: {peaks}", flush=True)


if __name__ == "__main__":
    main()
