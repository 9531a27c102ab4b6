"""Throughput by processes and threads of workers, against the limit.

    python benchmarks/threads.py --assets .cache/assets --output benchmarks/results

Contestants, in alternating rounds, for 2 x 1, 1 x 2 and 2 x 2 (processes x Dask threads):

- limit: two bare processes with a one-thread session each, no Dask, at their best rows a run
- ours: `model.predict(dask_array)` with default threads and rows a run
- ort default: `map_blocks` with a session cached in an imported module, ORT's default threads
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
from common import file_array, median_interval, print_table, spread, timed, write_json
from distributed import Client, LocalCluster
from imported_session import predict_block_with_defaults
from throughput import Work, _meta, _reduced_by_hand, bare_pair, prepare, reduced

import dask_onnx as dx

GRID = ((2, 1), (1, 2), (2, 2))
SIZES = (1, 2, 4)


def best_size(work: Work) -> int:
    """Return the rows a run at which the limit is fastest."""
    seconds = {}
    for size in SIZES:
        with bare_pair(replace(work, per_run=size)) as limit:
            seconds[size] = min(timed(limit) for _ in range(2))
    return min(seconds, key=lambda size: seconds[size])


def measure_cell(
    work: Work, limit: Callable[[], np.ndarray], processes: int, threads: int, rounds: int
) -> dict[str, Any]:
    model = dx.load(work.model)

    def ours() -> Any:
        return reduced(model.predict(file_array(work.data, work.chunk))).compute()

    def default() -> Any:
        lazy = file_array(work.data, work.chunk).map_blocks(
            predict_block_with_defaults, work.model, 8, dtype=np.float32, meta=_meta(model)
        )
        return _reduced_by_hand(lazy).compute()

    runners = {"limit": limit, "ours": ours, "ort default": default}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with (
        LocalCluster(
            n_workers=processes, threads_per_worker=threads, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        dx.configure(client)
        expected = limit()
        for run in (ours, default, ours):
            assert float(np.abs(run() - expected).max()) < 1e-4
        order = list(runners)
        for number in range(rounds):
            random.Random(number).shuffle(order)
            for name in order:
                seconds[name].append(timed(runners[name]))
    return {
        name: {
            "seconds": spread(values),
            "of_limit": median_interval(
                [a / b for a, b in zip(seconds["limit"], values, strict=True)]
            ),
        }
        for name, values in seconds.items()
    }


def main(assets: Path, output: Path | None, rounds: int, seconds: float, names: list[str]) -> None:
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set({"onnx.store.directory": f"{folder}/store"}),
    ):
        for name in names:
            work = prepare(name, assets, Path(folder), seconds, is_open=True)
            work = replace(work, per_run=best_size(work))
            with bare_pair(work) as limit:
                cells = {
                    f"{processes} x {threads}": measure_cell(
                        work, limit, processes, threads, rounds
                    )
                    for processes, threads in GRID
                }
            results[name] = {"rows": work.rows, "limit_rows_per_run": work.per_run, "cells": cells}
            print_table(
                f"{name}: {work.rows} rows, the limit at {work.per_run} rows a run; of the limit",
                ["processes x threads", "ours (95 %)", "ort default (95 %)"],
                [
                    [
                        cell,
                        *(
                            "{:.3f} ({:.3f}-{:.3f})".format(*found[contestant]["of_limit"])
                            for contestant in ("ours", "ort default")
                        ),
                    ]
                    for cell, found in cells.items()
                ],
            )
            for line in dx.load(work.model).plan().explain().splitlines():
                if line.startswith(("threads of a task", "rows of a run")):
                    print(line)
            if output:
                write_json(output, "threads", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=20, help="approximate seconds of the limit"
    )
    parser.add_argument("--only", choices=["squeezenet", "det"])
    arguments = parser.parse_args()
    main(
        arguments.assets,
        arguments.output,
        arguments.rounds,
        arguments.seconds,
        [arguments.only] if arguments.only else ["squeezenet", "det"],
    )
