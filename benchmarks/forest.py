"""Cost of a large model to the scheduler: a forest of 200 MB over 10 and 1,000 partitions.

    python benchmarks/forest.py --output benchmarks/results

Each contestant has a new scheduler process, two workers, and a table with a few rows a partition.
Measured are the bytes of the graph that is sent, the growth of the scheduler's memory at its peak,
and the seconds to the result. A contestant that takes longer than `--limit` seconds is stopped, and
the number of finished partitions is reported.

- ours: `model.predict(ddf)`
- argument: `map_partitions` with the model's bytes as an argument
- dask-ml: `ParallelPostFit(forest).predict` (left out if dask-ml is not installed)
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.dataframe as dd
import numpy as np
import onnxruntime
import pandas as pd
import psutil
from common import print_table, write_json
from distributed import Client, futures_of, wait
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestRegressor

import dask_onnx as dx

COLUMNS = [f"x{i}" for i in range(8)]
META = pd.DataFrame({"y": np.empty(0, np.float32)})


def forest(megabytes: int) -> tuple[RandomForestRegressor, bytes]:
    """Return a forest fitted on noise, and its ONNX form of about `megabytes`."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20_000, len(COLUMNS))).astype("f4"), rng.standard_normal(20_000)
    fitted = RandomForestRegressor(10, random_state=0, n_jobs=2).fit(x, y)
    size = len(to_onnx(fitted, x[:1]).SerializeToString())
    wanted = max(1, round(10 * megabytes * 2**20 / size))
    fitted = RandomForestRegressor(wanted, random_state=0, n_jobs=2).fit(x, y)
    return fitted, to_onnx(fitted, x[:1]).SerializeToString()


def table(partitions: int) -> dd.DataFrame:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        rng.standard_normal((10 * partitions, len(COLUMNS))).astype("f4"), columns=COLUMNS
    )
    return dd.from_pandas(frame, npartitions=partitions)


def with_argument(part: pd.DataFrame, model: bytes) -> pd.DataFrame:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"X": part.to_numpy()})[0]
    return pd.DataFrame({"y": found.reshape(-1)}, index=part.index)


@contextmanager
def own_cluster(folder: Path) -> Iterator[tuple[Client, psutil.Process]]:
    """Start a scheduler and two workers; yield a client and the scheduler's process."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    run = [sys.executable, "-m", "distributed.cli.dask_spec"]
    scheduler = subprocess.Popen(
        [
            *run,
            "--spec",
            '{"cls": "dask.distributed.Scheduler", "opts": {"port": 0, "dashboard": '
            f'false, "scheduler_file": "{file}"}}}}',
        ],
        stderr=subprocess.DEVNULL,
    )
    while not file.exists() or not file.read_text().endswith("}"):
        time.sleep(0.1)
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                "--scheduler-file",
                str(file),
                "--nthreads",
                "1",
                "--no-dashboard",
                "--local-directory",
                str(folder),
            ],
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parent,
        )
        for _ in range(2)
    ]
    try:
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2)
            yield client, psutil.Process(scheduler.pid)
    finally:
        for process in (*workers, scheduler):
            process.terminate()
        for process in (*workers, scheduler):
            process.wait()


def import_unpickled_modules() -> None:
    """Import modules that the scheduler loads for any such graph: not a cost of the model."""
    for name in ("dask_onnx.collections.dataframe", "onnxruntime", "sklearn.ensemble"):
        importlib.import_module(name)
    if importlib.util.find_spec("dask_ml"):
        importlib.import_module("dask_ml.wrappers")


class Peak:
    """Sampler of the peak memory of a process."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._stop = process, threading.Event()
        self.before = self.most = process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.most - self.before


def measure(
    build: Callable[[], Any], partitions: int, folder: Path, limit: float
) -> dict[str, Any]:
    with own_cluster(folder) as (client, scheduler):
        dx.configure(client)
        client.run_on_scheduler(import_unpickled_modules)
        lazy = build()
        graph = dask.optimize(lazy)[0].__dask_graph__()
        size = len(cloudpickle.dumps(graph, protocol=pickle.HIGHEST_PROTOCOL))
        peak = Peak(scheduler)
        began = time.perf_counter()
        futures = futures_of(client.persist(lazy))
        try:
            wait(futures, timeout=limit)
        except TimeoutError:
            pass
        else:
            assert all(future.status == "finished" for future in futures)
        seconds = time.perf_counter() - began
        done = sum(future.status == "finished" for future in futures)
        return {
            "partitions": partitions,
            "done": done,
            "graph_bytes": size,
            "scheduler_peak_bytes": peak.stop(),
            "seconds": round(seconds, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--limit", type=float, default=120, help="seconds for each contestant")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        dask.config.set({"onnx.store.directory": f"{name}/store"}),
    ):
        folder = Path(name)
        fitted, proto = forest(arguments.megabytes)
        path = folder / "forest.onnx"
        path.write_bytes(proto)
        results["model_bytes"] = len(proto)
        for partitions in (10, 1000):
            ddf = table(partitions)
            builds: dict[str, Callable[[], Any]] = {
                "ours": lambda d=ddf: dx.load(path).predict(d),
                "argument": lambda d=ddf: d.map_partitions(with_argument, proto, meta=META),
            }
            if importlib.util.find_spec("dask_ml"):
                from dask_ml.wrappers import ParallelPostFit

                builds["dask-ml"] = lambda d=ddf: ParallelPostFit(fitted).predict(d)
            for contestant, build in builds.items():
                found = measure(build, partitions, folder, arguments.limit)
                results.setdefault(contestant, []).append(found)
                print(contestant, found, flush=True)
    print_table(
        f"a model of {results['model_bytes'] / 2**20:.0f} MiB",
        ["", "partitions", "done", "graph", "scheduler's peak", "seconds"],
        [
            [
                contestant,
                f"{found['partitions']:,}",
                f"{found['done']:,}",
                f"{found['graph_bytes'] / 2**20:,.2f} MiB",
                f"{found['scheduler_peak_bytes'] / 2**20:,.0f} MiB",
                f"{found['seconds']:.1f}",
            ]
            for contestant, rows in results.items()
            if isinstance(rows, list)
            for found in rows
        ],
    )
    if arguments.output:
        write_json(arguments.output, "forest", results)


if __name__ == "__main__":
    main()
