"""A plan of one stage for each node of a wide graph: time to plan and time to run.

    python benchmarks/per_node.py --assets .cache/assets --output benchmarks/results

oskut-deepcut, 1061 nodes, on Dask's threaded scheduler in this process, against ONNX's reference
evaluator, which also runs node by node, in alternating rounds on the same input.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import dask
import numpy as np
from common import median_interval, print_table, spread, timed, write_json
from onnx.reference import ReferenceEvaluator

import dask_onnx as dx
from dask_onnx.runtime.session_cache import SESSION_CACHE

ROWS = (1, 256, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    path = str(arguments.assets / "oskut_deepcut.onnx")
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": folder, "scheduler": "threads"}),
    ):
        model = dx.load(path)
        plans = []
        results: dict[str, object] = {"plan_seconds": timed(lambda: plans.append(_plan(model)))}
        (plan,) = plans
        evaluator = ReferenceEvaluator(path)
        table = []
        for rows in ROWS:
            feeds = {
                spec.name: rng.integers(0, size, (rows, 21)).astype(np.float32)
                for spec, size in zip(model.inputs, (178, 12), strict=True)
            }
            first = timed(lambda f=feeds: model.predict(f, plan=plan, batch_size=None))
            found = model.predict(feeds, plan=plan, batch_size=None)
            (expected,) = evaluator.run(None, feeds)
            seconds: dict[str, list[float]] = {"ours": [], "reference": []}
            for _ in range(arguments.rounds):
                seconds["ours"].append(
                    timed(lambda f=feeds: model.predict(f, plan=plan, batch_size=None))
                )
                seconds["reference"].append(timed(lambda f=feeds: evaluator.run(None, f)))
            ratio = median_interval(
                [a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True)]
            )
            results[str(rows)] = {
                "first_seconds": first,
                "ours": spread(seconds["ours"]),
                "reference": spread(seconds["reference"]),
                "reference_over_ours": ratio,
                "difference": float(np.abs(found - expected).max()),
            }
            table.append(
                [
                    str(rows),
                    f"{first:.2f} s",
                    f"{np.median(seconds['ours']):.3f} s",
                    f"{np.median(seconds['reference']):.3f} s",
                    "{:.2f} ({:.2f}-{:.2f})".format(*ratio),
                ]
            )
        results["stages"], results["sessions"] = len(plan.stages), SESSION_CACHE.built
    print(
        f"{len(plan.stages)} stages planned in {results['plan_seconds']:.2f} s, "
        f"{SESSION_CACHE.built} sessions"
    )
    print_table(
        "oskut-deepcut, a stage for each node",
        ["rows", "first run", "ours", "onnx.reference", "reference / ours (95 %)"],
        table,
    )
    if arguments.output:
        write_json(arguments.output, "per_node", results)


def _plan(model: dx.Model) -> dx.Plan:
    return model.plan("per_node")


if __name__ == "__main__":
    main()
