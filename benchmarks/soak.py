"""Memory over time: many batches through two workers, and the memory of their processes.

python benchmarks/soak.py --assets .cache/assets --output benchmarks/results
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
from common import print_table, reduced, write_json
from distributed import Client, LocalCluster, as_completed, futures_of

import dask_onnx as dx

ROWS = 8
"""Rows of a batch."""


def resident() -> int:
    """Return the resident bytes of this process, as Dask's memory monitor counts them."""
    size: int = psutil.Process().memory_info().rss
    return size


def block(offset: np.ndarray) -> np.ndarray:
    """Return the characters of a batch inside a task: float32, shape (rows, 21)."""
    rng = np.random.default_rng(int(offset[0]))
    return rng.integers(0, 12, (len(offset), 21)).astype("f4")


def main(assets: Path, output: Path | None, batches: int, strategy: str) -> None:
    marks = sorted({batches // 10, batches // 4, batches // 2, batches})
    memory: dict[int, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        model = dx.load(assets / "deepcut.onnx")
        offsets = da.arange(batches * ROWS, chunks=ROWS)
        x = offsets.map_blocks(
            block, new_axis=1, chunks=(offsets.chunks[0], (21,)), dtype="f4", meta=np.empty((0, 0))
        ).astype("f4")
        names = [spec.name for spec in model.inputs]
        plan = model.plan(strategy, **({"n_stages": 3} if strategy == "fused" else {}))
        lazy = reduced(model.predict(dict.fromkeys(names, x), plan=plan))
        began = time.perf_counter()
        arrivals = as_completed(futures_of(client.persist(lazy)))
        for done, future in enumerate(arrivals, start=1):
            # A worker keeps some kilobytes for each task whose result a client holds.
            future.release()
            if done in marks:
                sizes = list(client.run(resident).values())
                memory[done] = {
                    **{f"worker {i}": round(size / 2**20, 1) for i, size in enumerate(sizes)},
                    "scheduler and client": round(resident() / 2**20, 1),
                }
        seconds = time.perf_counter() - began
    columns = list(memory[marks[0]])
    print_table(
        f"{batches} batches of {ROWS} rows, strategy {strategy}, {seconds:.0f} s; resident MiB",
        ["after", *columns],
        [[str(mark), *(str(memory[mark][c]) for c in columns)] for mark in marks],
    )
    if output:
        results: dict[str, Any] = {"batches": batches, "strategy": strategy, "mib": memory}
        write_json(output, f"soak_{strategy}", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--strategy", choices=["whole", "fused"], default="whole")
    arguments = parser.parse_args()
    main(arguments.assets, arguments.output, arguments.batches, arguments.strategy)
