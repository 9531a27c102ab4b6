"""Limits of Dask's scheduler: from 16 to 256 workers, from 10^4 to 10^6 tasks of 10 ms to 1 s.

The scheduler is a process of its own (`dask scheduler`); the workers are simulated, many in one
process, and run a model whose kernels sleep. Scheduler, client and all workers share the cores of
this machine, so that the busy share of workers is a lower bound. The scheduler's CPU seconds per
task are its own: with a core to itself, it can start the inverse of them, tasks per second.

python benchmarks/scale.py --output benchmarks/results
python benchmarks/scale.py --output benchmarks/results --short
python benchmarks/scale.py --output benchmarks/results --only graphs --chunks 100000 1000000
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.config
import dask.dataframe as dd
import numpy as np
import psutil
from common import print_table, write_json
from dask.base import collections_to_expr
from distributed import Client, wait
from distributed.protocol import serialize, to_serialize
from distributed.utils import nbytes
from scale_stubs import PARTS, make_partition, stall, stub_model, take_spans

import dask_onnx as dx

_CHUNKS = (10_000, 30_000, 100_000, 1_000_000)
_WORKERS = (16, 64, 256)
_SECONDS = (0.01, 0.1, 1.0)
_BY_HAND = "map_blocks"
"""A hand-made `map_blocks` of the same sleep, without dask_onnx."""
_PLANS = (_BY_HAND, "whole", "grouped", "fused(4)", "pipeline(4)", "table")
_CUT = ("fused(4)", "pipeline(4)")
_WORKERS_PER_PROCESS = 64
_RUN_SECONDS = 15.0
"""Seconds for which workers have work in one run, if the number of tasks allows."""
_MOST_TASKS = 20_000
"""Most tasks of a run, unless asked for otherwise."""
_SAMPLE_SECONDS = 0.2
_GROUP = 10
"""Chunks of a task of the plan "grouped"."""


def lazy_chunks(chunks: int) -> da.Array:
    """Return float32, shape (chunks, 4), in chunks of one row."""
    return da.zeros((chunks, 4), chunks=(1, 4), dtype=np.float32)


def _folder() -> Path:
    """Return the folder of the model's file and of the store, which all processes share."""
    return Path(dask.config.get("onnx.store.directory"))


def builder(name: str, seconds: float, chunks: int) -> Callable[[], Any]:
    """Return the function that builds the lazy prediction of a plan."""
    if name == _BY_HAND:
        share = np.array([seconds], np.float32)
        return lambda: lazy_chunks(chunks).map_blocks(stall, share, dtype=np.float32)
    model = stub_model(seconds, _folder())
    if name == "table":
        table = dd.from_map(make_partition, range(chunks), meta=make_partition(0).iloc[:0])
        return lambda: model.predict(table, columns=list("abcd"))
    x = lazy_chunks(chunks)
    options: dict[str, Any] = {"n_stages": PARTS} if name in _CUT else {}
    strategy = "whole" if name == "grouped" else name.partition("(")[0]
    plan = model.plan(strategy, **options)
    if name == "grouped":
        plan = plan.with_chunks_per_task(_GROUP)
    return lambda: model.predict(x, plan=plan)


def tasks_of(name: str, chunks: int) -> int:
    """Return the tasks that a plan makes of so many chunks."""
    if name == "grouped":
        return -(-chunks // _GROUP)
    return chunks * (PARTS + 1) if name in _CUT else chunks  # the input is a task of its own


def graphs(plans: Sequence[str], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure what the client needs to build a graph, and to pack it as it is sent."""
    rows = []
    for name in plans:
        for chunks in sizes:
            build = builder(name, 0.1, chunks)
            builder(name, 0.1, 2)()  # analyses the model, imports modules
            gc.collect()
            resident = psutil.Process().memory_info().rss
            began = time.process_time()
            lazy = build()
            built = time.process_time()
            sent = _packed_bytes(lazy)
            packed = time.process_time()
            rows.append(
                {
                    "plan": name,
                    "chunks": chunks,
                    "build_cpu_seconds": round(built - began, 3),
                    "send_cpu_seconds": round(packed - built, 3),
                    "bytes_a_chunk": round(sent / chunks, 1),
                    "client_bytes_a_chunk": round(
                        max(psutil.Process().memory_info().rss - resident, 0) / chunks
                    ),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _packed_bytes(lazy: Any) -> int:
    """Return the bytes that `Client.persist` sends for a collection."""
    if isinstance(lazy, dd.DataFrame):
        lazy = lazy.optimize()
    expression = collections_to_expr([lazy]).optimize()
    header, frames = serialize(to_serialize(expression))
    return sum(map(nbytes, [header, *frames]))


@dataclass(frozen=True)
class Site:
    """A scheduler with simulated workers."""

    client: Client
    scheduler: psutil.Process
    hosts: tuple[psutil.Process, ...]
    """Processes of the workers."""
    workers: int


@contextlib.contextmanager
def site(workers: int) -> Iterator[Site]:
    """Start a scheduler and simulated workers, and end them."""
    environment = {
        **os.environ,
        "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
        "DASK_ONNX__STORE__DIRECTORY": str(_folder()),
        "PYTHONPATH": os.pathsep.join(
            [str(Path.cwd()), *sys.path[:1], os.environ.get("PYTHONPATH", "")]
        ),
    }
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(_end, started)
        found = Path(folder) / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
        command += ["--port", "0", "--no-dashboard", "--scheduler-file", str(found)]
        log = stack.enter_context((Path(folder) / "log").open("wb"))
        started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        client = stack.enter_context(Client(scheduler_file=str(found), timeout=60))
        address = client.scheduler.address
        for first in range(0, workers, _WORKERS_PER_PROCESS):
            count = min(_WORKERS_PER_PROCESS, workers - first)
            host = [sys.executable, str(Path(__file__).with_name("scale_stubs.py"))]
            started.append(
                subprocess.Popen([*host, address, str(count)], env=environment, stderr=log)
            )
        client.wait_for_workers(workers, timeout=180)
        with dask.config.set({"onnx.plan.calibrate": False}):
            dx.configure(client)
        scheduler, *hosts = (psutil.Process(each.pid) for each in started)
        yield Site(client, scheduler, tuple(hosts), workers)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.terminate()
    for process in started:
        process.wait(timeout=60)


def _cpu(*processes: psutil.Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


def run(place: Site, name: str, seconds: float, chunks: int) -> dict[str, Any]:
    """Run a plan and return the busy share of workers, and CPU and memory per task."""
    lazy = builder(name, seconds, chunks)()
    tasks = tasks_of(name, chunks)
    client, scheduler = place.client, place.scheduler
    _spans(client)
    cpu, host_cpu, own_cpu = _cpu(scheduler), _cpu(*place.hosts), time.process_time()
    resident, began = scheduler.memory_info().rss, time.time()
    with Peak(scheduler) as peak:
        futures = lazy.persist()  # unlike Client.persist, it fuses the tasks of tables
        wait(futures)
    ended = time.time()
    cpu_run, host_cpu_run = _cpu(scheduler) - cpu, _cpu(*place.hosts) - host_cpu
    spans = _spans(client)
    first = min(start for start, _ in spans)
    window = max(stop for _, stop in spans) - first
    row = {
        "workers": place.workers,
        "plan": name,
        "task_seconds": seconds * {"grouped": _GROUP}.get(name, 1) / (PARTS if name in _CUT else 1),
        "chunks": chunks,
        "tasks": tasks,
        "busy": round(seconds * chunks / (place.workers * window), 3),
        "wall_seconds": round(ended - began, 2),
        "start_seconds": round(first - began, 2),
        "scheduler_cpu_ms_a_task": round(1e3 * cpu_run / tasks, 3),
        "scheduler_bytes_a_task": round(max(peak.bytes - resident, 0) / tasks),
        "worker_cpu_ms_a_task": round(1e3 * host_cpu_run / tasks, 3),
        "client_cpu_ms_a_task": round(1e3 * (time.process_time() - own_cpu) / tasks, 3),
        "tasks_a_second_with_a_core": round(tasks / cpu_run),
    }
    del futures, lazy
    gc.collect()
    print(row, flush=True)
    return row


class Peak:
    """Most bytes of memory of a process while a block of code runs."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.bytes = process, process.memory_info().rss
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def _spans(client: Client) -> list[tuple[float, float]]:
    """Return the sleeps of all workers since the last call; workers of a process share them."""
    return [span for spans in client.run(take_spans).values() for span in spans]


def runs(workers: Sequence[int], seconds: Sequence[float], plans: Sequence[str], most: int) -> Any:
    """Run all combinations; the table and the cut plans with tasks of 100 ms only."""
    rows = []
    for count in workers:
        with site(count) as place:
            run(place, "whole", 0.01, 10 * count)  # imports modules, fills caches
            for name in plans:
                for each in seconds if name in (_BY_HAND, "whole") else [0.1]:
                    chunks = int(min(max(_RUN_SECONDS * count / each, 10 * count), most))
                    rows.append(run(place, name, each, chunks))
    return rows


def many(workers: int, chunks: Sequence[int]) -> list[dict[str, Any]]:
    """Run large numbers of tasks of 10 ms, to see whether costs per task stay the same."""
    with site(workers) as place:
        run(place, "whole", 0.01, 10 * workers)
        return [run(place, "whole", 0.01, each) for each in chunks]


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table."""
    if rows:
        body = [[str(value) for value in row.values()] for row in rows]
        print_table(title, [name.replace("_", " ") for name in rows[0]], body)


def main(arguments: argparse.Namespace) -> None:
    """Measure what was asked for, and write it."""
    short = arguments.short
    sizes = arguments.chunks or ((1000, 10_000) if short else _CHUNKS)
    workers = arguments.workers or ((16,) if short else _WORKERS)
    seconds = arguments.seconds or ((0.1,) if short else _SECONDS)
    most = arguments.most_tasks or (400 if short else _MOST_TASKS)
    found: dict[str, Any] = {
        "note": (
            "scheduler, client and all simulated workers share the cores of this machine; "
            "tasks_a_second_with_a_core is 1 / (scheduler's CPU seconds per task)"
        )
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(
            {
                "onnx.store.directory": folder,
                "distributed.worker.profile.enabled": False,
                "distributed.admin.large-graph-warning-threshold": "1 GiB",
            }
        ),
    ):
        if arguments.only in (None, "graphs"):
            found["graphs"] = graphs(arguments.plans, sizes)
        if arguments.only in (None, "runs"):
            found["runs"] = runs(workers, seconds, arguments.plans, most)
        if arguments.only == "many" or (arguments.only is None and not short):
            found["many"] = many(workers[0], [size for size in sizes if size <= 100_000])
    for title in ("graphs", "runs", "many"):
        show(title, found.get(title, []))
    name = "scale" if arguments.only is None else f"scale_{arguments.only}"
    print(f"\n{write_json(arguments.output, name + ('_short' if short else ''), found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="small sizes, under two minutes")
    parser.add_argument("--only", choices=("graphs", "runs", "many"), help="measure one part")
    parser.add_argument("--chunks", type=int, nargs="+", help="numbers of chunks of graphs")
    parser.add_argument("--workers", type=int, nargs="+", help="numbers of workers")
    parser.add_argument("--seconds", type=float, nargs="+", help="seconds of a chunk's work")
    parser.add_argument("--most-tasks", type=int, help="most chunks of a run")
    parser.add_argument("--plans", nargs="+", choices=_PLANS, default=_PLANS)
    main(parser.parse_args())
