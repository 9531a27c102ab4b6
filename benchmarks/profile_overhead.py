"""Cost of recording: the same work with and without a profile, in turns.

    python benchmarks/profile_overhead.py --assets .cache/assets --output benchmarks/results

Two workers with one thread each. PP-OCR detection on pictures of 320 x 320, one in each task, and
tasks of a small model of 10 ms. Each round runs every contestant once, in random order, and
compares rows per second with those of no profile in the same round.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from common import against, alternate, print_table, write_json
from distributed import Client, LocalCluster

import dask_onnx as dx


def small_model(seconds: float) -> tuple[Any, int]:
    """Return a dense model, and the rows of a task of so many seconds."""
    import time

    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 256])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = dx.load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    rows = 256
    while True:
        x = np.ones((rows, 256), np.float32)
        model.predict(x, batch_size=None)
        began = time.perf_counter()
        model.predict(x, batch_size=None)
        if time.perf_counter() - began > seconds:
            return model, rows
        rows *= 2


def pieces(rows: int, tasks: int, shape: tuple[int, ...]) -> da.Array:
    """Return a lazy array of zeros, one chunk for each task."""
    return da.zeros((rows * tasks, *shape), chunks=(rows, *shape), dtype=np.float32)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    small, rows = small_model(0.01)
    detector = dx.load(arguments.assets / "det.onnx")
    work = {
        "PP-OCR det": (detector, pieces(1, arguments.tasks, (3, 320, 320))),
        "tasks of 10 ms": (small, pieces(rows, 8 * arguments.tasks, (256,))),
    }
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        for title, (model, x) in work.items():
            runners = {
                name: lambda model=model, x=x, nodes=nodes: run(model, x, nodes)
                for name, nodes in (("limit", None), ("none", "none"), ("sample", "sample"))
            }
            for runner in runners.values():
                runner()
            found = against(inner(alternate(runners, arguments.rounds)), "limit")
            results[title] = found
            print_table(
                f"{title}: rows per second with a profile, of those without (95 %)",
                ["nodes", "seconds", "relative"],
                [
                    [
                        name,
                        f"{own['seconds']['median']:.2f}",
                        "{:.3f} ({:.3f}-{:.3f})".format(*own["of_limit"]),
                    ]
                    for name, own in found.items()
                ],
            )
    return results


_SECONDS: dict[str, list[float]] = {"limit": [], "none": [], "sample": []}
"""Seconds of the work itself: a profile begins before it, and replays its sample after it."""


def run(model: Any, x: da.Array, nodes: Any) -> None:
    import contextlib
    import time

    # Other keys each time, so that Dask computes anew.
    y = model.predict(x + np.float32(np.random.default_rng().random())).max()
    with dx.profile(nodes=nodes) if nodes else contextlib.nullcontext():
        began = time.perf_counter()
        y.compute()
        seconds = time.perf_counter() - began
    _SECONDS["limit" if nodes is None else nodes].append(seconds)


def inner(outer: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the seconds of the work itself in the rounds that `alternate` has timed."""
    found = {name: _SECONDS[name][-len(own) :] for name, own in outer.items()}
    for own in _SECONDS.values():
        own.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=40)
    arguments = parser.parse_args()
    results = measure(arguments)
    if arguments.output:
        write_json(arguments.output, "profile_overhead", results)


if __name__ == "__main__":
    main()
