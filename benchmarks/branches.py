"""Branches: one request of a wide graph, its branches in parallel, against ONNX Runtime alone.

    python benchmarks/branches.py --assets .cache/assets --output benchmarks/results

deepcut and oskut-deepcut with 2048 rows as one request. Contestants, in alternating rounds:

- ort 1, ort 2: a bare session with one and with two intra-op threads
- ort parallel: a bare session that runs nodes in parallel, with two inter-op threads
- branches, threads: `plan("branches")` of two groups on Dask's threaded scheduler, one process
- branches, processes: the same on two workers of one thread each
- auto: the plan that `plan("auto", aim="latency")` chooses for the same request on two threads

The processes have separate rounds, which repeat the bare sessions: an idle cluster takes an eighth
of a core, and the contestants on threads run without a cluster.

The upper bound for two cores is measured too: two such requests in parallel on two bare threads,
against the two in sequence. No plan that uses two cores can be faster.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import onnxruntime
from common import against, alternate, print_table, write_json
from distributed import Client, LocalCluster

import dask_onnx as dx

_MODELS = ("deepcut", "oskut_deepcut")
_TWICE = "two at once"
_PROCESSES = "branches, processes"


def bare(path: Path, **options: Any) -> onnxruntime.InferenceSession:
    """Return a session with these options and no others."""
    made = onnxruntime.SessionOptions()
    for name, setting in options.items():
        setattr(made, name, setting)
    return onnxruntime.InferenceSession(str(path), made, providers=["CPUExecutionProvider"])


def measure(path: Path, rows: int, rounds: int) -> dict[str, Any]:
    model = dx.load(path)
    rng = np.random.default_rng(0)
    feeds = {spec.name: rng.integers(0, 12, (rows, 21)).astype("f4") for spec in model.inputs}
    one_thread = dx.SessionSpec(intra_op_num_threads=1)
    shapes = {name: array.shape for name, array in feeds.items()}
    model.plan(measure=feeds, session=one_thread)
    plan = model.plan("branches", n_workers=2, shapes=shapes, session=one_thread)
    auto = model.plan("auto", aim="latency", shapes=shapes)
    assert auto.verdict is not None
    sessions = {
        "ort 1": bare(path, intra_op_num_threads=1),
        "ort 2": bare(path, intra_op_num_threads=2),
        "ort parallel": bare(
            path,
            intra_op_num_threads=1,
            inter_op_num_threads=2,
            execution_mode=onnxruntime.ExecutionMode.ORT_PARALLEL,
        ),
    }
    plain: dict[str, Callable[[], Any]] = {
        name: lambda session=session: session.run(None, feeds)[0]
        for name, session in sessions.items()
    }
    alone = sessions["ort 1"]
    with ThreadPoolExecutor(2) as pool:

        def two_at_once() -> Any:
            found = [pool.submit(alone.run, None, feeds) for _ in range(2)]
            return [future.result()[0] for future in found].pop()

        runners = {
            **plain,
            "branches, threads": lambda: model.predict(feeds, plan=plan, batch_size=None),
            "auto": lambda: model.predict(feeds, plan=auto),
            _TWICE: two_at_once,
        }
        on_threads, differences = compared(runners, rounds)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        runners = {**plain, _PROCESSES: runners["branches, threads"]}
        on_processes, more = compared(runners, rounds)
    capacity = 2 * np.divide(on_threads["ort 1"], on_threads.pop(_TWICE))
    best = min(plain, key=lambda name: np.median(on_threads[name]))
    found = speeds(on_threads, best)
    found[_PROCESSES] = speeds(on_processes, best)[_PROCESSES]
    differences |= more
    return {
        "rows": rows,
        "stages": [stage.cost.seconds for stage in plan.stages],
        "sent_bytes": sum(edge.bytes for edge in plan.stage_graph.edges),
        "best_of_ort": best,
        "two_cores": float(np.median(capacity)),
        "verdict": [auto.verdict.sentence],
        "contestants": {
            name: {**numbers, "difference": differences[name]} for name, numbers in found.items()
        },
    }


def compared(
    runners: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return each contestant's seconds by round, and its difference from ORT on one thread."""
    expected = runners["ort 1"]()
    differences = {name: float(np.abs(run() - expected).max()) for name, run in runners.items()}
    for run in runners.values():
        run()
    return alternate(runners, rounds), differences


def speeds(seconds: dict[str, list[float]], best: str) -> dict[str, dict[str, Any]]:
    """Return each contestant's seconds, and its speed relative to one thread and to the best."""
    beside_best = against(seconds, best)
    return {
        name: {**found, "of_best_of_ort": beside_best[name][f"of_{best.replace(' ', '_')}"]}
        for name, found in against(seconds, "ort 1").items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=2048)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in _MODELS:
        with (
            tempfile.TemporaryDirectory() as folder,
            dask.config.set({"onnx.store.directory": folder}),
        ):
            found = measure(arguments.assets / f"{name}.onnx", arguments.rows, arguments.rounds)
        results[name] = found
        stages = ", ".join(f"{1000 * seconds:.0f} ms" for seconds in found["stages"])
        print_table(
            f"{name}, {found['rows']} rows as one request; stages of {stages}, "
            f"{found['sent_bytes'] / 2**20:.1f} MiB between them",
            ["", "seconds", "of ort 1 (95 %)", f"of {found['best_of_ort']} (95 %)", "difference"],
            [
                [
                    each,
                    f"{numbers['seconds']['median']:.3f}",
                    "{:.2f} ({:.2f}-{:.2f})".format(*numbers["of_ort_1"]),
                    "{:.2f} ({:.2f}-{:.2f})".format(*numbers["of_best_of_ort"]),
                    f"{numbers['difference']:.1g}",
                ]
                for each, numbers in found["contestants"].items()
            ],
        )
        print(
            f"two requests at once on two bare threads: {found['two_cores']:.2f} times one by one"
        )
        print("\n".join(found["verdict"]))
    if arguments.output:
        write_json(arguments.output, "branches", results)


if __name__ == "__main__":
    main()
