"""Pipelines: a transformer in stages on two workers of one thread, against the whole model.

    python benchmarks/pipeline.py --output benchmarks/results

32 micro-batches of a 12- and of a 24-layer transformer that the script makes. Contestants, in
alternating rounds:

- whole on one: the whole model on one worker
- whole on two: the whole model, its batches shared by two workers (data parallel)
- pipeline of 2, of 4: contiguous stages, planned with measured node times; each worker has its own
  worker group, whose weights the other never loads
- the same, preferred: an idle worker may take waiting tasks of the other's worker group
- the same, anywhere: without worker groups, as Dask places the stages

Reported beside the ratios are each stage's predicted and measured time, the share of the workers'
time in which none of their stages runs (the bubble), and the memory of the workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
from common import against, alternate, file_array, print_table, reduced, write_json
from distributed import Client, LocalCluster
from transformer import make_transformer

import dask_onnx as dx


def memory() -> int:
    """Return the proportional set size of this process in bytes."""
    return int(psutil.Process().memory_full_info().pss)


@contextmanager
def two_workers() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        yield client


def pipelines(plans: Mapping[int, dx.Plan]) -> dict[str, dx.Plan]:
    found = {}
    for n, plan in plans.items():
        preferred = dx.Placement.one_each(n, 2, allow_other_workers=True)
        found[f"pipeline of {n}"] = plan
        found[f"pipeline of {n}, preferred"] = plan.with_placement(preferred)
        found[f"pipeline of {n}, anywhere"] = plan.with_placement(None)
    return found


def run(client: Client, model: dx.Model, x: Any, plan: dx.Plan, **where: Any) -> np.ndarray:
    lazy = reduced(model.predict(x, plan=plan, batch_size=None))
    return np.asarray(client.compute(lazy, **where).result())


def measure(path: Path, x: np.ndarray, rows: int, rounds: int) -> dict[str, Any]:
    model = dx.load(path)
    weights = model.analysis.parameter_bytes
    one_thread = dx.SessionSpec(intra_op_num_threads=1)
    whole = model.plan(measure=x[:rows], session=one_thread)
    plans = {n: pipeline_plan(model, n, x[:rows].shape, one_thread) for n in (2, 4)}
    np.save(path.with_suffix(".npy"), x)
    chunked = file_array(str(path.with_suffix(".npy")), rows)
    held: dict[str, list[int]] = {}
    took: dict[str, list[float]] = {}
    bubbles: dict[str, float] = {}

    expected = None
    for name, plan in {"whole on two": whole, **pipelines(plans)}.items():
        # A fresh cluster, so that workers hold only the weights that this contestant loads.
        with two_workers() as client:
            found = run(client, model, chunked, plan)
            held[name] = sorted(client.run(memory).values())
            began = time.perf_counter()
            run(client, model, chunked, plan)
            whole_time = time.perf_counter() - began
            after = plan.measured()
            assert after is not None
            took[name] = [float(times.seconds) for times in after.stages if times is not None]
            batches = len(x) // rows
            bubbles[name] = 1 - batches * sum(took[name]) / (2 * whole_time)
        expected = found if expected is None else expected
        assert float(np.abs(found - expected).max()) < 1e-3, name
    with two_workers() as client:
        first = min(client.scheduler_info()["workers"])
        alone = {"workers": [first], "allow_other_workers": False}
        runners: dict[str, Callable[[], np.ndarray]] = {
            "whole on one": lambda: run(client, model, chunked, whole, **alone),
            "whole on two": lambda: run(client, model, chunked, whole),
            **{
                name: lambda plan=plan: run(client, model, chunked, plan)
                for name, plan in pipelines(plans).items()
            },
        }
        for runner in runners.values():
            runner()
        seconds = alternate(runners, rounds)
    beside_one = against(seconds, "whole on one")
    beside_two = against(seconds, "whole on two")
    return {
        "weights": weights,
        "micro_batches": len(x) // rows,
        "rows_per_batch": rows,
        "predicted_batch_seconds": whole.stage_graph.seconds,
        "stages": {
            str(n): [
                {
                    "seconds": stage.cost.seconds,
                    "measured": measured,
                    "weights_of_model": stage.cost.parameter_bytes / weights,
                }
                for stage, measured in zip(plan.stages, took[f"pipeline of {n}"], strict=True)
            ]
            for n, plan in plans.items()
        },
        "contestants": {
            name: {
                **beside_one[name],
                **beside_two[name],
                "worker_pss": held.get(name, []),
                "bubble": bubbles.get(name),
            }
            for name in seconds
        },
    }


def pipeline_plan(model: dx.Model, stages: int, shape: tuple[int, ...], session: Any) -> Any:
    """Return a pipeline whose stages alternate between two worker groups."""
    plan = model.plan("pipeline", n_stages=stages, shapes={"x": shape}, session=session)
    return plan.with_placement(dx.Placement.one_each(stages, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=4, help="of a micro-batch")
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24])
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for layers in arguments.layers:
        with (
            tempfile.TemporaryDirectory() as name,
            dask.config.set({"onnx.store.directory": f"{name}/store"}),
        ):
            path = Path(name) / "model.onnx"
            make_transformer(path, layers, arguments.width)
            shape = (arguments.rows * arguments.batches, arguments.tokens, arguments.width)
            x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
            found = measure(path, x, arguments.rows, arguments.rounds)
        results[f"{layers} layers"] = found
        print_table(
            f"{layers} layers, {found['weights'] / 2**20:.0f} MiB of weights, "
            f"{found['micro_batches']} micro-batches of {found['rows_per_batch']} rows, "
            f"{1000 * found['predicted_batch_seconds']:.0f} ms each as measured",
            [
                "",
                "seconds",
                "of one worker (95 %)",
                "of data parallel (95 %)",
                "bubble",
                "PSS, MiB",
            ],
            [
                [
                    name,
                    f"{each['seconds']['median']:.2f}",
                    "{:.2f} ({:.2f}-{:.2f})".format(*each["of_whole_on_one"]),
                    "{:.2f} ({:.2f}-{:.2f})".format(*each["of_whole_on_two"]),
                    "" if each["bubble"] is None else f"{each['bubble']:.0%}",
                    " + ".join(f"{size / 2**20:.0f}" for size in each["worker_pss"]),
                ]
                for name, each in found["contestants"].items()
            ],
        )
        for stages, each in found["stages"].items():
            shares = ", ".join(
                f"{1000 * stage['seconds']:.0f} ms (measured {1000 * stage['measured']:.0f}), "
                f"{stage['weights_of_model']:.2f} of the weights"
                for stage in each
            )
            print(f"stages of {stages}: {shares}")
    if arguments.output:
        write_json(arguments.output, "pipeline", results)


if __name__ == "__main__":
    main()
