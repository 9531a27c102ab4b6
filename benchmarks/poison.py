"""Rows that end their process, and batches that do not fit: what a caller sees of them.

    python benchmarks/poison.py --output benchmarks/results

One row among 10,000 aborts the process that runs it; two workers. Then batches of which one needs
more memory than a worker has. A new cluster and an empty store for each line.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from common import print_table, write_json
from distributed import Client, LocalCluster

import dask_onnx as dx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import poison_models

cloudpickle.register_pickle_by_value(poison_models)
ROWS, BAD, PARTS = 10_000, 4321, 16
X = np.random.default_rng(0).standard_normal((ROWS, 4), dtype=np.float32)
POISON = X.copy()
POISON[BAD, 2] = poison_models.MARK
COLUMNS = {"x": list("abcd")}
FEW = 256
"""Rows where each needs much memory."""


def table(x: np.ndarray) -> Any:
    """Return a lazy table of rows."""
    return dd.from_pandas(pd.DataFrame(x, columns=list("abcd")), npartitions=PARTS)


def poison(model: Any) -> dict[str, Callable[[], Any]]:
    """Return the requests with one bad row, by name."""
    lazy, bag = table(POISON), db.from_sequence(list(POISON), npartitions=PARTS)
    chunked = da.from_array(POISON, chunks=(ROWS // PARTS, 4))
    return {
        "numpy, raise": lambda: model.predict(POISON),
        "dask.array, raise": lambda: model.predict(chunked).compute(),
        "table, raise": lambda: model.predict(lazy, columns=COLUMNS).compute(),
        "table, null": lambda: model.predict(lazy, columns=COLUMNS, on_error="null").compute(),
        "table, checked": lambda: dask.compute(*model.predict_checked(lazy, columns=COLUMNS)),
        "bag, checked": lambda: dask.compute(*model.predict_checked(bag)),
    }


def memory(model: Any) -> dict[str, Callable[[], Any]]:
    """Return the requests whose runs do not fit, by name."""
    rows, lazy = X[:FEW], table(X[:FEW])
    chunked = da.from_array(rows, chunks=(64, 4))
    return {
        "numpy, batches of 64": lambda: model.predict(rows, batch_size=64),
        "dask.array, batches of 64": lambda: model.predict(chunked, batch_size=64).compute(),
        "table, batches of 64": lambda: model.predict(
            lazy.repartition(npartitions=4), columns=COLUMNS, batch_size=64
        ).compute(),
    }


def outcome(request: Callable[[], Any], rows: np.ndarray) -> str:
    """Return what a request ends in, in words; results are compared with numpy's."""
    expected = -(rows + 1)
    bad = (rows == poison_models.MARK).any(axis=1)
    try:
        found = request()
    except dx.DaskOnnxError as error:
        numbers = {name: error.numbers.get(name) for name in ("block", "row", "signal")}
        return f"{type(error).__name__} {numbers}"
    if isinstance(found, tuple):
        good, dead = found
        assert np.array_equal(np.asarray(good), expected[~bad])
        return f"{len(good)} right, {len(dead)} set aside"
    values = np.asarray(found, dtype=np.float32)
    assert np.array_equal(values[~bad], expected[~bad])
    nulls = int(np.isnan(values).any(axis=1).sum())
    return f"{len(values) - nulls} right, {nulls} null"


def measure(name: str, limit: str, function: Any, requests: Any, rows: np.ndarray) -> list[Any]:
    """Return the line of one request: its end, workers lost, seconds, and seconds once more."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DASK_ONNX__STORE__DIRECTORY"] = folder
        settings = {
            "onnx.store.directory": folder,
            "distributed.deploy.lost-worker-timeout": "600s",
        }
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            dx.configure(client)
            model = dx.load(poison_models.marked_model(), replace={"poison::Step": function})
            model.predict(X[:2])

            def lost() -> int:
                return client.run_on_scheduler(
                    lambda dask_scheduler: dask_scheduler._workers_removed_total
                )

            line: list[Any] = [name]
            for _ in range(2):
                before, began = lost(), time.perf_counter()
                end = outcome(requests(model)[name], rows)
                seconds = time.perf_counter() - began
                line += [end] if len(line) == 1 else []
                line += [lost() - before, round(seconds, 1)]
            return line


def main(output: Path | None) -> None:
    """Measure, print and write all lines."""
    warnings.simplefilter("ignore")
    lines = [
        measure(name, "2GB", poison_models.abort_on_mark, poison, POISON) for name in poison(_none)
    ]
    lines += [
        measure(name, "700MB", poison_models.hungry, memory, X[:FEW]) for name in memory(_none)
    ]
    head = ["request", "what the caller sees", "workers lost", "seconds", "lost again", "seconds"]
    print_table(
        "Rows that end their process, runs that do not fit; then the same again", head, lines
    )
    if output is not None:
        write_json(output, "poison", {str(line[0]): line[1:] for line in lines})


_none: Any = None
"""In place of a model, where only the names of requests are asked for."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    main(parser.parse_args().output)
