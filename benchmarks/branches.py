"""Branches: one request of a wide graph, its branches side by side, against ONNX Runtime alone.

    python benchmarks/branches.py --assets .cache/assets --output benchmarks/results

deepcut and oskut-deepcut with 2048 rows as one request. Contestants, in alternating rounds:

- ort 1, ort 2: a bare session with one and with two intra-op threads
- ort parallel: a bare session that runs nodes side by side, with two inter-op threads
- branches, threads: `plan("branches")` of two groups on Dask's threaded scheduler, one process
- branches, processes: the same on two workers of one thread each
- auto: what `plan("auto", aim="latency")` takes for the same request on two threads

What two cores are worth here is told beside it: two such requests at once, on two bare threads,
against one after the other. No cut in two can be faster than that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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


def bare(path: Path, **options: Any) -> onnxruntime.InferenceSession:
    """A session as anybody would make it."""
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
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        ExitStack() as stack,
    ):
        dx.configure(client)

        def on_processes() -> Any:
            with dask.config.set(scheduler=client):
                return model.predict(feeds, plan=plan, batch_size=None)

        runners: dict[str, Callable[[], Any]] = {
            name: lambda session=session: session.run(None, feeds)[0]  # type: ignore[misc]
            for name, session in sessions.items()
        }
        runners["branches, threads"] = lambda: model.predict(feeds, plan=plan, batch_size=None)
        runners["branches, processes"] = on_processes
        runners["auto"] = lambda: model.predict(feeds, plan=auto)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        alone = sessions["ort 1"]

        def two_at_once() -> Any:
            found = [pool.submit(alone.run, None, feeds) for _ in range(2)]
            return [future.result()[0] for future in found].pop()

        runners[_TWICE] = two_at_once
        expected = runners["ort 1"]()
        differences = {
            name: float(np.abs(runner() - expected).max()) for name, runner in runners.items()
        }
        for runner in runners.values():
            runner()
        seconds = alternate(runners, rounds)
    capacity = 2 * np.divide(seconds["ort 1"], seconds.pop(_TWICE))
    best = min(("ort 1", "ort 2", "ort parallel"), key=lambda name: np.median(seconds[name]))
    beside_one, beside_best = against(seconds, "ort 1"), against(seconds, best)
    return {
        "rows": rows,
        "stages": [stage.cost.seconds for stage in plan.stages],
        "sent_bytes": sum(edge.bytes for edge in plan.stage_graph.edges),
        "best_of_ort": best,
        "two_cores": float(np.median(capacity)),
        "verdict": auto.verdict.describe(),
        "contestants": {
            name: {
                **beside_one[name],
                "of_best_of_ort": beside_best[name][f"of_{best.replace(' ', '_')}"],
                "difference": differences[name],
            }
            for name in seconds
        },
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
            dask.config.set({"dask_onnx.store.directory": folder}),
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
